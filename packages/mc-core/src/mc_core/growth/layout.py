"""What growth has to know of a model: which axis of which tensor writes, reads or normalises the residual stream.

Blocks say so themselves (:meth:`mc_core.growth.Block.axes`); :class:`Residual` says it for what lies around them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Axis", "Residual"]

Role = Literal["write", "read", "gain", "shift", "new", "unread", "joint"]


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter that may grow, and what becomes of its new entries.

    Attributes:
        dim: the axis.
        role: ``write`` into the residual stream (mean over it removed, new entries 0), ``read`` it behind a norm (new entries
            drawn), ``gain`` and ``shift`` of a norm over it, ``new`` units (drawn), ``unread`` (columns for new units: 0, so
            that nobody sees them yet), ``joint`` (rows of a projection into the shared embedding).
        groups: equal pieces the axis consists of, each of which grows: 3 for packed queries, keys and values.
    """

    dim: int
    role: Role
    groups: int = 1


@dataclass(frozen=True)
class Residual:
    """Where a model touches its residual stream outside its blocks. Names are those of ``named_parameters``.

    Several streams (an image's and a text's) may be listed together. Whatever reads a stream must do so behind a LayerNorm
    over its channels, and what writes must write linearly (nothing between the writer and the stream): only then can a model
    grow in width and stay the same function.

    Attributes:
        stacks: paths of the module lists that hold the blocks, such as ``("image", "text", "shared")``; ``""`` is the model itself.
        writers: parameter → its axis of width: patch embedding (weight and bias), token table, positions, class token.
        readers: parameter → its axis of width: what reads the stream behind a norm, such as the projections.
        norms: paths of the LayerNorms over the stream, such as the final ones.
        joint: parameter → its axis of the shared embedding: the projections of **every** tower, bias-free.

    >>> Residual(
    ...     stacks=("image", "text", "shared"),
    ...     writers={"patch.weight": 0, "patch.bias": 0, "positions": -1, "tokens.weight": -1},
    ...     readers={"image_projection.weight": 1, "text_projection.weight": 1},
    ...     norms=("image_norm", "text_norm"),
    ...     joint={"image_projection.weight": 0, "text_projection.weight": 0},
    ... ).stacks
    ('image', 'text', 'shared')
    """

    stacks: tuple[str, ...] = ()
    writers: Mapping[str, int] = field(default_factory=dict)
    readers: Mapping[str, int] = field(default_factory=dict)
    norms: tuple[str, ...] = ()
    joint: Mapping[str, int] = field(default_factory=dict)
