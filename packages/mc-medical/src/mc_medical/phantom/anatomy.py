"""The body of a phantom: a frontal chest radiograph as attenuation on a grid, with room for findings.

Coordinates: x from −1 (the patient's right, left in the picture) to 1, y from −1 (top) to 1 (bottom); ``u`` is the distance
from the midline on one side. Shapes are soft-edged indicator functions, so that every step is a few whole-array operations.

Legend: S side of the picture in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

SIDES = {"right": -1.0, "left": 1.0}
"""The patient's, as radiologists say: right is left in the picture."""

HEART_CENTRE = 0.03  # y, of its ellipse, before the diaphragm moves


@dataclass(frozen=True)
class Person:
    """What stays of a patient from study to study.

    Attributes:
        width: half-width of the thorax inside the ribs.
        apex: y of the lungs' tops.
        dome: y of the diaphragm's domes, right and left.
        heart: cardiothoracic ratio without disease.
        tissue: thickness of soft tissue, 1 is average.
        breast: density of breast shadows, 0 for none.
        ribs: distance between two ribs.
        aorta: how far the aortic knob stands out.
        slope: of the clavicles.
        vessels: (K, 5) start, direction and width of the vessels in each lung.
        spine: (2,) phase of the vertebrae and bend of the spine.
    """

    width: float
    apex: float
    dome: tuple[float, float]
    heart: float
    tissue: float
    breast: float
    ribs: float
    aorta: float
    slope: float
    vessels: np.ndarray = field(repr=False)
    spine: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Exposure:
    """What changes from one exposure to the next.

    Attributes:
        view: ``PA`` or ``AP``; AP magnifies the heart.
        shift: of the patient on the detector.
        scale: of the patient.
        turn: of the picture, radians.
        breath: how much lower the diaphragm stands than at rest.
        gain: of the detector.
        noise: of the detector, standard deviation.
        collimated: share of the picture's rim that is shuttered, 0 for none.
    """

    view: str
    shift: tuple[float, float]
    scale: float
    turn: float
    breath: float
    gain: float
    noise: float
    collimated: float


def draw_person(rng: np.random.Generator) -> Person:
    """A patient without disease."""
    right = rng.uniform(0.37, 0.47)
    count = 11
    vessels = np.stack(
        [
            rng.uniform(0.0, 0.12, 2 * count),
            rng.uniform(-0.12, 0.10, 2 * count),
            np.tile(np.linspace(-1.15, 1.25, count), 2) + rng.normal(0, 0.09, 2 * count),
            rng.uniform(0.30, 0.62, 2 * count),
            rng.uniform(0.010, 0.020, 2 * count),
        ],
        axis=1,
    )
    return Person(
        width=rng.uniform(0.66, 0.76),
        apex=rng.uniform(-0.82, -0.74),
        dome=(right, right + rng.uniform(0.02, 0.07)),
        heart=rng.uniform(0.40, 0.48),
        tissue=float(np.clip(rng.normal(1.0, 0.10), 0.8, 1.25)),
        breast=rng.uniform(0.08, 0.16) if rng.random() < 0.5 else 0.0,
        ribs=rng.uniform(0.150, 0.180),
        aorta=rng.uniform(0.0, 0.05),
        slope=rng.uniform(0.15, 0.30),
        vessels=vessels,
        spine=(rng.uniform(0, 1), rng.normal(0, 0.015)),
    )


def draw_exposure(rng: np.random.Generator, portable: float = 0.35) -> Exposure:
    """An exposure; ``portable`` is the share taken from the front, in bed."""
    bed = bool(rng.random() < portable)
    loose = 1.6 if bed else 1.0
    return Exposure(
        view="AP" if bed else "PA",
        shift=(rng.normal(0, 0.02) * loose, rng.normal(0, 0.02) * loose),
        scale=float(np.exp(rng.normal(0.02 if bed else 0.0, 0.03))),
        turn=rng.normal(0, 0.015) * loose,
        breath=rng.normal(-0.04 if bed else 0.0, 0.03),
        gain=float(np.exp(rng.normal(0, 0.10))),
        noise=rng.uniform(0.006, 0.016),
        collimated=rng.uniform(0.02, 0.06) if rng.random() < 0.25 else 0.0,
    )


