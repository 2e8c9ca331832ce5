"""Labels of chest radiographs: CheXpert's fourteen observations, what to do with the uncertain ones, and a small rule labeller.

In a table of labels 1 says that something is there, 0 that it is not, −1 that the report is unsure; a blank cell says nothing.

Legend: N studies, C observations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mc_core.errors import ConfigError, DataError, closest

OBSERVATIONS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The fourteen observations of CheXpert (Irvin et al. 2019, arXiv:1901.07031, table 1), in the order of its files."""

COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five that the CheXpert competition is judged by, and that the 5×200 zero-shot test tells apart."""

Uncertain = Literal["one", "zero", "ignore"]

UNCERTAIN: dict[str, Uncertain] = {
    "Atelectasis": "one",
    "Cardiomegaly": "zero",
    "Consolidation": "zero",
    "Edema": "one",
    "Pleural Effusion": "one",
}
"""What −1 becomes by default, for the five of the competition, as in GLoRIA's code (Huang et al. 2021); all others: ignored."""

_MEANING = {"one": 1.0, "zero": 0.0, "ignore": np.nan}
_BLANK = ("", "nan", "none", "null", "na", "n/a")


@dataclass(frozen=True)
class LabelTable:
    """What :func:`read_labels` returns.

    Attributes:
        names: C.
        values: (N, C) float32 in {1, 0, −1, NaN}; a refused row is all NaN.
        refused: row (from 0) → what is wrong with it.
    """

    names: tuple[str, ...]
    values: np.ndarray
    refused: dict[int, str]


def read_labels(columns: Mapping[str, Sequence[object]]) -> LabelTable:
    """Cells of label columns as numbers; a row with a value that means nothing is refused, the others are kept.

    Cells may be numbers, booleans or text; ``u`` is read as uncertain.

    Args:
        columns: name → N cells.

    Raises:
        DataError: no column, or columns of different lengths.

    >>> table = read_labels({"Edema": ["1.0", "", "-1", "2"]})
    >>> table.values[:, 0].tolist(), table.refused
    ([1.0, nan, -1.0, nan], {3: "Edema is '2'; 1, 0, -1 or blank"})
    """
    names = tuple(columns)
    lengths = {len(cells) for cells in columns.values()}
    if len(lengths) != 1:
        raise DataError(
            f"label columns {', '.join(names) or '(none)'} have lengths {sorted(lengths)}; they must be equal"
        )
    count = lengths.pop()
    values = np.full((count, len(names)), np.nan, dtype=np.float32)
    refused: dict[int, str] = {}
    for place, (name, cells) in enumerate(columns.items()):
        known: dict[object, float | None] = {}
        for row, cell in enumerate(cells):
            key = cell if isinstance(cell, str | int | float | bool) else str(cell)
            if key not in known:
                known[key] = _cell(cell)
            found = known[key]
            if found is None:
                refused.setdefault(row, f"{name} is {_short(cell)}; 1, 0, -1 or blank")
            else:
                values[row, place] = found
    for row in refused:
        values[row] = np.nan
    return LabelTable(names, values, refused)


def _cell(cell: object) -> float | None:
    """1, 0, −1, NaN for blank, None for what means nothing."""
    text = "" if cell is None else str(cell).strip().lower()
    if text in _BLANK:
        return float("nan")
    if text in ("true", "false"):
        return float(text == "true")
    if text == "u":
        return -1.0
    try:
        number = float(text)
    except ValueError:
        return None
    return number if number in (1.0, 0.0, -1.0) else None


def _short(cell: object) -> str:
    text = str(cell)
    return repr(text if len(text) <= 20 else text[:17] + "…")


def resolve_labels(
    values: np.ndarray,
    names: Sequence[str],
    *,
    uncertain: Mapping[str, Uncertain] | Uncertain | None = None,
    blank: Literal["zero", "ignore"] = "zero",
) -> np.ndarray:
    """Labels to classify by: 1, 0, or NaN for what is left out.

    Args:
        values: (N, C) in {1, 0, −1, NaN}.
        names: C.
        uncertain: what −1 becomes: one policy for all, or a policy for some observations, which replaces :data:`UNCERTAIN` there.
        blank: what NaN becomes. ``"zero"`` is usual where classifiers are measured; a report's silence is no proof of absence,
            so that nothing here is for training.

    Returns:
        (N, C) float32.

    Raises:
        ConfigError: a policy for an observation that is not there, or an unknown policy.
        DataError: shapes that do not match, other values.

    >>> resolve_labels(np.array([[-1.0, -1.0, np.nan]]), ["Edema", "Cardiomegaly", "Fracture"]).tolist()
    [[1.0, 0.0, 0.0]]
    >>> resolve_labels(np.array([[-1.0]]), ["Edema"], uncertain="ignore").tolist()
    [[nan]]
    """
    values = np.asarray(values, dtype=np.float32)
    if values.ndim != 2 or values.shape[1] != len(names):
        raise DataError(f"labels have shape {values.shape}; {len(names)} observations need (rows, {len(names)})")
    if not np.isin(values[~np.isnan(values)], (1.0, 0.0, -1.0)).all():
        raise DataError("labels hold values beside 1, 0, -1 and NaN")
    if blank not in ("zero", "ignore"):
        raise ConfigError(f"blank={blank!r} must be zero or ignore")
    policy: dict[str, Uncertain] = dict(UNCERTAIN)
    if isinstance(uncertain, str):
        policy = dict.fromkeys(names, uncertain)
    elif uncertain is not None:
        for name in uncertain:
            if name not in names:
                raise ConfigError(f"a policy for {name!r}, which is no label here; closest: {closest(name, names)}")
        policy.update(uncertain)
    for name, word in policy.items():
        if word not in _MEANING:
            raise ConfigError(f"uncertain policy {word!r} of {name!r} must be one, zero or ignore")
    instead = np.array([_MEANING[policy.get(name, "ignore")] for name in names], dtype=np.float32)
    unsure, unsaid = values == -1, np.isnan(values)
    found = np.where(unsure, instead[None, :], values)
    return np.where(unsaid & (blank == "zero"), np.float32(0), found).astype(np.float32)


