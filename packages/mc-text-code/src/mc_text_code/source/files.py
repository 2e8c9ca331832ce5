"""Which files of a folder hold source code, going by their names and sizes.

In a git repository, what git tracks or would track; elsewhere all files that no ``.gitignore`` leaves out. ``.mcignore`` files,
of the same form, hold in both. What is left out is counted, with the reason and an example.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mc_core.errors import DataError
from mc_core.files import StrPath
from mc_text_code.source.ignore import Rule, ignored, ignored_below, rules_of
from mc_text_code.source.languages import language_of

MAX_BYTES = 1_000_000
MAX_DATA_BYTES = 128_000
"""Of files that are data as often as source: JSON, XML, HTML, text."""

IGNORE_FILE = ".mcignore"


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GIT_SECONDS = 120
_LEFT_OUT_FOLDERS = _set("""
    .git .hg .svn .bzr .jj __pycache__ node_modules bower_components .tox .nox .venv venv .mypy_cache .ruff_cache
    .pytest_cache .idea .vscode .gradle .terraform .next .nuxt .cache .ipynb_checkpoints .eggs
""")
_BINARY = _set("""
    .7z .a .avif .bin .bmp .bz2 .class .dat .db .dll .dylib .eot .exe .flac .gif .gz .h5 .ico .jar .jpeg .jpg .ko
    .lib .mkv .mo .mov .mp3 .mp4 .node .npy .npz .o .obj .ogg .onnx .otf .parquet .pb .pdf .pickle .pkl .png .psd
    .pt .pth .pyc .pyd .pyo .rar .safetensors .so .sqlite .sqlite3 .tar .tgz .tif .tiff .ttf .wasm .wav .webm .webp
    .whl .woff .woff2 .xz .zip .zst
""")
_DATA = _set("""
    .csv .tsv .svg .map .ipynb .po .pot .lock .log .dump .geojson .ndjson .jsonl .plist .strings .diff .patch .sum
    .snap .pem .crt .key
""")
_OFTEN_DATA = frozenset(("json", "xml", "html", "text", "yaml", "sql", "css"))
_GENERATED_NAMES = re.compile(
    r"package-lock\.json|npm-shrinkwrap\.json|yarn\.lock|pnpm-lock\.yaml|composer\.lock|.*_pb2(?:_grpc)?\.pyi?|.*\.pb\.go|"
    r".*\.designer\.\w+|.*\.g\.(?:cs|dart)|.*\.generated\.\w+"
)
_MINIFIED_NAMES = re.compile(r".*[.-]min\.\w+|.*\.bundle\.js", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that may hold source code.

    Attributes:
        path: relative to the root, with slashes.
        location: where it is.
        size: bytes.
        mtime_ns: time of its last change, in nanoseconds.
    """

    path: str
    location: Path
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was left out.

    Attributes:
        path: relative to the root.
        reason: in a word or two, such as ``binary`` or ``too large``.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class SourceListing:
    """The files of a folder.

    Attributes:
        root: the folder.
        files: in the order of their paths.
        skipped: reason → how many; reading may add to it.
        examples: reason → the first of them.
        from_git: git told which files there are.
        note: why git was not asked where it might have been; else empty.
    """

    root: Path
    files: list[SourceFile]
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    from_git: bool = False
    note: str = ""

    def skip(self, one: Skipped) -> None:
        """Counts a file that was left out."""
        self.skipped[one.reason] += 1
        self.examples.setdefault(one.reason, one.path)

    def summary(self) -> str:
        """One line for people.

        >>> SourceListing(Path("/x"), [], Counter({"binary": 2}), {"binary": "a.png"}).summary()
        '0 files; left out: 2 binary (a.png …)'
        """
        parts = [
            f"{count:,} {reason} ({self.examples[reason]}{' …' if count > 1 else ''})"
            for reason, count in self.skipped.most_common()
        ]
        return f"{len(self.files):,} files" + (f"; left out: {', '.join(parts)}" if parts else "")


def source_files(
    root: StrPath,
    *,
    max_bytes: int = MAX_BYTES,
    use_git: bool = True,
    folders_left_out: Collection[str] = (),
) -> SourceListing:
    """The files of a folder that may hold source code, going by name and size; none is opened.

    Links are not followed, so that nothing is found twice, outside the folder, or in a loop.

    Args:
        root: a folder, or a single file.
        max_bytes: larger files are left out.
        use_git: ask git which files there are; without it, ignore files tell.
        folders_left_out: names of folders that are not looked into, where git is not asked.

    Raises:
        DataError: there is no such folder, or it cannot be read.

    >>> listing = source_files(Path(__file__).parent)
    >>> "files.py" in [file.path for file in listing.files]
    True
    """
    given = Path(root)
    try:
        folder = given.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{given}: no such folder ({getattr(error, 'strerror', None) or error})") from error
    if folder.is_file():
        listing = SourceListing(folder.parent, [])
        _add(listing, folder, folder.name, max_bytes)
        return listing
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise DataError(f"{given} cannot be read ({error.strerror}); check its permissions") from error
    listed, note = _git_files(folder) if use_git else (None, "")
    listing = SourceListing(folder, [], from_git=listed is not None, note=note)
    if listed is None:
        found = _walk(folder, "", [], listing, _LEFT_OUT_FOLDERS.union(folders_left_out))
    else:
        found = _from_git(folder, listed, listing)
    for path, location in found:
        _add(listing, location, path, max_bytes)
    listing.files.sort(key=lambda file: file.path)
    return listing


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    # a monitor named in a repository's own configuration is a program: it must not run because somebody searches there
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    return subprocess.run(command, cwd=folder, capture_output=True, timeout=_GIT_SECONDS, env=environment, check=False)


