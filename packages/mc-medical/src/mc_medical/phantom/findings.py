"""Findings of a phantom: where they lie, how severe they are, and how they change the picture.

Severity is 1, 2 or 3; what a radiologist calls it is chosen with the words of the report. Legend: S side of the picture in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mc_medical.phantom.anatomy import SIDES, Chest, clouds, step

Side = Literal["right", "left", "both", ""]
Zone = Literal["upper", "middle", "lower", ""]

ZONES: dict[str, float] = {"upper": -0.44, "middle": -0.08, "lower": 0.22}
"""y of the middle of each zone."""


@dataclass(frozen=True)
class Finding:
    """One finding of a study.

    Attributes:
        name: CheXpert observation.
        side: the patient's side; empty where there is none.
        zone: third of the lung; empty where there is none.
        severity: 1 to 3.
        certain: whether the report says so plainly.
        drawn: whether it is in the picture; what is plainly said always is.
        kind: variant of it, such as ``linear`` atelectasis or a ``pacemaker``.
    """

    name: str
    side: Side = ""
    zone: Zone = ""
    severity: int = 1
    certain: bool = True
    drawn: bool = True
    kind: str = ""

    @property
    def sides(self) -> tuple[str, ...]:
        """Sides it lies on; a finding of the midline has none."""
        return tuple(SIDES) if self.side == "both" else ((self.side,) if self.side else ())


def draw_finding(name: str, rng: np.random.Generator) -> Finding:
    """A finding of that name, its place and severity drawn."""
    severity = int(rng.choice(3, p=(0.35, 0.40, 0.25))) + 1
    side: Side = "right" if rng.random() < 0.5 else "left"
    zone: Zone = "upper" if (spot := rng.random()) < 0.3 else "middle" if spot < 0.55 else "lower"
    kind = ""
    if name in ("Cardiomegaly", "Edema"):
        side, zone = ("both" if name == "Edema" else ""), ""
    elif name == "Pleural Effusion":
        side, zone = "both" if rng.random() < 0.3 else side, "lower"
    elif name == "Atelectasis":
        side, zone = "both" if rng.random() < 0.3 else side, "lower"
        kind = "linear" if rng.random() < 0.6 else "basal"
    elif name == "Pneumothorax":
        zone = "upper"
    elif name == "Support Devices":
        kind = ("pacemaker", "tube", "line")[int(rng.integers(3))]
        side, zone, severity = ("left" if kind == "pacemaker" else "right" if kind == "line" else ""), "", 1
    return Finding(name, side, zone, severity, kind=kind)


def prepare(chest: Chest, findings: list[Finding]) -> None:
    """Move heart and diaphragm, before the lungs are built."""
    rng = chest.rng
    for finding in findings:
        if not finding.drawn:
            continue
        if finding.name == "Cardiomegaly":
            faint = 0.0 if finding.certain else -0.035
            chest.heart_ratio = 0.465 + 0.05 * finding.severity + rng.uniform(0, 0.025) + faint
        elif finding.name == "Atelectasis":
            lift = (0.03 if finding.kind == "linear" else 0.07) * finding.severity
            for side in finding.sides:
                chest.dome[0 if side == "right" else 1] -= lift * rng.uniform(0.7, 1.2)
        elif finding.name == "Edema":
            chest.heart_ratio = max(chest.heart_ratio, 0.44)


def paint(chest: Chest, finding: Finding) -> np.ndarray:
    """Change the picture's parts; returns where: (S, S) share of change in [0, 1]."""
    return _PAINTERS[finding.name](chest, finding)


def _fill(chest: Chest, side: str, mask: np.ndarray, strength: float, bronchogram: float = 0.0) -> np.ndarray:
    """Less air under ``mask``; vessels vanish there, or turn into air-filled bronchi."""
    chest.air[side] = chest.air[side] * (1 - np.float32(strength) * mask)
    chest.marks[side] = chest.marks[side] * (1 - (1 + bronchogram) * mask)
    return mask * chest.lung[side]