_MENTIONS: dict[str, str] = {
    "Enlarged Cardiomediastinum": r"(widen\w*|enlarg\w*) (of the )?(cardio)?mediastin\w*"
    r"|(cardio)?mediastin\w* (silhouette|contours?)|mediastinal widening",
    "Cardiomegaly": r"cardiomegaly|(heart|cardiac silhouette|cardiac size)\b[^.]{0,40}?\b(enlarg\w*|increased)"
    r"|enlarge\w* (of the )?(heart|cardiac)|(heart|cardiac) size|heart is (mildly |moderately |severely |not )?(enlarged|normal)"
    r"|cardiomediastinal silhouette",
    "Lung Opacity": r"opacit(y|ies)|opacification|infiltrates?|lungs are (well expanded and )?clear|clear lungs",
    "Lung Lesion": r"nodul\w*|mass(es)?\b|lesions?",
    "Edema": r"o?edema|vascular congestion",
    "Consolidation": r"consolidat\w*",
    "Pneumonia": r"pneumonia\w*",
    "Atelectasis": r"atelecta\w*",
    "Pneumothorax": r"pneumothora\w*",
    "Pleural Effusion": r"effusions?",
    "Pleural Other": r"pleural thickening|pleural scar\w*|pleural plaque\w*",
    "Fracture": r"fractures?",
    "Support Devices": r"pace ?maker|pacing device|endotracheal|catheter|central line|\bij line|\bpicc\b|tubes?\b|\bclips?\b",
}
_NORMAL = r"within normal limits|\bnormal\b|\bunremarkable\b|\bclear\b|\bnot enlarged\b"
_NEGATIVE = r"\bno\b|\bnot\b|\bwithout\b|\bfree of\b|\bclear of\b|\bnegative for\b|\bresolved\b|\babsen\w+"
_UNSURE = (
    r"\bpossib\w+|\bmay\b|\bmight\b|\bcould\b|cannot be (excluded|ruled out)|\bquestion\w*|\bprobabl\w+|\bconcern\w*"
    r"|(?<!\bno )\bsuspicious\b|\bsuggest\w*|\bversus\b|\bvs\b|upper limits of normal|top.normal|difficult to assess"
)
_COMPILED = {name: re.compile(pattern) for name, pattern in _MENTIONS.items()}
_NORMAL_WORDS, _NEGATIVE_WORDS, _UNSURE_WORDS = (re.compile(pattern) for pattern in (_NORMAL, _NEGATIVE, _UNSURE))
_CLAUSE = re.compile(r"(?<=[.!?;])\s+|\n+|,? but ")
_NEEDS_SIZE = ("Cardiomegaly", "Enlarged Cardiomediastinum", "Lung Opacity")


def label_report(text: str) -> dict[str, float]:
    """What a report says, by a few rules: a convenience to look at data with, never ground truth.

    A sentence that names an observation counts as 1; after a negation as 0; beside words of doubt as −1. Over sentences 1 goes
    before −1, before 0. ``No Finding`` is 1 where nothing but devices is 1 or −1.

    >>> label_report("Small left pleural effusion. No pneumothorax. Possible edema.")
    {'Edema': -1.0, 'Pneumothorax': 0.0, 'Pleural Effusion': 1.0}
    """
    found: dict[str, float] = {}
    rank = {1.0: 2, -1.0: 1, 0.0: 0}
    for sentence in _CLAUSE.split(text.lower()):
        for name, pattern in _COMPILED.items():
            for mention in pattern.finditer(sentence):
                value = _reading(name, sentence, mention)
                if value is not None and (name not in found or rank[value] > rank[found[name]]):
                    found[name] = value
    if found and not any(value for name, value in found.items() if name != "Support Devices"):
        found["No Finding"] = 1.0
    return {name: found[name] for name in OBSERVATIONS if name in found}


def _reading(name: str, sentence: str, mention: re.Match[str]) -> float | None:
    denied = _NEGATIVE_WORDS.search(sentence, 0, mention.end()) is not None
    normal = name in _NEEDS_SIZE and _NORMAL_WORDS.search(sentence) is not None
    if _UNSURE_WORDS.search(sentence):
        return -1.0
    if denied or normal:
        return 0.0
    if name in _NEEDS_SIZE[:2] and not re.search(r"cardiomegaly|enlarge|increas|widen", sentence):
        return None
    return 1.0
