"""How everything here is measured: paired in one run, warmed up, median and spread, versions and hardware recorded, as JSON.

Each benchmark writes one :class:`Report` to ``results/<name>.json``; README tables are generated from those files.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from mc_core.cli import print_table
from mc_core.files import read_json, write_json

RESULTS = Path(__file__).resolve().parents[2] / "results"
_FEWEST = 3  # rounds of which a median and a spread can be told
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "mc-core", "mc-vision", "lightly")


class Environment(BaseModel):
    """Where a figure comes from."""

    model_config = ConfigDict(extra="forbid")
    date: str
    python: str
    machine: str
    device: str
    threads: int
    packages: dict[str, str]


class Row(BaseModel):
    """One line of a table: what was measured, and its figures by name."""

    model_config = ConfigDict(extra="forbid")
    name: str
    values: dict[str, float | str | None]


class Report(BaseModel):
    """One benchmark's result."""

    model_config = ConfigDict(extra="forbid")
    benchmark: str
    command: str
    question: str
    settings: dict[str, Any]
    environment: Environment
    columns: list[str]
    rows: list[Row]
    reading: str

    def save(self) -> Path:
        """Write it to ``results/``."""
        path = RESULTS / f"{self.benchmark}.json"
        write_json(path, self.model_dump())
        return path

    def show(self) -> None:
        """Print it as a table."""
        rows = [(row.name, *(_text(row.values.get(column)) for column in self.columns)) for row in self.rows]
        print_table(self.question, ["", *self.columns], rows)
        print(self.reading)

    def markdown(self) -> str:
        """The table for a README."""
        lines = ["| | " + " | ".join(self.columns) + " |", "|---" * (len(self.columns) + 1) + "|"]
        lines += [
            f"| {row.name} | " + " | ".join(_text(row.values.get(column)) for column in self.columns) + " |"
            for row in self.rows
        ]
        where = f"{self.environment.device}, {self.environment.threads} threads, torch {self.environment.packages.get('torch')}"
        return "\n".join([*lines, "", f"{self.reading} (`{self.command}`; {where}; {self.environment.date})"])


def load_report(name: str) -> Report:
    """A saved result."""
    return Report.model_validate(read_json(RESULTS / f"{name}.json"))


def _text(value: float | str | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def environment(device: torch.device | None = None) -> Environment:
    """This machine and the installed versions."""
    name = "CPU"
    if device is not None and device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    packages = {}
    for package in _PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    return Environment(
        date=datetime.now(UTC).date().isoformat(),
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.machine()}",
        device=name,
        threads=torch.get_num_threads(),
        packages=packages,
    )


def paired(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 3,
    device: torch.device | None = None,
    limit: float | None = None,
    rest: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of each candidate, taken in turns so that a slow moment of the machine hits all of them.

    Args:
        candidates: name → what to time.
        repeats: rounds.
        warmup: rounds not counted.
        device: synchronised around each timing when it is a GPU.
        limit: seconds after which no further round begins, as soon as three are counted.
        rest: seconds of sleep before each timing, then one run not counted. Where candidates have thread pools of their own, one
            that waits busily for more work takes the processor from the next candidate for so long.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    begin = time.perf_counter()
    for round_ in range(warmup + repeats):
        if limit is not None and round_ >= warmup + _FEWEST and time.perf_counter() - begin > limit:
            break
        for name, work in candidates.items():
            if rest:
                time.sleep(rest)
                work()
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            work()
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize(device)
            if round_ >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def spread(values: Sequence[float]) -> float:
    """Interquartile range."""
    quantiles = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.75], dtype=torch.float64))
    return float(quantiles[1] - quantiles[0])


def median_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Median of the ratios round by round."""
    return median([a / b for a, b in zip(values, base, strict=True)])
