"""``mc-wearables ablate``: the paper's ablation, one change at a time, beside the directions the paper reports."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.cli import Clock, Status, print_json, print_table
from mc_core.engine import fit
from mc_core.errors import ConfigError, closest
from mc_core.files import read_json, write_json
from mc_core.recipes import merge
from mc_wearables.data.segments import SignalKind
from mc_wearables.methods.base import SignalMethod
from mc_wearables.recipe import Recipe, resolve_recipe
from mc_wearables_app.measure import SIMULATED_TARGETS, TRAINED, check_measurable, compared, features_of, targets_of
from mc_wearables_app.pretrain import build_method, pair_data
from mc_wearables_app.runs import Data, simulated, stored

_log = logging.getLogger("mc_core")


@dataclass(frozen=True)
class Variant:
    """One row: what is changed, and what the paper says of it.

    Attributes:
        changes: of the recipe.
        paper: direction the paper reports for this change against the full method; empty where it has none.
    """

    changes: dict[str, Any]
    paper: str = ""


FULL = "full"
VARIANTS: dict[str, Variant] = {
    FULL: Variant({}),
    "session-pairs": Variant({"pairs": {"pair": "session"}}),
    "segment-pairs": Variant({"pairs": {"pair": "segment"}}, "worse on all probes (table 2)"),
    "no-koleo": Variant({"method": {"koleo_weight": 0.0}}, "lower effective rank (table 3)"),
    "no-momentum": Variant({"method": {"framework": "simclr"}}, "lower effective rank (table 3, SimCLR)"),
    "byol": Variant({"method": {"framework": "byol", "head_norm": True}}, "much lower effective rank (table 3, BYOL)"),
    "no-within-view": Variant({"method": {"within_view": False}}),
    "released-warp": Variant({"augment": {"time_warp": "released"}}),
    "no-augmentation": Variant(
        {"augment": {"cut_p": 0.0, "magnitude_p": 0.0, "time_p": 0.0, "noise_p": 0.0, "permute_p": 0.0}}
    ),
}


def run_ablate(
    store: Path | None,
    *,
    signal: SignalKind,
    recipe_name: str | None,
    only: Sequence[str],
    seeds: int,
    steps: int | None,
    batch_size: int | None,
    out: Path,
    as_json: bool,
) -> dict[str, Any]:
    """Run what is missing, and print the table."""
    for name in only:
        if name not in VARIANTS:
            raise ConfigError(f"--only {name}: no such row; did you mean {closest(name, VARIANTS)}?")
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: run each at least once")
    clock = Clock()
    data = None
    base: dict[str, Any] = {"fit": {k: v for k, v in (("steps", steps), ("batch_size", batch_size)) if v is not None}}
    if store is not None:
        data = stored(store)
        signal = data.train.kind
        segments = data.train
        shape = {"channels": segments.channels, "sampling_rate": segments.sampling_rate, "seconds": segments.duration}
        base = merge(base, {"method": {"encoder": shape}})
    named = recipe_name or f"ahms-{signal}-laptop"
    if data is None:
        with Status("simulating a cohort"):
            data = simulated(signal, resolve_recipe(named, base))
    check_measurable(data)
    if batch_size is None:
        base = merge(base, _batch_within(named, base, only or list(VARIANTS), data))
    rows: dict[str, list[dict[str, float]]] = {}
    for name in only or VARIANTS:
        for seed in range(seeds):
            recipe = resolve_recipe(named, merge(merge(base, VARIANTS[name].changes), {"fit": {"seed": seed}}))
            rows.setdefault(name, []).append(_row(recipe, data, out / f"{name}-{seed}"))
            shown = ", ".join(f"{column} {value:.2f}" for column, value in rows[name][-1].items())
            _log.info("%s, seed %d: %s", name, seed, shown)
    means = {name: {c: float(np.mean([r[c] for r in found])) for c in found[0]} for name, found in rows.items()}
    spread = {
        name: {c: float(np.std([r[c] for r in found], ddof=1)) if len(found) > 1 else None for c in found[0]}
        for name, found in rows.items()
    }
    fields = {
        "data": data.name,
        "recipe": named,
        "seeds": seeds,
        "rows": means,
        "sd": spread,
        "paper": {name: VARIANTS[name].paper for name in rows},
        "seconds": round(clock.seconds(), 1),
    }
    write_json(out / "ablation.json", fields)
    if as_json:
        print_json(fields)
        return fields
    columns = list(next(iter(means.values())))
    table = [
        (name, *(_cell(found[c], spread[name][c]) for c in columns), VARIANTS[name].paper or "–")
        for name, found in means.items()
    ]
    print_table(f"{data.name}: one change at a time from {named}", ["", *columns, "the paper says"], table)
    print(out / "ablation.json")
    return fields


def _batch_within(named: str, base: dict[str, Any], names: Sequence[str], data: Data) -> dict[str, Any]:
    """The change that makes a batch no larger than the people whom every row can draw, so that all rows have the same one."""
    recipes = [resolve_recipe(named, merge(base, VARIANTS[name].changes)) for name in names]
    people = min(len(pair_data(recipe, data)) for recipe in recipes)
    asked = recipes[0].fit.batch_size
    if asked <= people:
        return {}
    _log.info("a batch holds each person once: %d instead of %d, as many as every row has", people, asked)
    return {"fit": {"batch_size": people}}


def _cell(mean: float, deviation: float | None) -> str:
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def _row(recipe: Recipe[Any], data: Data, folder: Path) -> dict[str, float]:
    """The figures of one run: headline of each probe, re-identification, dispersion, effective rank."""
    path = folder / "row.json"
    settings = recipe.model_dump(mode="json")
    if path.exists():
        earlier = read_json(path)
        if earlier["recipe"] == settings and earlier["data"] == data.name:
            return dict(earlier["row"])
        raise ConfigError(f"{folder} holds a row of other settings; name another folder with --out, or delete it")
    method = build_method(recipe)
    trained = fit(method, pair_data(recipe, data), fit=recipe.fit, run_dir=folder, recipe=settings).method
    assert isinstance(trained, SignalMethod)
    targets = SIMULATED_TARGETS if data.store is None else targets_of(data, [])
    features = features_of(data, trained.encoder, baselines=False)
    found = compared(data, features, targets, draws=100, seed=recipe.fit.seed)
    identity = found.identity[TRAINED]
    row = {_column(target, level): found.headline(TRAINED, target)[1] for target, level in found.levels.items()}
    row |= {
        "who is it": identity.top1.value,
        "dispersion": identity.dispersion_ratio,
        "rank": identity.effective_rank,
        "rank centred": identity.effective_rank_centred,
    }
    write_json(path, {"recipe": settings, "data": data.name, "row": row})
    return row


def _column(target: str, level: str) -> str:
    return f"{target.partition('@')[0]} per {'segment' if level == 'segment' else 'person'}"
