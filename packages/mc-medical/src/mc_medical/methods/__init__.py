"""One folder per published system. To add one: its folder here, its line in the table, its recipes."""

from mc_core.recipes import MethodTable

METHODS = MethodTable(
    {"msd": ("mc_medical.methods.msd.config:MSDConfig", "mc_medical.methods.msd.model:MSD")},
)

__all__ = ["METHODS"]
