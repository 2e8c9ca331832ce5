"""``mc-wearables pretrain``: from segments to an encoder, what it knows beside baselines, and a report."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mc_core.cli import Clock, Result, Status, keep_freed_memory, print_table
from mc_core.distributed import rank
from mc_core.engine import fit
from mc_core.engine.distribution import join_processes
from mc_core.errors import ConfigError, McError
from mc_core.export import save_model
from mc_core.files import write_json
from mc_core.recipes import merge, to_yaml
from mc_core.report import write_report
from mc_core.runs import folder_name
from mc_wearables.data.pairs import PairData
from mc_wearables.data.segments import SignalKind
from mc_wearables.embedding import check_fits
from mc_wearables.evaluation.comparison import Comparison
from mc_wearables.methods import METHODS
from mc_wearables.methods.base import SignalMethod
from mc_wearables.recipe import Recipe, resolve_recipe
from mc_wearables_app import figures
from mc_wearables_app.measure import (
    ORACLE,
    SIMULATED_TARGETS,
    TRAINED,
    check_measurable,
    compared,
    features_of,
    table,
    targets_of,
)
from mc_wearables_app.runs import DATA_FILE, Data, simulated, stored

FEW_PEOPLE = 30
_log = logging.getLogger("mc_core")


def run_pretrain(
    store: Path | None,
    *,
    signal: SignalKind | None,
    recipe_name: str | None,
    changes: Mapping[str, Any],
    out: Path | None,
    as_json: bool,
    print_recipe: bool,
) -> None:
    """Do it, and print the result to standard output."""
    clock = Clock()
    data = None
    if store is not None:
        with Status(f"opening {store}"):
            data = stored(store)
        if signal is not None and signal != data.train.kind:
            raise ConfigError(f"--signal {signal}, but {store} holds {data.train.kind}")
        named = _signal_of(recipe_name)
        if signal is None and named not in (None, data.train.kind):
            kind = data.train.kind
            raise ConfigError(
                f"--recipe {recipe_name} is one of {named}, but {store} holds {kind}: take one of {kind}, or say --signal {kind} "
                "to use it all the same"
            )
        signal = data.train.kind
        changes = merge(_shape_of(data), changes)
    signal = signal or _signal_of(recipe_name) or "ecg"
    name = recipe_name or (f"ahms-{signal}-laptop" if store is None else f"ahms-{signal}")
    recipe = resolve_recipe(name, changes)
    if print_recipe:
        sys.stdout.write(to_yaml(recipe))
        return
    keep_freed_memory()
    if data is None:
        with Status("simulating a cohort"):
            data = simulated(signal, recipe)
    run_dir = out or Path("runs") / f"{folder_name(Path(name).stem)}-{folder_name(data.name)}"
    people = len(pair_data(recipe, data))
    check_measurable(data)
    if recipe.fit.batch_size > people and "batch_size" not in changes.get("fit", {}):
        _log.info(
            "a batch holds each person once: %d instead of %d, as many as there are", people, recipe.fit.batch_size
        )
        recipe = resolve_recipe(name, merge(changes, {"fit": {"batch_size": people}}))
    pretrain(recipe, data, run_dir=run_dir, clock=clock, as_json=as_json)


def _signal_of(recipe_name: str | None) -> SignalKind | None:
    words = re.split(r"[^a-z]+", Path(recipe_name or "").stem.lower())
    return next((kind for kind in ("ppg", "ecg") if kind in words), None)


def _shape_of(data: Data) -> dict[str, Any]:
    segments = data.train
    shape = {"channels": segments.channels, "sampling_rate": segments.sampling_rate, "seconds": segments.duration}
    return {"method": {"encoder": shape}}


def build_method(recipe: Recipe[Any]) -> SignalMethod:
    """The recipe's method with the initial weights its seed gives."""
    torch.manual_seed(recipe.fit.seed)
    return METHODS.method_class(recipe.system)(recipe.method)


def pair_data(recipe: Recipe[Any], data: Data) -> PairData:
    """The pairs that the recipe asks for."""
    pairs = recipe.pairs
    return PairData(
        data.train,
        pair=pairs.pair,
        min_gap=pairs.min_gap,
        min_segments=pairs.min_segments,
        quality_floor=pairs.quality_floor,
        augment=recipe.augment,
    )


