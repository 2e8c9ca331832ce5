"""The command ``mc-vision-language``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code."""
    from mc_core.cli import run_app
    from mc_vision_language_app.app import run

    sys.exit(run_app(run, arguments))
