"""Whether rasters and polygons fit together, before hours are spent on them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed.

    Attributes:
        level: ``"error"``: it cannot work; ``"warning"``: look at it; ``"note"``.
        code: short name, for programs.
        message: one sentence.
        numbers: behind it.
    """

    level: Literal["error", "warning", "note"]
    code: str
    message: str
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class AlignmentReport:
    """All findings, worst first."""

    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Those that stop."""
        return tuple(f for f in self.findings if f.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Those to look at."""
        return tuple(f for f in self.findings if f.level == "warning")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "findings": [
                {"level": f.level, "code": f.code, "message": f.message, "numbers": dict(f.numbers)}
                for f in self.findings
            ]
        }


def check_alignment(
    image: StrPath | None = None,
    elevation: StrPath | None = None,
    labels: StrPath | None = None,
    *,
    extent: StrPath | None = None,
    uncertain: StrPath | None = None,
    hard_negatives: StrPath | None = None,
    **options: Any,
) -> AlignmentReport:
    """Look at the files of a place without reading them whole.

    Args:
        image: raster.
        elevation: raster of heights.
        labels: polygons or raster of values.
        extent: where all was mapped.
        uncertain: not counted.
        hard_negatives: no targets.
        **options: of :func:`~mc_remote_sensing.data.scene.open_scene`.
    """
    return AlignmentReport(())


def alignment_figure(
    path: Path,
    image: StrPath | None = None,
    elevation: StrPath | None = None,
    labels: StrPath | None = None,
    **options: Any,
) -> None:
    """Draw image, relief and polygons over one another into a PNG."""
