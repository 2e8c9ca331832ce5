"""Scene contrast: encoders of image and elevation from scenes without labels."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_remote_sensing.methods.scene_contrast.config import SceneContrastConfig
    from mc_remote_sensing.methods.scene_contrast.model import SceneContrast

__all__ = ["SceneContrast", "SceneContrastConfig"]

_load, __dir__ = attach(__name__, {"config": ["SceneContrastConfig"], "model": ["SceneContrast"]})


def __getattr__(name: str) -> Any:
    return _load(name)
