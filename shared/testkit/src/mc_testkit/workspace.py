"""The workspace as its folders say it is, and the import rules that follow. ``python -m mc_testkit.workspace`` checks them.

Imports run down only: app → its own domain package → core. A domain never imports another, the core imports none, and the core
and the wearables never load a library of another field. New members are found by their folder; nothing has to be listed.
"""

from __future__ import annotations

import configparser
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

# Libraries of one field that the core must not import, not even lazily through another module of ours.
_FIELD_LIBRARIES = (
    "timm",
    "torchvision",
    "transformers",
    "rasterio",
    "neurokit2",
    "tree_sitter",
    "sentence_transformers",
    "pydicom",
)


@dataclass(frozen=True)
class Member:
    """One workspace member: its folder, distribution name and import name."""

    folder: Path
    distribution: str
    module: str


def root() -> Path:
    """The workspace root, found upwards from this file, or from the current folder when this package is installed elsewhere."""
    for start in (Path(__file__).resolve(), Path.cwd().resolve() / "x"):
        for folder in start.parents:
            if (folder / "uv.lock").exists() and (folder / "packages").is_dir():
                return folder
    raise FileNotFoundError("no workspace root (a folder with uv.lock and packages/) above here")


def members(kind: str) -> list[Member]:
    """Members under ``packages``, ``apps`` or ``shared``, sorted by folder."""
    found = []
    for project in sorted((root() / kind).glob("*/pyproject.toml")):
        name = tomllib.loads(project.read_text())["project"]["name"]
        (module,) = (entry.name for entry in (project.parent / "src").iterdir() if (entry / "__init__.py").exists())
        found.append(Member(project.parent, name, module))
    return found


def contracts() -> str:
    """The import-linter configuration of this workspace."""
    core = "mc_core"
    domains = [member.module for member in members("packages") if member.module != core]
    apps = [member.module for member in members("apps")]
    config = configparser.ConfigParser()
    config["importlinter"] = {
        "root_packages": "\n" + "\n".join([core, *domains, *apps]),
        "include_external_packages": "True",
    }
    config["importlinter:contract:layers"] = {
        "name": "Imports run down: app, domain, core",
        "type": "layers",
        "layers": "\n" + "\n".join([" | ".join(apps), " | ".join(domains), core]),
    }
    for app in apps:
        own = app.removesuffix("_app")
        others = [domain for domain in domains if domain != own]
        if others:
            config[f"importlinter:contract:{app}"] = {
                "name": f"{app} uses its own domain alone",
                "type": "forbidden",
                "source_modules": app,
                "forbidden_modules": "\n" + "\n".join(others),
            }
    config["importlinter:contract:core-libraries"] = {
        "name": "The core knows no field",
        "type": "forbidden",
        "source_modules": core,
        "forbidden_modules": "\n" + "\n".join(_FIELD_LIBRARIES),
    }
    with tempfile.SpooledTemporaryFile(mode="w+") as file:
        config.write(file)
        file.seek(0)
        return file.read()


def main() -> int:
    """Check the import rules; 0 when all are kept."""
    with tempfile.NamedTemporaryFile("w", suffix=".ini") as file:
        file.write(contracts())
        file.flush()
        command = [str(Path(sys.executable).parent / "lint-imports"), "--config", file.name, "--no-cache"]
        return subprocess.run(command, cwd=root(), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
