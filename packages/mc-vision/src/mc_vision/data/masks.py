"""Images with a mask for every object: index masks beside images or in tar shards, COCO, VOC and DAVIS layouts, scenes.

An index mask is a picture whose pixels are numbers of objects (or classes), not colours.

Legend: H × W pixels, O objects of one image, S side of a resized mask, P corners of a polygon.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from mc_core.data import BadSampleError
from mc_core.errors import ConfigError, DataError, closest
from mc_core.files import read_json
from mc_core.samples import SceneConfig, Split, digit_scenes
from mc_vision.data._files import count_text, fingerprint, log
from mc_vision.data.decoding import IMAGE_EXTENSIONS, decode, stored_header
from mc_vision.data.folder import PathSource, not_found, walk
from mc_vision.data.shards import ShardSource, open_shards
from mc_vision.data.source import EncodedSource, ReadOptions

Kind = Literal["instance", "class region"]

BACKGROUND = -1
"""Value of ``MaskedImage.objects`` where there is no object."""
VOID = -2
"""Value of ``MaskedImage.objects`` where nobody said what there is: such pixels count neither for nor against."""

UNDERSTOOD = (
    "images beside IMG.seg.png masks, folders images/ and masks/, .tar shards with jpg and seg.png, a COCO .json, "
    "or the layouts of VOC and DAVIS"
)
_ENDINGS = (".seg.png", ".seg0.png", ".mask.png", "_seg.png", "_mask.png")
_IMAGE_FOLDERS, _MASK_FOLDERS = ("images", "imgs"), ("masks", "annotations", "labels")
_LOSSLESS = {"PNG", "TIFF", "BMP", "GIF", "PPM"}
_INDEX_MODES = {"1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N"}
_BACKGROUND_NAMES = {"background", "none", "other", "others", "no object"}
_VOID_NAMES = {"void", "ignore", "unlabelled", "unlabeled", "unknown"}
_VOID_ID = 255  # as in VOC
_HEAD = 1 << 20  # class names stand at the beginning of a shard or nowhere
_PLAIN = ReadOptions(labels="none")


@dataclass(frozen=True)
class MaskedImage:
    """One image and where its objects are.

    Attributes:
        name: path without extension, or key; the same wherever the set lies.
        image: RGB.
        objects: (H, W) int32: position of the object in ``ids``, ``BACKGROUND`` or ``VOID``.
        ids: (O,) int64, the number of each object in the mask, or of its annotation.
        categories: (O,) int64 class of each object, or None where it is not known.
        kind: one thing each, or all that an image has of a class.
        group: what belongs together when images are split: the video of a frame, else the name.
    """

    name: str
    image: Image.Image
    objects: np.ndarray
    ids: np.ndarray
    categories: np.ndarray | None
    kind: Kind
    group: str

    @property
    def masks(self) -> np.ndarray:
        """(O, H, W) bool."""
        return self.objects == np.arange(len(self.ids), dtype=np.int32)[:, None, None]

    def resized(self, height: int, width: int | None = None) -> np.ndarray:
        """``objects`` at another size (default: square), each pixel taking the value of the nearest one.

        >>> objects = np.array([[0, 0, -1, 1]], np.int32).repeat(4, 0)
        >>> scene = MaskedImage("a", Image.new("RGB", (4, 4)), objects, np.arange(2), None, "instance", "a")
        >>> scene.resized(2)[0].tolist()
        [0, 1]
        """
        return resize_nearest(self.objects, height, height if width is None else width)


def resize_nearest(index_HW: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width): the value under the centre of each new pixel."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip((height, width), index_HW.shape, strict=True)
    )
    return index_HW[rows[:, None], columns]


class MaskedImages(ABC):
    """Images with masks, by position; made by :func:`open_masks` and its kin.

    Attributes:
        kind: of the objects.
        location: as the user named it.
        names: of the images.
        class_names: by category, empty where there are none.
        sequences: for videos, the positions of each one's frames in order; else empty.
    """

    layout = "masks"

    def __init__(
        self,
        location: str,
        kind: Kind,
        names: Sequence[str],
        *,
        class_names: Mapping[int, str] | None = None,
        sequences: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.location, self.kind, self.names = location, kind, list(names)
        self.class_names, self.sequences = dict(class_names or {}), dict(sequences or {})
        self._group = {i: video for video, frames in self.sequences.items() for i in frames}

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[MaskedImage]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> MaskedImage:
        """Decode image and mask.

        Raises:
            DataError: either cannot be read, the mask is no index image, or their sizes differ.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        index %= len(self)
        name = self.names[index]
        image, objects_HW, ids, categories = self._load(index)
        if objects_HW.shape != (image.height, image.width):
            raise DataError(
                f"{self.location}, {name}: the image is {image.width}×{image.height} pixels, "
                f"its mask {objects_HW.shape[1]}×{objects_HW.shape[0]}; a mask has the size of its image"
            )
        group = self._group.get(index, name)
        return MaskedImage(name, image, objects_HW, ids, categories, self.kind, group)

    @abstractmethod
    def _load(self, index: int) -> tuple[Image.Image, np.ndarray, np.ndarray, np.ndarray | None]:
        """The image, objects (H, W), ids (O,) and categories (O,)."""

    def describe(self) -> dict[str, Any]:
        """Layout, location, kind, count and the digest of the listing."""
        return {
            "layout": self.layout,
            "location": self.location,
            "kind": self.kind,
            "count": len(self),
            "digest": fingerprint(self.names),
        }


