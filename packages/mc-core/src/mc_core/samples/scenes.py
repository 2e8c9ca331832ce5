"""Scenes composed from real handwritten digits: labelled, captioned, masked data that needs no download.

scikit-learn ships 1797 scans of digits by 13 people (Alpaydin & Kaynak 1998, 8×8 pixels). :func:`digit_scenes` puts
them on canvases at random position, size, rotation and colour, light on dark or dark on light, over textures of a
small shared family. Raw pixels do not separate the classes; the shape of the strokes does.

Every random choice is a hash of (seed, split, index): scene 7 is the same in a set of 10, of 10,000, or starting at 7.

Legend: N scenes, B scenes of one chunk, M places for digits in a scene, S canvas side in pixels, C colours, U side of an
upsampled scan, R random numbers.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mc_core.engine.config import StrictModel
from mc_core.errors import ConfigError, DataError
from mc_core.optional import require
from mc_core.random import uniform
from mc_core.samples.painting import between, boxes, centers, draw, ground, strokes, textures, window

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
MAX_OBJECTS = 4

# name, RGB, whether it is shown on dark grounds; dark inks go on light ones, so brightness alone shows every digit
_PALETTE: tuple[tuple[str, tuple[float, float, float], bool], ...] = (
    ("red", (0.80, 0.08, 0.10), False),
    ("green", (0.02, 0.45, 0.12), False),
    ("blue", (0.10, 0.20, 0.85), False),
    ("brown", (0.40, 0.20, 0.05), False),
    ("purple", (0.45, 0.10, 0.60), False),
    ("black", (0.03, 0.03, 0.04), False),
    ("orange", (1.00, 0.60, 0.08), True),
    ("pink", (1.00, 0.60, 0.80), True),
    ("yellow", (0.96, 0.90, 0.20), True),
    ("turquoise", (0.25, 0.88, 0.85), True),
    ("white", (0.97, 0.97, 0.96), True),
)
COLORS = tuple(name for name, *_ in _PALETTE)

_TEST_DIGITS = (
    360  # the file keeps the order of collection, so the tail, as any fifth, shares few writers with the rest
)
_CHUNK = 256
_STREAMS = {"train": 0x5CE0, "test": 0x7E57}
# how many uniform numbers each choice takes
_SCENE_DRAWS = {"count": 1, "dark": 1, "colors": len(_PALETTE), "layout": 5, "ground": 11, "grain": 2}
_OBJECT_DRAWS = {"source": 1, "size": 1, "share": 1, "angle": 1, "place": 2, "ink": 3}

Split = Literal["train", "test"]


def shown_together(color: str) -> tuple[str, ...]:
    """The colours shown on the same ground as ``color``, itself among them.

    >>> shown_together("white")
    ('orange', 'pink', 'yellow', 'turquoise', 'white')
    """
    ground = {name: dark for name, _, dark in _PALETTE}
    return tuple(name for name in COLORS if ground[name] == ground[color])


class SceneConfig(StrictModel):
    """How hard the scenes are. The defaults leave raw pixels near chance and the digits easy to see.

    Grounds differ from scene to scene, but all have the same statistics: what could tell two grounds apart after a
    crop and a change of colour, contrastive learning would learn instead of the digits.

    >>> SceneConfig(rotation=0.0).rotation
    0.0
    """

    colors: tuple[str, ...] = COLORS
    """Inks to draw from. White, yellow, orange, pink and turquoise are shown on dark grounds, the others on light ones."""
    classes: tuple[str, ...] = DIGITS
    """Digits to draw from, as words."""
    held_out: int = Field(default=0, ge=0, lt=5)
    """Which fifth of the scans test scenes are made of, counted from the last collected; training scenes are made of the rest."""
    scale: tuple[float, float] | None = None
    """Smallest and largest digit height as a share of the canvas. Its lower 40 % are "small", its upper 40 % "large".
    Default: (0.55, 0.8) for one digit per scene, (0.24, 0.46) for more."""
    rotation: float = Field(default=20.0, ge=0, le=60)
    """Largest turn either way, in degrees (beyond 60, six and nine begin to meet)."""
    turn: float = Field(default=0.0, ge=-180, le=180)
    """Turn of all digits besides, in degrees, clockwise: another domain of the same digits."""
    color_jitter: float = Field(default=0.06, ge=0, le=0.2)
    """Largest change of each ink channel from its named colour."""
    tint: float | None = Field(default=None, ge=0, le=1)
    """Strength of the clouds of colour on the ground (standard deviation, where white is 1). They change no brightness:
    they hide digits from comparisons of raw pixels and vanish in grey. Default: 0.4 for one digit per scene, 0.1 for
    more."""
    clouds: float = Field(default=0.04, ge=0, le=0.5)
    """Strength of the clouds of light and shade."""
    texture: float = Field(default=0.03, ge=0, le=0.5)
    """Strength of the fine texture of the ground."""
    noise: float = Field(default=0.02, ge=0, le=0.5)
    """Standard deviation of the grain over the whole picture."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {self.scale} must be two rising shares of the canvas, in (0, 1]")
        for field, names, known in (("colors", self.colors, COLORS), ("classes", self.classes, DIGITS)):
            if unknown := [name for name in names if name not in known]:
                raise ValueError(f"{field} names '{unknown[0]}'; choose from {', '.join(known)}")
        if not self.classes:
            raise ValueError("classes is empty: name a digit at least")
        return self

    def shown(self) -> Tensor:
        """(2, C) which colours appear on a light and on a dark ground."""
        return torch.tensor(
            [[dark == ground and name in self.colors for name, _, ground in _PALETTE] for dark in (False, True)]
        )


