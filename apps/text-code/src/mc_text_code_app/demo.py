"""``mc-text-code sentences demo``: a page that searches a corpus by meaning, beside BM25, and compares two sentences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.cli import Status
from mc_core.errors import ConfigError, DataError, McError
from mc_core.optional import require
from mc_text_code.data.sentences import Sentences
from mc_text_code.search import SentenceIndex, search_lexical
from mc_text_code_app.opening import AnyEncoder, evaluation_sentences, open_encoder
from mc_text_code_app.search import best

_MOST_QUERY = 10_000  # characters


def run_demo(
    run: Path, corpus: Sequence[str], *, column: str | None, host: str, port: int, device: str, browser: bool
) -> None:
    """Serve the page until Ctrl-C."""
    sentences = evaluation_sentences(run, corpus, column)
    if sentences is None:
        raise DataError(f"{run} says nothing of sentences held out: name a corpus after it")
    page = build_page(open_encoder(run, device), sentences, title=run.resolve().name)
    try:
        page.launch(
            server_name=host, server_port=port, inbrowser=browser, share=False, quiet=True, prevent_thread_lock=True
        )
    except OSError as error:
        raise ConfigError(f"port {port} on {host} cannot be used ({error}): choose another with --port") from error
    print(f"http://{host}:{port}  (Ctrl-C ends it)", flush=True)
    page.block_thread()


def build_page(encoder: AnyEncoder, sentences: Sentences, *, title: str) -> Any:
    """The Gradio page; it is not served yet.

    Raises:
        MissingDependencyError: gradio is not installed.
    """
    gr = require("gradio", extra="mc-text-code[demo]", purpose="show the demo page")
    texts = sentences.texts
    with Status(f"embedding {len(texts):,} sentences"):
        index = SentenceIndex.build(texts, encoder.encode)

    def told(work: Callable[..., Any]) -> Callable[..., Any]:
        """Problems of the visitor's making become one line in the page, which stays up."""

        @functools.wraps(work)  # Gradio reads the signature
        def guarded(*arguments: Any) -> Any:
            try:
                return work(*arguments)
            except McError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return guarded

    def checked(text: str | None, what: str) -> str:
        text = (text or "").strip()
        if not text:
            raise DataError(f"{what} is empty: type a sentence")
        if len(text) > _MOST_QUERY:
            raise DataError(f"{what} has {len(text):,} characters; give at most {_MOST_QUERY:,}")
        return text

    def search(query: str, k: float) -> tuple[list[list[str]], list[list[str]]]:
        query = checked(query, "the query")
        dense = index.search(encoder.encode([query]), int(k))
        lexical = search_lexical(texts, [query], int(k))
        kept = lexical.scores[0] > 0
        return (
            best(texts, dense.scores[0], dense.rows[0]),
            best(texts, lexical.scores[0][kept], lexical.rows[0][kept]),
        )

    def compare(first: str, second: str) -> str:
        pair = [checked(first, "the first sentence"), checked(second, "the second sentence")]
        one, other = encoder.encode(pair, normalize=True)
        cosine = float(one @ other)
        sample = index.vectors[:: max(1, len(index) // 1000)]
        above = float((np.asarray(sample @ one) < cosine).mean())
        return (
            f"### cosine {cosine:.3f}\nThe first sentence is closer to the second than to {above:.0%} of the corpus's "
            "sentences. Cosines of two encoders do not compare."
        )

    with gr.Blocks(title=f"mc-text-code: {title}", analytics_enabled=False) as page:
        gr.Markdown(
            f"# {title}\n{len(texts):,} sentences of {Path(sentences.source).name}, {encoder.num_features} numbers each"
        )
        with gr.Tab("Search"):
            with gr.Row():
                query = gr.Textbox(label="What are you looking for?", elem_id="query", scale=5)
                count = gr.Slider(1, 50, value=10, step=1, label="Results", scale=1)
            go = gr.Button("Search", variant="primary", elem_id="go")
            with gr.Row():
                dense = gr.Dataframe(
                    headers=["cosine", "by meaning"],
                    elem_id="dense",
                    wrap=True,
                    interactive=False,
                    column_widths=["18%", "82%"],
                )
                lexical = gr.Dataframe(
                    headers=["score", "by words (BM25)"],
                    elem_id="lexical",
                    wrap=True,
                    interactive=False,
                    column_widths=["18%", "82%"],
                )
            for event in (go.click, query.submit):
                event(told(search), [query, count], [dense, lexical])
        with gr.Tab("Compare"):
            first = gr.Textbox(label="A sentence", elem_id="first")
            second = gr.Textbox(label="Another", elem_id="second")
            compared = gr.Button("Compare", variant="primary", elem_id="compare")
            answer = gr.Markdown(elem_id="answer")
            compared.click(told(compare), [first, second], answer)
    return page
