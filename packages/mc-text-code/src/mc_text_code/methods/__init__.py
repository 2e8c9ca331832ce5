"""One folder per published system. To add one: its folder here, its line in the table, its recipes."""

from mc_core.recipes import MethodTable

METHODS = MethodTable(
    {
        "cocosoda": (
            "mc_text_code.methods.cocosoda.config:CoCoSoDaConfig",
            "mc_text_code.methods.cocosoda.model:CoCoSoDa",
        ),
        "esimcse": ("mc_text_code.methods.esimcse.config:ESimCSEConfig", "mc_text_code.methods.esimcse.model:ESimCSE"),
        "mlm": ("mc_text_code.methods.mlm.config:MaskedLMConfig", "mc_text_code.methods.mlm.model:MaskedLM"),
    }
)

__all__ = ["METHODS"]