@dataclass(frozen=True)
class SceneObjects:
    """The digits of each scene as columns, the main digit first; places beyond ``count`` hold −1 (NaN if floating).

    Attributes:
        count: (N,) int64, digits in the scene.
        digit: (N, M) int64, 0 to 9.
        color: (N, M) int64, index into ``COLORS``; differs within a scene.
        size: (N, M) int64, index into ``SIZES``.
        source: (N, M) int64, row of ``sklearn.datasets.load_digits``.
        center: (N, M, 2) float32, x and y in pixels.
        height: (N, M) float32, height of the upright digit in pixels.
        angle: (N, M) float32, degrees, clockwise.
    """

    count: Tensor
    digit: Tensor
    color: Tensor
    size: Tensor
    source: Tensor
    center: Tensor
    height: Tensor
    angle: Tensor

    def phrase(self, scene: int, place: int) -> str:
        """One digit in words, for example ``"a large red three"``. It names exactly one digit of the scene."""
        size, color = SIZES[int(self.size[scene, place])], COLORS[int(self.color[scene, place])]
        return f"a {size} {color} {DIGITS[int(self.digit[scene, place])]}"

    def relation(self, first: int, second: int) -> Tensor:
        """Where digit ``first`` lies seen from digit ``second``, along the axis on which they are further apart.

        Returns:
            (N,) int64, index into ``RELATIONS``; −1 where the scene lacks either digit.
        """
        step_N2 = self.center[:, first] - self.center[:, second]
        x_N, y_N = step_N2.unbind(1)
        found_N = torch.where(x_N.abs() >= y_N.abs(), (x_N > 0).long(), 2 + (y_N > 0).long())
        return found_N.masked_fill(self.count <= max(first, second), -1)


