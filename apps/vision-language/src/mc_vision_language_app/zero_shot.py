"""``mc-vision-language zero-shot``: which class sentences say a picture is of, without having trained on any."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mc_core.cli import Clock, Status, print_json, print_table
from mc_core.errors import DataError
from mc_core.files import read_json
from mc_core.runs import pick_device
from mc_vision_language.data.labelled import LabelledImages, open_labelled
from mc_vision_language.evaluation.prompts import read_templates
from mc_vision_language.evaluation.zero_shot import ZeroShotResult, labelled_scenes, zero_shot
from mc_vision_language.growing.sample import GROWING_SAMPLE, growing_classes
from mc_vision_language.sample import SAMPLE
from mc_vision_language.training import PAIRS_FILE
from mc_vision_language_app.measure import RANDOM
from mc_vision_language_app.runs import open_run

_log = logging.getLogger("mc_core")
METRIC = "zero_shot_accuracy"
_SHOWN = 5  # classes at each end


def run_zero_shot(
    run: Path,
    source: str | None,
    *,
    templates: Path | None,
    names: Path | None,
    root: Path | None,
    draws: int,
    device: str,
    as_json: bool,
) -> None:
    """Do it, and print what share of the pictures is told right."""
    clock = Clock()
    opened = open_run(run, pick_device(device))
    sentences = None if templates is None else read_templates(templates)
    data = _data(run, source, names, root)
    with Status(f"classifying {len(data):,} pictures"):
        found = zero_shot(opened.model, data, templates=sentences, draws=draws)
        untrained = opened.untrained()
        guess = None if untrained is None else zero_shot(untrained, data, templates=sentences, draws=0)
    for error in found.left_out[:5]:
        _log.warning("left out: %s", error)
    baselines = {"chance": found.chance} | ({} if guess is None else {RANDOM: guess.accuracy.value})
    if as_json:
        told: dict[str, Any] = {"metric": METRIC, "trained": found.accuracy.value, "baselines": baselines}
        told |= {"seconds": round(clock.seconds(), 1), "run": str(run), "data": data.kind}
        print_json(told | found.to_dict())
        return
    _show(found, data, baselines)


def _data(run: Path, source: str | None, names: Path | None, root: Path | None) -> LabelledImages:
    if source is not None:
        return open_labelled(source, names=names, root=root)
    known = read_json(run / PAIRS_FILE).get("source") if (run / PAIRS_FILE).is_file() else None
    samples = {SAMPLE: labelled_scenes, GROWING_SAMPLE: growing_classes}
    if known not in samples:
        raise DataError(f"{run} was not trained on a sample: give a folder with a folder of pictures for each class")
    return samples[known]("test")


def _show(found: ZeroShotResult, data: LabelledImages, baselines: dict[str, float]) -> None:
    value = found.accuracy
    interval = f" ({value.low:.3f}–{value.high:.3f})" if value.high > value.low else ""
    rows = [["top 1", f"{value.value:.3f}{interval}"], ["mean of classes", f"{found.mean_per_class:.3f}"]]
    if found.top5 is not None:
        rows.append(["top 5", f"{found.top5:.3f}"])
    rows += [[name.replace("_", " "), f"{one:.3f}"] for name, one in baselines.items()]
    kind = "" if data.kind in ("folder", data.location) else f" as {data.kind}"
    print_table(
        f"{data.location}{kind}: {len(found.labels):,} pictures, {len(found.classes)} classes, {len(found.templates)} templates",
        ["", "share right"],
        rows,
    )
    order = sorted(
        (float(one), name)
        for name, one in zip(found.classes, found.per_class, strict=True)
        if one == one  # not NaN
    )
    ends = order if len(order) <= 2 * _SHOWN else [*order[:_SHOWN], *order[-_SHOWN:]]
    print_table("classes, worst first", ["class", "share right"], [[name, f"{one:.3f}"] for one, name in ends])
