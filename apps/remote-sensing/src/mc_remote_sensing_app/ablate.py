"""``mc-remote-sensing ablate``: what each part is worth, over seeds, on the user's own data or on the made terrain."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.cli import Clock, Status, print_json, print_table
from mc_core.errors import ConfigError, closest
from mc_core.files import read_json, write_json
from mc_core.recipes import merge
from mc_remote_sensing.evaluation import score
from mc_remote_sensing.recipe import Recipe, resolve_recipe
from mc_remote_sensing.training import Ground, data_fields, part_windows, train_segmentation, with_data
from mc_remote_sensing_app.scene_options import SceneOptions
from mc_remote_sensing_app.train import finite, ground_of, scenes_of

_log = logging.getLogger("mc_core")

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "image": ("image", {}),
    "elevation": ("elevation", {}),
    "stacked": ("stacked", {}),
    "fused": ("fused", {}),
    "fused, cross-entropy alone": ("fused", {"contrast": False}),
    "fused, + contrast": ("fused", {"queue_size": 0, "momentum_keys": False}),
    "fused, + queue": ("fused", {"momentum_keys": False}),
    "fused, uniform sampling": ("fused", {"sampling": "uniform"}),
}
"""Rows: the modality and what else is changed of the recipe's method. ``fused`` alone is the whole method: cross-entropy,
contrast, queue and momentum, cells drawn at boundaries."""

COLUMNS = ("iou", "f1", "boundary_f1", "object_recall")


def run_ablate(
    tiles: Path | None,
    options: SceneOptions,
    *,
    recipe_name: str,
    only: Sequence[str],
    seeds: int,
    steps: int | None,
    out: Path,
    as_json: bool,
) -> dict[str, Any]:
    """Run what is missing, and print the table."""
    for name in only:
        if name not in VARIANTS:
            raise ConfigError(f"--only {name}: no such row; did you mean {closest(name, VARIANTS)}?")
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: run each at least once")
    if tiles is not None and options.given:
        raise ConfigError(f"{tiles} and --image or --dem: give tiles with masks, or rasters, not both")
    clock = Clock()
    base: dict[str, Any] = {"fit": {"steps": steps}} if steps else {}
    recipe = resolve_recipe(recipe_name, base)
    arguments = None if tiles is not None else scenes_of(options, out, recipe)
    ground = ground_of(tiles, arguments, recipe, options, out)
    rows: dict[str, list[dict[str, float]]] = {}
    for name in only or VARIANTS:
        modality, method = VARIANTS[name]
        try:
            with Status("statistics of the training blocks"):
                fields = data_fields(ground, modality)
        except ConfigError as error:
            if only:
                raise
            _log.info("%s: left out, %s", name, error)
            continue
        for seed in range(seeds):
            changed = resolve_recipe(recipe_name, merge(base, {"fit": {"seed": seed}, "method": method}))
            found = _row(with_data(changed, fields), ground, out / f"{_slug(name)}-{seed}")
            rows.setdefault(name, []).append(found)
            _log.info("%s, seed %d: %s", name, seed, ", ".join(f"{c} {found[c]:.3f}" for c in COLUMNS))
    means = {name: {c: float(np.mean([r[c] for r in found])) for c in COLUMNS} for name, found in rows.items()}
    spread = {
        name: {c: float(np.std([r[c] for r in found], ddof=1)) if len(found) > 1 else None for c in COLUMNS}
        for name, found in rows.items()
    }
    fields_out: dict[str, Any] = {
        "data": str(tiles)
        if tiles is not None
        else [a.get("image", a.get("elevation")).__str__() for a in arguments or []],
        "recipe": recipe_name,
        "seeds": seeds,
        "rows": means,
        "sd": spread,
        "each": rows,
        "seconds": round(clock.seconds(), 1),
    }
    write_json(out / "ablation.json", fields_out)
    if as_json:
        print_json(fields_out)
        return fields_out
    table = [(n, *(_cell(m[c], spread[n][c]) for c in COLUMNS)) for n, m in means.items()]
    print_table(f"{recipe_name}: test part, {seeds} seeds", ["", *COLUMNS], table)
    print(out / "ablation.json")
    return fields_out


def _row(recipe: Recipe[Any], ground: Ground, folder: Path) -> dict[str, float]:
    """Scores on the test part of one run, or those that an earlier command left."""
    path, settings = folder / "row.json", recipe.model_dump(mode="json")
    if path.exists():
        earlier = read_json(path)
        if earlier["recipe"] == settings:
            return {name: float("nan") if value is None else value for name, value in earlier["row"].items()}
        raise ConfigError(f"{folder} holds a row of other settings; name another folder with --out, or delete it")
    trained = train_segmentation(recipe, ground, folder)
    assert trained is not None
    row = score(part_windows(trained.model, ground, "test"), trained.model.threshold).to_dict()
    write_json(path, {"recipe": settings, "row": finite(row)})
    return row


def _cell(mean: float, deviation: float | None) -> str:
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"


def _slug(name: str) -> str:
    return name.replace(", ", "-").replace("+ ", "").replace(" ", "-")
