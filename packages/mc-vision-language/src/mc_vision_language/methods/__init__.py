"""One folder per published system. To add one: its folder here, its line in the table, its recipes."""

from mc_core.recipes import MethodTable

METHODS = MethodTable(
    {
        "albef": (
            "mc_vision_language.methods.albef.config:ALBEFConfig",
            "mc_vision_language.methods.albef.model:ALBEF",
        ),
    },
)

__all__ = ["METHODS"]