def step(value: np.ndarray, soft: float) -> np.ndarray:
    """1 where ``value`` is positive, 0 where negative, ``soft`` wide between."""
    return 0.5 * (1.0 + np.tanh(value * np.float32(0.5 / soft)))


def clouds(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """(S, S) float32: smooth noise of unit deviation, about ``cells`` clouds across."""
    from PIL import Image

    coarse = Image.fromarray(rng.standard_normal((cells + 2, cells + 2)).astype(np.float32))
    inner = (1.0, 1.0, cells + 1.0, cells + 1.0)
    found = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC, box=inner))
    return found / np.float32(0.81)


class Chest:
    """The parts of one picture, before they are added up; findings change them in place.

    Attributes:
        size: S.
        x: (S, S) or (1, S) position.
        y: (S, S) position.
        lung: side → (S, S) how much lung lies there, 0 to 1.
        air: side → (S, S) share of it that is air; findings lower it.
        marks: side → how much of its vessels is seen, 0 to 1, an array or a number.
        extra: (S, S) attenuation added to everything: devices, lines.
    """

    def __init__(self, person: Person, exposure: Exposure, size: int, rng: np.random.Generator) -> None:
        self.person, self.exposure, self.size, self.rng = person, exposure, size, rng
        place = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
        x, y = place[None, :] - np.float32(exposure.shift[0]), place[:, None] - np.float32(exposure.shift[1])
        cos, sin = np.float32(np.cos(exposure.turn)), np.float32(np.sin(exposure.turn))
        scale = np.float32(1 / exposure.scale)
        self.x, self.y = (cos * x + sin * y) * scale, (cos * y - sin * x) * scale
        self.blur = 1.1 / size
        self.heart_ratio = person.heart * (1.06 if exposure.view == "AP" else 1.0)
        self.dome = [y + exposure.breath for y in person.dome]
        self.lung: dict[str, np.ndarray] = {}
        self.air: dict[str, np.ndarray] = {}
        self.marks: dict[str, np.ndarray | float] = dict.fromkeys(SIDES, 1.0)
        self.extra = np.zeros((size, size), dtype=np.float32)

    def across(self, side: str) -> np.ndarray:
        """(S, S) distance from the midline, positive on ``side``."""
        return self.x * np.float32(SIDES[side])

    def lateral_edge(self, y: np.ndarray) -> np.ndarray:
        """Distance of the inner chest wall from the midline."""
        person = self.person
        above = np.clip((0.20 - y) / np.float32(0.22 - person.apex), 0, 1)
        narrow = np.sqrt(np.clip(1 - above**2.7, 0, 1))
        return np.float32(person.width) * (narrow + 0.05 * np.clip(y - 0.20, 0, 1))

    def dome_edge(self, side: str, u: np.ndarray) -> np.ndarray:
        """y of the diaphragm; its sulci lie deepest at the chest wall."""
        top = self.dome[0 if side == "right" else 1]
        place = (u - 0.30) / np.float32(self.person.width - 0.30)
        return top + 0.22 * np.clip(place, 0, 1.2) ** 2.4 + 0.05 * np.clip(-place, 0, 1.5) ** 2

    def build_lungs(self) -> None:
        """Lungs as the diaphragm now stands."""
        for side in SIDES:
            u = self.across(side)
            middle = 0.085 + 0.05 * np.exp(-(((self.y + 0.15) / 0.25) ** 2))
            self.lung[side] = (
                step(self.lateral_edge(self.y) - u, 0.012)
                * step(u - middle, 0.016)
                * step(self.dome_edge(side, u) - self.y, 0.010)
            )
            self.air[side] = np.ones_like(self.lung[side])

    def heart(self) -> np.ndarray:
        """(S, S): heart, great vessels and aortic knob."""
        width = 2 * self.person.width * self.heart_ratio
        right, left = 0.30 * width, 0.70 * width
        grown = max(self.heart_ratio - 0.45, 0.0)
        floor = 0.5 * (self.dome[0] + self.dome[1])
        centre = HEART_CENTRE + 0.55 * floor - 0.06
        x = self.x + 0.10 * (self.y - np.float32(centre))
        half = np.where(x < 0, np.float32(right), np.float32(left))
        tall = 0.33 + 0.35 * grown
        apex_drop = 0.26 * np.clip(x, 0, 1)
        ventricles = 1 - np.abs(x / half) ** 2.3 - np.abs((self.y - centre - apex_drop) / np.float32(tall)) ** 2.3
        body = step(ventricles * 0.35, 0.022)
        top = np.float32(self.person.apex - 0.05)
        mediastinum = step(0.105 + 0.04 * np.clip(self.y + 0.3, 0, 0.6) - np.abs(self.x), 0.016) * step(
            self.y - top, 0.05
        )
        knob_x, knob_y = 0.105 + 0.5 * self.person.aorta, -0.36
        knob = step(0.085 + self.person.aorta - np.hypot(self.x - np.float32(knob_x), self.y - knob_y), 0.012)
        return 1 - (1 - body) * (1 - mediastinum) * (1 - 0.8 * knob)

    def bones(self) -> np.ndarray:
        """(S, S) attenuation of ribs, clavicles and spine."""
        person = self.person
        away = np.abs(self.x)
        cage = step(self.lateral_edge(self.y) + 0.035 - away, 0.012) * step(
            self.y - np.float32(person.apex - 0.03), 0.03
        )
        found = 0.075 * cage * _bands(self.y - 0.34 * away**1.5 + 0.10 * away, person.ribs, 0.30)
        front = step(away - 0.22, 0.06) * step(0.42 - self.y, 0.05)
        found += 0.040 * cage * front * _bands(self.y + 0.62 * away - 0.25 * away**2, person.ribs * 1.12, 0.36)
        bend = self.x - np.float32(person.spine[1]) * np.cos(2 * self.y)
        column = step(0.095 - np.abs(bend), 0.012)
        discs = 0.5 + 0.5 * np.cos(2 * np.pi * (self.y / np.float32(0.145) + np.float32(person.spine[0])))
        found += column * (0.075 + 0.035 * discs * step(self.y + 0.6, 0.3))
        rise = np.float32(person.apex + 0.17) - np.float32(person.slope) * (away - 0.12) + 0.35 * (away - 0.42) ** 2
        found += 0.10 * step(0.026 - np.abs(self.y - rise), 0.009) * step(away - 0.10, 0.02) * step(0.80 - away, 0.03)
        blade = step(0.085 - np.abs(away - np.float32(person.width + 0.10) + 0.18 * (self.y + 0.45)), 0.03)
        found += 0.045 * blade * step(0.12 - np.abs(self.y + 0.38) + 0.16, 0.05)
        return found.astype(np.float32)

    def body(self) -> np.ndarray:
        """(S, S) thickness of soft tissue; 0 is air around the patient."""
        away = np.abs(self.x)
        shoulders = 0.30 + 0.75 * np.clip((self.y + 1.02) / 0.30, 0, 1) ** 0.7
        wall = np.float32(self.person.width * 1.10 + 0.13 * self.person.tissue) + 0.05 * self.y
        arms = 0.62 * step(away - wall - 0.06, 0.02) * step(0.12 - self.y, 0.10)
        trunk = step(np.minimum(shoulders, wall) - away, 0.02)
        upper = step(shoulders - away, 0.02) * step(-0.42 - self.y, 0.08)
        return np.maximum(np.maximum(trunk, 0.92 * upper), arms * step(shoulders - away, 0.02))

    def vessels(self) -> dict[str, np.ndarray]:
        """side → (S, S) of vessels that leave the hilum and thin out."""
        from PIL import Image, ImageDraw

        found = {}
        fine = 2 * self.size
        half = len(self.person.vessels) // 2
        for number, side in enumerate(SIDES):
            canvas = Image.new("L", (fine, fine))
            pen = ImageDraw.Draw(canvas)
            for start_u, start_y, angle, length, width in self.person.vessels[number * half : (number + 1) * half]:
                turns = angle + np.array([0.0, 0.10, 0.02, 0.16]) * np.sign(angle)
                pace = length / 4
                u = 0.15 + start_u * 0.3 + np.concatenate([[0], np.cumsum(np.cos(turns) * pace)])
                y = -0.06 + start_y + np.concatenate([[0], np.cumsum(np.sin(turns) * pace)])
                points = self.pixels(u * SIDES[side], y) * 2
                for part, weight in enumerate((150, 110, 80, 50)):
                    thick = max(1, round(width * (1 - 0.2 * part) * fine))
                    pen.line([tuple(points[part]), tuple(points[part + 1])], fill=weight, width=thick)
                branch = points[2] + (points[3] - points[2]) @ np.array([[0.6, 0.8], [-0.8, 0.6]])
                pen.line([tuple(points[2]), tuple(branch)], fill=60, width=1)
            found[side] = np.asarray(canvas.reduce(2), dtype=np.float32) / 255
        return found

    def pixels(self, x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
        """(…, 2) column and row, in pixels, of places in the body."""
        exposure = self.exposure
        cos, sin = np.cos(exposure.turn), np.sin(exposure.turn)
        x, y = np.asarray(x) * exposure.scale, np.asarray(y) * exposure.scale
        column, row = cos * x - sin * y + exposure.shift[0], cos * y + sin * x + exposure.shift[1]
        return np.stack([(column + 1) * self.size / 2 - 0.5, (row + 1) * self.size / 2 - 0.5], axis=-1)

    def picture(self) -> np.ndarray:
        """(S, S) float32 in [0, 1], bones bright."""
        body, heart, vessels = self.body(), self.heart(), self.vessels()
        haze = clouds(self.rng, self.size, 9)
        trachea = step(0.042 - np.abs(self.x - 0.012), 0.012) * step(-0.26 - self.y, 0.05) * step(self.y + 1.2, 0.1)
        depth = 0.46 * (1 - 0.10 * np.clip(self.y + 0.2, -0.6, 0.6))
        total = body * (0.66 + 0.10 * self.person.tissue + 0.10 * self.y + 0.006 * haze)
        if self.person.breast:
            for side in SIDES:
                round_ = 0.27 - np.hypot(self.across(side) - 0.42, (self.y - 0.30) * 1.1)
                total += self.person.breast * step(round_, 0.03) * (0.4 + 0.6 * np.clip((self.y + 0.0) / 0.5, 0, 1))
        for side in SIDES:
            vascular = vessels[side] * self.marks[side]
            hilum = np.exp(-(((self.across(side) - 0.17) / 0.055) ** 2) - ((self.y + 0.07) / 0.11) ** 2)
            blood = np.clip(0.34 * vascular + 0.20 * hilum, 0, 0.6)
            air = self.lung[side] * (1 - 0.93 * heart) * np.clip(self.air[side] - blood, -0.15, 1.2)
            total -= depth * air * body
        total -= 0.13 * trachea * (1 - 0.3 * heart)
        bubble_x, bubble_y = 0.34, self.dome[1] + 0.16
        bubble = step(1 - np.hypot((self.x - bubble_x) / 0.12, (self.y - bubble_y) / 0.055), 0.15)
        total -= 0.16 * bubble
        total += self.bones() * body + self.extra
        total *= self.exposure.gain
        total += self.exposure.noise * self.rng.standard_normal(total.shape).astype(np.float32)
        found = np.clip(0.96 * np.clip(total, 0, None) ** 1.1, 0, 1)
        return self._collimate(found.astype(np.float32))

    def _collimate(self, found: np.ndarray) -> np.ndarray:
        rim = round(self.exposure.collimated * self.size)
        if rim:
            inside = np.zeros_like(found)
            inside[rim:-rim, rim:-rim] = found[rim:-rim, rim:-rim]
            return inside
        return found


def _bands(height: np.ndarray, pace: float, share: float) -> np.ndarray:
    """Bands every ``pace``, a ``share`` of it thick, a little brighter along their edges."""
    phase = np.abs(np.mod(height / np.float32(pace), 1.0) - 0.5) * 2
    inside = step(np.float32(share) - phase, 0.10)
    edge = np.exp(-(((phase - share * 0.85) / 0.14) ** 2))
    return 0.75 * inside + 0.35 * edge


def older(person: Person, heart: float) -> Person:
    """The same patient with another cardiothoracic ratio."""
    return replace(person, heart=heart)