class IndexMasks(MaskedImages):
    """Images and index masks from files or shards.

    An instance mask of nothing but 0 and 255 shows one object (it would otherwise be nothing but void).

    Args:
        location: as the user named it.
        kind: of the objects.
        names: of the pairs.
        images: where the images are read from.
        masks: where the masks are read from.
        rows: (N, 2) positions of each pair in ``images`` and ``masks``.
        background: the number that means "no object"; None when every number is one.
        void: the number that means "not said"; None for no such number.
        layout: for the recipe.
        class_names: see :class:`MaskedImages`.
        sequences: see :class:`MaskedImages`.
    """

    def __init__(
        self,
        location: str,
        kind: Kind,
        names: Sequence[str],
        images: EncodedSource,
        masks: EncodedSource,
        rows: Sequence[tuple[int, int]],
        *,
        background: int | None,
        void: int | None,
        layout: str,
        class_names: Mapping[int, str] | None = None,
        sequences: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(location, kind, names, class_names=class_names, sequences=sequences)
        self.images, self.masks, self.rows, self.layout = images, masks, list(rows), layout
        self.background, self.void = background, void

    def _load(self, index: int) -> tuple[Image.Image, np.ndarray, np.ndarray, np.ndarray | None]:
        image_row, mask_row = self.rows[index]
        image = self.images.load(image_row)
        assert isinstance(image, Image.Image)
        index_HW = decode_mask(self.masks.read(mask_row), name=self.masks.name(mask_row))
        if self.kind == "instance" and self.background == 0 and index_HW.any() and np.isin(index_HW, (0, 255)).all():
            index_HW //= 255  # black and white: a picture of one object
        objects_HW, ids = number_objects(index_HW, background=self.background, void=self.void)
        return image, objects_HW, ids, ids if self.kind == "class region" else None


def decode_mask(data: bytes | str | os.PathLike[str], *, name: str | None = None) -> np.ndarray:
    """(H, W) int64: the numbers in an index mask, palette or grey, of 1, 8 or 16 bits.

    Raises:
        DataError: no image, a lossy format, or colours instead of numbers.

    >>> file = io.BytesIO()
    >>> Image.fromarray(np.array([[0, 7]], np.uint8)).save(file, "PNG")
    >>> decode_mask(file.getvalue())
    array([[0, 7]])
    """
    if not isinstance(data, bytes):
        name = name or os.fspath(data)
        try:
            data = Path(data).read_bytes()
        except OSError as error:
            raise DataError(f"mask {name} cannot be read ({error.strerror})") from error
    name = name or "mask"
    try:
        decode(data, channels=None, name=name)  # knows all that can be wrong with a file, and says so
        _, mode, file_format = stored_header(data)
    except BadSampleError as error:
        raise DataError(f"mask {error}") from error
    wanted = "save the numbers of the objects as a grey or palette PNG"
    if file_format not in _LOSSLESS:
        raise DataError(f"{name} is no index mask: {file_format} changes pixel values; {wanted}")
    if mode not in _INDEX_MODES:
        raise DataError(f"{name} is no index mask: its pixels are colours ({mode}), not numbers; {wanted}")
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image).astype(np.int64)


def number_objects(
    index_HW: np.ndarray, *, background: int | None = 0, void: int | None = _VOID_ID
) -> tuple[np.ndarray, np.ndarray]:
    """From any numbers to positions: (H, W) int32 as in ``MaskedImage.objects``, and the ids (O,) in rising order.

    >>> objects, ids = number_objects(np.array([[0, 7, 3, 255]]))
    >>> objects.tolist(), ids.tolist()
    ([[-1, 1, 0, -2]], [3, 7])
    """
    special = {value: code for value, code in ((background, BACKGROUND), (void, VOID)) if value is not None}
    found, inverse = np.unique(index_HW, return_inverse=True)
    is_object = ~np.isin(found, list(special))
    codes = np.where(is_object, np.cumsum(is_object) - 1, 0).astype(np.int32)
    for value, code in special.items():
        codes[found == value] = code
    return codes[inverse].reshape(index_HW.shape), found[is_object].astype(np.int64)


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
        void = next((i for i, name in class_names.items() if name.lower() in _VOID_NAMES and i != background), _VOID_ID)
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


