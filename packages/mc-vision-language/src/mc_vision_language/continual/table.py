"""The methods that a sequence of tasks can be trained by, with what each needs besides. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mc_core.recipes import MethodTable

MemoryKind = Literal["reservoir", "herding", "k-means"]
_HERE = "mc_vision_language.continual"
_CTP = "mc_vision_language.methods.ctp.config:CTPConfig", "mc_vision_language.methods.ctp.model:CTP"
_PLAIN = f"{_HERE}.config:ContinualConfig", f"{_HERE}.base:Sequential"
_CONFIGS = f"{_HERE}.baseline_configs"


@dataclass(frozen=True)
class Entry:
    """A way to train on a sequence of tasks.

    Attributes:
        config, method: where its classes are, as ``module:Name``.
        about: for people.
        memory: how samples of finished tasks are chosen; None: none are kept.
        joint: trained on all tasks at once, from new weights; what all others are measured by.
        changes: of its settings.
    """

    config: str
    method: str
    about: str
    memory: MemoryKind | None = None
    joint: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)


BASELINES: dict[str, Entry] = {
    "sequential": Entry(*_PLAIN, "fine-tuned on one task after the other"),
    "joint": Entry(*_PLAIN, "trained on all tasks at once, as often as the others on each", joint=True),
    "ewc": Entry(f"{_CONFIGS}:EWCConfig", f"{_HERE}.regularised:EWC", "elastic weight consolidation"),
    "mas": Entry(f"{_CONFIGS}:MASConfig", f"{_HERE}.regularised:MAS", "memory-aware synapses"),
    "si": Entry(f"{_CONFIGS}:SIConfig", f"{_HERE}.regularised:SI", "synaptic intelligence"),
    "rwalk": Entry(f"{_CONFIGS}:RWalkConfig", f"{_HERE}.regularised:RWalk", "Riemannian walk"),
    "afec": Entry(f"{_CONFIGS}:AFECConfig", f"{_HERE}.regularised:AFEC", "active forgetting"),
    "lwf": Entry(f"{_CONFIGS}:LwFConfig", f"{_HERE}.distilled:LwF", "learning without forgetting"),
    "er": Entry(*_PLAIN, "replay of a reservoir", memory="reservoir"),
    "mof": Entry(*_PLAIN, "replay of samples chosen by herding", memory="herding"),
    "kmeans": Entry(*_PLAIN, "replay of samples nearest to cluster centres", memory="k-means"),
    "icarl": Entry(
        f"{_CONFIGS}:LwFConfig", f"{_HERE}.distilled:LwF", "LwF with herding, iCaRL-style", memory="herding"
    ),
    "lucir": Entry(
        f"{_CONFIGS}:LUCIRConfig", f"{_HERE}.distilled:LUCIR", "LUCIR-style, with herding", memory="herding"
    ),
    "ctp": Entry(*_CTP, "compatible momentum contrast and topology preservation"),
    "ctp+er": Entry(*_CTP, "CTP with replay of a reservoir", memory="reservoir"),
    "ctp-first": Entry(*_CTP, "CTP on the first task, then sequential", changes={"plain_later": True}),
}
"""By name; "joint" is the upper bound, "ctp-first" tells what of CTP's gain comes from its first task."""

TABLE = MethodTable({name: (entry.config, entry.method) for name, entry in BASELINES.items()})
