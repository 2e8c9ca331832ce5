"""One folder per published system. To add one: its folder here, its line in the table, its recipes."""

from mc_core.recipes import MethodTable

METHODS = MethodTable(
    {
        "albef": (
            "mc_vision_language.methods.albef.config:ALBEFConfig",
            "mc_vision_language.methods.albef.model:ALBEF",
        ),
        "astrea": (
            "mc_vision_language.methods.astrea.config:AstreaConfig",
            "mc_vision_language.methods.astrea.joint:AstreaJoint",
        ),
        "ctp": ("mc_vision_language.methods.ctp.config:CTPConfig", "mc_vision_language.methods.ctp.model:CTP"),
        "growclip": (
            "mc_vision_language.methods.growclip.config:GrowCLIPConfig",
            "mc_vision_language.methods.growclip.model:GrowCLIP",
        ),
    },
)

__all__ = ["METHODS"]
