"""Finding images with masks: index masks beside images, in parallel folders or tar shards, the layouts of VOC and DAVIS."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mc_core.errors import ConfigError, DataError, closest
from mc_core.files import read_json
from mc_core.images.decoding import IMAGE_EXTENSIONS
from mc_core.listing import count_text, log, not_found, walk
from mc_vision.data.coco import open_coco
from mc_vision.data.folder import PathSource
from mc_vision.data.masks import VOID_ID, IndexMasks, Kind, MaskedImages
from mc_vision.data.shards import ShardSource, open_shards
from mc_vision.data.source import ReadOptions

UNDERSTOOD = (
    "images beside IMG.seg.png masks, folders images/ and masks/, .tar shards with jpg and seg.png, a COCO .json, "
    "or the layouts of VOC and DAVIS"
)
_ENDINGS = (".seg.png", ".seg0.png", ".mask.png", "_seg.png", "_mask.png")
_IMAGE_FOLDERS, _MASK_FOLDERS = ("images", "imgs"), ("masks", "annotations", "labels")
_BACKGROUND_NAMES = {"background", "none", "other", "others", "no object"}
_VOID_NAMES = {"void", "ignore", "unlabelled", "unlabeled", "unknown"}
_HEAD = 1 << 20  # class names stand at the beginning of a shard or nowhere
_PLAIN = ReadOptions(labels="none")


def open_masks(
    spec: str | Path,
    *,
    images: str | Path | None = None,
    kind: Kind | None = None,
    split: str | None = None,
    mask: str | None = None,
    background: int | Literal["auto"] | None = "auto",
    void: int | Literal["auto"] | None = "auto",
    cache_dir: str | Path | None = None,
) -> MaskedImages:
    """Open images with masks; the layout follows from what is there.

    Args:
        spec: a folder with ``IMG.jpg`` beside ``IMG.seg.png``, with ``images/`` and ``masks/`` (or ``annotations/``), or in
            the layout of VOC (``JPEGImages``, ``SegmentationClass``, ``SegmentationObject``) or DAVIS
            (``JPEGImages/480p/VIDEO``, ``Annotations/480p/VIDEO``); ``.tar`` shards with jpg and seg.png; a COCO
            ``.json``, or a folder with one in ``annotations/``.
        images: folder of the images of a COCO file; default: looked for around the file.
        kind: of the objects. Default: ``"class region"`` for VOC and where class names are listed, else
            ``"instance"``. For VOC it chooses the masks.
        split: list of ``ImageSets`` (VOC, DAVIS), or folder below ``images/`` and ``masks/``.
        mask: ending of the masks where an image has several, ``"seg1.png"``; default: the first of ``.seg.png``,
            ``.seg0.png``, ``.mask.png``, ``_seg.png``, ``_mask.png`` that is there.
        background: number that means "no object", None for no such number. Default: 0, unless a listed class has it.
        void: number of pixels that do not count. Default: 255, or a class listed as void, ignore or unlabelled.
        cache_dir: see :func:`mc_vision.data.opening.open_source`.

    Raises:
        DataError: no masks, masks without images, images without masks in a parallel folder, several sets at once.
        ConfigError: an option that does not fit the layout.
    """
    text = os.path.expanduser(os.fspath(spec))
    numbers = {"background": background, "void": void}
    if text.lower().endswith(".json"):
        _refuse("a COCO file", split=split, mask=mask)
        return open_coco(text, images=images, kind=kind)
    _refuse("anything but a COCO file", images=images)
    if text.lower().partition("?")[0].endswith(".tar"):
        _refuse("shards", split=split)
        return _open_tar(text, kind, mask, numbers, cache_dir)
    if not os.path.isdir(text):
        unknown = f"{text} is of no kind known here; understood are {UNDERSTOOD}"
        raise DataError(unknown if os.path.exists(text) else not_found(text))
    root = Path(text)
    if (root / "JPEGImages").is_dir():
        _refuse("the layouts of VOC and DAVIS", mask=mask)
        return _open_voc_or_davis(root, kind, split, numbers)
    pair = [next((name for name in names if (root / name).is_dir()), None) for names in (_IMAGE_FOLDERS, _MASK_FOLDERS)]
    if pair[0] is not None and pair[1] is not None and not any((root / pair[1]).glob("*.json")):
        return _open_parallel(root, pair[0], pair[1], kind, split, mask, numbers)
    files = sorted(walk(text))
    ending = _ending(files, mask)
    if ending is not None:
        _refuse("masks beside their images", split=split)
        return _open_beside(root, files, ending, kind, numbers)
    annotations = sorted([*root.glob("*.json"), *root.glob("annotations/*.json")])
    if len(annotations) > 1:
        listed = ", ".join(os.path.relpath(path, root) for path in annotations[:4])
        raise DataError(f"{root} holds several annotation files ({listed}): name one")
    if annotations:
        return open_coco(annotations[0], kind=kind)
    wanted = f"no masks *{mask} in {root}" if mask else f"no masks in {root}"
    raise DataError(f"{wanted} ({count_text(len(files), 'file')}); understood are {UNDERSTOOD}")


def _refuse(layout: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"{name}={os.fspath(value) if isinstance(value, Path) else value!r} is not for {layout}")


def _meaning(
    numbers: Mapping[str, Any], class_names: Mapping[int, str], kind: Kind | None
) -> tuple[dict[str, Any], Kind]:
    """Background, void and kind, from what was asked for and from the listed class names."""
    background, void = numbers["background"], numbers["void"]
    if background == "auto":
        named = class_names.get(0, "background").lower()
        background = 0 if named in _BACKGROUND_NAMES | _VOID_NAMES else None
    if void == "auto":
        void = next((i for i, name in class_names.items() if name.lower() in _VOID_NAMES and i != background), VOID_ID)
    return {"background": background, "void": void}, kind or ("class region" if class_names else "instance")


def _paired(
    location: str, images: Mapping[str, int], masks: Mapping[str, int], *, strict: bool
) -> tuple[list[str], list[tuple[int, int]]]:
    """Names and rows of what has both; each mask needs its image and, if ``strict``, each image its mask."""
    lonely = next((key for key in masks if key not in images), None)
    unmasked = [key for key in images if key not in masks]
    if lonely is not None or (strict and unmasked):
        which = f"mask {lonely} has no image" if lonely is not None else f"image {unmasked[0]} has no mask"
        raise DataError(
            f"{location} holds {count_text(len(images), 'image')} and {count_text(len(masks), 'mask')}; {which}"
        )
    if unmasked:
        log.warning("%s: left out %s without a mask", location, count_text(len(unmasked), "image"))
    names = [key for key in images if key in masks]
    return names, [(images[key], masks[key]) for key in names]


def _file_pairs(
    location: str, images: Mapping[str, str], masks: Mapping[str, str], *, strict: bool
) -> tuple[list[str], PathSource, PathSource, list[tuple[int, int]]]:
    """``images`` and ``masks``: path by key."""
    positions = [{key: i for i, key in enumerate(paths)} for paths in (images, masks)]
    names, rows = _paired(location, *positions, strict=strict)
    sources = [PathSource(paths.values(), "", _PLAIN, location=location) for paths in (images, masks)]
    return names, sources[0], sources[1], rows


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS


def _ending(files: Sequence[str], mask: str | None) -> str | None:
    """The ending of the masks among ``files``."""
    candidates = _ENDINGS if mask is None else (mask if mask[:1] in "._-" else "." + mask,)
    return next((ending for ending in candidates if any(path.endswith(ending) for path in files)), None)


def _open_beside(
    root: Path, files: list[str], ending: str, kind: Kind | None, numbers: Mapping[str, Any]
) -> IndexMasks:
    masks = {path.removesuffix(ending): os.path.join(root, path) for path in files if path.endswith(ending)}
    other = re.compile(r"[._](seg|mask)\d*\.\w+$")  # masks of another annotator are no images
    images = {
        os.path.splitext(path)[0]: os.path.join(root, path)
        for path in files
        if _is_image(path) and not path.endswith(ending) and not other.search(path)
    }
    names, image_source, mask_source, rows = _file_pairs(str(root), images, masks, strict=False)
    class_names = _listed_in_folder(root)
    meaning, kind = _meaning(numbers, class_names, kind)
    return IndexMasks(
        str(root), kind, names, image_source, mask_source, rows, layout="beside", class_names=class_names, **meaning
    )


def _open_parallel(
    root: Path,
    images: str,
    masks: str,
    kind: Kind | None,
    split: str | None,
    mask: str | None,
    numbers: Mapping[str, Any],
) -> IndexMasks:
    folders = [root / images, root / masks]
    if split is not None:
        folders = [folder / split for folder in folders]
        for folder in folders:
            if not folder.is_dir():
                raise DataError(not_found(str(folder)))
    listed = [sorted(path for path in walk(str(folder)) if _is_image(path)) for folder in folders]
    parts = sorted({path.partition("/")[0] for path in listed[0] if "/" in path})
    if split is None and {"train", "training"} & set(parts) and len(parts) > 1:
        raise DataError(f"{folders[0]} holds several parts ({', '.join(parts)}): name one with split")
    ending = _ending(listed[1], mask)
    if mask is not None and ending is None:
        raise DataError(f"no masks *{mask} in {folders[1]}")
    cut = [
        path.removesuffix(ending) if ending and path.endswith(ending) else os.path.splitext(path)[0]
        for path in listed[1]
    ]
    for folder, paths in zip(folders, listed, strict=True):
        if not paths:
            raise DataError(f"no {'images' if folder == folders[0] else 'masks'} in {folder}")
    names, image_source, mask_source, rows = _file_pairs(
        str(root),
        {os.path.splitext(path)[0]: os.path.join(folders[0], path) for path in listed[0]},
        {key: os.path.join(folders[1], path) for key, path in zip(cut, listed[1], strict=True)},
        strict=True,
    )
    class_names = _listed_in_folder(root)
    meaning, kind = _meaning(numbers, class_names, kind)
    return IndexMasks(
        str(root), kind, names, image_source, mask_source, rows, layout="parallel", class_names=class_names, **meaning
    )


def _open_voc_or_davis(root: Path, kind: Kind | None, split: str | None, numbers: Mapping[str, Any]) -> IndexMasks:
    if (root / "Annotations").is_dir() and any(path.is_dir() for path in (root / "Annotations").iterdir()):
        return _open_davis(root, kind, split, numbers)
    folders: dict[Kind, str] = {"class region": "SegmentationClass", "instance": "SegmentationObject"}
    kind = kind or next((k for k, name in folders.items() if (root / name).is_dir()), "class region")
    folder = root / folders[kind]
    masks = {path.stem: str(path) for path in sorted(folder.glob("*.png"))}
    if not masks:
        raise DataError(f"no masks *.png in {folder}, where kind '{kind}' is looked for")
    if split is not None:
        wanted = _image_set(root, split)
        masks = {key: path for key, path in masks.items() if key in wanted}
        if not masks:
            raise DataError(f"{root}: none of the {len(wanted)} images of split '{split}' has a mask")
    images = {path.stem: str(path) for path in sorted((root / "JPEGImages").iterdir()) if path.stem in masks}
    names, image_source, mask_source, rows = _file_pairs(str(root), images, masks, strict=True)
    meaning, _ = _meaning(numbers, {}, kind)
    return IndexMasks(str(root), kind, names, image_source, mask_source, rows, layout="voc", **meaning)


def _open_davis(root: Path, kind: Kind | None, split: str | None, numbers: Mapping[str, Any]) -> IndexMasks:
    sizes = sorted(path.name for path in (root / "Annotations").iterdir() if (root / "JPEGImages" / path.name).is_dir())
    if not sizes:
        raise DataError(f"{root}: JPEGImages and Annotations have no folder in common, such as 480p")
    size = "480p" if "480p" in sizes else sizes[0]
    folders = [root / "JPEGImages" / size, root / "Annotations" / size]
    listed = [sorted(path for path in walk(str(folder)) if _is_image(path)) for folder in folders]
    if split is not None:
        wanted = _image_set(root, split)
        listed = [[path for path in paths if path.partition("/")[0] in wanted] for paths in listed]
    if not listed[1]:
        raise DataError(f"no masks in {folders[1]}" + (f" for the videos of split '{split}'" if split else ""))
    keyed = [
        {os.path.splitext(path)[0]: os.path.join(folder, path) for path in paths}
        for folder, paths in zip(folders, listed, strict=True)
    ]
    names, image_source, mask_source, rows = _file_pairs(str(root), keyed[0], keyed[1], strict=False)
    sequences: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        sequences.setdefault(os.path.dirname(name), []).append(i)
    meaning, kind = _meaning(numbers, {}, kind)
    return IndexMasks(
        str(root), kind, names, image_source, mask_source, rows, layout="davis", sequences=sequences, **meaning
    )


def _image_set(root: Path, split: str) -> set[str]:
    """The names listed by ``ImageSets/*/split.txt``; of several years the last."""
    lists = sorted(root.glob("ImageSets/*/*.txt"))
    found = [path for path in lists if path.stem == split and path.parent.name not in ("Main", "Layout", "Action")]
    if not found:
        known = closest(split, sorted({path.stem for path in lists})) if lists else "none"
        raise DataError(f"{root}/ImageSets lists no split '{split}'; closest: {known}")
    return {line.split()[0] for line in found[-1].read_text().splitlines() if line.strip()}


