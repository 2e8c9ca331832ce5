"""The training engine: :class:`Method`, :class:`Fit`, :func:`fit`. Names load on first use, so that options need no torch."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_core.engine.config import Fit, StrictModel
    from mc_core.engine.loop import Evaluator, RunResult, fit
    from mc_core.engine.method import Batch, Method, Progress, StepOutput

__all__ = ["Batch", "Evaluator", "Fit", "Method", "Progress", "RunResult", "StepOutput", "StrictModel", "fit"]

_load, __dir__ = attach(
    __name__,
    {
        "config": ["Fit", "StrictModel"],
        "loop": ["Evaluator", "RunResult", "fit"],
        "method": ["Batch", "Method", "Progress", "StepOutput"],
    },
)


def __getattr__(name: str) -> Any:
    return _load(name)
