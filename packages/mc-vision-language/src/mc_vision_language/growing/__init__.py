"""Training while pairs arrive: slices of data, a search for how to grow, and the run over both."""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision_language.growing.running import ARMS, Arm, GrowthRun, run_growth
    from mc_vision_language.growing.sample import growing_pairs
    from mc_vision_language.growing.search import GrowthSearch, candidate_losses
    from mc_vision_language.growing.slices import Slices, arriving, sliced, with_validation
    from mc_vision_language.growing.space import growth_budget, growth_space

__all__ = [
    "ARMS",
    "Arm",
    "GrowthRun",
    "GrowthSearch",
    "Slices",
    "arriving",
    "candidate_losses",
    "growing_pairs",
    "growth_budget",
    "growth_space",
    "run_growth",
    "sliced",
    "with_validation",
]

_load, __dir__ = attach(
    __name__,
    {
        "running": ["ARMS", "Arm", "GrowthRun", "run_growth"],
        "sample": ["growing_pairs"],
        "search": ["GrowthSearch", "candidate_losses"],
        "slices": ["Slices", "arriving", "sliced", "with_validation"],
        "space": ["growth_budget", "growth_space"],
    },
)


def __getattr__(name: str) -> Any:
    return _load(name)
