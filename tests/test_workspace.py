"""The workspace keeps its own rules: every member is wired in, typed, licensed and of one version."""

import re
import subprocess
import sys
import tomllib

import pytest

from mc_testkit.workspace import members, root

EVERY = [member for kind in ("packages", "apps", "shared") for member in members(kind)]
PROJECT = tomllib.loads((root() / "pyproject.toml").read_text())


def _project(member):
    return tomllib.loads((member.folder / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("member", EVERY, ids=lambda member: member.distribution)
def test_a_member_is_wired_into_the_workspace(member):
    sources = PROJECT["tool"]["uv"]["sources"]
    assert sources.get(member.distribution) == {"workspace": True}, (
        f"add `{member.distribution} = {{ workspace = true }}` to [tool.uv.sources] in pyproject.toml"
    )
    if member.folder.parent.name == "apps":
        assert member.distribution in PROJECT["project"]["dependencies"], (
            f'add "{member.distribution}" to the root\'s dependencies in pyproject.toml'
        )


@pytest.mark.parametrize("member", EVERY, ids=lambda member: member.distribution)
def test_a_member_has_what_every_member_has(member):
    source = member.folder / "src" / member.module
    assert (source / "py.typed").exists()
    assert (member.folder / "README.md").read_text().startswith("# ")
    assert "Apache License" in (member.folder / "LICENSE").read_text()
    assert list((member.folder / "tests").glob("test_*.py")), f"{member.distribution} has no tests"
    project = _project(member)
    assert project["license"] == "Apache-2.0"
    assert project["requires-python"] == PROJECT["project"]["requires-python"]


def test_one_version_for_all_and_siblings_pinned_to_it():
    version = PROJECT["project"]["version"]
    siblings = {member.distribution for member in EVERY}
    for member in EVERY:
        project = _project(member)
        assert project["version"] == version, member.distribution
        extras = project.get("optional-dependencies", {}).values()
        for requirement in [*project["dependencies"], *(r for extra in extras for r in extra)]:
            name = re.match(r"[A-Za-z0-9-]+", requirement)[0]
            own = name == project["name"]  # an extra of its own package needs no pin
            if name in siblings and not own:
                assert requirement.endswith(f"=={version}"), f"{member.distribution}: pin {requirement}"


def test_imports_run_down_only():
    done = subprocess.run([sys.executable, "-m", "mc_testkit.workspace"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "KEPT" in done.stdout


def test_the_import_rules_see_a_breach(tmp_path, monkeypatch):
    """The generated contracts name every package: an import from the core up into a domain would be reported."""
    from mc_testkit import workspace

    text = workspace.contracts()
    for member in (*members("packages"), *members("apps")):
        assert re.search(rf"^\s+{member.module}\b|\|\s*{member.module}\b", text, re.MULTILINE), member.module
    assert "torchvision" in text
