"""Patterns of ``.gitignore``, for folders that are no git repository and for our own ``.mcignore``.

As in gitignore(5): the last pattern that matches decides, ``!`` takes back, a slash ties a pattern to its file's folder, ``**``
spans folders, and nothing inside a folder that is left out can be taken back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One pattern.

    Attributes:
        pattern: matches paths below ``base``.
        keeps: it takes back what an earlier one left out.
        folders_only: it is about folders.
        base: the folder that it is told for, ``""`` or ending in a slash.
    """

    pattern: re.Pattern[str]
    keeps: bool
    folders_only: bool
    base: str

    def matches(self, path: str, folder: bool) -> bool:
        """Whether it is about this path."""
        if (self.folders_only and not folder) or not path.startswith(self.base):
            return False
        return self.pattern.fullmatch(path, len(self.base)) is not None


def rules_of(text: str, base: str = "") -> list[Rule]:
    """The patterns of a file.

    Args:
        text: its content.
        base: its folder, relative to the root with slashes, and a slash at its end; empty for the root.

    >>> rules = rules_of("*.log\\n!keep.log\\n/build/\\ndocs/**/draft?.md\\n# a comment")
    >>> [ignored(rules, path) for path in ("a/x.log", "a/keep.log", "docs/a/b/draft1.md", "docs/final.md")]
    [True, False, True, False]
    >>> ignored(rules, "build", folder=True), ignored(rules, "a/build", folder=True), ignored(rules, "build")
    (True, False, False)
    """
    found = []
    for line in text.splitlines():
        line = re.sub(r"(?<!\\) +$", "", line.rstrip("\r"))
        if not line or line.startswith("#"):
            continue
        keeps = line.startswith("!")
        line = line[1:] if keeps else line
        folders_only = line.endswith("/")
        line = line.rstrip("/") if folders_only else line
        tied = "/" in line
        line = line.removeprefix("/")
        if line:
            regex = _regex(line)
            try:
                pattern = re.compile(regex if tied else f"(?:.*/)?{regex}", re.DOTALL)
            except re.error:
                continue  # git takes a broken pattern for one that matches nothing
            found.append(Rule(pattern, keeps, folders_only, base))
    return found


def ignored(rules: Iterable[Rule], path: str, *, folder: bool = False) -> bool:
    """Whether a path is left out, going by its own name; the folders above it are asked about on the way down.

    Args:
        rules: in the order of their files, outermost first.
        path: relative to the root, with slashes.
        folder: whether it is one.
    """
    left_out = False
    for rule in rules:
        if rule.keeps == left_out and rule.matches(path, folder):
            left_out = not rule.keeps
    return left_out


def ignored_below(rules: list[Rule], path: str) -> bool:
    """Whether a file is left out, or a folder above it."""
    parts = path.split("/")
    return any(ignored(rules, "/".join(parts[:count]), folder=True) for count in range(1, len(parts))) or ignored(
        rules, path
    )


def _regex(glob: str) -> str:
    pieces, place = [], 0
    while place < len(glob):
        rest = glob[place:]
        if rest.startswith("**/") and (place == 0 or glob[place - 1] == "/"):
            pieces.append("(?:.*/)?")
            place += 3
        elif rest == "**" and place and glob[place - 1] == "/":
            pieces.append(".+")
            place += 2
        elif rest[0] == "*":
            pieces.append("[^/]*")
            place += len(rest) - len(rest.lstrip("*"))
        elif rest[0] == "?":
            pieces.append("[^/]")
            place += 1
        elif rest[0] == "[" and (end := glob.find("]", place + 2 + (rest[1:2] in ("!", "^")))) > 0:
            inner = glob[place + 1 : end]
            negated = inner.startswith(("!", "^"))
            inner = inner[1:] if negated else inner
            escaped = inner.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace("&&", "&\\&")
            pieces.append(f"(?!/)[{'^' if negated else ''}{escaped}]")
            place = end + 1
        elif rest[0] == "\\" and len(rest) > 1:
            pieces.append(re.escape(rest[1]))
            place += 2
        else:
            pieces.append(re.escape(rest[0]))
            place += 1
    return "".join(pieces)
