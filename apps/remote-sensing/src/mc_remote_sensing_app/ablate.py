"""``mc-remote-sensing ablate``: what each part is worth, over seeds, on the user's own data or on the made terrain."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mc_core.cli import Clock, given_fields, print_json, print_table
from mc_core.errors import ConfigError, closest
from mc_core.files import write_json
from mc_remote_sensing.ablation import COLUMNS, possible_modalities, rows_of, run_row, summary
from mc_remote_sensing.recipe import resolve_recipe
from mc_remote_sensing_app.scene_options import SceneOptions, refuse_lone_labels
from mc_remote_sensing_app.train import ground_of, scenes_of

_log = logging.getLogger("mc_core")


def run_ablate(
    tiles: Path | None,
    options: SceneOptions,
    *,
    recipe_name: str,
    only: Sequence[str],
    everything: bool,
    seeds: int,
    steps: int | None,
    out: Path,
    sections: Mapping[str, BaseModel | None],
    as_json: bool,
) -> dict[str, Any]:
    """Run what is missing, and print the table."""
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: run each at least once")
    if tiles is not None and options.given:
        raise ConfigError(f"{tiles} and --image or --dem: give tiles with masks, or rasters, not both")
    if tiles is None and not options.given:
        refuse_lone_labels(options)
    clock = Clock()
    base: dict[str, Any] = {name: fields for name, model in sections.items() if (fields := given_fields(model))}
    if steps:
        base["fit"] = {"steps": steps}
    recipe = resolve_recipe(recipe_name, base)
    arguments = None if tiles is not None else scenes_of(options, out, recipe)
    ground = ground_of(tiles, arguments, recipe, options, out)
    rows = rows_of(possible_modalities(ground), everything=everything)
    known = [row.name for row in rows]
    for name in only:
        if name not in known:
            raise ConfigError(f"--only {name}: no such row for this data; did you mean {closest(name, known)}?")
    found: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        if only and row.name not in only:
            continue
        for seed in range(seeds):
            scores = run_row(recipe_name, base, row, seed, ground, out)
            found.setdefault(row.name, []).append(scores)
            _log.info("%s, seed %d: %s", row.name, seed, ", ".join(f"{c} {scores[c]:.3f}" for c in COLUMNS))
    means, spread = summary(found)
    fields: dict[str, Any] = {
        "data": str(tiles) if tiles is not None else [str(a.get("image", a.get("elevation"))) for a in arguments or []],
        "recipe": recipe_name,
        "seeds": seeds,
        "rows": means,
        "sd": spread,
        "each": found,
        "seconds": round(clock.seconds(), 1),
    }
    write_json(out / "ablation.json", fields)
    if as_json:
        print_json(fields)
        return fields
    table = [(n, *(_cell(m[c], spread[n][c]) for c in COLUMNS)) for n, m in means.items()]
    print_table(f"{recipe_name}: test part, {seeds} seed{'s' if seeds > 1 else ''}", ["", *COLUMNS], table)
    print(out / "ablation.json")
    return fields


def _cell(mean: float, deviation: float | None) -> str:
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"
