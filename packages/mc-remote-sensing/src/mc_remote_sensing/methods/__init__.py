"""One folder per system. To add one: its folder here, its line in the table, its recipes."""

from mc_core.recipes import MethodTable

METHODS = MethodTable(
    {
        "hpcl-net": (
            "mc_remote_sensing.methods.hpcl_net.config:HPCLNetConfig",
            "mc_remote_sensing.methods.hpcl_net.model:HPCLNet",
        ),
        "scene-contrast": (
            "mc_remote_sensing.methods.scene_contrast.config:SceneContrastConfig",
            "mc_remote_sensing.methods.scene_contrast.model:SceneContrast",
        ),
    }
)

__all__ = ["METHODS"]
