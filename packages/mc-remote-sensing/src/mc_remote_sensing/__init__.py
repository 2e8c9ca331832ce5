"""Momentum contrast for remote sensing: segmentation from imagery and elevation.

Public names load on first use; ``import mc_remote_sensing`` itself imports no torch.
"""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_remote_sensing.augment import AugmentedTiles, TileAugment
    from mc_remote_sensing.augment_config import AugmentConfig
    from mc_remote_sensing.data import (
        PatchScenes,
        Scene,
        ScenePairs,
        TileDataset,
        check_alignment,
        open_scene,
        spatial_blocks,
    )
    from mc_remote_sensing.encoders import save_timm_checkpoint
    from mc_remote_sensing.encoders_config import BandsConfig, NetworkConfig, PyramidConfig
    from mc_remote_sensing.inference.polygons import PolygonSummary, write_polygons
    from mc_remote_sensing.inference.predict import SceneMap, predict_scene
    from mc_remote_sensing.methods import METHODS
    from mc_remote_sensing.methods.hpcl_net import HPCLNet, HPCLNetConfig
    from mc_remote_sensing.methods.scene_contrast import SceneContrast, SceneContrastConfig
    from mc_remote_sensing.model import SegmentationModel, load_segmentation_model
    from mc_remote_sensing.pretrained import SceneEncoders, load_scene_encoders
    from mc_remote_sensing.recipe import resolve_recipe
    from mc_remote_sensing.terrain import TerrainFiles, write_terrain

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "AugmentConfig",
    "AugmentedTiles",
    "BandsConfig",
    "HPCLNet",
    "HPCLNetConfig",
    "NetworkConfig",
    "PatchScenes",
    "PolygonSummary",
    "PyramidConfig",
    "Scene",
    "SceneContrast",
    "SceneContrastConfig",
    "SceneEncoders",
    "SceneMap",
    "ScenePairs",
    "SegmentationModel",
    "TerrainFiles",
    "TileAugment",
    "TileDataset",
    "__version__",
    "check_alignment",
    "load_scene_encoders",
    "load_segmentation_model",
    "open_scene",
    "predict_scene",
    "resolve_recipe",
    "save_timm_checkpoint",
    "spatial_blocks",
    "write_polygons",
    "write_terrain",
]

_load, __dir__ = attach(
    __name__,
    {
        "augment": ["AugmentedTiles", "TileAugment"],
        "augment_config": ["AugmentConfig"],
        "data": [
            "PatchScenes",
            "Scene",
            "ScenePairs",
            "TileDataset",
            "check_alignment",
            "open_scene",
            "spatial_blocks",
        ],
        "encoders": ["save_timm_checkpoint"],
        "encoders_config": ["BandsConfig", "NetworkConfig", "PyramidConfig"],
        "inference.polygons": ["PolygonSummary", "write_polygons"],
        "inference.predict": ["SceneMap", "predict_scene"],
        "methods": ["METHODS"],
        "methods.hpcl_net": ["HPCLNet", "HPCLNetConfig"],
        "methods.scene_contrast": ["SceneContrast", "SceneContrastConfig"],
        "model": ["SegmentationModel", "load_segmentation_model"],
        "pretrained": ["SceneEncoders", "load_scene_encoders"],
        "recipe": ["resolve_recipe"],
        "terrain": ["TerrainFiles", "write_terrain"],
    },
)


def __getattr__(name: str) -> Any:
    return _load(name)
