"""Paired benchmarks of momentum contrast: ``uv run --group peers mc-benchmark``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``mc-benchmark``."""
    from mc_benchmarks.app import run
    from mc_core.cli import run_app

    sys.exit(run_app(run, arguments))
