"""``mc-vision demo``: a page where a click on a photo shows what looks like it, and a second tab finds similar images."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mc_core.cli import Status
from mc_core.data import BadSampleError
from mc_core.errors import ConfigError, DataError, McError
from mc_core.images.decoding import decode
from mc_core.optional import require
from mc_core.runs import pick_device
from mc_vision.data import ImageSource, open_source
from mc_vision.evaluation import encoder_of, extract_features
from mc_vision.patches import patch_size
from mc_vision.prompt import EncodedPhoto, Point, mask_overlay, otsu_threshold
from mc_vision_app.runs import OpenedRun, open_run
from mc_vision_app.segment import encode

_SHOWN = 12
_LONGEST = 1024  # pixels of the photos shown: a page is no viewer
# dark blue over white to red: equal steps of similarity look equal, also to colour-blind eyes
_COLDEST, _MIDDLE, _HOTTEST = np.array([[33, 60, 120], [247, 247, 247], [178, 24, 43]], dtype=np.float32)


def run_demo(
    run: Path, *, index: str | None, host: str, port: int, size: int | None, device: str, browser: bool
) -> None:
    """Serve the page until Ctrl-C."""
    opened = open_run(run, pick_device(device))
    page = build_page(opened, index=None if index is None else ImageIndex(opened, index), size=size)
    try:
        page.launch(
            server_name=host, server_port=port, inbrowser=browser, share=False, quiet=True, prevent_thread_lock=True
        )
    except OSError as error:
        raise ConfigError(f"port {port} on {host} cannot be used ({error}): choose another with --port") from error
    print(f"http://{host}:{port}  (Ctrl-C ends it)", flush=True)
    page.block_thread()


class PointedPhoto:
    """A photo, its encoded patches and the points on it: what the first tab works on."""

    def __init__(self, opened: OpenedRun, size: int | None) -> None:
        self._opened, self._size = opened, size
        self.image: Image.Image | None = None
        self._photo: EncodedPhoto | None = None
        self.points: list[Point] = []

    def load(self, path: str) -> Image.Image:
        """Decode and encode a photo; the points of the last one are forgotten.

        Raises:
            DataError: it is no image, or smaller than one patch.
        """
        image = decode(path)
        assert isinstance(image, Image.Image)
        image.thumbnail((_LONGEST, _LONGEST))
        self._photo = encode(self._opened, image, Path(path).name, self._size)
        self.image, self.points = image, []
        return image

    def result(self, threshold: float | None) -> tuple[Image.Image, Image.Image, float, float]:
        """(overlay, similarity map, threshold, share of the photo in the mask) for the points so far.

        Raises:
            DataError: no photo or no point yet.
        """
        if self.image is None or self._photo is None:
            raise DataError("load a photo first")
        similarity = self._photo.similarity(self.points)
        cut = otsu_threshold(similarity) if threshold is None else threshold
        mask = (similarity > cut).numpy()
        return mask_overlay(self.image, mask, self.points), heat_map(similarity), cut, float(mask.mean())


class ImageIndex:
    """The features of a folder's images, for nearest neighbours."""

    def __init__(self, opened: OpenedRun, data: str) -> None:
        self._opened = opened
        self.source: ImageSource = open_source(data, channels=opened.encoder.config.channels)
        self._encode = encoder_of(opened.encoder)
        device = next(opened.encoder.parameters()).device
        with Status(f"indexing {len(self.source)} images"):
            found = extract_features(self._encode, opened.eval_data(self.source), device=device)
        self._rows = found.index
        self._features: Tensor = F.normalize(found.values.float(), dim=1)

    def nearest(self, path: str, count: int = _SHOWN) -> list[tuple[Image.Image, str]]:
        """The most similar images with captions, best first.

        Raises:
            DataError: it is no image.
        """
        query_source = open_source(path, channels=self._opened.encoder.config.channels)
        device = next(self._opened.encoder.parameters()).device
        query = extract_features(self._encode, self._opened.eval_data(query_source), workers=0, device=device)
        similarity = self._features @ F.normalize(query.values.float(), dim=1)[0].cpu()
        best = similarity.topk(min(count, len(similarity)))
        shown = []
        for value, row in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            index = int(self._rows[row])
            try:
                image = self.source.load(index)
            except BadSampleError:  # deleted since
                continue
            if isinstance(image, Image.Image):
                shown.append((image, f"{value:.3f}  {Path(self.source.name(index)).name}"))
        return shown


def heat_map(similarity_HW: Tensor) -> Image.Image:
    """Similarity −1 to 1 as blue over white to red."""
    s = similarity_HW.numpy()[..., None]
    colors = np.where(s < 0, _MIDDLE + (_COLDEST - _MIDDLE) * -s, _MIDDLE + (_HOTTEST - _MIDDLE) * s)
    return Image.fromarray(colors.clip(0, 255).astype(np.uint8))


