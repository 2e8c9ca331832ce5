"""Which weights are pulled towards zero: not those that say where something is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

_SPARED = ("pos_embed", "cls_token")


def spare_positions(groups: Sequence[dict[str, Any]], module: nn.Module, *names: str) -> list[dict[str, Any]]:
    """Groups of an optimizer with class token and tables of positions moved to the group that does not decay.

    Args:
        groups: those of :meth:`mc_core.engine.method.Method.parameter_groups`; a single one, where everything decays, stays.
        module: whose parameters have names.
        names: of further parameters to spare.
    """
    if len(groups) < 2:
        return list(groups)
    spared = {
        id(parameter)
        for name, parameter in module.named_parameters()
        if name.rsplit(".", 1)[-1] in (*_SPARED, *names) or "position_embeddings" in name
    }
    decayed, kept = ([p for p in groups[0]["params"] if (id(p) in spared) is there] for there in (False, True))
    return [{**groups[0], "params": decayed}, {**groups[1], "params": [*groups[1]["params"], *kept]}]
