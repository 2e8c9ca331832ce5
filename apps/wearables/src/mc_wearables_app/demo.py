"""``mc-wearables demo``: a page to look at segments of people held out, at what is near them, and at one's own recording."""

from __future__ import annotations

import csv
import functools
import importlib.util
import inspect
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, DataError, McError
from mc_core.optional import require
from mc_core.runs import pick_device
from mc_wearables_app.explorer import PARTICIPANT, SHOWN, Explorer, Uploaded
from mc_wearables_app.runs import Data, OpenedRun, open_run
from mc_wearables_app.signal_figures import point_at, row_at

_MOST_UPLOAD = "500mb"
_KEEP_FILES = (600, 3600)  # seconds: uploads are looked through every ten minutes and deleted after an hour
_FILES = [".csv", ".tsv", ".txt", ".parquet", ".npz", ".edf", ".bdf", ".json", ".zip"]
_CAUTION = (
    "**Research use, not a medical device.** Embeddings can identify people: treat them, and this page, as you treat the "
    "signals. People are shown by the end of their salted key."
)
_LOADING = "Looking for beats: neurokit2 is loaded the first time, which takes some seconds …"
# The library's messages name options of the command; here they are fields
_FIELDS = (
    ("as in --fs 64", "in the field “Sampling rate”"),
    ("as in --units 1000/mV", "as in 1000/mV"),
    ("--fs", "the field “Sampling rate”"),
    ("--units", "in the field “Units”"),
    ("--channels", "the field “Channels”"),
    ("; if its decimal mark is a comma, say --decimal ,", ""),
)


def run_demo(
    run: Path, store: Path | None, *, label: str | None, host: str, port: int, device: str, browser: bool
) -> None:
    """Serve the page until Ctrl-C."""
    opened = open_run(run, pick_device(device))
    data = opened.data(store)
    page = build_page(opened, data, label=label)
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


def build_page(opened: OpenedRun, data: Data, *, label: str | None = None, limit: int = SHOWN) -> Any:
    """The Gradio page; it is not served yet.

    Args:
        opened: run or saved encoder.
        data: its ``test`` is shown.
        label: that colours the map at first; None: the participant.
        limit: segments at most.

    Raises:
        MissingDependencyError: gradio is not installed.
        ConfigError: there is no such label.
        DataError: the encoder was made for other segments.
    """
    gr = require("gradio", extra="mc-wearables[demo]", purpose="show the demo page")
    explorer = Explorer(opened, data, limit=limit)
    if label is not None:
        explorer.check_label(label)
    segments, name = explorer.segments, opened.folder.resolve().name

    def told(work: Callable[..., Any]) -> Callable[..., Any]:
        """Problems of the visitor's making become one line in the page, which stays up."""

        @functools.wraps(work)  # Gradio reads the signature
        def guarded(*arguments: Any) -> Any:
            try:
                return work(*arguments)
            except McError as error:
                raise gr.Error(_in_fields(str(error)), print_exception=False) from error

        @functools.wraps(work)
        def guarded_steps(*arguments: Any) -> Iterator[Any]:
            try:
                yield from work(*arguments)
            except McError as error:
                raise gr.Error(_in_fields(str(error)), print_exception=False) from error

        return guarded_steps if inspect.isgeneratorfunction(work) else guarded

    with gr.Blocks(title=f"mc-wearables: {name}", analytics_enabled=False, delete_cache=_KEEP_FILES) as page:
        less = "" if len(segments) == len(data.test) else f" of {len(data.test):,}"
        gr.Markdown(
            f"# {name}\n{segments.kind.upper()}, {segments.duration:g} s at {segments.sampling_rate:g} Hz · "
            f"{len(segments):,}{less} segments of {len(explorer.people):,} people held out · {data.name}\n\n{_CAUTION}"
        )
        with gr.Tab("Look around"):
            _look_tab(gr, page, explorer, label, told)
        with gr.Tab("Your own recording"):
            _upload_tab(gr, explorer, told)
    return page