def pretrain(recipe: Recipe[Any], data: Data, *, run_dir: Path, clock: Clock, as_json: bool) -> Result | None:
    """Train, measure, report, and print; under torchrun, process 0 does the latter three and the others return None."""
    join_processes(recipe.fit)
    pairs = pair_data(recipe, data)
    method = build_method(recipe)
    check_fits(method.encoder, data.train)
    new = rank() == 0 and not (run_dir / DATA_FILE).exists()
    if new:
        _write_data(run_dir, data)  # so that a run that was interrupted can be measured, too
    try:
        result = fit(method, pairs, fit=recipe.fit, run_dir=run_dir, recipe=recipe.model_dump(mode="json"))
    except McError:
        if new and not (run_dir / "checkpoints").exists():
            (run_dir / DATA_FILE).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                run_dir.rmdir()
        raise
    if rank() != 0:
        return None
    trained = result.method
    assert isinstance(trained, SignalMethod)
    for name, encoder in trained.encoders().items():
        if encoder is not trained.encoder:
            save_model(encoder, run_dir / f"model-{name}")
    _write_data(run_dir, data)
    features = features_of(data, trained.encoder, seed=recipe.fit.seed)
    targets = SIMULATED_TARGETS if data.store is None else targets_of(data, [])
    found = compared(data, features, targets, draws=1000, seed=recipe.fit.seed)
    shown = _result(found, data, run_dir, clock, result.seconds, result.step)
    shown.write(run_dir)
    with Status("writing the report"):
        pictures = [
            (
                "Two segments of one person each, and the random views the network sees of them",
                figures.views(pairs, run_dir / "views.png", seed=recipe.fit.seed),
            ),
            (
                "What is known of people held out; bars are 95 % intervals over people",
                figures.probes(found, run_dir / "probes.png"),
            ),
            (
                "Embeddings of people held out, a colour for each of twelve",
                figures.map_of(features[1][TRAINED], run_dir / "map.png"),
            ),
        ]
        report = write_report(run_dir, title=f"{run_dir.name}: {recipe.system}", result=shown.fields, figures=pictures)
    shown.fields["report"] = str(report)
    people = len(np.unique(data.test.participant))
    if as_json:
        shown.show(as_json=True, title="")
        return shown
    print_table(
        f"{data.train.kind.upper()}, {people} people held out, {len(data.test):,} segments; 95 % intervals over people",
        *table(found),
    )
    if people < FEW_PEOPLE:
        _log.warning("%d people held out are few: every figure here is uncertain, as the intervals say", people)
    sys.stdout.write(
        f"run     {run_dir}\nencoder {run_dir / 'model'}\nreport  {report}\n"
        + ("Simulated people: no figure here says anything about health.\n" if data.store is None else "")
        + "Research use, not a medical device.\n"
    )
    return shown


def _write_data(run_dir: Path, data: Data) -> None:
    where = "simulated" if data.store is None else str(data.store.path.resolve())
    write_json(run_dir / DATA_FILE, {"signal": data.train.kind, "trained_on": where})


def _result(found: Comparison, data: Data, run_dir: Path, clock: Clock, training_seconds: float, steps: int) -> Result:
    """The first target, or without labels re-identification, as the headline."""
    more: dict[str, Any] = {
        "training_seconds": round(training_seconds, 1),
        "steps": steps,
        "participants": {
            "train": len(np.unique(data.train.participant)),
            "test": len(np.unique(data.test.participant)),
        },
        "segments": {"train": len(data.train), "test": len(data.test)},
        **found.to_dict(),
    }
    if found.levels:
        target = next(iter(found.levels))
        values = {name: found.headline(name, target)[1] for name in found.probes if found.has(name, target)}
        label, level = target.partition("@")[0], found.levels[target]
        metric = f"{label}_{found.headline(TRAINED, target)[0]}_{level}"
    else:
        values = {name: result.top1.value for name, result in found.identity.items()}
        metric = "reidentification_top1"
    if ORACLE in values:
        more["ceiling"] = values.pop(ORACLE)
    trained = values.pop(TRAINED)
    return Result(metric, trained, values, run=run_dir, seconds=clock.seconds(), more=more)
