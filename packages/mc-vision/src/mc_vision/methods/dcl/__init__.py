"""Decoupled contrastive learning: DCL and DCLW, in SimCLR's, MoCo's and MoCo v3's setting."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision.methods.dcl.config import DCLConfig, DCLQueueConfig, DCLV3Config
    from mc_vision.methods.dcl.model import DCL, DCLV3, DCLQueue

__all__ = ["DCL", "DCLV3", "DCLConfig", "DCLQueue", "DCLQueueConfig", "DCLV3Config"]

_load, __dir__ = attach(
    __name__,
    {"config": ["DCLConfig", "DCLQueueConfig", "DCLV3Config"], "model": ["DCL", "DCLQueue", "DCLV3"]},
)


def __getattr__(name: str) -> Any:
    return _load(name)