def _look_tab(gr: Any, page: Any, explorer: Explorer, label: str | None, told: Callable[..., Any]) -> None:
    state = gr.State(0)
    with gr.Row():
        person = gr.Dropdown(explorer.persons(), value=0, label="Person", elem_id="person", scale=4)
        piece = gr.Dropdown(explorer.pieces(0), value=0, label="Segment", elem_id="piece", scale=4)
        with gr.Column(scale=1, min_width=110):
            before = gr.Button("← Previous", elem_id="before", size="sm")
            after = gr.Button("Next →", elem_id="after", size="sm")
    signal = _picture(gr, "signal")
    with gr.Row():
        with gr.Column(scale=2):
            rate = gr.Markdown(elem_id="rate")
            mark = gr.Checkbox(True, label="Mark beats (neurokit2)", elem_id="mark")
        with gr.Column(scale=5):
            facts = gr.Markdown(elem_id="facts")
    with gr.Row():
        with gr.Column():
            gr.Markdown("### Nearest in the embedding, with cosine")
            others = gr.Checkbox(False, label="Other people only", elem_id="others")
            near = _picture(gr, "near")
            line = gr.Markdown(elem_id="line")
        with gr.Column():
            gr.Markdown("### All embeddings: click on a point to pick it")
            with gr.Row():
                color = gr.Dropdown(
                    [PARTICIPANT, *explorer.labels],
                    value=label or PARTICIPANT,
                    label="Colour",
                    show_label=False,
                    elem_id="color",
                )
                method = gr.Radio(
                    ["PCA", "UMAP"],
                    value="PCA",
                    label="Map (UMAP takes a while, once)",
                    visible=importlib.util.find_spec("umap") is not None,
                )
            picture = _picture(gr, "map")

    def beats_of(row: int, marked: bool) -> tuple[Any, str]:
        if not marked:
            return explorer.signal_picture(row, None), ""
        times, per_minute = explorer.beats(row)
        found = f"{len(times)} beats found in {explorer.segments.duration:g} s"
        told_rate = f"### {per_minute:.0f} beats per minute" if np.isfinite(per_minute) else "### No heart rate"
        return explorer.signal_picture(row, times), f"{told_rate}\n{found}"

    def show(row: int, marked: bool, other: bool, hue: str, how: str) -> Iterator[tuple[Any, ...]]:
        neighbours = explorer.neighbours(row, others=other)
        rest = (
            explorer.facts(row),
            explorer.neighbour_picture(row, neighbours),
            explorer.neighbour_line(row, neighbours),
            explorer.map_picture(row, hue, how),
        )
        chosen = (row, explorer.first_of(row), gr.Dropdown(explorer.pieces(row), value=row))
        if marked and "neurokit2" not in sys.modules:
            yield (*chosen, explorer.signal_picture(row, None), _LOADING, *rest)
        yield (*chosen, *beats_of(row, marked), *rest)

    def step(by: int) -> Callable[..., Any]:
        def moved(row: int, *given: Any) -> Iterator[tuple[Any, ...]]:
            yield from show((row + by) % len(explorer.segments), *given)

        return moved

    def click_map(row: int, marked: bool, other: bool, hue: str, how: str, event: gr.SelectData) -> Iterator[Any]:
        x, y = event.index
        found = point_at(explorer.plane(how), (float(x), float(y)))
        yield from show(row if found is None else found, marked, other, hue, how)

    def click_near(row: int, marked: bool, other: bool, hue: str, how: str, event: gr.SelectData) -> Iterator[Any]:
        rows = [row, *(n.row for n in explorer.neighbours(row, others=other))]
        found = row_at(float(event.index[1]), len(rows))
        yield from show(row if found is None else rows[found], marked, other, hue, how)

    def other_people(row: int, other: bool) -> tuple[Any, str]:
        found = explorer.neighbours(row, others=other)
        return explorer.neighbour_picture(row, found), explorer.neighbour_line(row, found)

    for clicked in (click_map, click_near):
        clicked.__annotations__["event"] = gr.SelectData
    asked = [mark, others, color, method]
    shown = [state, person, piece, signal, rate, facts, near, line, picture]
    page.load(told(show), [state, *asked], shown, show_progress="hidden")
    person.input(told(show), [person, *asked], shown, show_progress="hidden")
    piece.input(told(show), [piece, *asked], shown, show_progress="hidden")
    before.click(told(step(-1)), [state, *asked], shown, show_progress="hidden")
    after.click(told(step(1)), [state, *asked], shown, show_progress="hidden")
    picture.select(told(click_map), [state, *asked], shown, show_progress="hidden")
    near.select(told(click_near), [state, *asked], shown, show_progress="hidden")
    mark.input(told(beats_of), [state, mark], [signal, rate], show_progress="minimal")
    others.input(told(other_people), [state, others], [near, line], show_progress="hidden")
    for control in (color, method):
        control.input(told(explorer.map_picture), [state, color, method], picture, show_progress="minimal")


