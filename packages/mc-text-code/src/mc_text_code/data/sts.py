"""Semantic textual similarity: pairs of sentences with a score given by people, from local files.

What :func:`open_sts` reads, alone or mixed in one folder:

* SentEval: ``STS12-en-test/STS.input.X.txt`` beside ``STS.gs.X.txt``, ``STSBenchmark/sts-test.csv``, ``SICK/SICK_trial.txt``;
* tables: ``.parquet``, ``.csv``, ``.tsv``, ``.jsonl`` with columns ``sentence1``, ``sentence2`` and ``score``, optionally also
  ``dataset``, ``subset`` and ``split``; without them the file's name tells, as in ``mine-dev.tsv``.

Pairs without a gold score are left out and counted, as in SentEval. In a folder, tables without those columns are passed over.

The official tasks are STS 2012 to 2016 (Agirre et al.), the STS benchmark (Cer et al. 2017) and SICK-R (Marelli et al. 2014),
with the subsets and numbers of pairs of the SentEval fork of SimCSE, table 3 of ESimCSE (arXiv:2109.04380). Imports no torch.

Legend: N pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mc_core.errors import DataError, closest
from mc_text_code.data.sts_files import Rows, find_files, read_rows

TEST, TRAIN, DEV = "test", "train", "dev"
EVERY = "all"


@dataclass(frozen=True)
class Official:
    """What one of the seven tasks consists of.

    Attributes:
        pairs: with a gold score, in the test split.
        subsets: whose pairs are ranked together.
        scale: lowest and highest score.
    """

    pairs: int
    subsets: tuple[str, ...]
    scale: tuple[float, float] = (0.0, 5.0)


OFFICIAL: dict[str, Official] = {
    "STS12": Official(3108, ("MSRpar", "MSRvid", "SMTeuroparl", "OnWN", "SMTnews")),
    "STS13": Official(1500, ("FNWN", "headlines", "OnWN")),
    "STS14": Official(3750, ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news")),
    "STS15": Official(3000, ("answers-forums", "answers-students", "belief", "headlines", "images")),
    "STS16": Official(1186, ("answer-answer", "headlines", "plagiarism", "postediting", "question-question")),
    "STS-B": Official(1379, ()),
    "SICK-R": Official(4927, (), (1.0, 5.0)),
}
"""The seven tasks whose average is the usual headline."""


@dataclass(frozen=True)
class StsPairs:
    """Pairs of sentences with gold scores.

    Attributes:
        sentence1: N sentences.
        sentence2: N sentences.
        gold: (N,) float64, larger is more similar; on the scale of the task.
        subset: (N,) names of the parts they come from.
        dropped: pairs that had no gold score.
    """

    sentence1: tuple[str, ...]
    sentence2: tuple[str, ...]
    gold: np.ndarray
    subset: np.ndarray
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.gold)

    def subsets(self) -> list[str]:
        """Names of the parts, in order of appearance."""
        return list(dict.fromkeys(self.subset.tolist()))

    def sentences(self) -> list[str]:
        """All different sentences, in order of appearance."""
        return list(dict.fromkeys((*self.sentence1, *self.sentence2)))

    @classmethod
    def join(cls, parts: Iterable[StsPairs]) -> StsPairs:
        """The pairs of several, one after another."""
        found = list(parts)
        return cls(
            sum((part.sentence1 for part in found), ()),
            sum((part.sentence2 for part in found), ()),
            np.concatenate([part.gold for part in found]),
            np.concatenate([part.subset for part in found]),
            sum(part.dropped for part in found),
        )


@dataclass(frozen=True)
class StsTask:
    """One task, such as STS14, with its splits.

    Attributes:
        name: ``STS12`` … ``STS16``, ``STS-B``, ``SICK-R``, or the name of a file.
        splits: split → pairs; ``trial`` and ``validation`` are called ``dev``.
        scale: lowest and highest score.
    """

    name: str
    splits: Mapping[str, StsPairs]
    scale: tuple[float, float]

    def select(self, split: str | None = None) -> tuple[str, StsPairs]:
        """A split and its name.

        Args:
            split: a name; ``"all"`` for every pair of the task; None for ``test``, where there is none for ``train``, and where
                there is neither for whatever there is. The split ``dev`` stays free to choose a checkpoint with.

        Raises:
            DataError: the task has no such split.
        """
        if split is None:
            split = next((name for name in (TEST, TRAIN) if name in self.splits), EVERY)
        if split == EVERY:
            name = next(iter(self.splits)) if len(self.splits) == 1 else EVERY
            return name, StsPairs.join(self.splits.values())
        if split not in self.splits:
            raise DataError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        return split, self.splits[split]

    def scaled(self, gold: np.ndarray) -> np.ndarray:
        """Scores from 0 to 1."""
        low, high = self.scale
        return (np.asarray(gold, dtype=np.float64) - low) / ((high - low) or 1.0)


def difference_from_official(name: str, split: str, pairs: StsPairs) -> str:
    """What tells these pairs from the official test set, in words; empty where nothing does.

    >>> one = StsPairs(("a",), ("b",), np.ones(1), np.array(["MSRpar"]))
    >>> difference_from_official("STS12", "test", one)
    '1 of 3108 pairs, without MSRvid, SMTeuroparl, OnWN, SMTnews'
    >>> difference_from_official("STS-B", "dev", one), difference_from_official("mine", "test", one)
    ('split dev', 'not one of the seven tasks')
    """
    official = OFFICIAL.get(name)
    if official is None:
        return "not one of the seven tasks"
    if split != TEST:
        return "all splits" if split == EVERY else f"split {split}"
    there = pairs.subsets()
    lacking = [subset for subset in official.subsets if subset not in there]
    beyond = [subset for subset in there if official.subsets and subset not in official.subsets]
    found = [f"{len(pairs)} of {official.pairs} pairs"] if len(pairs) != official.pairs else []
    found += [f"without {', '.join(lacking)}"] if lacking else []
    found += [f"with {', '.join(beyond)}"] if beyond else []
    return ", ".join(found)


def open_sts(path: str | Path, *, only: Iterable[str] = ()) -> dict[str, StsTask]:
    """Every task found in a folder or a file, the official ones first.

    Args:
        path: a folder in one of the layouts above, or one table.
        only: names of tasks to keep; the others are read but left out.

    Raises:
        DataError: nothing of the kind is there; a file and its scores have different numbers of lines; a line lacks its tab, a
            score is no number, a sentence is empty, text is not UTF-8 (each with file and line); a file has no gold score at
            all; two files hold the same part of a task; or ``only`` names what is not there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     text = (
    ...         "sentence1\\tsentence2\\tscore\\nA cat sat.\\tA cat was sitting.\\t4.5\\nA cat sat.\\tIt rains.\\t0\\n"
    ...     )
    ...     _ = Path(folder, "mine-dev.tsv").write_text(text)
    ...     tasks = open_sts(folder)
    >>> {name: {split: len(pairs) for split, pairs in task.splits.items()} for name, task in tasks.items()}
    {'mine': {'dev': 2}}
    """
    path = Path(path)
    parts: dict[str, dict[str, dict[str, tuple[Rows, Path]]]] = {}
    for file in find_files(path):
        for rows in read_rows(file, strict=file == path):
            place = parts.setdefault(rows.task, {}).setdefault(rows.split, {})
            if rows.subset in place:
                raise DataError(
                    f"{file} and {place[rows.subset][1]} both hold {rows.subset} of {rows.task} {rows.split}: remove one"
                )
            place[rows.subset] = rows, file
    if not parts:
        raise DataError(
            f"{path}: no STS files found; SentEval's folders, or tables with columns sentence1, sentence2 and score, are read"
        )
    order = sorted(parts, key=lambda name: (list(OFFICIAL).index(name) if name in OFFICIAL else len(OFFICIAL), name))
    tasks = {name: _task(name, parts[name]) for name in order}
    wanted = list(only)
    if absent := [name for name in wanted if name not in tasks]:
        raise DataError(f"{path} has no task {absent[0]!r}; closest: {closest(absent[0], tasks)}")
    return {name: task for name, task in tasks.items() if not wanted or name in wanted}


def _task(name: str, splits: Mapping[str, Mapping[str, tuple[Rows, Path]]]) -> StsTask:
    order = sorted(
        splits, key=lambda split: ((TRAIN, DEV, TEST).index(split) if split in (TRAIN, DEV, TEST) else 3, split)
    )
    joined = {split: StsPairs.join(_pairs(rows) for rows, _ in splits[split].values()) for split in order}
    gold = np.concatenate([pairs.gold for pairs in joined.values()])
    low, high = float(gold.min()), float(gold.max())
    if name in OFFICIAL and low < 0:
        file = next(file for parts in splits.values() for rows, file in parts.values() if min(rows.gold) == low)
        raise DataError(
            f"{file}: {name} has a score of {low:g}; scores that are kept secret are no gold, leave them out"
        )
    scale = OFFICIAL[name].scale if name in OFFICIAL else (low, high)
    if low < scale[0] or high > scale[1] or (name in OFFICIAL and high <= 1):
        scale = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)  # rescaled by whoever made the file
    return StsTask(name, joined, scale)


def _pairs(rows: Rows) -> StsPairs:
    return StsPairs(
        tuple(rows.sentence1),
        tuple(rows.sentence2),
        np.asarray(rows.gold, dtype=np.float64),
        np.full(len(rows.gold), rows.subset, dtype=object).astype(str),
        rows.dropped,
    )
