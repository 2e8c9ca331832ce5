"""Opening what ``pretrain`` and ``ingest`` left: runs, stores, and which people a run was trained on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from mc_core.errors import CheckpointError, DataError
from mc_core.files import read_json
from mc_core.runs import need_run_folder, open_model
from mc_wearables.cohort import simulate_cohort
from mc_wearables.data.segments import Segments, SignalKind
from mc_wearables.data.store import MANIFEST, SegmentStore, codes_of
from mc_wearables.encoders import SignalEncoder
from mc_wearables.evaluation import participant_split
from mc_wearables.methods import METHODS
from mc_wearables.recipe import Recipe, resolve_recipe

_log = logging.getLogger("mc_core")
DATA_FILE = "data.json"
"""In a run folder: which segments it was trained on. It names a folder, no person."""
SIMULATED_TRAIN, SIMULATED_TEST = (600, 12), (300, 10)
"""Participants and segments of each in the simulated cohort."""
COMMAND = "mc-wearables pretrain"


@dataclass(frozen=True)
class Data:
    """Segments of training people, and of people held out.

    Attributes:
        name: of the store, or ``simulated-ecg``.
        train: segments.
        test: segments of other people.
        oracle: (N, F) of train and test, for simulated people: what the generator knows.
        oracle_names: F.
        store: where they came from; None for simulated ones.
    """

    name: str
    train: Segments
    test: Segments
    oracle: tuple[np.ndarray, np.ndarray] | None = None
    oracle_names: tuple[str, ...] = ()
    store: SegmentStore | None = None


def simulated(kind: SignalKind, recipe: Recipe[Any]) -> Data:
    """The cohort that ``pretrain`` without data trains on, in the shape the recipe's encoder takes."""
    encoder = recipe.method.encoder
    parts = [
        simulate_cohort(
            kind,
            participants=people,
            segments=each,
            seconds=encoder.seconds,
            sampling_rate=encoder.sampling_rate,
            channels=encoder.channels,
            split=split,
        )
        for (people, each), split in ((SIMULATED_TRAIN, "train"), (SIMULATED_TEST, "test"))
    ]
    train, test = parts
    oracle = (train.oracle.segment, test.oracle.segment)
    return Data(f"simulated-{kind}", train.segments, test.segments, oracle, train.oracle.names)


