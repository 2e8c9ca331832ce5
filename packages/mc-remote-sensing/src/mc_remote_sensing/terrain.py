"""A made terrain to learn on without data: landslide scars among decoys, written as the files a geologist would bring.

A scar is an elliptical bowl with a floor tilted back and a raised toe, under a weak change of tone. Two kinds of decoy share one
half each: the same tone without a bowl (a clearing), and the same bowl without the tone (a quarry long overgrown). All three are
drawn from one distribution of places, sizes and strengths, and the kind is dealt out last: a model that sees the image alone cannot
tell scars from clearings, one that sees elevation alone cannot tell them from quarries.

The image has no shading (an overcast sky): shape reaches a model through the elevation only.

Legend: H, W rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from mc_core.errors import ConfigError
from mc_core.files import StrPath, atomic_path
from mc_remote_sensing.vectors import write_geopackage

if TYPE_CHECKING:
    from rasterio import Affine

BANDS = ("blue", "green", "red", "nir")
"""Names of the image's bands, in order."""

CRS = "EPSG:32632"
"""WGS 84 / UTM zone 32N, in metres."""

PIXEL_M = 2.0
"""Side of an image pixel in metres."""

ELEVATION_PIXEL_M = 5.0
"""Side of an elevation cell in metres."""

Kind = Literal["landslide", "tone", "bowl"]
KINDS: tuple[Kind, ...] = ("landslide", "tone", "bowl")

_WEST, _NORTH = 612_000.0, 5_170_000.0
_MARGIN_M = 61.0  # elevation reaches this far beyond the image; no multiple of either pixel
_SCARS_PER_MEGAPIXEL = 45.0
_REFLECTANCE = np.array([450.0, 700.0, 600.0, 3000.0])  # of 10,000
_VEGETATION = np.array([-0.5, 0.2, -1.0, 0.8])  # relative answer of each band to denser plants
_TONE = 0.16  # of a scar, on the same scale as the vegetation's own variation
_VEGETATION_SPREAD = 0.10
_SENSOR_NOISE = 0.05
_RELIEF_M = 75.0  # standard deviation of elevation over the scene


class TerrainFiles(NamedTuple):
    """What :func:`write_terrain` wrote.

    Attributes:
        image: uint16 GeoTIFF, reflectance × 10,000 of :data:`BANDS`, nodata 0 outside a slightly turned footprint.
        elevation: float32 GeoTIFF in metres, coarser, with another origin, nodata −9999 in a small void.
        labels: GeoPackage, the outlines of the scars within the surveyed extent.
        extent: GeoPackage, the ground that was surveyed; outside it scars exist that nobody drew.
        decoys: GeoPackage, the outlines of both kinds of decoy with a column ``kind``: to see what a model falls for, not
            to train on.
    """

    image: Path
    elevation: Path
    labels: Path
    extent: Path
    decoys: Path


