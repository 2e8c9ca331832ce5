"""Options that name an image, its elevation and its labels, shared by all verbs. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mc_core.engine.config import StrictModel
from mc_core.errors import ConfigError


class SceneOptions(StrictModel):
    """One scene, or several: then every option is given as often as ``--image``, in the same order."""

    image: list[Path] = Field(default_factory=list)
    """GeoTIFF or any raster GDAL reads. Several: repeat the option."""
    dem: list[Path] = Field(default_factory=list)
    """Elevation model, of any resolution and CRS: it is warped onto the grid of the image."""
    labels: list[Path] = Field(default_factory=list)
    """Polygons (.gpkg, .shp, .geojson) or a mask raster."""
    extent: list[Path] = Field(default_factory=list)
    """Polygons of the surveyed ground: outside, nothing is learnt or counted. Default: all of the image was surveyed."""
    uncertain: list[Path] = Field(default_factory=list)
    """Polygons that may or may not be one: left out of learning and counting."""
    hard_negatives: list[Path] = Field(default_factory=list)
    """Polygons that look like one and are none: background, shown more often."""
    where: str | None = None
    """Use only label polygons with COLUMN=VALUE."""
    layer: str | None = None
    """Layer of a label file that has several."""
    label_values: str | None = None
    """Values of a mask raster, such as target=2,background=1; any other value is unlabelled. Default: 0, 1, 255."""
    band_names: str | None = None
    """Names of all bands of the image, with commas, such as red,green,blue,nir. Default: those in the file, else B1, B2 …"""
    bands: str | None = None
    """Bands to use, by name or number from 1, with commas. Default: all."""
    nodata: float | Literal["none"] | None = None
    """Value of pixels without data, where the file declares none or a wrong one; none: every pixel has data."""
    assume_crs: str | None = None
    """CRS of rasters that declare none, such as EPSG:32632."""
    vertical_unit: Literal["metre", "foot"] | None = None
    """Unit of the elevation, where the file does not say."""

    @property
    def given(self) -> bool:
        """Whether any raster is named."""
        return bool(self.image or self.dem)


def refuse_lone_labels(options: SceneOptions) -> None:
    """Labels without a raster are an oversight, not a wish for the embedded sample.

    Raises:
        ConfigError: there are some.
    """
    for name in ("labels", "extent", "uncertain", "hard_negatives"):
        if paths := getattr(options, name):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} {paths[0]}: of which raster? Name it with --image, --dem or both")


def label_values(text: str | None) -> dict[str, int] | None:
    """``"target=2,background=1"`` as a mapping.

    Raises:
        ConfigError: anything else.
    """
    if text is None:
        return None
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in ("target", "background") or not value.lstrip("-").isdigit():
            raise ConfigError(f"--label-values {text}: write it as target=2,background=1")
        found[name] = int(value)
    if "target" not in found:
        raise ConfigError(f"--label-values {text}: which value is the target? Write it as target=2,background=1")
    return found


def scene_arguments(options: SceneOptions) -> list[dict[str, Any]]:
    """The options of each scene, for :func:`mc_remote_sensing.data.open_scene`.

    Raises:
        ConfigError: options that do not go together.
    """
    count = max(len(options.image), len(options.dem))
    if count == 0:
        raise ConfigError("no raster: name one with --image, --dem or both")
    shared: dict[str, Any] = {
        "bands": _listed(options.bands),
        "band_names": _listed(options.band_names),
        "nodata": options.nodata,
        "assume_crs": options.assume_crs,
        "vertical_unit": options.vertical_unit,
        "where": options.where,
        "layer": options.layer,
        "label_values": label_values(options.label_values),
    }
    scenes: list[dict[str, Any]] = [dict(shared) for _ in range(count)]
    files = {
        "image": "image",
        "dem": "elevation",
        **{n: n for n in ("labels", "extent", "uncertain", "hard_negatives")},
    }
    for name, argument in files.items():
        paths = getattr(options, name)
        if paths and len(paths) != count:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{flag} is given {len(paths)} times for {count} scenes: give it once per scene, in order"
            )
        for scene, path in zip(scenes, paths, strict=False):
            scene[argument] = path
    return scenes


def _listed(text: str | None) -> list[str | int] | None:
    if text is None:
        return None
    return [int(part) if part.isdigit() else part for part in (piece.strip() for piece in text.split(","))]
