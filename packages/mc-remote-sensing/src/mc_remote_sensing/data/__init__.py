"""Rasters, elevation models and labels of a place, and the windows drawn from them.

Public names load on first use; importing this package loads neither torch nor rasterio.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_remote_sensing.data.align import AlignmentReport, Finding, check_alignment
    from mc_remote_sensing.data.alignment_picture import alignment_figure
    from mc_remote_sensing.data.blocks import Blocks, spatial_blocks, write_blocks
    from mc_remote_sensing.data.coverage import Footprint, footprint
    from mc_remote_sensing.data.elevation import ElevationSource
    from mc_remote_sensing.data.grid import Grid, Window, local_equal_area, local_utm
    from mc_remote_sensing.data.labels import LabelLayers, MaskRaster, read_labels
    from mc_remote_sensing.data.pairs import ScenePairs
    from mc_remote_sensing.data.patches import PatchScenes
    from mc_remote_sensing.data.polygons import Polygons
    from mc_remote_sensing.data.raster import RasterSource
    from mc_remote_sensing.data.relief import CHANNELS, elevation_features
    from mc_remote_sensing.data.scene import Scene, open_scene
    from mc_remote_sensing.data.tiles import TileDataset, band_statistics

__all__ = [
    "CHANNELS",
    "AlignmentReport",
    "Blocks",
    "ElevationSource",
    "Finding",
    "Footprint",
    "Grid",
    "LabelLayers",
    "MaskRaster",
    "PatchScenes",
    "Polygons",
    "RasterSource",
    "Scene",
    "ScenePairs",
    "TileDataset",
    "Window",
    "alignment_figure",
    "band_statistics",
    "check_alignment",
    "elevation_features",
    "footprint",
    "local_equal_area",
    "local_utm",
    "open_scene",
    "read_labels",
    "spatial_blocks",
    "write_blocks",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "align": ["AlignmentReport", "Finding", "check_alignment"],
        "alignment_picture": ["alignment_figure"],
        "blocks": ["Blocks", "spatial_blocks", "write_blocks"],
        "elevation": ["ElevationSource"],
        "coverage": ["Footprint", "footprint"],
        "grid": ["Grid", "Window", "local_equal_area", "local_utm"],
        "labels": ["LabelLayers", "MaskRaster", "read_labels"],
        "pairs": ["ScenePairs"],
        "patches": ["PatchScenes"],
        "raster": ["RasterSource"],
        "relief": ["CHANNELS", "elevation_features"],
        "scene": ["Scene", "open_scene"],
        "tiles": ["TileDataset", "band_statistics"],
        "polygons": ["Polygons"],
    },
)
