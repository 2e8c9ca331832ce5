"""One file or folder per published system. To add one: its folder here, its line in the table, its recipes."""

from mc_core.recipes import MethodTable

METHODS = MethodTable(
    {
        "moco": ("mc_vision.methods.moco.config:MoCoConfig", "mc_vision.methods.moco.model:MoCo"),
        "moco-v3": ("mc_vision.methods.moco.config:MoCoV3Config", "mc_vision.methods.moco.model:MoCoV3"),
        "dcl": ("mc_vision.methods.dcl.config:DCLConfig", "mc_vision.methods.dcl.model:DCL"),
        "dcl-queue": ("mc_vision.methods.dcl.config:DCLQueueConfig", "mc_vision.methods.dcl.model:DCLQueue"),
        "dcl-v3": ("mc_vision.methods.dcl.config:DCLV3Config", "mc_vision.methods.dcl.model:DCLV3"),
        "swav": ("mc_vision.methods.swav.config:SwAVConfig", "mc_vision.methods.swav.model:SwAV"),
        "mmc": ("mc_vision.methods.mmc.config:MMCConfig", "mc_vision.methods.mmc.model:MMC"),
    }
)

__all__ = ["METHODS"]