_HELD_OUT = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Shares of the participants to hold out; those after the first for a few people, none or one of whom the first may hit."""


def stored(path: Path) -> Data:
    """A store, its participants split 80 to 20 by the hash of their keys: the same people are held out in every run."""
    store = SegmentStore.open(path)
    segments = store.segments()
    for share in _HELD_OUT:
        parts = participant_split(segments.participant_keys, {"train": 1 - share, "test": share})
        if len(parts["train"]) >= 2 and len(parts["test"]) >= 2:
            break
    else:
        raise DataError(
            f"{path} has {len(segments.participant_keys)} participants: participant contrast needs at least two to train on, "
            "and two more to hold out"
            + (" (by the hash of their keys; a few more people will do)" if len(segments.participant_keys) > 3 else "")
        )
    if share > _HELD_OUT[0]:
        _log.info("%d of %d people are held out", len(parts["test"]), len(segments.participant_keys))
    train, test = (segments.of_participants(parts[name]) for name in ("train", "test"))
    return Data(path.name, train, test, store=store)


def _files_of(data: Data, side: Segments) -> dict[str, set[int]]:
    """SHA-256 of each file behind these segments, and whose it is, as codes of ``side``."""
    assert data.store is not None
    sha256 = {entry["source"]: entry["sha256"] for entry in data.store.manifest["files"]}
    here = set(np.unique(side.participant).tolist())
    source, names = codes_of(data.store.metadata["source"])
    person, _ = codes_of(data.store.metadata["participant"])
    found: dict[str, set[int]] = {}
    for file, owner in np.unique(np.stack([source, person]), axis=1).T.tolist():
        if owner in here:
            found.setdefault(sha256.get(names[file], names[file]), set()).add(owner)
    return found


def check_apart(trained: Data, other: Data, run: Path) -> None:
    """Raise DataError when people held out of ``other`` gave files that ``trained`` was trained on.

    Keys cannot tell: another store has another salt.
    """
    own, held_out = _files_of(trained, trained.train), _files_of(other, other.test)
    both = set().union(*(held_out[file] for file in own.keys() & held_out.keys()))
    if both:
        raise DataError(
            f"{len(both)} of {len(np.unique(other.test.participant))} people held out of {other.name} are among those that "
            f"{run} was trained on (the same files): nothing measured on them would hold for others; name the run's own store, "
            "or one without them"
        )


@dataclass(frozen=True)
class OpenedRun:
    """An encoder and where it came from.

    Attributes:
        folder: the run, or the saved encoder.
        encoder: in eval mode.
        recipe: of the run; None for a bare encoder folder.
        step: optimizer steps behind it, where known.
        kind: ``"ppg"`` or ``"ecg"``, where known.
        trained_on: store it was trained on, ``"simulated"``, or None.
    """

    folder: Path
    encoder: SignalEncoder
    recipe: Recipe[Any] | None
    step: int | None
    kind: SignalKind | None
    trained_on: str | None

    def data(self, store: Path | None) -> Data:
        """The segments to measure on: ``store``, or those of the run.

        Raises:
            DataError: nothing to measure on, or segments of the other kind.
        """
        if store is not None:
            data = stored(store)
            if self.trained_on not in (None, "simulated") and store.resolve() != Path(self.trained_on or ""):
                if (Path(self.trained_on or "") / MANIFEST).exists():
                    check_apart(stored(Path(self.trained_on or "")), data, self.folder)
                _log.warning(
                    "%s is not %s, on which %s was trained: people that are in both may be among those held out here",
                    store,
                    self.trained_on,
                    self.folder,
                )
            if self.kind is not None and data.train.kind != self.kind:
                raise DataError(f"{store} holds {data.train.kind}, {self.folder} was trained on {self.kind}")
            return data
        if self.trained_on is None:
            raise DataError(f"{self.folder} does not say what it was trained on: name a store")
        if self.trained_on == "simulated":
            assert self.kind is not None
            assert self.recipe is not None
            return simulated(self.kind, self.recipe)
        if not (Path(self.trained_on) / MANIFEST).exists():
            raise DataError(
                f"{self.folder} was trained on the store {self.trained_on} ({self.folder / DATA_FILE} says so), which is not "
                "there any more: name where it is now after the run (made anew, it would hold out other people)"
            )
        return stored(Path(self.trained_on))


def open_run(folder: Path, device: torch.device | None = None) -> OpenedRun:
    """Open a run folder (its ``model/``, or the newest checkpoint of an unfinished run) or a saved encoder.

    Raises:
        DataError: no such folder, or nothing of ours in it.
        CheckpointError: what is there cannot be read.
    """
    need_run_folder(folder, command=COMMAND)
    recipe = resolve_recipe(folder / "recipe.yaml") if (folder / "recipe.yaml").exists() else None
    signal, trained_on = _origin(folder / DATA_FILE)
    encoder, step = open_model(folder, recipe, METHODS, command=COMMAND)
    if not isinstance(encoder, SignalEncoder):
        raise CheckpointError(f"{folder} holds a {type(encoder).__name__}, not an encoder of mc-wearables")
    return OpenedRun(folder, encoder.eval().to(device or "cpu"), recipe, step, signal, trained_on)


def _origin(file: Path) -> tuple[SignalKind | None, str | None]:
    """The signal of a run and the store behind it, None for what is not known."""
    facts = read_json(file) if file.exists() else {}
    known = isinstance(facts, dict)
    signal, trained_on = (facts.get("signal"), facts.get("trained_on")) if known else (None, None)
    known &= signal in get_args(SignalKind) if facts else True
    if not known or not isinstance(trained_on, str | None):
        raise CheckpointError(
            f"{file} is damaged: it should hold the signal (ppg or ecg) and the store that the run was trained on"
        )
    return signal, trained_on
