"""The ablation of participant contrast on simulated people, beside the directions that its paper reports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mc_benchmarks.contract import Report, Row
from mc_benchmarks.wearables_common import wearables_environment
from mc_core.errors import RunError
from mc_core.files import read_json


def run_wearables_ablation(*, signal: str, seeds: int, keep: Path) -> Report:
    """Run ``mc-wearables ablate``, which goes on where it stopped, and save its table.

    Args:
        signal: ppg or ecg.
        seeds: runs of each row.
        keep: where finished rows are kept.
    """
    folder = keep / f"wearables-ablation-{signal}"
    program = Path(sys.executable).parent / "mc-wearables"
    command = [program, "ablate", "--signal", signal, "--seeds", str(seeds), "--out", folder]
    if subprocess.run(command, check=False).returncode:
        raise RunError("mc-wearables ablate failed; its message is above")
    return report_of(read_json(folder / "ablation.json"), signal)


def report_of(found: dict, signal: str) -> Report:  # type: ignore[type-arg]
    """The saved table of the command as a report."""
    rows, spread, paper = found["rows"], found["sd"], found["paper"]
    columns = [c for c in next(iter(rows.values())) if c not in ("nothing per person", "rank")]
    seeds = int(found["seeds"])
    report = Report(
        benchmark=f"wearables_ablation_{signal}",
        command="uv run mc-benchmark wearables-ablation"
        + (f" --signal {signal}" if signal != "ecg" else "")
        + (f" --seeds {seeds}" if seeds != 3 else ""),
        question=f"One change at a time from {found['recipe']} on simulated {signal.upper()}, {seeds} seeds",
        settings={"seeds": seeds, "rows": rows, "sd": spread},
        environment=wearables_environment(),
        columns=[*columns, "the paper says"],
        rows=[
            Row(
                name=name,
                values={c: _cell(row[c], spread[name][c]) for c in columns} | {"the paper says": paper[name] or "–"},
            )
            for name, row in rows.items()
        ],
        reading=_reading(rows, seeds),
    )
    report.save()
    report.show()
    return report


def _cell(mean: float, deviation: float | None) -> str:
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def _reading(rows: dict, seeds: int) -> str:  # type: ignore[type-arg]
    """Which of the paper's directions show, in the means."""
    full = rows["full"]
    parts = []
    if "segment-pairs" in rows:
        probes = [c for c in full if c.split(" per ")[0] in ("age", "sex", "af", "rhythm") or c == "who is it"]
        worse = [c for c in probes if rows["segment-pairs"][c] < full[c]]
        parts.append(f"segment pairs are worse on {len(worse)} of {len(probes)} probes")
    for name, said in (("no-koleo", "without KoLeo"), ("no-momentum", "SimCLR"), ("byol", "BYOL")):
        if name in rows:
            how = "lower" if rows[name]["rank centred"] < full["rank centred"] else "not lower"
            parts.append(f"{said} has {how} effective rank")
    return (
        f"In the mean over {seeds} seed{'s' if seeds > 1 else ''}: "
        + "; ".join(parts)
        + ". R² for age and activity, AUROC for sex, fibrillation (af) and rhythm, top 1 for who is it; dispersion within over "
        "between people, less is tighter. Simulated people and a small encoder: what differs from the paper may come from either."
    )