def _open_tar(
    spec: str, kind: Kind | None, mask: str | None, numbers: Mapping[str, Any], cache_dir: str | Path | None
) -> IndexMasks:
    images = open_shards(spec, ReadOptions(labels="none", cache_dir=cache_dir))
    masks = _mask_shards(spec, mask, cache_dir)
    keyed = [{source.name(i): i for i in range(len(source))} for source in (images, masks)]
    names, rows = _paired(spec, *keyed, strict=False)
    several = len(images.shards) > 1
    names = [
        f"{Path(images.shards[images.shard_N[i]]).stem}/{images.keys[i]}" if several else images.keys[i]
        for i, _ in rows
    ]
    class_names = _listed_in_tar(images.shards[0])
    meaning, kind = _meaning(numbers, class_names, kind)
    return IndexMasks(spec, kind, names, images, masks, rows, layout="shards", class_names=class_names, **meaning)


def _mask_shards(spec: str, mask: str | None, cache_dir: str | Path | None) -> ShardSource:
    endings = [ending[1:] for ending in _ENDINGS if ending[0] == "."] if mask is None else [mask.lstrip(".")]
    for ending in endings:
        try:
            return open_shards(spec, ReadOptions(labels="none", image_column=ending, cache_dir=cache_dir))
        except DataError as error:
            if "no sample has an image file" not in str(error):
                raise
    raise DataError(f"{spec}: no sample has a mask (.{', .'.join(endings)})")


def _listed_in_tar(shard: str) -> dict[int, str]:
    with tarfile.open(shard, "r:") as tar:
        for member in tar:
            if member.name.removeprefix("./") in ("classes.json", "categories.json"):
                file = tar.extractfile(member)
                return _class_names(json.load(file)) if file is not None else {}
            if member.offset > _HEAD:
                break
    return {}


def _listed_in_folder(root: Path) -> dict[int, str]:
    listed = next((root / name for name in ("classes.json", "categories.json") if (root / name).is_file()), None)
    return {} if listed is None else _class_names(read_json(listed))


def _class_names(listed: Any) -> dict[int, str]:
    """From a list of names, or a dict from number to name; anything else says nothing."""
    if isinstance(listed, list):
        return {i: name for i, name in enumerate(listed) if isinstance(name, str)}
    items = listed.items() if isinstance(listed, dict) else ()
    return {int(number): str(name) for number, name in items if str(number).isdigit()}