@dataclass(frozen=True)
class Feature:
    """A scar or a decoy; lengths in metres, coordinates from the image's north-west corner, x east and y south.

    Attributes:
        kind: ``"landslide"``, ``"tone"`` or ``"bowl"``.
        x, y: of the centre.
        length, width: half axes, along and across the slope.
        angle: radians, direction downhill from east towards south.
        depth: of the bowl.
        tone: strength, 1 on average.
        outline: amplitude and phase of the outline's 2nd to 4th harmonics.
    """

    kind: Kind
    x: float
    y: float
    length: float
    width: float
    angle: float
    depth: float
    tone: float
    outline: tuple[tuple[float, float], ...]

    def reach(self) -> float:
        """Metres from the centre beyond which nothing changes."""
        return 1.6 * max(self.length, self.width)

    def local(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Downhill and across in half axes, and the distance from the centre, 1 on the outline."""
        dx, dy = x - self.x, y - self.y
        down = (dx * np.cos(self.angle) + dy * np.sin(self.angle)) / self.length
        across = (dy * np.cos(self.angle) - dx * np.sin(self.angle)) / self.width
        radius = self._radius(np.arctan2(across, down))
        return down, across, np.hypot(down, across) / radius

    def polygon(self, points: int = 64) -> np.ndarray:
        """(points, 2) the outline."""
        turn = np.linspace(0.0, 2 * np.pi, points, endpoint=False)
        radius = self._radius(turn)
        down, across = radius * np.cos(turn) * self.length, radius * np.sin(turn) * self.width
        x = self.x + down * np.cos(self.angle) - across * np.sin(self.angle)
        y = self.y + down * np.sin(self.angle) + across * np.cos(self.angle)
        return np.stack([x, y], axis=1)

    def bowl(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Change of elevation in metres: a scarp around, a floor tilted back, a raised toe."""
        down, across, distance = self.local(x, y)
        floor = _smoothstep((1.0 - distance) / 0.45)
        toe = np.exp(-(((down - 0.85) / 0.22) ** 2) - (across / 0.65) ** 2)
        return self.depth * (floor * (-1.0 + 0.4 * down) + 0.7 * toe * (distance < 1.5))

    def shade(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Strength of the change of tone, fading over the last tenth of the way to the outline."""
        return self.tone * _smoothstep((1.0 - self.local(x, y)[2]) / 0.1)

    def _radius(self, turn: np.ndarray) -> np.ndarray:
        radius = np.ones_like(turn)
        for n, (size, phase) in enumerate(self.outline, start=2):
            radius += size * np.cos(n * turn + phase)
        return radius


def write_terrain(
    folder: StrPath, *, size_px: int = 1024, seed: int = 0, scars: int | None = None, decoys: float = 1.0
) -> TerrainFiles:
    """Write a made scene: image, elevation, outlines of scars, surveyed extent and decoys.

    The same arguments give the same bytes. About two seconds and 7 MB at the default size.

    Args:
        folder: made if missing; files of the same names are replaced.
        size_px: side of the square image in pixels of 2 m.
        seed: of everything random.
        scars: how many are wanted; 45 to the megapixel if not given. Fewer come where they find no room.
        decoys: of each kind for every scar.

    Raises:
        ConfigError: an image below 128 pixels, or numbers below zero.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = write_terrain(folder, size_px=128)
    ...     sorted(path.name for path in files)
    ['decoys.gpkg', 'elevation.tif', 'image.tif', 'landslides.gpkg', 'surveyed.gpkg']
    """
    if size_px < 128:
        raise ConfigError(f"size_px {size_px}: a terrain needs at least 128 pixels a side")
    if decoys < 0 or (scars is not None and scars < 0):
        raise ConfigError(f"scars {scars}, decoys {decoys}: numbers below zero make no terrain")
    if scars is None:
        scars = max(2, round(_SCARS_PER_MEGAPIXEL * (size_px / 1024) ** 2))
    height, features, vegetation, noise = _landscape(size_px, seed, scars, decoys)
    footprint = _footprint(size_px)
    extent = _surveyed(footprint)
    folder = Path(folder)
    files = TerrainFiles(
        *(folder / name for name in ("image.tif", "elevation.tif", "landslides.gpkg", "surveyed.gpkg", "decoys.gpkg"))
    )
    _write_image(files.image, _image(features, vegetation, noise), footprint)
    _write_elevation(files.elevation, height)
    _write_features(files.labels, [f for f in features if f.kind == "landslide"], extent, "landslides")
    _write_features(files.decoys, [f for f in features if f.kind != "landslide"], None, "decoys")
    _write_extent(files.extent, extent)
    return files


def fractal(height: int, width: int, *, roughness: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian field of mean 0 and variance 1 whose amplitude falls as frequency^−(1 + roughness).

    Spectral synthesis (Saupe, in Peitgen and Saupe, The Science of Fractal Images, 1988, chapter 2), on a torus twice the size of
    which a corner is kept, so that opposite sides have nothing in common.

    Args:
        height, width: of the field.
        roughness: Hurst exponent; larger is smoother.
        rng: draws the noise.

    Returns:
        (H, W) float64.
    """
    shape = (2 * height, 2 * width)
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None] * shape[0] / shape[1], np.fft.rfftfreq(shape[1])[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal(shape)) * frequency ** -(1.0 + roughness)
    field = np.fft.irfft2(spectrum, s=shape)[:height, :width]
    return (field - field.mean()) / field.std()


def _landscape(
    size_px: int, seed: int, scars: int, decoys: float
) -> tuple[np.ndarray, list[Feature], np.ndarray, np.ndarray]:
    """Elevation with all bowls, the features, and the image's vegetation and noise."""
    ground, cover, places, sensor = (
        np.random.default_rng(child) for child in np.random.SeedSequence([seed, size_px]).spawn(4)
    )
    x, y = _elevation_axes(size_px)
    relief = _RELIEF_M * (size_px * PIXEL_M / 2048.0) ** 1.1  # the same slopes whatever the size
    height = 900.0 + relief * fractal(len(y), len(x), roughness=1.1, rng=ground)
    features = _scatter(height, size_px, scars, round(scars * decoys), places)
    for feature in features:
        if feature.kind != "tone":
            rows, columns = _around(feature, x, y)
            height[rows, columns] += feature.bowl(x[None, columns], y[rows, None])
    height += 0.05 * ground.standard_normal(height.shape)
    vegetation = _VEGETATION_SPREAD * fractal(size_px, size_px, roughness=0.2, rng=cover)
    noise = _SENSOR_NOISE * sensor.standard_normal((len(BANDS), size_px, size_px))
    return height, features, vegetation, noise


def _elevation_axes(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Metres of the cell centres from the image's north-west corner."""
    cells = int(np.ceil((size_px * PIXEL_M + 2 * _MARGIN_M) / ELEVATION_PIXEL_M))
    centres = -_MARGIN_M + (np.arange(cells) + 0.5) * ELEVATION_PIXEL_M
    return centres, centres.copy()


def _scatter(height: np.ndarray, size_px: int, scars: int, decoys: int, rng: np.random.Generator) -> list[Feature]:
    """Features that do not touch, on slopes, downhill; which of them are scars is dealt out at the end."""
    fall_y, fall_x = np.gradient(_blurred(height, 4), ELEVATION_PIXEL_M)
    footprint = _footprint(size_px)
    wanted = scars + 2 * decoys
    found: list[Feature] = []
    for _ in range(200 * wanted):
        if len(found) == wanted:
            break
        x, y = rng.uniform(0, size_px * PIXEL_M, 2)
        length, ratio = rng.uniform(28.0, 60.0), rng.uniform(0.55, 0.85)
        depth, tone, turn = rng.uniform(0.18, 0.28), rng.uniform(0.8, 1.2), rng.normal(0.0, 0.25)
        outline = tuple((rng.uniform(0.0, 0.05), rng.uniform(0.0, 2 * np.pi)) for _ in range(3))
        row, column = (int((value + _MARGIN_M) / ELEVATION_PIXEL_M) for value in (y, x))
        slope = np.hypot(fall_x[row, column], fall_y[row, column])
        if not 0.08 < slope < 0.7 or not _inside(footprint, x, y, 1.15 * length):
            continue
        if any(np.hypot(x - other.x, y - other.y) < 1.3 * (length + other.length) for other in found):
            continue
        angle = float(np.arctan2(-fall_y[row, column], -fall_x[row, column]) + turn)
        width = length * ratio
        found.append(Feature("bowl", x, y, length, width, angle, depth * 2 * width * 0.6, tone, outline))
    share = len(found) / max(wanted, 1)
    steps = np.array([scars * share, (scars + decoys) * share]).round()
    kinds = [KINDS[i] for i in np.searchsorted(steps, rng.permutation(len(found)), side="right")]
    return [replace(feature, kind=kind) for feature, kind in zip(found, kinds, strict=True)]


def _image(features: list[Feature], vegetation: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """(bands, H, W) uint16."""
    centres = (np.arange(vegetation.shape[0]) + 0.5) * PIXEL_M
    cover = vegetation.copy()
    for feature in features:
        if feature.kind != "bowl":
            rows, columns = _around(feature, centres, centres)
            cover[rows, columns] -= _TONE * feature.shade(centres[None, columns], centres[rows, None])
    relative = 1.0 + _VEGETATION[:, None, None] * cover + noise
    return np.clip(_REFLECTANCE[:, None, None] * relative, 1, 10_000).round().astype(np.uint16)


def _around(feature: Feature, x: np.ndarray, y: np.ndarray) -> tuple[slice, slice]:
    reach = feature.reach()
    rows = np.searchsorted(y, [feature.y - reach, feature.y + reach])
    columns = np.searchsorted(x, [feature.x - reach, feature.x + reach])
    return slice(*map(int, rows)), slice(*map(int, columns))


def _smoothstep(t: np.ndarray) -> np.ndarray:
    t = np.clip(t, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _blurred(field: np.ndarray, cells: int) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(field, cells)


def _footprint(size_px: int) -> np.ndarray:
    """(4, 2) corners in metres of what the camera saw: 94 % of the side, turned by three degrees."""
    side, turn = size_px * PIXEL_M, np.deg2rad(3.0)
    corners = 0.47 * side * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=float)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return corners @ rotation + side / 2


def _surveyed(footprint: np.ndarray) -> np.ndarray:
    """(5, 2) corners of the surveyed ground: the footprint drawn in a little, without its south-east corner."""
    centre = footprint.mean(axis=0)
    north_west, north_east, south_east, south_west = centre + 0.985 * (footprint - centre)
    cut = [south_east + 0.25 * (other - south_east) for other in (north_east, south_west)]
    return np.stack([north_west, north_east, *cut, south_west])


def _inside(corners: np.ndarray, x: np.ndarray | float, y: np.ndarray | float, margin: float = 0.0) -> np.ndarray:
    """Which points lie within a convex polygon (clockwise in these axes), ``margin`` metres from its sides."""
    inside = np.asarray(True)
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        along = (end - start) / np.hypot(*(end - start))
        inside = inside & (along[0] * (y - start[1]) - along[1] * (x - start[0]) >= margin)
    return inside


def _write_image(path: Path, values: np.ndarray, footprint: np.ndarray) -> None:
    import rasterio

    centres = (np.arange(values.shape[1]) + 0.5) * PIXEL_M
    values[:, ~_inside(footprint, centres[None, :], centres[:, None])] = 0
    profile = {"nodata": 0, "dtype": "uint16", "count": len(BANDS), "transform": _north_up(0.0, PIXEL_M)}
    with atomic_path(path) as draft, rasterio.open(draft, "w", **_profile(values), **profile) as file:
        file.write(values)
        file.descriptions = BANDS


def _write_elevation(path: Path, height: np.ndarray) -> None:
    import rasterio

    values = height.astype(np.float32)
    values[1:4, -5:-1] = -9999.0  # a void, as water leaves it, beyond the image's corner
    transform = _north_up(_MARGIN_M, ELEVATION_PIXEL_M)
    profile = {"nodata": -9999.0, "dtype": "float32", "count": 1, "transform": transform}
    with atomic_path(path) as draft, rasterio.open(draft, "w", **_profile(values), **profile) as file:
        file.write(values, 1)
        file.descriptions = ("elevation",)
        file.units = ("metre",)


def _north_up(margin: float, pixel: float) -> Affine:
    from rasterio import Affine

    return Affine(pixel, 0.0, _WEST - margin, 0.0, -pixel, _NORTH + margin)


def _profile(values: np.ndarray) -> dict[str, object]:
    height, width = values.shape[-2:]
    tiles = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    return {"driver": "GTiff", "crs": CRS, "height": height, "width": width, **tiles}


def _write_features(path: Path, features: list[Feature], extent: np.ndarray | None, layer: str) -> None:
    import geopandas
    import shapely

    outlines = [shapely.Polygon(_on_map(feature.polygon())) for feature in features]
    kept = range(len(features))
    if extent is not None:
        surveyed = shapely.Polygon(_on_map(extent))
        kept = [i for i in kept if outlines[i].intersects(surveyed)]
    columns = {"id": [int(i) for i in kept], "kind": [features[i].kind for i in kept]}
    frame = geopandas.GeoDataFrame(columns, geometry=[outlines[i] for i in kept], crs=CRS)
    write_geopackage(path, frame, layer=layer)


def _write_extent(path: Path, extent: np.ndarray) -> None:
    import geopandas
    import shapely

    frame = geopandas.GeoDataFrame({"id": [0]}, geometry=[shapely.Polygon(_on_map(extent))], crs=CRS)
    write_geopackage(path, frame, layer="surveyed")


def _on_map(points: np.ndarray) -> np.ndarray:
    return np.stack([_WEST + points[:, 0], _NORTH - points[:, 1]], axis=1)