def _upload_tab(gr: Any, explorer: Explorer, told: Callable[..., Any]) -> None:
    kind, folder = explorer.segments.kind, tempfile.TemporaryDirectory(prefix="mc-wearables-demo-")
    gr.Markdown(
        f"A recording of {kind.upper()} of at least {explorer.segments.duration:g} s: one row for each sample, or EDF, Apple "
        "Health, Fitbit or Empatica files. It is cut and embedded as the segments of this page were, and deleted after an "
        "hour or so."
    )
    with gr.Row(equal_height=True):
        file = gr.File(label="Recording", file_types=_FILES, type="filepath", elem_id="upload", height=140, scale=2)
        with gr.Column(scale=2):
            with gr.Row():
                rate = gr.Number(0, label="Sampling rate", info="Hz; 0: the file says it", minimum=0, elem_id="fs")
                units = gr.Textbox(
                    label="Units", info="V, mV, uV, … if the file does not say", elem_id="units", visible=kind == "ecg"
                )
                channels = gr.Textbox(label="Channels", info="names or numbers; empty: the usual", elem_id="channels")
            go = gr.Button("Embed", variant="primary", elem_id="go")
    line, draft = gr.Markdown(elem_id="outcome"), gr.State("")
    with gr.Row(visible=False, elem_id="results") as results:
        with gr.Column():
            people = gr.Dataframe(
                label="Nearest people",
                headers=["person", "cosine to their mean", "your segments nearest to theirs"],
                interactive=False,
                elem_id="people",
            )
            listed = gr.Dataframe(
                label="Segments",
                headers=["segment", "from second", "quality", "nearest", "cosine"],
                interactive=False,
                elem_id="segments",
            )
            save = gr.DownloadButton("Embeddings as CSV", elem_id="save")
        with gr.Column():
            gr.Markdown("### Your segments (black), each with the nearest below")
            picture = _picture(gr, "pairs")

    def embed_file(path: str | None, hertz: float | None, unit: str, wanted: str) -> tuple[Any, ...]:
        if path is None:
            raise DataError("choose a file first")
        found = explorer.upload(path, hertz or None, unit or "", wanted or "")
        count, duration = len(found.segments), explorer.segments.duration
        left = max(0.0, found.seconds - count * duration)
        rest = f"; {left:.3g} s left out: ends, gaps, flat or clipped stretches" if left >= 0.1 else ""
        said = (
            f"**{count} segment{'s' if count > 1 else ''}** of {duration:g} s in {found.seconds:.4g} s of signal{rest}."
        )
        return (
            gr.Row(visible=True),
            said,
            explorer.upload_people(found),
            explorer.upload_segments(found),
            explorer.upload_picture(found),
            *[_write_csv(Path(folder.name), found)] * 2,
        )

    embedded = go.click(
        told(embed_file),
        [file, rate, units, channels],
        [results, line, people, listed, picture, save, draft],
        show_progress="minimal",
    )
    # Gradio serves, and deletes, a copy of its own
    embedded.success(lambda path: Path(path).unlink(missing_ok=True), draft, None)


def _picture(gr: Any, name: str) -> Any:
    """An image of ours, without the button that would send it to a public web site."""
    if "buttons" in inspect.signature(gr.Image).parameters:
        return gr.Image(
            show_label=False,
            interactive=False,
            type="pil",
            format="png",
            buttons=["download", "fullscreen"],
            elem_id=name,
        )
    return gr.Image(
        show_label=False, interactive=False, type="pil", format="png", show_share_button=False, elem_id=name
    )


def _write_csv(folder: Path, found: Uploaded) -> str:
    """A file of its own for each upload: visitors do not see those of others."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "embeddings.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["segment", "from_second", *(f"e{i}" for i in range(found.embeddings.shape[1]))])
        for i, (start, values) in enumerate(zip(found.segments.start, found.embeddings, strict=True)):
            writer.writerow([i + 1, f"{start:g}", *(f"{value:.7g}" for value in values)])
    return str(path)


def _in_fields(message: str) -> str:
    for option, field in _FIELDS:
        message = message.replace(option, field)
    return message