def _effusion(chest: Chest, finding: Finding) -> np.ndarray:
    seen = np.zeros_like(chest.extra)
    severity = finding.severity
    for side in finding.sides:
        dome = chest.dome[0 if side == "right" else 1]
        level = dome + (0.09, -0.12, -0.42)[severity - 1] + chest.rng.uniform(-0.04, 0.04)
        if not finding.certain:
            level = dome + 0.12
        u = chest.across(side)
        out = np.clip((u - 0.22) / np.float32(chest.person.width - 0.22), 0, 1.2)
        surface = level - (0.13 + 0.05 * severity) * out**2.2
        mask = step(chest.y - surface, 0.018 + 0.008 * severity)
        seen = np.maximum(seen, _fill(chest, side, mask, 0.96))
    return seen


def _consolidation(chest: Chest, finding: Finding) -> np.ndarray:
    rng, size = chest.rng, chest.size
    seen = np.zeros_like(chest.extra)
    for side in finding.sides:
        u = chest.across(side)
        y0 = ZONES[finding.zone] + rng.uniform(-0.05, 0.05)
        u0 = rng.uniform(0.34, 0.46) * (0.85 if finding.zone == "upper" else 1.0)
        radius = (0.12, 0.17, 0.23)[finding.severity - 1] * rng.uniform(0.9, 1.15)
        stretch = rng.uniform(0.8, 1.25)
        distance = np.hypot((u - u0) / np.float32(radius * stretch), (chest.y - y0) / np.float32(radius / stretch))
        mask = step(1 - distance + 0.26 * clouds(rng, size, 11), 0.16)
        strength = (0.58, 0.72, 0.84)[finding.severity - 1] if finding.certain else 0.30
        seen = np.maximum(seen, _fill(chest, side, mask, strength, bronchogram=0.5))
    return seen


def _lesion(chest: Chest, finding: Finding) -> np.ndarray:
    rng, side = chest.rng, finding.side
    u = chest.across(side)
    u0, y0 = rng.uniform(0.26, 0.50), ZONES[finding.zone] + rng.uniform(-0.10, 0.08)
    if finding.zone == "upper":
        u0 *= 0.8
    radius = (0.030, 0.050, 0.095)[finding.severity - 1] * rng.uniform(0.9, 1.15)
    squash = rng.uniform(0.9, 1.1)
    distance = np.hypot((u - u0) * np.float32(squash), (chest.y - y0) / np.float32(squash))
    mask = step(np.float32(radius) - distance, 0.008 + 0.06 * radius)
    return _fill(chest, side, mask, (0.45, 0.55, 0.70)[finding.severity - 1] if finding.certain else 0.30)


