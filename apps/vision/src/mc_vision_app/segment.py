"""``mc-vision segment``: point at something in a photo, get its mask, without any training on masks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mc_core.cli import Status, print_json, print_table
from mc_core.errors import ConfigError, DataError
from mc_core.files import atomic_path
from mc_core.images.decoding import decode
from mc_core.runs import pick_device
from mc_vision.data.masks import VOID_ID, black_and_white_as_one, decode_mask
from mc_vision.patches import patch_size
from mc_vision.prompt import EncodedPhoto, Point, encode_photo, mask_iou, mask_overlay, otsu_threshold
from mc_vision_app.runs import OpenedRun, open_run

_SMALL_VIEW = 160  # an encoder trained on smaller views sees photos at their size, else at that of MMC's evaluation
_EVALUATION_SIZE = 480


def run_segment(
    run: Path,
    images: Sequence[Path],
    *,
    points: Sequence[str],
    threshold: str,
    masks: Sequence[Path],
    mask_id: int | None,
    out: Path | None,
    size: int | None,
    device: str,
    as_json: bool,
) -> list[dict[str, Any]]:
    """Write a mask and an overlay per image, and print what was found."""
    where = [parse_point(text) for text in points]
    if not images:
        raise ConfigError("name at least one image to segment")
    if not where:
        raise ConfigError("--point is missing: give x,y in pixels from the top left, such as --point 120,80")
    if masks and len(masks) != len(images):
        raise ConfigError(f"{len(masks)} masks for {len(images)} images: give one --mask per image, in their order")
    level = parse_threshold(threshold)
    targets = [(out if out is not None else path.parent) / path.stem for path in images]
    if twice := next((path for i, path in enumerate(images) if targets[i] in targets[:i]), None):
        raise ConfigError(
            f"{twice} and an image before it would have the same mask file: segment them one by one, with --out"
        )
    opened = open_run(run, pick_device(device))
    patch_size(opened.encoder)  # says what an encoder without patches does serve
    decoded = [decode_mask(mask) for mask in masks]
    read = [(path, *read_photo(opened, path, size)) for path in images]
    for _, _, photo, _ in read:
        photo.check_points(where)
    truths = [
        _truth(index_HW, image, path, mask, where, mask_id)
        for index_HW, mask, (path, image, _, _) in zip(decoded, masks, read, strict=False)
    ]
    found = []
    for i, (path, image, photo, seconds) in enumerate(read):
        similarity = photo.similarity(where)
        cut = otsu_threshold(similarity) if level is None else level
        mask = (similarity > cut).numpy()
        record: dict[str, Any] = {
            "image": str(path),
            "points": [list(point) for point in where],
            "threshold": round(cut, 4),
            "covered": round(float(mask.mean()), 4),
            "encoding_seconds": round(seconds, 3),
            "mask": str(
                _save(Image.fromarray(mask.astype(np.uint8) * 255), targets[i].with_name(f"{path.stem}-mask.png"))
            ),
            "overlay": str(_save(mask_overlay(image, mask, where), targets[i].with_name(f"{path.stem}-overlay.png"))),
        }
        if truths:
            record["iou"] = round(mask_iou(mask, truths[i]), 4)
        found.append(record)
    if as_json:
        print_json({"run": str(run), "images": found})
        return found
    columns = ["image", "threshold", "covered", *(["IoU"] if truths else []), "mask"]
    rows = [
        (
            Path(r["image"]).name,
            f"{r['threshold']:.3f}",
            f"{100 * r['covered']:.1f} %",
            *([f"{r['iou']:.3f}"] if truths else []),
            r["mask"],
        )
        for r in found
    ]
    print_table(f"{run.name}: what looks like the patch under {', '.join(points)}", columns, rows)
    return found


def parse_point(text: str) -> Point:
    """``"120,80"`` as (120.0, 80.0)."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--point {text}: give x,y in pixels from the top left, such as 120,80") from None
    return x, y


def parse_threshold(text: str) -> float | None:
    """A similarity in [−1, 1], or None for ``"auto"``."""
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -1 <= value <= 1:
        raise ConfigError(f"--threshold {text}: give auto, or a cosine similarity from -1 to 1")
    return value


def read_photo(opened: OpenedRun, path: Path, size: int | None = None) -> tuple[Image.Image, EncodedPhoto, float]:
    """(image, its encoded patches, seconds that took)."""
    with Status(f"encoding {path.name}"):
        image = decode(path)
        assert isinstance(image, Image.Image)
        start = time.perf_counter()
        photo = encode(opened, image, path.name, size)
    return image, photo, time.perf_counter() - start


def encode(opened: OpenedRun, image: Image.Image, name: str, size: int | None = None) -> EncodedPhoto:
    """The patches of an image as this run's encoder sees them."""
    trained, mean, std = opened.trained_on()
    if size is None:
        size = trained if trained < _SMALL_VIEW else _EVALUATION_SIZE
        size = max(size, patch_size(opened.encoder))
    return encode_photo(opened.encoder, image, name=name, size=size, mean=mean, std=std)


def _truth(
    index_HW: np.ndarray, image: Image.Image, path: Path, mask: Path, points: Sequence[Point], mask_id: int | None
) -> np.ndarray:
    """(H, W) bool: the object that ``mask_id`` names, else those under the points, else the only one there is."""
    if index_HW.shape != (image.height, image.width):
        size = f"{index_HW.shape[1]}×{index_HW.shape[0]}"
        raise DataError(f"the mask {mask} of {path} is {size} pixels, the image {image.width}×{image.height}")
    index_HW = black_and_white_as_one(index_HW)
    known = [int(number) for number in np.unique(index_HW) if number not in (0, VOID_ID)]
    there = (
        f"its objects are {', '.join(map(str, known[:12]))}{' …' if len(known) > 12 else ''}"
        if known
        else "it has none"
    )
    if mask_id is not None:
        if mask_id not in known:
            raise DataError(f"{mask} has no object {mask_id}: {there} (--mask-id)")
        return index_HW == mask_id
    pointed = {int(index_HW[int(y), int(x)]) for x, y in points} & set(known)
    wanted = pointed or (set(known) if len(known) == 1 else set())
    if not wanted:
        raise DataError(f"{mask} has no object under the point: {there}; name one with --mask-id")
    return np.isin(index_HW, list(wanted))


def _save(image: Image.Image, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as draft:
            image.save(draft, format="PNG")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror or error}): choose a folder with --out"
        ) from error
    return path
