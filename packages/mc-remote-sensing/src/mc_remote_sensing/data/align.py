"""Whether rasters and polygons fit together, before hours are spent on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import shapely

from mc_core.errors import McError
from mc_remote_sensing.data.elevation import VerticalUnit, declared_unit
from mc_remote_sensing.data.grid import Grid, name_of, overlap
from mc_remote_sensing.data.labels import Layer, read_labels
from mc_remote_sensing.data.polygons import Polygons, Role
from mc_remote_sensing.data.raster import Nodata, RasterSource

StrPath = str | os.PathLike[str]
Level = Literal["error", "warning", "note"]
_T = TypeVar("_T")

COARSE = 10.0
"""Cells of an elevation model more times wider than the image's pixels are warned about."""

_LOOK = 256
_EVEREST_M = 8_849.0
_DEAD_SEA_M = -500.0
_FILL_SHARE = 0.02


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed.

    Attributes:
        level: ``"error"``: it cannot work; ``"warning"``: look at it; ``"note"``.
        code: short name, for programs.
        message: one sentence.
        numbers: behind it.
    """

    level: Level
    code: str
    message: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AlignmentReport:
    """All findings, worst first."""

    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Those that stop."""
        return tuple(f for f in self.findings if f.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Those to look at."""
        return tuple(f for f in self.findings if f.level == "warning")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "findings": [
                {"level": f.level, "code": f.code, "message": f.message, "numbers": dict(f.numbers)}
                for f in self.findings
            ]
        }


class _Findings(list[Finding]):
    def say(self, level: Level, code: str, message: str, **numbers: float) -> None:
        self.append(Finding(level, code, message, numbers))

    def attempt(self, code: str, work: Callable[[], _T]) -> _T | None:
        """What ``work`` gives; an error of ours becomes a finding."""
        try:
            return work()
        except McError as error:
            self.say("error", code, str(error))
            return None


def check_alignment(
    image: StrPath | None = None,
    elevation: StrPath | None = None,
    labels: StrPath | None = None,
    *,
    extent: StrPath | None = None,
    uncertain: StrPath | None = None,
    hard_negatives: StrPath | None = None,
    bands: Sequence[str | int] | None = None,
    band_names: Sequence[str] | None = None,
    nodata: Nodata = None,
    elevation_nodata: Nodata = None,
    assume_crs: str | None = None,
    vertical_unit: VerticalUnit | None = None,
    where: str | None = None,
    layer: str | None = None,
    label_values: Mapping[str, int] | None = None,
) -> AlignmentReport:
    """Look at the files of a place, at a coarse sample of their pixels, and say what does not fit.

    The arguments are those of :func:`~mc_remote_sensing.data.scene.open_scene`. Nothing is raised for files that are wrong: each
    is an error among the findings.
    """
    found = _Findings()
    raster = relief = None
    if image is not None:
        raster = found.attempt(
            "image",
            lambda: RasterSource(image, bands=bands, band_names=band_names, nodata=nodata, assume_crs=assume_crs),
        )
        if raster is not None:
            _look_at_image(found, raster, assume_crs)
    if elevation is not None:
        relief = found.attempt(
            "elevation", lambda: RasterSource(elevation, bands=[1], nodata=elevation_nodata, assume_crs=assume_crs)
        )
        if relief is not None:
            _look_for_crs(found, relief, assume_crs)
            _look_at_elevation(found, relief, vertical_unit)
    if raster is not None and relief is not None:
        found.attempt("overlap", lambda: _compare(found, raster, relief))
    first = raster or relief
    if first is not None:
        layers: dict[str, Layer] = {}
        files: list[tuple[Role, StrPath | None]] = [
            ("target", labels),
            ("extent", extent),
            ("uncertain", uncertain),
            ("hard_negative", hard_negatives),
        ]
        for role, path in files:
            if path is None:
                continue
            options = {"where": where, "layer": layer, "values": label_values} if role == "target" else {}
            read = _reader(path, first.grid, role, assume_crs, options)
            its = found.attempt(role.replace("_", "-"), read)
            if its is not None:
                layers[role] = its
                _look_at_labels(found, its)
        _compare_labels(found, layers)
    order = {"error": 0, "warning": 1, "note": 2}
    return AlignmentReport(tuple(sorted(found, key=lambda finding: order[finding.level])))


def _reader(
    path: StrPath, grid: Grid, role: Role, assume_crs: str | None, options: Mapping[str, Any]
) -> Callable[[], Layer]:
    return lambda: read_labels(path, grid, role=role, assume_crs=assume_crs, **options)


def _look_at_image(found: _Findings, raster: RasterSource, assume_crs: str | None) -> None:
    name, grid = raster.path, raster.grid
    _look_for_crs(found, raster, assume_crs)
    across, down = grid.pixel_metres
    if grid.is_geographic:
        found.say(
            "warning",
            "degrees",
            f"{name}: its coordinates are degrees; lengths and areas are measured on the ground, a pixel is "
            f"{across:.3g} × {down:.3g} m",
            pixel_width_m=across,
            pixel_height_m=down,
        )
    looked = found.attempt("image", lambda: raster.overview(_LOOK))
    if looked is None:
        return
    values, valid = looked
    if not valid.any():
        found.say("error", "no-valid-pixel", f"{name}: has no valid pixel; is its nodata value right? (--nodata)")
        return
    if not valid.all():
        share = 1 - float(valid.mean())
        found.say("note", "nodata", f"{name}: about {share:.0%} of it has no data", share=share)
    for band, plane in zip(raster.band_names, values, strict=True):
        if np.ptp(plane[valid]) == 0:
            found.say("warning", "constant-band", f"{name}: band {band} is {plane[valid][0]:g} everywhere one looked")
    _look_for_fill(found, raster, values, valid)


def _look_for_crs(found: _Findings, raster: RasterSource, assume_crs: str | None) -> None:
    if not raster.has_crs:
        found.say(
            "warning", "assumed-crs", f"{raster.path}: has no coordinate system; {assume_crs} is taken on your word"
        )


def _look_for_fill(found: _Findings, raster: RasterSource, values: np.ndarray, valid: np.ndarray) -> None:
    """A value that all bands take together at the border of the image is nodata that nobody declared."""
    edge = np.zeros_like(valid)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    border = values[:, edge & valid]
    if not border.size or raster.count < 2:
        return
    same = np.ptp(border, axis=0) == 0
    candidates, counts = np.unique(border[0, same], return_counts=True)
    if not len(candidates) or counts.max() < 0.05 * border.shape[1]:
        return
    fill = float(candidates[counts.argmax()])
    share = float((values == fill).all(axis=0).mean())
    if share > _FILL_SHARE:
        found.say(
            "warning",
            "undeclared-nodata",
            f"{raster.path}: {share:.0%} of it, the border among it, is {fill:g} in all bands, which looks like no data: "
            f"--nodata {fill:g}",
            share=share,
            value=fill,
        )


def _look_at_elevation(found: _Findings, relief: RasterSource, vertical_unit: VerticalUnit | None) -> None:
    name = relief.path
    declared = declared_unit(name)
    if declared is None and vertical_unit is None:
        found.say(
            "error",
            "vertical-unit",
            f"{name}: does not say whether its heights are metres or feet; say so with --vertical-unit metre or "
            "--vertical-unit foot",
        )
    elif declared is not None and vertical_unit is not None and declared != vertical_unit:
        found.say(
            "warning",
            "vertical-unit",
            f"{name}: says its heights are in {declared}, you said {vertical_unit}, which is taken",
        )
    unit = vertical_unit or declared
    looked = found.attempt("elevation", lambda: relief.overview(_LOOK))
    if looked is None:
        return
    (heights,), valid = looked
    if not valid.any():
        found.say("error", "no-valid-height", f"{name}: has no valid height; is its nodata value right?")
        return
    low, high = float(heights[valid].min()), float(heights[valid].max())
    metres = 0.3048 if unit == "foot" else 1.0
    if high * metres > _EVEREST_M or low * metres < _DEAD_SEA_M:
        found.say(
            "warning",
            "heights",
            f"{name}: its heights go from {low:,.0f} to {high:,.0f} {unit or ''}, which no dry land does: are they "
            "feet, the sea floor, or is a nodata value not declared?",
            lowest=low,
            highest=high,
        )
    if relief.grid.is_geographic:
        across, down = relief.grid.pixel_metres
        found.say(
            "note",
            "elevation-degrees",
            f"{name}: its coordinates are degrees; slopes are taken with the length of a cell on the ground, {across:.3g} × "
            f"{down:.3g} m",
            cell_width_m=across,
            cell_height_m=down,
        )


def _compare(found: _Findings, raster: RasterSource, relief: RasterSource) -> None:
    share = overlap(raster.grid, relief.grid)
    if share == 0:
        found.say("error", "overlap", f"{relief.path}: the elevation model does not overlap the image", share=0.0)
        return
    if share < 1:
        found.say(
            "warning",
            "overlap",
            f"{relief.path}: covers {share:.0%} of the image; elsewhere a model goes by the image alone",
            share=share,
        )
    coarser = float(np.sqrt(np.prod(relief.grid.pixel_metres) / np.prod(raster.grid.pixel_metres)))
    if coarser >= COARSE * 0.999:
        found.say(
            "warning",
            "coarse-elevation",
            f"{relief.path}: its cells are {coarser:.0f} times as wide as a pixel of the image "
            f"({relief.grid.pixel_metres[0]:.3g} m against {raster.grid.pixel_metres[0]:.3g} m): it shows hillsides, not scars",
            times=coarser,
        )
    if raster.grid.crs != relief.grid.crs:
        found.say(
            "note",
            "elevation-crs",
            f"{relief.path}: is in {name_of(relief.grid.crs)}, the image in {name_of(raster.grid.crs)}; it is brought to the image",
        )


def _look_at_labels(found: _Findings, layer: Layer) -> None:
    name, what = layer.path, layer.role.replace("_", " ")
    if not isinstance(layer, Polygons):
        if not layer.native_grid.matches(layer.grid):
            share = overlap(layer.grid, layer.native_grid)
            found.say(
                "warning" if share < 1 else "note",
                "mask-grid",
                f"{name}: is on another grid than the image and covers {share:.0%} of it; each pixel takes the nearest value",
                share=share,
            )
        return
    for count, code, text in (
        (layer.outside, "outside", "lie entirely outside the image"),
        (layer.repaired, "repaired", "intersected themselves or were otherwise invalid, and were repaired"),
        (layer.empty, "empty", "have no area"),
    ):
        if count:
            found.say("warning", code, f"{name}: {count} of {layer.read} {what} polygons {text}", count=count)
    tiny = int((shapely.area(layer.geometries) < _pixel_area(layer.grid)).sum())
    if tiny:
        found.say(
            "warning", "tiny", f"{name}: {tiny} {what} polygons are smaller than a pixel of the image", count=tiny
        )
    cut = int((~shapely.within(layer.geometries, shapely.box(*layer.grid.bounds))).sum())
    if cut and layer.role != "extent":
        found.say("note", "cut", f"{name}: {cut} {what} polygons reach over the border of the image", count=cut)
    if layer.crs and layer.crs != name_of(layer.grid.crs):
        found.say("note", "labels-crs", f"{name}: is in {layer.crs}, brought to {name_of(layer.grid.crs)}")


def _pixel_area(grid: Grid) -> float:
    a, b, _, d, e, _ = tuple(grid.transform)[:6]
    return abs(a * e - b * d)


def _compare_labels(found: _Findings, layers: Mapping[str, Layer]) -> None:
    target, extent, hard = (layers.get(role) for role in ("target", "extent", "hard_negative"))
    if isinstance(target, Polygons) and extent is None:
        found.say(
            "note",
            "no-extent",
            f"{target.path}: without a surveyed extent, every place outside its polygons counts as background",
        )
    if isinstance(target, Polygons) and isinstance(extent, Polygons):
        area = shapely.union_all(extent.geometries)
        beyond = int((~shapely.intersects(target.geometries, area)).sum())
        if beyond:
            found.say(
                "warning",
                "outside-extent",
                f"{target.path}: {beyond} of {len(target)} polygons lie outside the surveyed extent and do not count",
                count=beyond,
            )
    if isinstance(target, Polygons) and isinstance(hard, Polygons):
        both = len(np.unique(target._tree.query(hard.geometries, predicate="overlaps")[0])) + len(
            np.unique(target._tree.query(hard.geometries, predicate="within")[0])
        )
        if both:
            found.say(
                "warning",
                "contradiction",
                f"{hard.path}: {both} hard negatives overlap targets; where they do, nothing counts",
                count=both,
            )
