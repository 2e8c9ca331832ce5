"""``mc-remote-sensing demo``: the map over the image, with a slider for the threshold."""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mc_core.cli import Status
from mc_core.errors import ConfigError
from mc_core.optional import require
from mc_core.runs import pick_device
from mc_remote_sensing.data import Scene
from mc_remote_sensing_app.figures import comparison, overlay, overview_size, read_map, scene_labels, scene_picture
from mc_remote_sensing_app.predict import map_scene, scene_for
from mc_remote_sensing_app.runs import OpenedRun, open_run
from mc_remote_sensing_app.scene_options import SceneOptions, scene_arguments


def run_demo(
    run: Path, options: SceneOptions, *, map_path: Path | None, host: str, port: int, device: str, browser: bool
) -> None:
    """Serve the page until Ctrl-C."""
    opened = open_run(run, str(pick_device(device)))
    arguments = scene_arguments(options) if options.given else list(opened.data.get("scenes", []))
    if not arguments:
        raise ConfigError(f"{run} does not say which scene to show: name one with --image and --dem")
    scene = scene_for(opened, dict(arguments[0]), cache=opened.folder / "elevation", labels=True)
    with tempfile.TemporaryDirectory(prefix="mc-map-") as folder:
        if map_path is None:
            map_path = map_scene(opened.model, scene, Path(folder) / "map.tif").probability
        page = build_page(opened, MapView(scene, map_path))
        try:
            page.launch(
                server_name=host, server_port=port, inbrowser=browser, share=False, quiet=True, prevent_thread_lock=True
            )
        except OSError as error:
            raise ConfigError(f"port {port} on {host} cannot be used ({error}): choose another with --port") from error
        print(f"http://{host}:{port}  (Ctrl-C ends it)", flush=True)
        page.block_thread()


class MapView:
    """A scene and its map at the size of a picture."""

    def __init__(self, scene: Scene, map_path: Path) -> None:
        self.probability = read_map(map_path)
        height, width = overview_size(*scene.grid.shape)
        if self.probability.shape != (height, width):
            raise ConfigError(f"{map_path}: is not on the grid of {scene.name}; make it again with predict")
        with Status(f"drawing {scene.name}"):
            self.picture = scene_picture(scene)
            self.labels = None if scene.labels is None else scene_labels(scene)
        self.area_m2 = scene.grid.height * scene.grid.width * float(np.prod(scene.grid.pixel_metres))

    def draw(self, threshold: float, opacity: float, compare: bool) -> tuple[Image.Image, str]:
        """The picture, and a line that says what share is mapped."""
        if compare and self.labels is not None:
            shown = comparison(self.picture, self.probability, self.labels, threshold)
        else:
            shown = overlay(self.picture, self.probability, threshold, opacity)
        known = np.isfinite(self.probability)
        mapped = (np.nan_to_num(self.probability, nan=-1.0) >= threshold).sum()
        share = float(mapped) / max(int(known.sum()), 1)
        hectares = self.area_m2 * float(mapped) / known.size / 10_000
        return Image.fromarray(shown), f"From {threshold:.2f}: {100 * share:.2f} % of the ground, {hectares:,.1f} ha."


def build_page(opened: OpenedRun, view: MapView) -> Any:
    """The Gradio page.

    Raises:
        MissingDependencyError: gradio is not installed.
    """
    gr = require("gradio", extra="mc-remote-sensing[demo]", purpose="show the demo page")
    if "buttons" in inspect.signature(gr.Image).parameters:  # Gradio 6
        quiet: dict[str, Any] = {"buttons": ["download", "fullscreen"]}
    else:
        quiet = {"show_share_button": False}
    target = opened.model.config.target
    start = round(opened.model.threshold, 2)
    with gr.Blocks(title=f"mc-remote-sensing: {opened.folder.name}", analytics_enabled=False) as page:
        gr.Markdown(
            f"# {opened.folder.name}\nProbability of {target}, a screening map for experts. "
            f"{start:.2f} is the threshold chosen on the validation blocks."
        )
        with gr.Row():
            level = gr.Slider(0.0, 1.0, start, step=0.01, label="Threshold", elem_id="threshold")
            opacity = gr.Slider(0.0, 1.0, 0.55, step=0.05, label="Opacity", elem_id="opacity")
            compare = gr.Checkbox(
                False,
                label="Against the labels: found (green), missed (blue), mapped for nothing (orange)",
                elem_id="compare",
                visible=view.labels is not None,
            )
        line = gr.Markdown(elem_id="line")
        first, text = view.draw(start, 0.55, False)
        line.value = text
        shown = gr.Image(
            first, label="Map", interactive=False, type="pil", format="jpeg", elem_id="map", show_label=False, **quiet
        )
        inputs = [level, opacity, compare]
        for control in (level, opacity):
            control.input(view.draw, inputs, [shown, line], show_progress="hidden", trigger_mode="always_last")
        compare.input(view.draw, inputs, [shown, line], show_progress="hidden")
    return page
