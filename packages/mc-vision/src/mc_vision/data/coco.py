"""Images with COCO annotations: polygons and run lengths, drawn at the size of the original image.

Legend: H × W pixels, O objects of one image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mc_core.errors import DataError
from mc_core.files import read_json
from mc_core.images.decoding import decode
from mc_core.images.segmentations import rasterize
from mc_core.listing import count_text
from mc_vision.data.masks import BACKGROUND, VOID, Kind, MaskedImages


class CocoMasks(MaskedImages):
    """Images with COCO annotations; see :func:`open_coco`."""

    layout = "coco"

    def __init__(self, location: str, kind: Kind, folder: Path, records: Sequence[dict[str, Any]], listed: Any) -> None:
        names = [os.path.splitext(record["file_name"])[0] for record in records]
        class_names = {entry["id"]: entry["name"] for entry in listed if "id" in entry and "name" in entry}
        super().__init__(location, kind, names, class_names=class_names)
        self.folder, self.records = folder, records

    def _load(self, index: int) -> tuple[Image.Image, np.ndarray, np.ndarray, np.ndarray | None]:
        record = self.records[index]
        image = decode(self.folder / record["file_name"])
        assert isinstance(image, Image.Image)
        height, width = record.get("height", image.height), record.get("width", image.width)
        masks = []
        for annotation in record["annotations"]:
            where = f"{self.location}, annotation {annotation.get('id', '?')}"
            masks.append(rasterize(annotation.get("segmentation"), height, width, where=where))
        crowd = np.array([bool(annotation.get("iscrowd")) for annotation in record["annotations"]], dtype=bool)
        classes = np.array([annotation.get("category_id", 0) for annotation in record["annotations"]], dtype=np.int64)
        objects_HW = np.full((height, width), BACKGROUND, dtype=np.int32)
        for i in np.flatnonzero(crowd):  # many things at once, not told apart
            objects_HW[masks[i]] = VOID
        single = np.flatnonzero(~crowd)
        if self.kind == "class region":
            ids = np.unique(classes[single])
            position, categories = np.searchsorted(ids, classes), ids
        else:
            ids = np.array([record["annotations"][i].get("id", i) for i in single], dtype=np.int64)
            position, categories = np.cumsum(~crowd) - 1, classes[single]
        areas = np.array([mask.sum() for mask in masks])
        for i in single[np.argsort(-areas[single], kind="stable")]:  # smaller objects on top
            objects_HW[masks[i]] = position[i]
        return image, objects_HW, ids, categories


def open_coco(path: str | Path, *, images: str | Path | None = None, kind: Kind | None = None) -> CocoMasks:
    """Images with COCO annotations: polygons or run lengths, drawn at the size of the original image.

    Where objects overlap the smaller one is on top. Regions marked ``iscrowd`` are void. Both choices are ours: COCO
    itself leaves overlaps as they are and ignores matches with crowds. Images without annotations are left out.

    Args:
        path: of the JSON file.
        images: folder of the images; default: looked for around the file.
        kind: ``"instance"`` (default) or ``"class region"``, the union of a category's objects.

    Raises:
        DataError: no COCO file, no annotated image, images that cannot be found.
    """
    path = Path(path)
    content = read_json(path)
    for field in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(field), list):
            raise DataError(f"{path} is no COCO annotation file: it has no list '{field}'")
    try:
        by_image: dict[Any, dict[str, Any]] = {
            entry["id"]: {**entry, "file_name": entry["file_name"], "annotations": []} for entry in content["images"]
        }
        for annotation in content["annotations"]:
            if annotation.get("segmentation"):
                by_image[annotation["image_id"]]["annotations"].append(annotation)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no COCO annotation file: an entry lacks, or names an unknown, {error}") from error
    records = [record for record in by_image.values() if record["annotations"]]
    if not records:
        raise DataError(f"{path}: none of its {count_text(len(by_image), 'image')} has a mask")
    first = records[0]["file_name"]
    stem, parent = path.stem.rpartition("_")[2], path.absolute().parent
    around = [base / name for base in (parent, parent.parent) for name in (stem, f"images/{stem}", "images", "")]
    folders = [Path(images)] if images is not None else around
    folder = next((folder for folder in folders if (folder / first).is_file()), None)
    if folder is None:
        where = os.fspath(images) if images is not None else f"the folders around {path}"
        raise DataError(f"{path}: its first image {first} is not in {where}; name their folder with images=")
    return CocoMasks(str(path), kind or "instance", folder, records, content.get("categories") or [])
