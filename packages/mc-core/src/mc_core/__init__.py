"""Momentum contrast, exact and proven: the core that every domain package stands on.

Public names load on first use; ``import mc_core`` itself imports no torch.
"""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_core.engine.config import Fit
    from mc_core.engine.loop import RunResult, fit
    from mc_core.engine.method import Method, Progress, StepOutput
    from mc_core.errors import McError
    from mc_core.export import export_onnx, load_model, save_model
    from mc_core.heads import PredictionHead, ProjectionHead, Prototypes
    from mc_core.losses import (
        decoupled_info_nce,
        decoupled_key_nce,
        info_nce,
        koleo,
        nt_xent,
        sinkhorn_assignments,
        swapped_prediction,
    )
    from mc_core.momentum import MomentumEncoder
    from mc_core.queue import FeatureQueue

__version__ = "0.1.0"

__all__ = [
    "FeatureQueue",
    "Fit",
    "McError",
    "Method",
    "MomentumEncoder",
    "PredictionHead",
    "Progress",
    "ProjectionHead",
    "Prototypes",
    "RunResult",
    "StepOutput",
    "__version__",
    "decoupled_info_nce",
    "decoupled_key_nce",
    "export_onnx",
    "fit",
    "info_nce",
    "koleo",
    "load_model",
    "nt_xent",
    "save_model",
    "sinkhorn_assignments",
    "swapped_prediction",
]

_load, __dir__ = attach(
    __name__,
    {
        "engine": ["Fit", "Method", "Progress", "RunResult", "StepOutput", "fit"],
        "errors": ["McError"],
        "export": ["export_onnx", "load_model", "save_model"],
        "heads": ["PredictionHead", "ProjectionHead", "Prototypes"],
        "losses": [
            "decoupled_info_nce",
            "decoupled_key_nce",
            "info_nce",
            "koleo",
            "nt_xent",
            "sinkhorn_assignments",
            "swapped_prediction",
        ],
        "momentum": ["MomentumEncoder"],
        "queue": ["FeatureQueue"],
    },
)


def __getattr__(name: str) -> Any:
    return _load(name)
