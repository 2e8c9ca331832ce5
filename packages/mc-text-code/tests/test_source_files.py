"""Which files are source code: as git has it, as ignore files have it, and none that are not text."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections import Counter

import pytest

from mc_core.errors import DataError
from mc_text_code.source import files as files_module
from mc_text_code.source.files import Skipped, SourceListing, source_files
from mc_text_code.source.ignore import ignored_below, rules_of
from mc_text_code.source.reading import SourceText, read_source, text_of

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def put(root, **contents):
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def paths(listing: SourceListing) -> list[str]:
    return [file.path for file in listing.files]


def git(root, *arguments):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main", *arguments]
    subprocess.run(command, cwd=root, check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path):
    return put(
        tmp_path / "tree",
        **{
            "a.py": "x = 1\n",
            "src/b.go": "package b\n",
            "src/skipme.py": "x",
            "build/out.js": "var x;\n",
            ".gitignore": "build/\n*.tmp\n",
            "src/.gitignore": "skip*\n",
            "note.tmp": "x",
            "image.png": b"\x89PNG",
            "table.csv": "a,b\n",
            "empty.py": "",
        },
    )


def test_a_folder_without_git_goes_by_ignore_files(tree):
    listing = source_files(tree)
    assert paths(listing) == [".gitignore", "a.py", "src/.gitignore", "src/b.go"]
    assert (listing.from_git, listing.note) == (False, "")
    assert listing.skipped == Counter(ignored=3, binary=1, data=1, empty=1)
    assert listing.examples["binary"] == "image.png"
    first = listing.files[1]
    info = (tree / "a.py").stat()
    assert (first.size, first.mtime_ns, first.location) == (info.st_size, info.st_mtime_ns, tree.resolve() / "a.py")
    assert listing.summary().startswith("4 files; left out: 3 ignored (build …)")


@needs_git
def test_a_repository_goes_by_git(tree):
    git(tree, "init")
    git(tree, "add", "a.py")
    git(tree, "add", "-f", "note.tmp")  # tracked although ignored
    listing = source_files(tree)
    assert listing.from_git
    assert paths(listing) == [".gitignore", "a.py", "note.tmp", "src/.gitignore", "src/b.go"]
    (tree / "a.py").unlink()  # tracked, and gone
    assert "a.py" not in paths(source_files(tree))
    assert paths(source_files(tree / "src")) == [".gitignore", "b.go"]


@needs_git
@pytest.mark.parametrize("with_git", [True, False])
def test_our_own_ignore_file_holds_in_both(tree, with_git):
    if with_git:
        git(tree, "init")
    put(tree, **{".mcignore": "/src/*\n!/src/b.go\n", "src/deep/c.py": "x = 1\n"})
    assert [path for path in paths(source_files(tree)) if not path.endswith("ignore")] == ["a.py", "src/b.go"]
    assert source_files(tree).from_git == with_git


@needs_git
def test_a_folder_that_git_leaves_out_can_be_named(tree):
    git(tree, "init")
    listing = source_files(tree / "build")
    assert paths(listing) == ["out.js"]
    assert listing.note == "git leaves this folder out; all its files are taken"
    put(tree, **{"env/.gitignore": "*\n", "env/lib/x.py": "x = 1\n"})  # as virtual environments do
    assert "lib/x.py" in paths(source_files(tree / "env"))


@needs_git
def test_a_repository_inside_a_repository(tree):
    git(tree, "init")
    inner = put(tree / "inner", **{"z.py": "z = 1\n", "w.log": "w", ".gitignore": "*.log\n"})
    git(inner, "init")
    assert "inner/z.py" in paths(source_files(tree))
    assert "inner/w.log" not in paths(source_files(tree))
    put(tree, **{".mcignore": "z.py\n"})
    assert "inner/z.py" not in paths(source_files(tree))


@needs_git
def test_programs_named_in_a_repository_do_not_run(tree):
    git(tree, "init")
    git(tree, "add", "a.py")
    (tree / "evil.sh").write_text("#!/bin/sh\ntouch ran\n")
    (tree / "evil.sh").chmod(0o755)
    git(tree, "config", "core.fsmonitor", "./evil.sh")
    assert "a.py" in paths(source_files(tree))
    assert not (tree / "ran").exists()


def test_git_that_fails_is_told(tree, monkeypatch):
    (tree / ".git").mkdir()

    def fails(*arguments, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", fails)
    listing = source_files(tree)
    assert listing.note == "git could not be asked (FileNotFoundError); .gitignore files are read instead"
    assert "a.py" in paths(listing)


@needs_git
def test_a_damaged_repository_is_told(tree):
    (tree / ".git").mkdir()
    (tree / ".git" / "HEAD").write_text("nonsense")
    listing = source_files(tree)
    assert "a.py" in paths(listing)
    assert not listing.from_git


def test_links_are_not_followed(tree):
    (tree / "src" / "loop").symlink_to(tree)
    (tree / "again.py").symlink_to(tree / "a.py")
    (tree / "self").symlink_to(tree / "self")
    listing = source_files(tree)
    assert listing.skipped["symbolic link"] == 3
    assert "again.py" not in paths(listing)
    link = tree.parent / "link"
    link.symlink_to(tree)
    assert paths(source_files(link)) == paths(listing)  # what was named may be one


def test_a_root_that_loops_or_is_missing(tree):
    (tree / "self").symlink_to(tree / "self")
    for name in ("self", "nothing"):
        with pytest.raises(DataError, match=f"{name}: no such folder"):
            source_files(tree / name)
    assert paths(source_files(tree / "a.py")) == ["a.py"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipes_are_left_out(tree):
    os.mkfifo(tree / "pipe.py")
    listing = source_files(tree)
    assert listing.skipped["no regular file"] == 1
    (file,) = [file for file in listing.files if file.path == "a.py"]
    (tree / "a.py").unlink()
    os.mkfifo(tree / "a.py")  # since it was listed
    assert read_source(file) in (Skipped("a.py", "empty"), Skipped("a.py", "unreadable"))


def test_names_that_are_no_text(tree):
    try:
        (tree / os.fsdecode(b"bad\xff.py")).write_text("x = 1")
    except (OSError, UnicodeEncodeError):
        pytest.skip("the file system takes no such name")
    listing = source_files(tree)
    assert listing.skipped["no UTF-8 name"] == 1
    listing.summary().encode()


def test_unreadable_files_and_folders(tree, monkeypatch):
    file = next(file for file in source_files(tree).files if file.path == "a.py")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("src"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert source_files(tree).skipped["unreadable"] == 1
    with pytest.raises(DataError, match="src cannot be read"):
        source_files(tree / "src")
    monkeypatch.setattr(os, "open", lambda *given: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert read_source(file) == Skipped("a.py", "unreadable")


def test_enormous_files_are_not_opened(tree):
    with (tree / "big.py").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with (tree / "data.json").open("wb") as file:
        file.truncate(200_000)
    listing = source_files(tree)
    assert listing.skipped["too large"] == 1
    assert listing.skipped["data"] == 2
    assert "a.py" not in paths(source_files(tree, max_bytes=3))


def test_a_file_that_grew_since_it_was_listed(tree):
    file = next(file for file in source_files(tree).files if file.path == "a.py")
    with (tree / "a.py").open("wb") as grown:
        grown.truncate(1 << 40)
    assert read_source(file) == Skipped("a.py", "binary")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.py", b"\x7fELF\x00\x01", "binary"),
        ("a.py", bytes(range(1, 32)) * 40, "binary"),
        ("a.py", b"\xff\xfe\x00", "binary"),  # cut-off UTF-16
        ("a.js", b"var a=1;" * 2_000, "minified"),
        ("a.js", b"// x\n" + b"f(1)," * 5_000 + b"\n//y\n", "minified"),
        ("a.go", b"// Code generated by protoc-gen-go. DO NOT EDIT.\npackage a\n", "generated"),
        ("a.py", b'"""Auto-generated by x.py."""\nX = 1\n', "generated"),
        ("a.java", b"/*\n * @generated by thrift\n */\nclass A {}\n", "generated"),
        ("a.py", b" \n\t\n", "empty"),
    ],
)
def test_what_is_no_source(name, data, reason):
    assert text_of(data, name) == Skipped(name, reason)


def test_what_only_talks_about_generating_is_source():
    text = b'"""Iterates over values generated by a stream. Do what you must, edit what you like."""\nx = 1\n'
    assert isinstance(text_of(text, "a.py"), SourceText)
    long_line = b"x = '" + b"a" * 20_000 + b"'\n" + b"y = 1\n" * 8_000
    assert isinstance(text_of(long_line, "a.py"), SourceText)


@pytest.mark.parametrize(
    ("data", "text", "note"),
    [
        ("größe".encode(), "größe", ""),
        (b"\xef\xbb\xbfx = 1", "x = 1", ""),
        ("größe".encode("utf-16"), "größe", "read as utf-16"),
        ("größe".encode("utf-32"), "größe", "read as utf-32"),
        (
            "# -*- coding: iso-8859-5 -*-\nпривет".encode("iso-8859-5"),
            "# -*- coding: iso-8859-5 -*-\nпривет",
            "read as iso-8859-5",
        ),
        ("# coding: nonsense\nö".encode("latin-1"), "# coding: nonsense\nö", "read as cp1252"),
        ("ö – „x“".encode("cp1252"), "ö – „x“", "read as cp1252"),
        (b"\x81\xe9", "\x81é", "read as latin-1"),
    ],
)
def test_other_encodings_are_read_with_a_note(data, text, note):
    found = text_of(data, "a.py")
    assert (found.source.decode(), found.note) == (text, note)


def test_scripts_without_an_extension():
    assert text_of(b"#!/usr/bin/env ruby\nputs 1\n", "bin/run").language == "ruby"
    assert text_of(b"#!/usr/bin/env ruby\nputs 1\n", "run.py").language == "python"


PATTERNS = """
*.log
!keep.log
/top
mid/dir
dir/
a?c
[xy]z
[!q]w
deep/**/end
**/any
tail/**
\\#hash
\\!bang
sp ace
star*dir/
!/top/back
[broken
foo[a-c]bar
/*.only
""".strip().splitlines()
NAMES = (
    "top",
    "mid",
    "dir",
    "abc",
    "a/c",
    "xz",
    "yz",
    "qw",
    "rw",
    "deep",
    "end",
    "any",
    "tail",
    "keep.log",
    "x.log",
    "#hash",
    "!bang",
    "back",
    "one.only",
    "star1dir",
    "foobbar",
    "f",
)


@needs_git
@pytest.mark.parametrize("seed", range(4))
def test_ignore_patterns_mean_what_they_mean_to_git(tmp_path, seed):
    rng = random.Random(seed)
    git(tmp_path, "init")
    nested = "sub/"
    root_patterns = rng.sample(PATTERNS, 9)
    sub_patterns = rng.sample(PATTERNS, 4)
    put(
        tmp_path,
        **{".gitignore": "\n".join(root_patterns) + "\n", f"{nested}.gitignore": "\n".join(sub_patterns) + "\n"},
    )
    asked = set()
    for _ in range(400):
        path = "/".join(rng.choice(NAMES) for _ in range(rng.randrange(1, 4)))
        asked.add((nested if rng.random() < 0.4 else "") + path)
    asked = sorted(asked)
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin", "-z"],
        cwd=tmp_path, input="\0".join(asked).encode(), capture_output=True, check=False,
    )  # fmt: skip
    expected = {os.fsdecode(name) for name in done.stdout.split(b"\0") if name}
    rules = rules_of((tmp_path / ".gitignore").read_text()) + rules_of(
        (tmp_path / nested / ".gitignore").read_text(), nested
    )
    found = {path for path in asked if ignored_below(rules, path)}
    assert found == expected, (root_patterns, sub_patterns, found ^ expected)
    assert expected


def test_folders_of_tools_are_not_walked(tree):
    put(tree, **{"node_modules/x/a.js": "x", "__pycache__/a.py": "x", ".venv/b.py": "x"})
    assert "node_modules/x/a.js" not in paths(source_files(tree))
    assert paths(source_files(tree / "node_modules")) == ["x/a.js"]
    assert "src/b.go" not in paths(source_files(tree, folders_left_out=("src",)))
    assert files_module.MAX_BYTES == 1_000_000
