"""Pairs of a question and the function that answers it, and how to part them so that a test means something."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_text_code.data.near_duplicates import THRESHOLD, near_duplicates

By = Literal["repository", "package", "file"]
_LEVELS: tuple[By, ...] = ("repository", "package", "file")
_FEWEST_GROUPS = 10


@dataclass(frozen=True, slots=True)
class CodePair:
    """A question and its function.

    Attributes:
        query: what is asked: the first paragraph of the documentation, or what somebody typed.
        code: the function without its documentation.
        language: its name.
        name: of the function; empty where it is not known.
        qualified_name: with its class.
        path: of the file.
        line: of the definition, from 1; 0 where it is not known.
        repository: where it comes from.
        package: the part of the repository: what splits keep together.
        licence: of the repository, as far as it is plain to see.
        url: what tells it from all others, where the source says so.
        partition: train, valid or test, where the source says so.
    """

    query: str
    code: str
    language: str = ""
    name: str = ""
    qualified_name: str = ""
    path: str = ""
    line: int = 0
    repository: str = ""
    package: str = ""
    licence: str = ""
    url: str = ""
    partition: str = ""

    def group(self, by: By) -> str:
        """What a split by repository, package or file keeps together."""
        if by == "repository":
            return self.repository
        return f"{self.repository}\0{self.package if by == 'package' else self.path}"


def hide_name(code: str, name: str, replacement: str = "function") -> str:
    """The code with a function's own name replaced wherever it stands as a word; what is left has to be found by what it does.

    >>> hide_name("def area(r):\\n    return area(r - 1) + area_of(r)", "area")
    'def function(r):\\n    return function(r - 1) + area_of(r)'
    """
    if not name:
        return code
    before, after = (
        "" if not re.match(r"\w", end) else edge for end, edge in ((name[0], r"(?<!\w)"), (name[-1], r"(?!\w)"))
    )
    return re.sub(before + re.escape(name) + after, lambda _: replacement, code)


@dataclass(frozen=True)
class PairSplit:
    """Pairs to train on, to choose with and to measure with; no group is in two parts.

    Attributes:
        train: pairs.
        valid: pairs.
        test: pairs.
        by: what was kept together.
        groups: how many groups each part has, by its name.
        near_duplicates: pairs left out because they repeat one in another part.
    """

    train: list[CodePair]
    valid: list[CodePair]
    test: list[CodePair]
    by: By
    groups: dict[str, int] = field(default_factory=dict)
    near_duplicates: int = 0


def require_pairs(pairs: Sequence[CodePair], fewest: int, *, what: str = "train on", source: str = "") -> None:
    """Raises a :class:`~mc_core.errors.DataError` that says how many pairs there are and how many are needed.

    >>> require_pairs([], 200, source="src")
    Traceback (most recent call last):
    ...
    mc_core.errors.DataError: src: 0 documented functions to train on, 200 are needed; document more, or name more code
    """
    if len(pairs) < fewest:
        place = f"{source}: " if source else ""
        raise DataError(
            f"{place}{len(pairs):,} documented functions to {what}, {fewest:,} are needed; document more, or name more code"
        )


def split_pairs(
    pairs: Sequence[CodePair],
    *,
    valid: float = 0.1,
    test: float = 0.1,
    by: By | None = None,
    seed: int = 0,
    threshold: float | None = THRESHOLD,
) -> PairSplit:
    """Parts that share no repository, package or file, and no near-duplicates.

    Groups are drawn at random. One that would make a part larger than asked for goes to the training part, so parts may come
    out a little smaller, and a group that holds most of the code is always trained on.

    Args:
        pairs: all.
        valid: share of the pairs to choose with.
        test: share to measure with.
        by: what stays together; default: repositories where there are ten or more, else packages, else files.
        seed: of the draw, which depends on nothing else but the groups' names and sizes.
        threshold: overlap of five-token shingles from which a function repeats another; None compares none.

    Raises:
        ConfigError: shares that are not between 0 and 1.
        DataError: fewer than three groups, or no group small enough for a part.

    >>> pairs = [CodePair(f"question {i}", f"def f{i}(): return {i}", package=f"p{i % 20}") for i in range(200)]
    >>> split = split_pairs(pairs)
    >>> len(split.train), len(split.valid), len(split.test), split.by, split.groups
    (160, 20, 20, 'package', {'train': 16, 'valid': 2, 'test': 2})
    """
    if not (0 <= valid < 1 and 0 < test < 1 and valid + test < 1):
        raise ConfigError(f"valid={valid}, test={test}: give shares between 0 and 1 that leave some to train on")
    level = by or next((b for b in _LEVELS if len({p.group(b) for p in pairs}) >= _FEWEST_GROUPS), "file")
    sizes = Counter(pair.group(level) for pair in pairs)
    if len(sizes) < 3:
        raise DataError(
            f"{len(pairs):,} pairs of {len(sizes)} {_plural(level)}: three or more are needed, for training, validation and test"
        )
    names = sorted(sizes)
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(names))
    room = {"test": round(test * len(pairs)), "valid": round(valid * len(pairs))}
    part_of: dict[str, str] = {}
    for name in (names[place] for place in order):
        part = next((part for part, left in room.items() if sizes[name] <= left), "train")
        part_of[name] = part
        if part in room:
            room[part] -= sizes[name]
    parts: dict[str, list[CodePair]] = {"train": [], "valid": [], "test": []}
    for pair in pairs:
        parts[part_of[pair.group(level)]].append(pair)
    if not parts["test"] or (valid and not parts["valid"]):
        raise DataError(
            f"no {level} is small enough for a part of {min(test, valid or test):.0%} of {len(pairs):,} pairs; "
            f"split by {'file' if level == 'package' else 'package'}, or ask for larger shares"
        )
    dropped = 0
    if threshold is not None:
        before = [pair.code for pair in parts["test"]]
        for part in ("valid", "train"):
            kept = near_duplicates([pair.code for pair in parts[part]], threshold=threshold, known=before) >= -1
            dropped += int((~kept).sum())
            parts[part] = [pair for pair, keep in zip(parts[part], kept.tolist(), strict=True) if keep]
            before += [pair.code for pair in parts[part]]
    groups = {part: len({pair.group(level) for pair in some}) for part, some in parts.items()}
    return PairSplit(parts["train"], parts["valid"], parts["test"], level, groups, dropped)


def _plural(level: By) -> str:
    return "repositories" if level == "repository" else f"{level}s"
