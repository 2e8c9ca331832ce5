"""``mc-wearables probe``: what a weighted sum reads from frozen embeddings of people held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mc_core.cli import Clock, Result, Status, print_table
from mc_core.errors import ConfigError
from mc_core.runs import pick_device
from mc_wearables.data.segments import Segments
from mc_wearables.evaluation import participant_split
from mc_wearables_app import figures
from mc_wearables_app.labels import labels_of
from mc_wearables_app.measure import TRAINED, compared, features_of, table, targets_of
from mc_wearables_app.runs import Data, open_run


def run_probe(
    run: Path,
    store: Path | None,
    *,
    labels: Path | None,
    targets: Sequence[str],
    level: Literal["auto", "participant", "segment"],
    baselines: bool,
    split: Literal["train-test", "test-only"],
    draws: int,
    seed: int,
    device: str,
    as_json: bool,
) -> dict[str, Any]:
    """Probe, write JSON and a picture into the run folder, and print."""
    clock = Clock()
    opened = open_run(run, pick_device(device))
    with Status("opening the segments"):
        data = opened.data(store)
    if labels is not None:
        if data.store is None:
            raise ConfigError("--labels needs a store: simulated people have their own labels")
        found_labels, targets = labels_of(labels, data.store, list(targets))
        data = replace(data, train=_with(data.train, found_labels), test=_with(data.test, found_labels))
    if split == "test-only":
        data = _halved(data)
    wanted = targets_of(data, targets, level)
    if not wanted:
        there = (
            f" ({', '.join(data.test.targets)} are the same for all, or known of too few)" if data.test.labels else ""
        )
        raise ConfigError(f"{data.name} has no labels to read{there}: give a table with --labels")
    features = features_of(data, opened.encoder, baselines=baselines, seed=seed)
    found = compared(data, features, wanted, draws=draws, seed=seed)
    target = next(iter(wanted))
    values = {name: found.headline(name, target)[1] for name in found.probes if found.has(name, target)}
    trained = values.pop(TRAINED)
    more = {"data": data.name, "step": opened.step, **found.to_dict()}
    result = Result(
        f"{target}_{found.headline(TRAINED, target)[0]}_{wanted[target]}",
        trained,
        values,
        run=run,
        seconds=clock.seconds(),
        more=more,
    )
    written = [result.write(run, "probe.json"), figures.probes(found, run / "probe.png")]
    if as_json:
        result.show(as_json=True, title="")
        return result.fields
    people = {side: len(np.unique(s.participant)) for side, s in (("train", data.train), ("test", data.test))}
    title = (
        f"{run.name}: fitted on {people['train']} people, tested on {people['test']} others; 95 % intervals over people"
    )
    print_table(title, *table(found, every=True))
    for path in written:
        print(path)
    return result.fields


def _with(segments: Segments, labels: Mapping[str, np.ndarray]) -> Segments:
    """The segments with labels of their participants, in the place of those of the same name."""
    columns = {name: values[segments.participant] for name, values in labels.items()}
    named = {name.partition("=")[0] for name in columns}
    own = {name: column for name, column in segments.labels.items() if name not in named}
    classes = {name: words for name, words in segments.classes.items() if name in own}
    return replace(segments, labels={**own, **columns}, classes=classes)


def _halved(data: Data) -> Data:
    """Both sides of the probe from people held out."""
    keys = data.test.participant_keys
    here = np.unique(data.test.participant)
    parts = participant_split([keys[code] for code in here], {"fit": 0.5, "test": 0.5}, salt="probe")
    return replace(
        data,
        train=data.test.of_participants(here[parts["fit"]]),
        test=data.test.of_participants(here[parts["test"]]),
        oracle=None,
    )
