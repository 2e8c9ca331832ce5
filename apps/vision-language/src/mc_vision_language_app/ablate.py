"""``mc-vision-language ablate``: what each part of ALBEF is worth on these pairs, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mc_core.cli import Clock, keep_freed_memory, print_json, print_table
from mc_core.errors import ConfigError
from mc_core.files import write_json
from mc_core.runs import folder_name
from mc_core.seeds import Spread
from mc_vision_language.ablation import (
    ARMS,
    COLUMNS,
    DOWNSTREAM,
    STRENGTHS,
    UNTRAINED,
    run_arm,
    run_downstream,
    run_untrained,
    strength_arm,
)
from mc_vision_language.recipe import resolve_recipe
from mc_vision_language.sample import SAMPLE
from mc_vision_language_app.measure import candidates
from mc_vision_language_app.pair_options import PairOptions
from mc_vision_language_app.pretrain import read_pairs
from mc_vision_language_app.runs import source_name

LABELS = ("ITC R_m", "ITC i→t at 1", "re-ranked at 1", "re-ranked R_m", "ITM R_m")  # of the columns


def run_ablate(
    source: str | None,
    options: PairOptions,
    *,
    recipe: str,
    out: Path | None,
    seeds: int,
    noises: Sequence[float],
    steps: int | None,
    strengths: bool,
    downstream: bool,
    as_json: bool,
) -> None:
    """Train every row, and print the table."""
    if seeds < 1:
        raise ConfigError(f"seeds {seeds}; give 1 or more")
    if wrong := [noise for noise in noises if not 0 <= noise <= 1]:
        raise ConfigError(f"noise {wrong[0]:g}; give shares of the captions, from 0 to 1")
    clock = Clock()
    keep_freed_memory()
    changes = {} if steps is None else {"fit": {"steps": steps, "epochs": None}}
    base = resolve_recipe(recipe, changes)
    pairs = read_pairs(source, options, base)
    name = SAMPLE if source is None else source_name(source)
    folder = out or Path("runs") / f"ablation-{folder_name(Path(name).stem)}"
    k = min(32, candidates(int((pairs.splits == "test").sum()), None))
    further = [(arm, run_downstream) for arm in (DOWNSTREAM if downstream else ())]
    harder = [(strength_arm(strength), run_arm) for strength in (STRENGTHS if strengths else ())]
    arms = [*((arm, run_arm) for arm in ARMS), *further, *harder]
    found: dict[tuple[float, str], list[dict[str, float]]] = {}
    for seed in range(seeds):
        found.setdefault((0.0, UNTRAINED), []).append(run_untrained(recipe, changes, seed, pairs, folder, k=k))
        for noise in noises:
            for arm, train in arms:
                scores = train(recipe, changes, arm, seed, pairs, folder, noise=noise, k=k)
                found.setdefault((noise, arm.name), []).append(scores)
    rows = [
        {"wrong_captions": noise, "row": arm, **{c: {"mean": s.mean, "sd": s.sd} for c, s in _spreads(each).items()}}
        for (noise, arm), each in found.items()
    ]
    fields = {
        "recipe": recipe,
        "data": name,
        "seeds": seeds,
        "k": k,
        "rows": rows,
        "seconds": round(clock.seconds(), 1),
    }
    write_json(folder / "ablation.json", fields)
    if as_json:
        print_json(fields)
        return
    heads = ["wrong", "", *LABELS]
    print_table(
        f"{name}, {seeds} seeds, mean ± deviation; the best {k} are ranked again",
        heads,
        [[f"{noise:.0%}", arm, *(f"{s:.3f}" for s in _spreads(each).values())] for (noise, arm), each in found.items()],
    )
    print(f"rows  {folder}")


def _spreads(each: Sequence[dict[str, float]]) -> dict[str, Spread]:
    return {column: Spread.of([one[column] for one in each]) for column in COLUMNS}
