"""Polygons into one GeoPackage, whole or not at all."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pyogrio
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError

from mc_core.errors import ConfigError
from mc_core.files import StrPath, atomic_path

if TYPE_CHECKING:
    import geopandas

_WRITE_ERRORS = (DataSourceError, DataLayerError, FeatureError)


def write_geopackage(
    path: StrPath, frame: geopandas.GeoDataFrame, *, layer: str, geometry_type: str = "Polygon"
) -> Path:
    """Write a layer as a GeoPackage of its own: built beside ``path``, synced, renamed.

    An empty frame becomes an empty layer with its columns, geometry type and coordinate system. A coordinate system
    without an EPSG code is kept as WKT. The file's time stamp is fixed, so that the same polygons give the same bytes.

    Args:
        path: of the file, ending in ``.gpkg``; an older file is replaced.
        frame: the polygons with their attributes.
        layer: name of the layer.
        geometry_type: what the layer declares.

    Raises:
        ConfigError: another ending, or a folder that cannot be written to.
        RunError: the disk is full.
    """
    path = Path(path)
    if path.suffix.lower() != ".gpkg":
        raise ConfigError(f"{path}: polygons are written as a GeoPackage; give a name that ends in .gpkg")
    with atomic_path(path) as draft, tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        whole = Path(folder) / path.name
        try:
            with _fixed_time():
                pyogrio.write_dataframe(
                    frame, whole, driver="GPKG", layer=layer, geometry_type=geometry_type, promote_to_multi=False
                )
            written = pyogrio.read_info(whole)["features"]
        except _WRITE_ERRORS as error:
            text = str(error)
            full = any(sign in text for sign in ("disk", "commit", "too large"))
            raise OSError(errno.ENOSPC if full else errno.EIO, text.splitlines()[0][:200], str(draft)) from error
        if written != len(frame):
            raise OSError(errno.ENOSPC, f"{written} of {len(frame)} polygons arrived", str(draft))
        whole.replace(draft)
    return path


class _fixed_time:
    """GeoPackages carry the time they were written; a fixed one makes equal contents equal files."""

    def __enter__(self) -> None:
        self.before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2000-01-01T00:00:00.000Z"})

    def __exit__(self, *_: object) -> None:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": self.before})