def _edema(chest: Chest, finding: Finding) -> np.ndarray:
    rng, severity = chest.rng, finding.severity
    strength = (0.10, 0.24, 0.48)[severity - 1] if finding.certain else 0.06
    seen = np.zeros_like(chest.extra)
    grain = clouds(rng, chest.size, chest.size // 3)
    patches = clouds(rng, chest.size, 9)
    for side in SIDES:
        u = chest.across(side)
        wing = np.exp(-(((u - 0.24) / (0.17 + 0.04 * severity)) ** 2) - ((chest.y - 0.04) / 0.36) ** 2)
        haze = np.clip(wing * (1 + 0.22 * patches), 0, 1.2)
        net = step(u - 0.30, 0.10) * step(chest.y + 0.10, 0.15)
        chest.air[side] = chest.air[side] * (1 - strength * haze) - (0.015 + 0.03 * severity) * net * np.abs(grain)
        chest.marks[side] = chest.marks[side] * (1.05 + 0.2 * severity)
        seen = np.maximum(seen, np.clip(wing, 0, 1) * chest.lung[side])
    return seen


def _atelectasis(chest: Chest, finding: Finding) -> np.ndarray:
    rng, severity = chest.rng, finding.severity
    seen = np.zeros_like(chest.extra)
    for side in finding.sides:
        u = chest.across(side)
        base = chest.dome[0 if side == "right" else 1]
        if finding.kind == "basal":
            slope = rng.uniform(0.15, 0.45)
            top = base - (0.07 + 0.045 * severity) + slope * (u - 0.20)
            mask = step(chest.y - top, 0.022) * step(np.float32(0.34 + 0.10 * severity) - u, 0.05)
            seen = np.maximum(seen, _fill(chest, side, mask, 0.50 + 0.10 * severity if finding.certain else 0.3))
            continue
        for band in range(severity):
            y0 = base - 0.05 - 0.085 * band + rng.uniform(-0.015, 0.015)
            u0, half = rng.uniform(0.36, 0.46), rng.uniform(0.12, 0.20)
            tilt = rng.uniform(-0.30, 0.30)
            across = np.abs(chest.y - y0 - np.float32(tilt) * (u - u0))
            mask = step(rng.uniform(0.015, 0.023) - across, 0.006) * step(np.float32(half) - np.abs(u - u0), 0.03)
            seen = np.maximum(seen, _fill(chest, side, mask, 0.62 if finding.certain else 0.32))
    return seen


def _pneumothorax(chest: Chest, finding: Finding) -> np.ndarray:
    side, rng = finding.side, chest.rng
    size = (0.10, 0.24, 0.46)[finding.severity - 1] * rng.uniform(0.9, 1.1) * (1.0 if finding.certain else 0.5)
    u = chest.across(side)
    edge = chest.lateral_edge(chest.y - np.float32(size * 0.9)) * np.float32(1 - 0.75 * size)
    edge = edge + (chest.lateral_edge(chest.y) - edge) * np.clip(0.9 * (chest.y + 0.05) - size, 0, 1)
    outside = step(u - edge, 0.006) * chest.lung[side]
    line = (
        np.exp(-(((u - edge) / 0.011) ** 2)) * chest.lung[side] * step(chest.lateral_edge(chest.y) - edge - 0.02, 0.01)
    )
    chest.air[side] = np.where(outside > 0.5, 1.13, chest.air[side] * (1 - 0.45 * size)).astype(np.float32)
    chest.marks[side] = chest.marks[side] * (1 - outside)
    chest.extra += 0.07 * line
    return outside


def _cardiomegaly(chest: Chest, finding: Finding) -> np.ndarray:
    return (
        chest.heart() * step(chest.y + 0.20, 0.02) * step(0.5 * (chest.dome[0] + chest.dome[1]) + 0.12 - chest.y, 0.02)
    )


def _device(chest: Chest, finding: Finding) -> np.ndarray:
    from PIL import Image, ImageDraw

    rng, fine = chest.rng, 2 * chest.size
    canvas = Image.new("L", (fine, fine))
    pen = ImageDraw.Draw(canvas)

    def path(points: list[tuple[float, float]], width: float, fill: int) -> None:
        at = chest.pixels(np.array([p[0] for p in points]), np.array([p[1] for p in points])) * 2
        pen.line([tuple(p) for p in at], fill=fill, width=max(2, round(width * fine)), joint="curve")

    if finding.kind == "pacemaker":
        x, y = rng.uniform(0.48, 0.56), rng.uniform(-0.52, -0.44)
        corner, other = (chest.pixels(x + dx, y + dy) * 2 for dx, dy in ((-0.085, -0.065), (0.085, 0.065)))
        pen.rounded_rectangle([*corner, *other], radius=fine * 0.008, fill=190)
        tip = rng.uniform(0.16, 0.26)
        path([(x - 0.06, y), (0.25, -0.60), (0.02, -0.52), (-0.08, -0.25), (-0.07, 0.10), (tip, 0.27)], 0.006, 150)
    elif finding.kind == "tube":
        path([(0.02, -1.0), (0.01, -0.7), (0.012, rng.uniform(-0.42, -0.32))], 0.014, 110)
    else:
        end = rng.uniform(-0.15, 0.0)
        path([(-0.30, -0.95), (-0.22, -0.70), (-0.10, -0.50), (-0.085, end)], 0.008, 140)
    mask = np.asarray(canvas.reduce(2), dtype=np.float32) / 255
    chest.extra += 0.40 * mask
    return np.clip(2 * mask, 0, 1)


_PAINTERS: dict[str, Callable[[Chest, Finding], np.ndarray]] = {
    "Atelectasis": _atelectasis,
    "Cardiomegaly": _cardiomegaly,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Lung Lesion": _lesion,
    "Pleural Effusion": _effusion,
    "Pneumothorax": _pneumothorax,
    "Support Devices": _device,
}
