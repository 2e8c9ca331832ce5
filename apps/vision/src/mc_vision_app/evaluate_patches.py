"""``mc-vision evaluate --protocol prompt-segmentation|object-similarity|propagation``: do frozen patches tell objects apart?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mc_core.cli import Clock, Status, print_json, print_table
from mc_core.errors import ConfigError
from mc_core.files import write_json
from mc_core.runs import pick_device
from mc_vision.data.mask_layouts import open_masks
from mc_vision.data.masks import MaskedImages, MaskedScenes
from mc_vision.patch_evaluation import PatchOptions, PatchProtocol, PatchResult, evaluate_patches
from mc_vision.patch_figures import similarity_histograms, threshold_curves
from mc_vision.patches import patch_size, random_twin
from mc_vision.propagation import evaluate_propagation
from mc_vision_app.runs import open_run

PATCH_PROTOCOLS = ("prompt-segmentation", "object-similarity", "propagation")
_SCENES = 200
_LARGE_VIEW = 160  # encoders trained on views at least so large are measured at 480 pixels
_PATCHES = 12  # others at the size of their views, or at so many patches a side: fewer hold no objects
_SIDE = PatchProtocol().size


def run_evaluate_patches(
    run: Path,
    *,
    protocol: str,
    data: str | None,
    split: str | None,
    size: int | None,
    options: PatchOptions | None,
    seed: int,
    device: str,
    as_json: bool,
) -> dict[str, Any]:
    """Evaluate, write JSON and pictures into the run folder, and print."""
    clock = Clock()
    target = pick_device(device)
    opened = open_run(run, target)
    patch = patch_size(opened.encoder)
    side, mean, std = opened.trained_on()
    if size is None:
        size = _SIDE if side >= _LARGE_VIEW else max(side, _PATCHES * patch)
    masks = _masks(data, split, protocol, size)
    encoders: dict[str, nn.Module] = {"trained": opened.encoder, **opened.other_encoders(target)}
    fields: dict[str, Any] = {
        "protocol": protocol,
        "run": str(run),
        "data": masks.describe(),
        "image_size": size,
        "step": opened.step,
    }
    notes: list[str] = []
    if protocol == "propagation":
        if options is not None:
            raise ConfigError("--patches.* is for prompt-segmentation and object-similarity, not for propagation")
        encoders["random init"] = random_twin(opened.encoder, seed)
        size = max(size // patch, 1) * patch
        with Status(f"propagating masks through {len(masks)} frames"):
            found = {
                name: evaluate_propagation(e, masks, short_side=size, mean=mean, std=std, device=target)
                for name, e in encoders.items()
            }
        fields["results"] = {name: result.to_dict() for name, result in found.items()}
        columns = ["", "J&F", "J", "F"]
        rows = [(name, *(f"{value:.3f}" for value in (r.jf, r.j, r.f))) for name, r in found.items()]
        pictures: list[Path] = []
    else:
        chosen = {} if options is None else options.model_dump(exclude_unset=True)
        asked = PatchProtocol(size=size, seed=seed, protocols=(protocol,), batch_size=4, **chosen)  # type: ignore[arg-type]
        with Status(f"{protocol} on {len(masks)} images"):
            results = evaluate_patches(encoders, masks, asked, mean=mean, std=std, device=target)
        fields["settings"] = asked.model_dump(mode="json")
        fields["results"] = {name: result.to_dict() for name, result in results.items()}
        columns, rows = _segmentation_table(results) if protocol == PATCH_PROTOCOLS[0] else _similarity_table(results)
        notes.append(_long_tokens(results, asked))
        with Status("drawing"):
            pictures = _pictures(protocol, results, run)
    fields |= {"seconds": round(clock.seconds(), 1), "pictures": [str(picture) for picture in pictures]}
    path = run / f"evaluate-{protocol}.json"
    write_json(path, fields)
    if as_json:
        print_json(fields)
        return fields
    print_table(f"{run.name}: {protocol}, {len(masks)} images at {size} px", columns, rows)
    for line in (*notes, path, *pictures):
        print(line)
    return fields


def _masks(data: str | None, split: str | None, protocol: str, size: int) -> MaskedImages:
    if data is not None:
        with Status(f"reading {data}"):
            return open_masks(data, split=split)
    if split is not None:
        raise ConfigError("--split needs --data, the images with masks that it is a part of")
    if protocol == "propagation":
        raise ConfigError("--protocol propagation needs --data: videos with masks, in the layout of DAVIS")
    with Status("composing the embedded sample"):
        return MaskedScenes(_SCENES, size=size)


def _segmentation_table(results: Mapping[str, PatchResult]) -> tuple[list[str], list[tuple[str, ...]]]:
    columns = ["mean IoU", "t*", "center, t*", "random, t*", "center, curve max", "center, oracle", "pixels, t*", "AP"]
    rows: list[tuple[str, ...]] = []
    for name, result in results.items():
        assert result.segmentation is not None
        center, drawn = (result.segmentation.prompts[kind] for kind in ("center", "random"))
        values = (
            result.segmentation.threshold,
            center.patch.tuned,
            drawn.patch.tuned,
            center.patch.best,
            center.patch.oracle,
            math.nan if center.pixel is None else center.pixel.tuned,
            center.average_precision,
        )
        rows.append((name, *map(_number, values)))
    return columns, rows


def _similarity_table(results: Mapping[str, PatchResult]) -> tuple[list[str], list[tuple[str, ...]]]:
    columns = [
        "cosine similarity",
        "within objects",
        "between objects",
        "gap",
        "overlap",
        "AUC",
        "gap at equal distance",
    ]
    rows: list[tuple[str, ...]] = []
    for name, result in results.items():
        found = result.similarity
        assert found is not None
        values = (found.mean_intra, found.mean_inter, found.gap, found.overlap, found.auc, found.matched_gap)
        rows.append((name, *map(_number, values)))
    return columns, rows


def _long_tokens(results: Mapping[str, PatchResult], asked: PatchProtocol) -> str:
    shares = ", ".join(f"{name} {100 * r.long_share:.1f} %" for name, r in results.items() if r.long_share is not None)
    what = "left out" if asked.long_tokens == "exclude" else "counted like all others"
    return f"patches with tokens beyond {asked.long_from:g} × the median length, {what}: {shares or 'not known'}"


def _pictures(protocol: str, results: Mapping[str, PatchResult], run: Path) -> list[Path]:
    if protocol == PATCH_PROTOCOLS[0]:
        return [threshold_curves(results, run / "threshold-curves.png")]
    return [similarity_histograms(results, run / "similarity-histograms.png")]


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