@dataclass(frozen=True)
class DigitScenes:
    """What :func:`digit_scenes` returns.

    Attributes:
        images: (N, 3, S, S) uint8.
        labels: (N,) int64, class of the main digit.
        masks: (N, S, S) uint8, 0 for the ground and k for the k-th digit (main digit 1).
        boxes: (N, M, 4) float32, x1 y1 x2 y2 in pixels around each mask (x2, y2 exclusive), −1 where there is no digit.
        objects: the attributes of every digit, see :class:`SceneObjects`.
        index: (N,) int64, position in the endless sequence of scenes.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    boxes: Tensor
    objects: SceneObjects
    index: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def captions(self) -> list[str]:
        """A sentence for each scene: the main digit, then how it lies to each of the others."""
        objects = self.objects
        relations = [objects.relation(0, place).tolist() for place in range(objects.digit.shape[1])]
        sentences = []
        for scene, count in enumerate(objects.count.tolist()):
            others = [f"{RELATIONS[relations[k][scene]]} {objects.phrase(scene, k)}" for k in range(1, count)]
            tail = " and ".join(part for part in (", ".join(others[:-1]), *others[-1:]) if part)
            sentences.append(f"{objects.phrase(scene, 0)} {tail}".rstrip())
        return sentences

    def save(self, folder: str | Path) -> Path:
        """Write ``folder/<class>/<index>.png``, the tree that every image-folder loader reads.

        The tree appears complete or not at all.

        Args:
            folder: must not exist yet, or be empty.

        Raises:
            DataError: the folder holds files.
            MissingDependencyError: pillow is not installed.
        """
        image = require("PIL.Image", extra="pillow", purpose="write PNG files")
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder} exists and is not empty; scenes are written to a new folder, name another")
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for label in self.labels.unique().tolist():
                (building / str(label)).mkdir()
            pixels = self.images.permute(0, 2, 3, 1).contiguous().numpy()
            for row, label, index in zip(pixels, self.labels.tolist(), self.index.tolist(), strict=True):
                image.fromarray(row).save(building / str(label) / f"{index:06d}.png", compress_level=1)
            building.chmod(0o755)  # mkdtemp makes folders private
            building.replace(folder)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        return folder


def digit_scenes(
    count: int,
    *,
    size: int = 64,
    digits: tuple[int, int] = (1, 1),
    seed: int = 0,
    split: Split = "train",
    start: int = 0,
    config: SceneConfig | None = None,
) -> DigitScenes:
    """Compose ``count`` scenes from real handwritten digits.

    Train and test scenes use different scans; ``config.held_out`` says which. To make more scenes than fit into memory, move
    ``start``.

    Args:
        count: N, how many scenes.
        size: S, side of the canvas in pixels, 16 to 512.
        digits: fewest and most digits per scene, between 1 and 4; how many is drawn evenly for each scene.
        seed: another seed, another set of scenes.
        split: ``"train"`` (1437 scans) or ``"test"`` (360 others, 357 with the first fifth held out).
        start: index of the first scene.
        config: the nuisances; the defaults of :class:`SceneConfig` when not given.

    Raises:
        ConfigError: an argument is out of range.
        MissingDependencyError: scikit-learn is not installed.

    >>> scenes = digit_scenes(3, size=32, digits=(1, 2))
    >>> scenes.images.shape, scenes.boxes.shape, len(scenes.captions)
    (torch.Size([3, 3, 32, 32]), torch.Size([3, 2, 4]), 3)
    >>> bool((digit_scenes(1, size=32, digits=(1, 2), start=2).images[0] == scenes.images[2]).all())
    True
    """
    if count < 1 or start < 0:
        raise ConfigError(f"count={count}, start={start}: ask for at least one scene, starting at index 0 or later")
    if not 16 <= size <= 512:
        raise ConfigError(f"size={size}: the canvas must be 16 to 512 pixels wide")
    if not 1 <= digits[0] <= digits[1] <= MAX_OBJECTS:
        raise ConfigError(f"digits={digits}: give the fewest and the most digits per scene, 1 to {MAX_OBJECTS}")
    if split not in _STREAMS:
        raise ConfigError(f"split={split!r}: scenes are made for 'train' or 'test'")
    config = config or SceneConfig()
    inks = int(config.shown().sum(1).min())
    if inks < digits[1]:
        shown = f"on light or on dark grounds only {inks} of colors={config.colors} are shown"
        raise ConfigError(f"{shown}; name at least {digits[1]} for each")
    chunks = [
        _compose(torch.arange(first, min(first + _CHUNK, start + count)), size, digits, seed, split, config)
        for first in range(start, start + count, _CHUNK)
    ]
    joined = {
        f.name: torch.cat([getattr(chunk, f.name) for chunk in chunks])
        for f in fields(DigitScenes)
        if f.name != "objects"
    }
    columns = {f.name: torch.cat([getattr(chunk.objects, f.name) for chunk in chunks]) for f in fields(SceneObjects)}
    return DigitScenes(**joined, objects=SceneObjects(**columns))


def _compose(
    index_B: Tensor, size: int, digits: tuple[int, int], seed: int, split: Split, config: SceneConfig
) -> DigitScenes:
    """One chunk. Choices are made in float64 so that rounding cannot depend on how the chunk is vectorised."""
    most, batch = digits[1], len(index_B)
    per_scene, per_object = sum(_SCENE_DRAWS.values()), sum(_OBJECT_DRAWS.values())
    draws_B = uniform(seed, 0, index_B, per_scene + per_object * MAX_OBJECTS, stream=_STREAMS[split]).double()
    draws_BMR = draws_B[:, per_scene:].view(batch, MAX_OBJECTS, per_object)[:, :most]
    scene = dict(zip(_SCENE_DRAWS, draws_B[:, :per_scene].split([*_SCENE_DRAWS.values()], 1), strict=True))
    each = dict(zip(_OBJECT_DRAWS, draws_BMR.split([*_OBJECT_DRAWS.values()], 2), strict=True))
    count_B = digits[0] + (scene["count"][:, 0] * (most - digits[0] + 1)).long()
    present_BM = torch.arange(most) < count_B[:, None]

    ink, classes = strokes()
    last = len(ink) - _TEST_DIGITS * config.held_out
    place = torch.arange(len(ink))
    held = (place >= last - _TEST_DIGITS) & (place < last)
    wanted = torch.tensor([word in config.classes for word in DIGITS])
    rows = (wanted[classes] & (held if split == "test" else ~held)).nonzero().squeeze(1)
    source_BM = rows[(each["source"][..., 0] * len(rows)).long()]

    dark_B = scene["dark"][:, 0] < 0.5
    hidden_BC = ~config.shown()[dark_B.long()]
    color_BM = scene["colors"].masked_fill(hidden_BC, 2.0).argsort(1)[:, :most]  # distinct in a scene

    smallest, largest = config.scale or ((0.55, 0.8) if most == 1 else (0.24, 0.46))
    size_BM = (each["size"][..., 0] < 0.5).long()
    share_BM = 0.4 * each["share"][..., 0] + 0.6 * size_BM  # a gap of a fifth keeps the two words apart
    height_BM = between(share_BM, smallest, largest) * size
    angle_BM = config.turn + between(each["angle"][..., 0], -config.rotation, config.rotation)
    center_BM2 = centers(count_B, scene["layout"], each["place"], height_BM, size)

    alpha_BMSS = draw(ink[source_BM], center_BM2, height_BM, angle_BM, size)
    ground_B3SS = ground(dark_B, scene["ground"], size, most == 1, config)
    paint = torch.tensor([rgb for _, rgb, _ in _PALETTE], dtype=torch.float64)
    jitter_BM3 = between(each["ink"], -config.color_jitter, config.color_jitter)
    ink_BM3 = (paint[color_BM] + jitter_BM3).clamp(0, 1).float()

    alpha_BMSS *= present_BM[..., None, None]
    image_B3SS, mask_BSS = ground_B3SS, torch.zeros(batch, size, size, dtype=torch.uint8)
    for k in range(most):
        alpha_B1SS = alpha_BMSS[:, k, None]
        image_B3SS += alpha_B1SS * (ink_BM3[:, k, :, None, None] - image_B3SS)
        mask_BSS[alpha_BMSS[:, k] > 0.5] = k + 1
    *_, grain = textures(size)
    image_B3SS += config.noise * window(grain, scene["grain"], size)[:, None]

    absent_BM = ~present_BM
    objects = SceneObjects(
        count=count_B,
        digit=classes[source_BM].masked_fill(absent_BM, -1),
        color=color_BM.masked_fill(absent_BM, -1),
        size=size_BM.masked_fill(absent_BM, -1),
        source=source_BM.masked_fill(absent_BM, -1),
        center=center_BM2.float().masked_fill(absent_BM[..., None], torch.nan),
        height=height_BM.float().masked_fill(absent_BM, torch.nan),
        angle=angle_BM.float().masked_fill(absent_BM, torch.nan),
    )
    images = (image_B3SS * 255).round_().clamp_(0, 255).to(torch.uint8)
    return DigitScenes(images, objects.digit[:, 0], mask_BSS, boxes(mask_BSS, most), objects, index_B)
