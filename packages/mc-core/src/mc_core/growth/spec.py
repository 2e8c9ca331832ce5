"""How large a model is: sizes of its parts, which sizes it may grow to, and what a forward pass costs. Imports no torch.

A model has one residual width and named parts (such as image, text, shared), each a row of equal blocks.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mc_core.errors import ConfigError

__all__ = ["ArchSpec", "TowerSpec", "candidates", "heads_of", "largest", "moves"]

_SIZES = ("blocks", "heads", "hidden")


@dataclass(frozen=True)
class TowerSpec:
    """The size of one part: a row of blocks that are alike.

    Attributes:
        blocks: transformer blocks, 0 or more.
        heads: attention heads of each block, at least 1.
        hidden: units of each block's MLP, at least 1.

    Raises:
        ConfigError: a size below its least.

    >>> TowerSpec(1, 2, 64) <= TowerSpec(2, 2, 96), TowerSpec(2, 2, 64) <= TowerSpec(1, 3, 96)
    (True, False)
    """

    blocks: int
    heads: int
    hidden: int

    def __post_init__(self) -> None:
        for name, least in zip(_SIZES, (0, 1, 1), strict=True):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"{name} is {value}; a part needs {least} or more")

    def __le__(self, other: TowerSpec) -> bool:
        return all(getattr(self, name) <= getattr(other, name) for name in _SIZES)

    def flops(self, width: int, head_width: int, tokens: int) -> int:
        """Floating-point operations of one forward pass of one sequence, 2 for each multiply-add; norms, biases, softmax left out.

        Args:
            width: d, of the residual stream.
            head_width: p, of one head.
            tokens: N, of the sequence.

        With inner width i = heads · p and hidden width f, a block takes ``2N(4di + 2df) + 4N²i``.

        >>> TowerSpec(blocks=1, heads=2, hidden=8).flops(width=4, head_width=2, tokens=3)
        912
        """
        inner = self.heads * head_width
        return self.blocks * (2 * tokens * (4 * width * inner + 2 * width * self.hidden) + 4 * tokens**2 * inner)


@dataclass(frozen=True)
class ArchSpec:
    """The size of a model.

    Attributes:
        width: d, channels of the residual stream, the same for every part.
        joint: e, width of the shared embedding.
        parts: name → size of each part.
        head_width: p, channels of one attention head, which no growth changes.

    Raises:
        ConfigError: a size below 1, or no parts.

    >>> small = ArchSpec(width=32, joint=16, parts={"image": TowerSpec(1, 2, 64)}, head_width=16)
    >>> large = small.with_part("image", blocks=2)
    >>> small <= large, large <= small, ArchSpec.from_dict(large.to_dict()) == large
    (True, False, True)
    """

    width: int
    joint: int
    parts: Mapping[str, TowerSpec] = field(hash=False)
    head_width: int = 64

    def __post_init__(self) -> None:
        for name in ("width", "joint", "head_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; a model needs 1 or more")
        if not self.parts:
            raise ConfigError("an architecture without parts; name at least one, such as image: TowerSpec(1, 2, 64)")
        object.__setattr__(self, "parts", dict(self.parts))

    def __le__(self, other: ArchSpec) -> bool:
        return not self.larger_than(other)

    def larger_than(self, other: ArchSpec) -> list[str]:
        """Where this architecture exceeds another, in words: empty where it may grow into it."""
        found = [
            f"{name} {getattr(self, name)} > {getattr(other, name)}"
            for name in ("width", "joint")
            if getattr(self, name) > getattr(other, name)
        ]
        if self.head_width != other.head_width:
            found.append(f"head_width {self.head_width} ≠ {other.head_width}")
        for part in sorted({*self.parts, *other.parts}):
            if part not in self.parts or part not in other.parts:
                found.append(f"part {part} is in one of them only")
                continue
            ours, theirs = self.parts[part], other.parts[part]
            found += [
                f"{part}.{name} {getattr(ours, name)} > {getattr(theirs, name)}"
                for name in _SIZES
                if getattr(ours, name) > getattr(theirs, name)
            ]
        return found

    def require_growth_to(self, target: ArchSpec) -> None:
        """Refuse a target that is smaller anywhere.

        Raises:
            ConfigError: names each size that would shrink.
        """
        if found := self.larger_than(target):
            raise ConfigError(f"the growth target is smaller than the model: {', '.join(found)}; a model can only grow")

    def with_part(self, part: str, **sizes: int) -> ArchSpec:
        """The same architecture with other sizes of one part.

        Raises:
            ConfigError: there is no such part.
        """
        if part not in self.parts:
            raise ConfigError(f"no part {part!r}; this architecture has {', '.join(self.parts)}")
        return replace(self, parts={**self.parts, part: replace(self.parts[part], **sizes)})

    def flops(self, tokens: Mapping[str, Sequence[int]]) -> int:
        """Forward FLOPs of one sample: all blocks, without embeddings and projections.

        Args:
            tokens: part → lengths of the sequences that pass through it; a shared part sees several.

        >>> spec = ArchSpec(4, 4, {"image": TowerSpec(1, 2, 8), "shared": TowerSpec(1, 2, 8)}, head_width=2)
        >>> spec.flops({"image": [3], "shared": [3, 3]})
        2736
        """
        return sum(
            self.parts[part].flops(self.width, self.head_width, length)
            for part, lengths in tokens.items()
            for length in lengths
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ArchSpec:
        """The inverse of :meth:`to_dict`."""
        parts = {name: TowerSpec(**sizes) for name, sizes in data["parts"].items()}
        return cls(data["width"], data["joint"], parts, data["head_width"])


def heads_of(width: int, head_width: int) -> int:
    """Heads of an attention whose inner width is the residual width.

    Raises:
        ConfigError: the width does not divide by the head width.

    >>> heads_of(96, 16)
    6
    """
    if width % head_width or width < head_width:
        least = max(1, width // head_width) * head_width
        raise ConfigError(
            f"width {width} does not divide by the head width {head_width}; take {least} or {least + head_width}"
        )
    return width // head_width


def largest(specs: Sequence[ArchSpec]) -> ArchSpec:
    """The componentwise maximum: the supernet that holds every one of them.

    Raises:
        ConfigError: no architectures, or other parts or head widths.

    >>> one = ArchSpec(8, 8, {"image": TowerSpec(1, 2, 16)})
    >>> largest([one.with_part("image", blocks=2), one.with_part("image", hidden=24)]).parts["image"]
    TowerSpec(blocks=2, heads=2, hidden=24)
    """
    if not specs:
        raise ConfigError("no architectures to take the largest of")
    first = specs[0]
    if any(spec.head_width != first.head_width or {*spec.parts} != {*first.parts} for spec in specs):
        raise ConfigError("these architectures have other parts or head widths; a supernet needs the same ones")
    return ArchSpec(
        width=max(spec.width for spec in specs),
        joint=max(spec.joint for spec in specs),
        parts={
            part: TowerSpec(*(max(getattr(spec.parts[part], name) for spec in specs) for name in _SIZES))
            for part in first.parts
        },
        head_width=first.head_width,
    )


def moves(current: ArchSpec, *, blocks: int = 2, heads: float = 0.5, hidden: float = 0.5) -> dict[str, ArchSpec]:
    """Growth along one dimension of one part each: blocks, heads and MLP of every part.

    Args:
        current: what there is.
        blocks: added to a part, 0 for no such move.
        heads: share of the heads that is added, rounded up; 0 for no such move.
        hidden: share of the MLP's units that is added, rounded up; 0 for no such move.

    >>> one = ArchSpec(8, 8, {"image": TowerSpec(1, 2, 16)})
    >>> {name: spec.parts["image"] for name, spec in moves(one, blocks=1).items()}["image.heads"]
    TowerSpec(blocks=1, heads=3, hidden=16)
    """
    found: dict[str, ArchSpec] = {}
    for part, spec in current.parts.items():
        more = {
            "blocks": blocks,
            "heads": math.ceil(spec.heads * heads),
            "hidden": math.ceil(spec.hidden * hidden),
        }
        found |= {
            f"{part}.{name}": current.with_part(part, **{name: getattr(spec, name) + added})
            for name, added in more.items()
            if added > 0
        }
    return found


def candidates(
    current: ArchSpec,
    *,
    pairs: int = 14,
    seed: int = 0,
    blocks: int = 2,
    heads: float = 0.5,
    hidden: float = 0.5,
) -> dict[str, ArchSpec]:
    """A growth space: no growth, every single move, and some pairs of moves drawn at random.

    Args:
        current: what there is; comes first, under the name ``current``.
        pairs: of two single moves, at most as many as there are.
        seed: of the draw.
        blocks: see :func:`moves`.
        heads: see :func:`moves`.
        hidden: see :func:`moves`.

    The size of the space and the steps are this project's choice; the paper's were not available.

    >>> one = ArchSpec(8, 8, {"image": TowerSpec(1, 2, 16), "text": TowerSpec(1, 2, 16)})
    >>> found = candidates(one, pairs=2)
    >>> len(found), list(found)[:2], all(one <= spec for spec in found.values())
    (9, ['current', 'image.blocks'], True)
    """
    single = moves(current, blocks=blocks, heads=heads, hidden=hidden)
    both = list(itertools.combinations(single, 2))
    drawn = random.Random(seed).sample(both, min(pairs, len(both)))
    return {
        "current": current,
        **single,
        **{" + ".join(names): largest([single[name] for name in names]) for names in drawn},
    }
