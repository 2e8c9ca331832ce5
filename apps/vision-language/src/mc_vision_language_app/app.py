"""The grammar of ``mc-vision-language``: verbs, their options, and where their work is done. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cyclopts import App, Parameter

from mc_core.cli import call_app
from mc_vision_language import __version__

app = App(
    name="mc-vision-language",
    help="From images and captions to search, answers, statements and boxes.",
    version=__version__,
    default_parameter=Parameter(negative_iterable=()),
    help_format="plaintext",  # importing what renders Markdown takes a fifth of a second
)


def run(arguments: Sequence[str]) -> Any:
    """Parse and run."""
    return call_app(app, list(arguments))