def _git_files(folder: Path) -> tuple[list[str] | None, str]:
    """Paths that git tracks or would track; None where it cannot be asked, with the reason where there is a repository."""
    try:
        if _git(folder, "check-ignore", "-q", ".").returncode == 0:
            return None, "git leaves this folder out; all its files are taken"
        done = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    except (OSError, subprocess.TimeoutExpired) as error:
        there = any((parent / ".git").exists() for parent in (folder, *folder.parents))
        return None, f"git could not be asked ({type(error).__name__}); .gitignore files are read instead" * there
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        unknown = "not a git repository" in lines[0]
        return None, "" if unknown else f"git could not be asked ({lines[0]}); .gitignore files are read instead"
    return list(dict.fromkeys(os.fsdecode(name) for name in done.stdout.split(b"\0") if name)), ""


def _from_git(folder: Path, names: list[str], listing: SourceListing) -> Iterator[tuple[str, Path]]:
    rules: list[Rule] = []
    for name in sorted(name for name in names if name.rpartition("/")[2] == IGNORE_FILE):
        rules += _read_rules(folder / name, name.removesuffix(IGNORE_FILE))
    for name in names:
        path = name.rstrip("/")
        if rules and ignored_below(rules, path):
            listing.skip(Skipped(path, "ignored"))
        elif (folder / path).is_dir() and not (folder / path).is_symlink():  # another repository inside this one
            inner, _ = _git_files(folder / path)
            if inner is None:
                yield from _walk(folder / path, f"{path}/", rules, listing, _LEFT_OUT_FOLDERS)
            else:
                for one, location in _from_git(folder / path, inner, listing):
                    if ignored_below(rules, f"{path}/{one}"):
                        listing.skip(Skipped(f"{path}/{one}", "ignored"))
                    else:
                        yield f"{path}/{one}", location
        else:
            yield path, folder / path


def _walk(
    folder: Path, base: str, rules: list[Rule], listing: SourceListing, left_out: Collection[str]
) -> Iterator[tuple[str, Path]]:
    waiting = [(folder, base, rules)]
    while waiting:
        folder, base, rules = waiting.pop()
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError:
            listing.skip(Skipped(base.rstrip("/") or ".", "unreadable"))
            continue
        rules = rules + [rule for name in (".gitignore", IGNORE_FILE) for rule in _read_rules(folder / name, base)]
        for entry in entries:
            path = base + entry.name
            folder_entry = entry.is_dir(follow_symlinks=False)
            if folder_entry and entry.name in left_out:
                continue
            if ignored(rules, path, folder=folder_entry):
                listing.skip(Skipped(path, "ignored"))
            elif folder_entry:
                waiting.append((Path(entry.path), f"{path}/", rules))
            else:
                yield path, Path(entry.path)


def _read_rules(path: Path, base: str) -> list[Rule]:
    try:
        text = path.read_text("utf-8", "replace") if path.is_file() else ""
    except OSError:
        return []
    if not base and "*" in text.split():
        return []  # a folder that asks git to leave it out, such as a virtual environment, yet was named by somebody
    return rules_of(text, base)


def _add(listing: SourceListing, location: Path, path: str, max_bytes: int) -> None:
    try:
        path.encode()
        info = location.lstat()
    except UnicodeEncodeError:
        listing.skip(Skipped(os.fsencode(path).decode("utf-8", "replace"), "no UTF-8 name"))
        return
    except FileNotFoundError:
        return  # git still tracks it, or it went while we looked
    except OSError:
        listing.skip(Skipped(path, "unreadable"))
        return
    if reason := _reason(path, info, max_bytes):
        listing.skip(Skipped(path, reason))
    else:
        listing.files.append(SourceFile(path, location, info.st_size, info.st_mtime_ns))


def _reason(path: str, info: os.stat_result, max_bytes: int) -> str:
    """Why a file is left out, going by its name and size; empty where it is not."""
    name = path.rpartition("/")[2]
    suffix = os.path.splitext(name)[1].lower()
    if stat.S_ISLNK(info.st_mode):
        return "symbolic link"
    if not stat.S_ISREG(info.st_mode):
        return "no regular file"
    if suffix in _BINARY:
        return "binary"
    if suffix in _DATA:
        return "data"
    if not info.st_size:
        return "empty"
    if info.st_size > max_bytes:
        return "too large"
    if _MINIFIED_NAMES.fullmatch(name):
        return "minified"
    if _GENERATED_NAMES.fullmatch(name):
        return "generated"
    often_data = language_of(path) in _OFTEN_DATA
    return "data" if often_data and info.st_size > MAX_DATA_BYTES else ""
