"""One folder per published system. To add one: its folder here, its line in the table, its recipes."""

from mc_core.recipes import MethodTable

METHODS = MethodTable(
    {
        "participant": (
            "mc_wearables.methods.participant.config:ParticipantConfig",
            "mc_wearables.methods.participant.model:ParticipantContrast",
        ),
    }
)

__all__ = ["METHODS"]