def build_page(opened: OpenedRun, *, index: ImageIndex | None, size: int | None) -> Any:
    """The Gradio page.

    Raises:
        MissingDependencyError: gradio is not installed.
    """
    gr = require("gradio", extra="mc-vision[demo]", purpose="show the demo page")
    patched = has_patches(opened)

    def told(work: Callable[..., Any]) -> Callable[..., Any]:
        """Problems of the visitor's making become one line in the page, which stays up."""

        @functools.wraps(work)  # Gradio reads the signature
        def guarded(*arguments: Any) -> Any:
            try:
                return work(*arguments)
            except McError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return guarded

    with gr.Blocks(title=f"mc-vision: {opened.folder.name}", analytics_enabled=False) as page:
        gr.Markdown(f"# {opened.folder.name}\n{opened.encoder.config.backbone}")
        if patched:
            with gr.Tab("Point"):
                _point_tab(gr, opened, size, told)
        else:
            gr.Markdown(
                f"`{opened.encoder.config.backbone}` has no patch tokens, so there is nothing to point at: "
                "that takes a vision transformer."
            )
        if index is not None:
            with gr.Tab("Neighbours"):
                asked = gr.File(label="An image", file_types=["image"], type="filepath", elem_id="asked")
                found = gr.Gallery(label=f"Most similar of {len(index.source)} images", columns=6, elem_id="neighbours")
                asked.upload(told(index.nearest), asked, found, show_progress="minimal")
    return page


def has_patches(opened: OpenedRun) -> bool:
    """Whether there is anything to point at."""
    try:
        patch_size(opened.encoder)
    except ConfigError:
        return False
    return True


def _picture(gr: Any, *, label: str, elem_id: str) -> Any:
    """An image without the button that would send it to a public site; as JPEG, since packing a PNG is half of a click."""
    if "buttons" in inspect.signature(gr.Image).parameters:  # Gradio 6
        quiet = {"buttons": ["download", "fullscreen"]}
    else:
        quiet = {"show_share_button": False}
    return gr.Image(label=label, interactive=False, type="pil", format="jpeg", elem_id=elem_id, **quiet)


def _point_tab(gr: Any, opened: OpenedRun, size: int | None, told: Callable[..., Any]) -> None:
    state = gr.State(lambda: PointedPhoto(opened, size))
    upload = gr.File(label="A photo", file_types=["image"], type="filepath", elem_id="upload", height=120)
    with gr.Row():
        shown = _picture(gr, label="Click on something", elem_id="photo")
        heat = _picture(gr, label="Similarity to it (blue −1, white 0, red 1)", elem_id="heat")
    with gr.Row():
        auto = gr.Checkbox(True, label="Threshold by Otsu's method", elem_id="auto")
        level = gr.Slider(-1, 1, 0.5, step=0.01, label="Threshold", elem_id="threshold")
        more = gr.Checkbox(False, label="Add to the points", elem_id="more")
    line = gr.Markdown("Load a photo.", elem_id="line")

    def load(path: str, photo: PointedPhoto) -> tuple[Any, Any, Any, str]:
        image = photo.load(path)
        return photo, image, None, f"{image.width} × {image.height} pixels. Click on something."

    def click(photo: PointedPhoto, automatic: bool, cut: float, add: bool, event: gr.SelectData) -> Any:
        photo.points = [*(photo.points if add else []), (float(event.index[0]), float(event.index[1]))]
        return draw(photo, automatic, cut)

    def draw(photo: PointedPhoto, automatic: bool, cut: float) -> Any:
        overlay, heat_image, used, covered = photo.result(None if automatic else cut)
        where = ", ".join(f"({x:.0f}, {y:.0f})" for x, y in photo.points)
        return photo, overlay, heat_image, used, f"{100 * covered:.1f} % of the photo looks like {where}."

    def redraw(photo: PointedPhoto, automatic: bool, cut: float) -> Any:
        if not photo.points:
            return photo, photo.image, None, cut, "Click on something."
        return draw(photo, automatic, cut)

    def slide(photo: PointedPhoto, cut: float) -> Any:
        """The mask at a threshold of the visitor's own; the slider itself is left in their hand."""
        _, overlay, _, _, text = redraw(photo, False, cut)
        return overlay, text, False

    click.__annotations__["event"] = gr.SelectData
    results = [state, shown, heat, level, line]
    upload.upload(told(load), [upload, state], [state, shown, heat, line], show_progress="minimal")
    shown.select(told(click), [state, auto, level, more], results, show_progress="hidden")
    level.input(told(slide), [state, level], [shown, line, auto], show_progress="hidden", trigger_mode="always_last")
    auto.input(told(redraw), [state, auto, level], results, show_progress="hidden")
