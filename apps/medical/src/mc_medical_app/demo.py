"""``mc-medical demo``: a page with a radiograph, its zero-shot scores, the nearest reports, and where a phrase is found."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mc_core.cli import Status
from mc_core.errors import ConfigError, DataError, McError
from mc_core.optional import require
from mc_core.runs import pick_device
from mc_medical_app.runs import PHANTOMS, open_run
from mc_medical_app.study_options import StudyOptions
from mc_medical_app.viewer import Shown, Viewer, default_phrase, own_report, report_list, score_table

_MOST_UPLOAD = "100mb"
_KEEP_FILES = (600, 3600)  # seconds: uploads are looked through every ten minutes and deleted after an hour
_CAUTION = (
    "**Research use, not a medical device.** Scores compare an image with phrases; they are no diagnosis and not calibrated. "
    "The page shows radiographs and reports of the studies it was opened with: treat it as you treat these."
)
_SCORES = (
    "Blue: softmax(κ [there is, there is no]) over all phrases of a finding. Orange, and in brackets: 95 % of what other choices "
    "of its phrases give, which is how much hangs on the wording."
)
_AREA = " AUROC: of this score over the studies of the page, with a 95 % interval over patients."


def run_demo(
    run: Path,
    source: Path | None,
    studies: StudyOptions,
    *,
    host: str,
    port: int,
    device: str,
    browser: bool,
) -> None:
    """Serve the page until Ctrl-C."""
    opened = open_run(run, pick_device(device))
    cohort, name = None, "no studies: upload a file"
    if source is not None or (opened.folder / PHANTOMS / "studies.csv").is_file():
        cohort, name = opened.cohort(source, studies)
    with Status("encoding images and reports"):
        viewer = Viewer(opened, cohort, name=name)
    page = build_page(viewer)
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


def build_page(viewer: Viewer) -> Any:
    """The Gradio page; it is not served yet.

    Raises:
        MissingDependencyError: gradio is not installed.
    """
    gr = require("gradio", extra="mc-medical[demo]", purpose="show the demo page")
    folder, choices = viewer.opened.folder.resolve().name, viewer.choices()
    first = viewer.shown(0) if choices else None

    def told(work: Callable[..., Any]) -> Callable[..., Any]:
        """Problems of the visitor's making become one line in the page, which stays up."""

        @functools.wraps(work)  # Gradio reads the signature
        def guarded(*arguments: Any) -> Any:
            try:
                return work(*arguments)
            except McError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return guarded

    def facts(shown: Shown) -> tuple[Any, ...]:
        scores = viewer.scores(shown)
        note = _SCORES + (_AREA if any(s.auroc for s in scores) else "")
        return shown, viewer.picture(shown), _line(viewer, shown), score_table(scores), note, _reports(viewer, shown)

    def drawn(shown: Shown | None, phrase: str) -> tuple[Any, str]:
        if shown is None:
            raise DataError("choose a radiograph first")
        return viewer.map_picture(shown, phrase)

    def pick(row: int) -> tuple[Any, ...]:
        shown = viewer.shown(int(row))
        phrase = default_phrase(viewer, shown)
        return (*facts(shown), int(row), phrase, *drawn(shown, phrase))

    def chosen(row: int, shown: Shown | None) -> tuple[Any, ...]:
        # the field also reports its value when it is left
        same = shown is not None and shown.row == int(row)
        return tuple(gr.skip() for _ in range(10)) if same else pick(row)

    def step(by: int) -> Callable[[int], tuple[Any, ...]]:
        return lambda row: pick((int(row) + by) % len(choices))

    def uploaded(path: str | None, phrase: str) -> tuple[Any, ...]:
        if path is None:
            raise DataError("choose a file first")
        shown = viewer.upload(path)
        phrase = phrase.strip() or default_phrase(viewer, shown)
        return (*facts(shown), gr.skip(), phrase, *drawn(shown, phrase))

    with gr.Blocks(title=f"mc-medical: {folder}", analytics_enabled=False, delete_cache=_KEEP_FILES) as page:
        count = f"{len(choices):,} radiographs · " if choices else ""
        gr.Markdown(f"# {folder}\n{count}{viewer.name}\n\n{_CAUTION}")
        state = gr.State(first)
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                with gr.Row(visible=bool(choices)):
                    row = gr.Dropdown(choices or [("", 0)], value=0, label="Study", elem_id="row", scale=4)
                    with gr.Column(scale=1, min_width=110):
                        before = gr.Button("← Previous", elem_id="before", size="sm")
                        after = gr.Button("Next →", elem_id="after", size="sm")
                picture = _picture(gr, "picture")
                line = gr.Markdown(elem_id="line")
                gr.Markdown("### Where a phrase is found")
                with gr.Row():
                    phrase = gr.Textbox(
                        show_label=False, placeholder="left pleural effusion", elem_id="phrase", scale=4
                    )
                    show = gr.Button("Show", elem_id="show", scale=1, min_width=80)
                heat = _picture(gr, "map")
                heat_line = gr.Markdown(elem_id="map-line")
            with gr.Column(scale=7, min_width=420):
                gr.Markdown("### Zero-shot scores")
                table = gr.HTML(elem_id="scores")
                note = gr.Markdown(elem_id="note")
                gr.Markdown("### Nearest reports")
                reports = gr.HTML(elem_id="reports")
                gr.Markdown("### A radiograph of your own")
                file = gr.File(label="DICOM, PNG or JPEG", type="filepath", elem_id="upload", height=150)
                go = gr.Button("Read it", elem_id="go", variant="primary")
        seen = [state, picture, line, table, note, reports, row, phrase, heat, heat_line]
        if choices:
            page.load(told(pick), row, seen, show_progress="hidden")
            row.input(told(chosen), [row, state], seen, show_progress="hidden")
            before.click(told(step(-1)), row, seen, show_progress="hidden")
            after.click(told(step(1)), row, seen, show_progress="hidden")
        go.click(told(uploaded), [file, phrase], seen, show_progress="minimal")
        for event in (show.click, phrase.submit):
            event(told(drawn), [state, phrase], [heat, heat_line], show_progress="minimal")
    return page


def _line(viewer: Viewer, shown: Shown) -> str:
    """What there is to say below the radiograph."""
    parts = [f"Note: {note}." for note in shown.notes]
    if shown.row is None:
        parts.insert(0, "Your file.")
    rank = viewer.own_rank(shown)
    if rank is not None:
        parts.append(f"Its own report is number {rank[0]} of {rank[1]:,} different ones.")
    return " ".join(parts)


def _reports(viewer: Viewer, shown: Shown) -> str:
    return own_report(viewer.own_report(shown)) + report_list(viewer.nearest(shown))


def _picture(gr: Any, name: str) -> Any:
    """An image of ours, without the button that would send it to a public web site."""
    quiet: dict[str, Any] = {"show_share_button": False}
    if "buttons" in inspect.signature(gr.Image).parameters:
        quiet = {"buttons": ["download", "fullscreen"]}
    return gr.Image(show_label=False, interactive=False, type="pil", format="png", elem_id=name, **quiet)
