"""``mc-wearables evaluate``: without labels, how well embeddings recognise people held out, and how they are spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from mc_core.cli import Clock, Result, Status, print_table
from mc_core.runs import pick_device
from mc_wearables.evaluation import identity_report
from mc_wearables_app import figures
from mc_wearables_app.measure import CLASSICAL, TRAINED, UNTRAINED, features_of
from mc_wearables_app.runs import open_run


def run_evaluate(
    run: Path,
    store: Path | None,
    *,
    halves: Literal["segment", "session"],
    draws: int,
    seed: int,
    device: str,
    as_json: bool,
) -> dict[str, Any]:
    """Evaluate, write JSON and a map into the run folder, and print."""
    clock = Clock()
    opened = open_run(run, pick_device(device))
    with Status("opening the segments"):
        data = opened.data(store)
    _, test = features_of(data, opened.encoder, seed=seed)
    names = [name for name in (TRAINED, UNTRAINED, CLASSICAL) if not np.isnan(test[name].values).any()]
    with Status("comparing people"):
        found = {name: identity_report(test[name], halves=halves, draws=draws, seed=seed) for name in names}
    values = {name: result.top1.value for name, result in found.items()}
    trained = values.pop(TRAINED)
    more = {"data": data.name, "halves": halves, "identity": {name: result.to_dict() for name, result in found.items()}}
    result = Result("reidentification_top1", trained, values, run=run, seconds=clock.seconds(), more=more)
    written = [result.write(run, "evaluate.json"), figures.map_of(test[TRAINED], run / "evaluate.png")]
    if as_json:
        result.show(as_json=True, title="")
        return result.fields
    first = found[TRAINED]
    columns = ["", "who is it, top 1", "dispersion ratio", "effective rank", "centred"]
    rows = [
        (
            name.replace("_", " "),
            f"{r.top1.value:.3f} [{r.top1.low:.3f}, {r.top1.high:.3f}]",
            f"{r.dispersion_ratio:.2f}",
            f"{r.effective_rank:.1f}",
            f"{r.effective_rank_centred:.1f}",
        )
        for name, r in found.items()
    ]
    print_table(f"{run.name}: {first.participants} people held out, chance {first.chance:.4f}", columns, rows)
    for path in written:
        print(path)
    return result.fields
