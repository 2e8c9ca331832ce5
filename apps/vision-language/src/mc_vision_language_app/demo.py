"""``mc-vision-language demo``: a page to search among pictures, ask about one of them, and see where a phrase is in it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mc_core.cli import Status
from mc_core.errors import ConfigError, DataError, McError
from mc_core.listing import fingerprint
from mc_core.optional import require
from mc_core.runs import pick_device
from mc_vision_language.data import ArrayImages, ImageSet
from mc_vision_language.sample import SAMPLE, sample_scenes
from mc_vision_language.search import Hit, SearchIndex
from mc_vision_language.tasks.training import load_task_model
from mc_vision_language.tasks.vqa import VQAModel
from mc_vision_language_app.pair_options import PairOptions
from mc_vision_language_app.runs import open_images, open_run
from mc_vision_language_app.viewer import (
    Shown,
    Viewer,
    answer_table,
    enlarged,
    hit_label,
    hit_line,
    readable,
    sentence_table,
)

SCENES = 300
_MOST_UPLOAD = "100mb"
_TALL = 340  # screen pixels of the picture and of its map: both, and what was found, are seen at once
_KEEP_FILES = (600, 3600)  # seconds: uploads are looked through every ten minutes and deleted after an hour
_CAUTION = (
    "The number below a picture is its match with the words, by which pictures are ordered; it is no probability. Everything stays "
    "on this machine, but whoever can open the page can see its pictures."
)
_NO_ANSWERS = (
    "This page answers no questions: open it with `--vqa RUN`, a run of `mc-vision-language finetune --task vqa`. Search, "
    "sentences and the map need none."
)


def run_demo(
    run: Path,
    images: str | None,
    pairs: PairOptions,
    *,
    vqa: Path | None,
    host: str,
    port: int,
    device: str,
    browser: bool,
) -> None:
    """Serve the page until Ctrl-C."""
    page = build_page(open_viewer(run, images, pairs, vqa=vqa, device=device))
    try:
        page.launch(
            server_name=host,
            server_port=port,
            inbrowser=browser,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=_MOST_UPLOAD,
        )
    except OSError as error:
        raise ConfigError(f"port {port} on {host} cannot be used ({error}): choose another with --port") from error
    print(f"http://{host}:{port}  (Ctrl-C ends it)", flush=True)
    page.block_thread()


def open_viewer(run: Path, source: str | None, pairs: PairOptions, *, vqa: Path | None, device: str) -> Viewer:
    """Model and pictures as the page shows them; the index of the pictures is kept in the run folder.

    Raises:
        ConfigError: ``vqa`` answers no questions.
    """
    opened = open_run(run, pick_device(device))
    answering = None
    if vqa is not None:
        answering = load_task_model(vqa, device=pick_device(device))
        if not isinstance(answering, VQAModel):
            raise ConfigError(f"{vqa} answers no questions: make a run that does with finetune --task vqa")
    captions: tuple[str, ...] = ()
    if source is None:
        scenes = sample_scenes("test", count=SCENES)
        images: ImageSet = ArrayImages(scenes.images, location=SAMPLE)
        name, captions = SAMPLE, tuple(scenes.captions)
    else:
        images, _ = open_images(source, pairs)
        name = Path(source).name
    place = run / "index" / fingerprint(str(Path(source).absolute()) if source else SAMPLE)[:12]
    with Status("encoding images") as status:
        index = SearchIndex.build(
            opened.model, images, place, progress=lambda share: status.say(f"encoding images, {share:.0%}")
        )
    return Viewer(opened.model, images, index, name=name, vqa=answering, captions=captions)


def build_page(viewer: Viewer) -> Any:
    """The Gradio page; it is not served yet.

    Raises:
        MissingDependencyError: gradio is not installed.
    """
    gr = require("gradio", extra="mc-vision-language[demo]", purpose="show the demo page")
    examples = viewer.captions[:3]

    def told(work: Callable[..., Any]) -> Callable[..., Any]:
        """Problems of the visitor's making become one line in the page, which stays up."""

        @functools.wraps(work)  # Gradio reads the signature
        def guarded(*arguments: Any) -> Any:
            try:
                return work(*arguments)
            except McError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return guarded

    def need(shown: Shown | None) -> Shown:
        if shown is None:
            raise DataError("choose a picture first")
        return shown

    def show(shown: Shown, line: str) -> tuple[Any, ...]:
        """Another picture: what was said about the one before goes."""
        return shown, enlarged(shown.picture), line, "", "", None, ""

    def find(text: str) -> tuple[Any, ...]:
        found = readable(viewer, viewer.search(text))
        if not found:
            raise DataError("none of the pictures found can be read any more: start the page again")
        items = [(enlarged(picture), hit_label(hit)) for hit, picture in found]
        best = found[0][0]
        return (items, [hit for hit, _ in found], *show(viewer.shown(best.row), hit_line(best)))

    def pick(hits: list[Hit], event: Any) -> tuple[Any, ...]:
        hit = hits[event.index]
        return show(viewer.shown(hit.row), hit_line(hit))

    pick.__annotations__["event"] = gr.SelectData  # by which Gradio knows to hand it over

    def uploaded(path: str | None) -> tuple[Any, ...]:
        if path is None:
            raise DataError("choose a file first")
        return show(viewer.upload(path), "your file")

    with gr.Blocks(title="mc-vision-language", analytics_enabled=False, delete_cache=_KEEP_FILES) as page:
        gr.Markdown(f"# Search, questions, places\n{len(viewer.index):,} pictures of {viewer.name}\n\n{_CAUTION}")
        state, hits = gr.State(None), gr.State([])
        with gr.Row():
            with gr.Column(scale=6, min_width=380):
                with gr.Row():
                    query = gr.Textbox(
                        examples[0] if examples else "",
                        show_label=False,
                        placeholder="two dogs on grass",
                        elem_id="query",
                        scale=5,
                    )
                    search = gr.Button("Search", elem_id="search", variant="primary", scale=1, min_width=90)
                found = gr.Gallery(
                    show_label=False,
                    columns=4,
                    height="auto",
                    allow_preview=False,
                    interactive=False,
                    format="png",
                    elem_id="found",
                    **_quiet(gr.Gallery),
                )
                file = gr.File(label="A picture of your own", type="filepath", elem_id="upload", height=130)
                go = gr.Button("Take it", elem_id="go")
            with gr.Column(scale=6, min_width=380):
                picture = _picture(gr, "picture")
                line = gr.Markdown(elem_id="line")
                gr.Markdown("### A question")
                with gr.Row(visible=viewer.vqa is not None):
                    question = gr.Textbox(
                        show_label=False, placeholder="what is left of the cup?", elem_id="question", scale=5
                    )
                    ask = gr.Button("Ask", elem_id="ask", scale=1, min_width=90)
                answers = gr.HTML("" if viewer.vqa is not None else _as_paragraph(_NO_ANSWERS), elem_id="answers")
                gr.Markdown("### Where is it?")
                with gr.Row():
                    phrase = gr.Textbox(show_label=False, placeholder="the red car", elem_id="phrase", scale=5)
                    point = gr.Button("Show", elem_id="point", scale=1, min_width=90)
                heat = _picture(gr, "map")
                heat_line = gr.Markdown(elem_id="map-line")
                gr.Markdown("### Which sentence fits?")
                sentences = gr.Textbox(
                    "\n".join(examples),
                    show_label=False,
                    lines=3,
                    placeholder="one sentence a line",
                    elem_id="sentences",
                )
                compare = gr.Button("Compare", elem_id="compare")
                fits = gr.HTML(elem_id="fits")
        answered = answers if viewer.vqa is not None else gr.State("")  # the note stays
        seen = [state, picture, line, answered, fits, heat, heat_line]
        page.load(told(find), query, [found, hits, *seen], show_progress="hidden")
        for event in (search.click, query.submit):
            event(told(find), query, [found, hits, *seen], show_progress="minimal")
        found.select(told(pick), hits, seen, show_progress="hidden")
        go.click(told(uploaded), file, seen, show_progress="minimal")
        for event in (ask.click, question.submit):
            event(
                told(lambda shown, text: answer_table(viewer.answers(need(shown), text))),
                [state, question],
                answers,
                show_progress="minimal",
            )
        for event in (point.click, phrase.submit):
            event(
                told(lambda shown, text: viewer.where(need(shown), text)),
                [state, phrase],
                [heat, heat_line],
                show_progress="minimal",
            )
        compare.click(
            told(lambda shown, text: sentence_table(viewer.fitting(need(shown), text))),
            [state, sentences],
            fits,
            show_progress="minimal",
        )
    return page


def _as_paragraph(text: str) -> str:
    parts = text.split("`")
    return "<p>" + "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts)) + "</p>"


def _quiet(component: Any) -> dict[str, Any]:
    """Without the button that would send a picture to a public web site."""
    if "buttons" in inspect.signature(component).parameters:
        return {"buttons": ["download", "fullscreen"]}
    return {"show_share_button": False}


def _picture(gr: Any, name: str) -> Any:
    return gr.Image(
        show_label=False, interactive=False, type="pil", format="png", height=_TALL, elem_id=name, **_quiet(gr.Image)
    )
