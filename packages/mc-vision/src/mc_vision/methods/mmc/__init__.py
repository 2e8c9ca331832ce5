"""MMC: masked momentum contrastive learning."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision.methods.mmc.config import CorruptionConfig, MMCConfig
    from mc_vision.methods.mmc.model import MMC

__all__ = ["MMC", "CorruptionConfig", "MMCConfig"]

_load, __dir__ = attach(__name__, {"config": ["CorruptionConfig", "MMCConfig"], "model": ["MMC"]})


def __getattr__(name: str) -> Any:
    return _load(name)
