"""``mc-medical efficiency``: what a large contrastive batch costs on this machine, each way of having one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mc_core.cli import Status, print_json, print_table
from mc_core.files import write_json
from mc_core.report import environment
from mc_core.runs import pick_device
from mc_medical.efficiency import measure_efficiency
from mc_medical.recipe import resolve_recipe

_EPOCH = 100_000  # pairs, of the column that says how long an epoch lasts


def run_efficiency(
    *,
    recipe_name: str | None,
    batch: int,
    micro: Sequence[int],
    repeats: int,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Do it, and print the table."""
    place = pick_device(device)
    name = recipe_name or ("msd" if place.type == "cuda" else "msd-laptop")
    random = {"method": {"image": {"pretrained": False}, "text": {"name": None}}}  # time does not depend on the weights
    recipe = resolve_recipe(name, random)
    with Status("measuring") as status:
        found = measure_efficiency(
            recipe.method,
            augment=recipe.augment,
            fit=recipe.fit,
            stored=recipe.image.size,
            batch=batch,
            micro_batches=micro,
            repeats=repeats,
            device=place,
            told=status.say,
        )
    rows = [
        {
            "scheme": one.scheme,
            "micro_batch": one.micro_batch,
            "pairs_per_second": one.pairs_per_second,
            "step_seconds": one.step_seconds,
            "spread_seconds": one.spread_seconds,
            "ratio_to_plain": one.ratio,
            "graph_mib": one.graph_bytes / 2**20,
            "device_mib": None if one.device_bytes is None else one.device_bytes / 2**20,
            "minutes_per_100000_pairs": one.epoch_seconds(_EPOCH) / 60,
        }
        for one in found
    ]
    fields = {"recipe": name, "batch": batch, "repeats": repeats, "rows": rows, "environment": environment()}
    if out is not None:
        write_json(out, fields)
    if as_json:
        print_json(fields)
        return
    memory = "memory, MiB" if place.type == "cuda" else "kept for backward, MiB"
    print_table(
        f"{batch:,} pairs a step, encoders of {name}, {place.type}; medians of {repeats}",
        ["in the graph", "", "pairs/s", "× plain", memory, "min per 100,000 pairs"],
        [
            [
                str(one["micro_batch"]),
                str(one["scheme"]),
                f"{one['pairs_per_second']:.0f}",
                "–" if one["ratio_to_plain"] is None else f"{one['ratio_to_plain']:.2f}",
                f"{one['device_mib'] if one['device_mib'] is not None else one['graph_mib']:.0f}",
                f"{one['minutes_per_100000_pairs']:.1f}",
            ]
            for one in rows
        ],
    )
