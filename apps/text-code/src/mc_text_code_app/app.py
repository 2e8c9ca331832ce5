"""The grammar of ``mc-text-code``: what is done with sentences, its options, and where the work is. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cyclopts import App

from mc_core.cli import call_app
from mc_text_code import __version__
from mc_text_code_app.code import code
from mc_text_code_app.sentences import sentences

app = App(
    name="mc-text-code",
    help="Train encoders of text by momentum contrast, and use them: sentence embeddings, search, deduplication.",
    version=__version__,
    help_format="plaintext",  # importing what renders Markdown takes a fifth of a second
)
app.command(sentences)
app.command(code)


def run(arguments: Sequence[str]) -> Any:
    """Parse and run."""
    return call_app(app, list(arguments))
