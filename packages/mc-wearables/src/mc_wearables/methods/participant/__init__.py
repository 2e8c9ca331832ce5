"""Participant contrast: two segments of one person are a positive pair."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_wearables.methods.participant.config import ParticipantConfig
    from mc_wearables.methods.participant.model import ParticipantContrast

__all__ = ["ParticipantConfig", "ParticipantContrast"]

_load, __dir__ = attach(__name__, {"config": ["ParticipantConfig"], "model": ["ParticipantContrast"]})


def __getattr__(name: str) -> Any:
    return _load(name)
