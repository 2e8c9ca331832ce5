"""``mc-vision-language ground``: where a phrase is in an image, as a heat map and a box."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import matplotlib as mpl

from mc_core.cli import print_json
from mc_core.errors import ConfigError
from mc_core.runs import pick_device
from mc_vision_language.data import read_image
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.tasks.grounding import ground
from mc_vision_language.tasks.training import load_task_model
from mc_vision_language_app.figures import draw_map, save
from mc_vision_language_app.runs import need_image, open_run, task_of_run


def run_ground(
    run: Path,
    photo: Path,
    phrase: str,
    *,
    out: Path | None,
    mode: Literal["itm", "itc"],
    layer: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Do it: write the picture, say the box."""
    place = pick_device(device)
    model = open_run(run, place).model if task_of_run(run) is None else load_task_model(run, device=place)
    if not isinstance(model, VisionLanguageModel):
        raise ConfigError(
            f"{run} is a model that answers; grounding takes a pretrained run, or one of finetune --task grounding"
        )
    picture = read_image(need_image(photo))
    found = ground(model, picture, phrase, mode=mode, layer=layer)
    target = out or Path(f"{photo.stem}-where.png")
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4.3 * min(max(picture.height / picture.width, 0.3), 2) + 0.6))
    draw_map(axes[0], axes[1], picture, found.heat, found.box)
    figure.suptitle(phrase, fontsize=11)
    save(figure, target)
    box = [round(value, 1) for value in found.box]
    if as_json:
        print_json({"phrase": phrase, "box": box, "size": list(picture.size), "mode": mode, "picture": str(target)})
        return
    print(
        f"box      {', '.join(f'{value:g}' for value in box)} (x1, y1, x2, y2 of {picture.width} × {picture.height} pixels)"
    )
    if not found.heat.max() > 0:
        print("nothing in the image speaks for the phrase: the map is empty, and the box is all of it")
    print(f"picture  {target}")