def rasterize(segmentation: Any, height: int, width: int, *, where: str = "segmentation") -> np.ndarray:
    """(height, width) bool from COCO polygons ``[[x, y, …], …]`` or run lengths ``{"counts": …, "size": [h, w]}``.

    A pixel belongs to a polygon when its centre does (even-odd rule); of several polygons the union is taken. COCO's own
    tool rounds corners on a finer grid, so single pixels of an edge may differ from its.

    Args:
        segmentation: as in a COCO annotation; run lengths as numbers or as COCO's compressed text.
        height: of the image.
        width: of the image.
        where: for the error message.

    Raises:
        DataError: neither of the two, too few corners, or run lengths for another size.

    >>> rasterize([[1, 0, 3, 0, 3, 2, 1, 2]], 3, 4).astype(int).tolist()
    [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    >>> rasterize({"counts": [2, 3, 1], "size": [2, 3]}, 2, 3).astype(int).tolist()
    [[0, 1, 1], [0, 1, 0]]
    """
    if isinstance(segmentation, dict) and "counts" in segmentation:
        return _decode_runs(segmentation, height, width, where)
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError(f"{where}: neither polygons nor run lengths")
    mask_HW = np.zeros((height, width), dtype=bool)
    for polygon in segmentation:
        try:
            corners_P2 = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: a polygon is a list of x, y, x, y, …, got {str(polygon)[:60]}") from error
        if len(corners_P2) < 3 or not np.isfinite(corners_P2).all():
            raise DataError(f"{where}: a polygon needs at least three finite corners, got {str(polygon)[:60]}")
        mask_HW |= _fill(corners_P2, height, width)
    return mask_HW


def _fill(corners_P2: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels whose centre has an odd number of edges to its left."""
    x0, y0 = corners_P2.T
    x1, y1 = np.roll(corners_P2, -1, axis=0).T
    centre_H1 = np.arange(height)[:, None] + 0.5
    crosses_HP = (y0 <= centre_H1) != (y1 <= centre_H1)
    row, edge = np.nonzero(crosses_HP)
    share = (row + 0.5 - y0[edge]) / (y1 - y0)[edge]
    crossing = x0[edge] + share * (x1 - x0)[edge]
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    toggles = np.bincount(row * (width + 1) + column, minlength=height * (width + 1)).reshape(height, width + 1)
    return np.cumsum(toggles, axis=1)[:, :width] % 2 == 1


def _decode_runs(runs: Mapping[str, Any], height: int, width: int, where: str) -> np.ndarray:
    """Run lengths of zeros and ones in turn, down the columns."""
    size, counts = runs.get("size"), runs["counts"]
    if list(size or ()) != [height, width]:
        raise DataError(f"{where}: run lengths of size {size} for an image of height and width {[height, width]}")
    counts = _uncompress(counts) if isinstance(counts, str) else counts
    if sum(counts) != height * width or min(counts) < 0:
        raise DataError(f"{where}: run lengths add up to {sum(counts)} pixels, the image has {height * width}")
    ones = np.arange(len(counts)) % 2 == 1
    return np.repeat(ones, counts).reshape(width, height).T


def _uncompress(text: str) -> list[int]:
    """COCO's compressed counts: five bits a character, lowest first, from the fourth on as a difference to two before."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


class MaskedScenes(MaskedImages):
    """The embedded sample: scenes of handwritten digits, each digit with its mask; see :func:`~mc_core.samples.digit_scenes`.

    Args:
        count: scenes.
        size: side of a scene in pixels.
        digits: fewest and most digits in a scene; two are needed to compare objects.
        seed: of the scenes.
        split: whose handwriting.
        start: index of the first scene.
        config: how hard the scenes are.

    >>> scene = MaskedScenes(3, size=32)[0]
    >>> scene.masks.shape[1:], scene.kind
    ((32, 32), 'instance')
    """

    layout = "scenes"

    def __init__(
        self,
        count: int,
        *,
        size: int = 96,
        digits: tuple[int, int] = (2, 4),
        seed: int = 0,
        split: Split = "test",
        start: int = 0,
        config: SceneConfig | None = None,
    ) -> None:
        self.scenes = digit_scenes(count, size=size, digits=digits, seed=seed, split=split, start=start, config=config)
        names = [f"{split}-{i:06d}" for i in self.scenes.index.tolist()]
        super().__init__("digit scenes", "instance", names, class_names={i: str(i) for i in range(10)})

    def _load(self, index: int) -> tuple[Image.Image, np.ndarray, np.ndarray, np.ndarray | None]:
        scenes = self.scenes
        image = Image.fromarray(scenes.images[index].permute(1, 2, 0).contiguous().numpy())
        objects_HW = scenes.masks[index].numpy().astype(np.int32) - 1  # 0 is the ground
        count = int(scenes.objects.count[index])
        return image, objects_HW, np.arange(1, count + 1), scenes.objects.digit[index, :count].numpy()
