"""A network's slow copy: the momentum encoder, its moving average and how far it lags behind.

Notation: θk weights of the copy, θq weights of the online network, m momentum.
"""

from __future__ import annotations

import copy
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mc_core.distributed import all_reduce_sum
from mc_core.errors import ConfigError
from mc_core.momentum_schedule import (
    MomentumSchedule,
    cosine_momentum,
    half_life_of,
    horizon_advice,
    momentum_from_half_life,
)

__all__ = [
    "MomentumEncoder",
    "MomentumSchedule",
    "cosine_momentum",
    "half_life_of",
    "horizon_advice",
    "momentum_from_half_life",
]

BufferPolicy = Literal["own", "copy", "ema"]
_Pair = tuple[Tensor, Tensor]  # (copy's, online's)


@dataclass
class _Slots:
    """Where the tensors of both networks live: the dicts that hold them, since the tensors may be replaced."""

    # (path of the module, the copy's dict, online's dict, name of the tensor)
    parameters: list[tuple[str, dict[str, Any], dict[str, Any], str]] = field(default_factory=list)
    buffers: list[tuple[str, dict[str, Any], dict[str, Any], str]] = field(default_factory=list)
    children: list[tuple[dict[str, nn.Module | None], tuple[nn.Module | None, ...]]] = field(default_factory=list)
    sizes: list[tuple[dict[str, Any], int]] = field(default_factory=list)

    def tensors(self, *, buffers: bool) -> list[Tensor]:
        """All of both networks as they are now."""
        slots = self.parameters + self.buffers if buffers else self.parameters
        return [held[name] for _, ours, theirs, name in slots for held in (ours, theirs)]

    def current(self) -> bool:
        """Whether neither network was restructured since."""
        return all(tuple(now.values()) == before for now, before in self.children) and all(
            len(now) == before for now, before in self.sizes
        )


@dataclass(frozen=True)
class _Plan:
    """The calls of an update, which are the same for as long as the tensors are; those of shards, whose memory may be another,
    are not kept.

    Attributes:
        tensors: of both networks.
        kinds: dtype, device and shape of each.
        averaged: lists of the copy's tensors and the online network's.
        copied: the same of what is not averaged.
    """

    tensors: list[Tensor]
    kinds: list[tuple[torch.dtype, torch.device, torch.Size]]
    averaged: list[tuple[list[Tensor], list[Tensor]]]
    copied: list[tuple[list[Tensor], list[Tensor]]]

    def holds(self, now: list[Tensor]) -> bool:
        """Whether these are the same tensors, none cast, moved or reshaped."""
        return (
            len(now) == len(self.tensors)
            and all(map(operator.is_, now, self.tensors))
            and [(t.dtype, t.device, t.shape) for t in now] == self.kinds
        )


class MomentumEncoder(nn.Module):
    """A frozen moving average of ``online``: ``θk ← m·θk + (1 − m)·θq`` at each :meth:`update`.

    The copy (``module``) starts equal to ``online``, is kept in at least float32 whatever the rest of the model is
    cast to (in bfloat16 an average with m = 0.999 does not move at all), and takes no gradient. ``online`` is
    referenced, not registered: ``parameters()`` and ``state_dict()`` show the copy alone.

    Under FSDP2, shard the copy exactly like ``online`` (shard the module that holds both, or each of them); the
    average is then taken shard by shard, with no communication. Build this before sharding, since a sharded module
    cannot be copied.

    Args:
        online: the network that is trained.
        momentum: m in [0, 1], used when :meth:`update` is given none.
        buffers: ``"own"``: the copy's buffers (BatchNorm statistics) come from its own forward passes alone;
            ``"copy"``: they are copied from ``online`` at each update; ``"ema"``: floating-point ones are averaged
            like weights, integer ones copied.
        evaluation_mode: keep the copy in eval mode also while the parent trains. Its normalisation then reads
            running statistics, which nothing refreshes under ``"own"``: pair it with ``"copy"`` or ``"ema"``.

    Raises:
        ConfigError: momentum outside [0, 1], or an unknown buffer policy.

    Source: He et al. 2020 (MoCo, arXiv:1911.05722), eq. 2.

    >>> online = nn.Linear(2, 1, bias=False)
    >>> key = MomentumEncoder(online, momentum=0.9)
    >>> with torch.no_grad():
    ...     _ = online.weight.add_(1.0)
    >>> key.update()
    >>> [round(lag, 3) for lag in (online.weight - key.module.weight).flatten().tolist()]
    [0.9, 0.9]
    """

    module: nn.Module

    def __init__(
        self,
        online: nn.Module,
        momentum: float = 0.999,
        *,
        buffers: BufferPolicy = "own",
        evaluation_mode: bool = False,
    ) -> None:
        super().__init__()
        if buffers not in get_args(BufferPolicy):
            raise ConfigError(f"buffers is {buffers!r}; choose one of {', '.join(get_args(BufferPolicy))}")
        self.momentum = _checked(momentum)
        self.buffer_policy: BufferPolicy = buffers
        self.evaluation_mode = evaluation_mode
        self._online = [online]  # in a list, so that it is not registered
        self._slots: _Slots | None = None
        self._plan: _Plan | None = None
        self.module = copy.deepcopy(online).requires_grad_(False)
        self._apply(lambda tensor: tensor)
        self.train(online.training)

    @property
    def online(self) -> nn.Module:
        """The network this one follows."""
        return self._online[0]

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The copy's output, without gradient, under the ambient autocast.

        Outside autocast, half-precision inputs are cast to float32, which the copy's weights are kept in.
        """
        args, kwargs = tree_map_only(Tensor, _widened_input, (args, kwargs))
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, momentum: float | None = None) -> None:
        """Move the copy towards ``online``. Call it once per optimizer step, after it.

        ``θk + (1 − m)(θq − θk)`` in a few fused calls, which leaves the copy bit-identical where it already equals
        ``online``. Weights are looked up anew each time, so those that were replaced
        (``load_state_dict(assign=True)``, FSDP2, ``to``) are followed.

        Args:
            momentum: m in [0, 1] for this step, such as ``MomentumSchedule.at(…)``; default: as constructed.

        Raises:
            ConfigError: momentum outside [0, 1], or the two networks no longer correspond.
        """
        weight = 1.0 - (self.momentum if momentum is None else _checked(momentum))
        plan = self._current_plan()
        for ours, theirs in plan.averaged:
            torch._foreach_lerp_(ours, _cast_like(ours, theirs), weight)
        for ours, theirs in plan.copied:
            torch._foreach_copy_(ours, _cast_like(ours, theirs))

    @torch.no_grad()
    def synchronise(self) -> None:
        """Copy every weight and buffer from ``online``. Call it after loading weights into ``online``.

        Raises:
            ConfigError: the two networks no longer correspond.
        """
        _copy(self._pairs("parameters") + self._pairs("buffers"))

    @torch.no_grad()
    def drift(self) -> Tensor:
        """‖θk − θq‖ / ‖θq‖ over all floating-point parameters, as a scalar tensor on their device.

        Nothing is read back, so no device is waited for. With sharded weights every process must call it.
        """
        pairs, _ = _split(self._pairs("parameters"))
        if not pairs:
            return torch.zeros(())
        sharded = [pair for pair in pairs if _is_sharded(pair[0])]
        whole = [pair for pair in pairs if not _is_sharded(pair[0])]
        squares = [_squared_norms(whole)] if whole else []
        if sharded:
            squares.append(all_reduce_sum(_squared_norms(sharded)))
        difference, reference = torch.stack(squares).sum(0).unbind()
        return (difference / reference.clamp_min(torch.finfo(reference.dtype).tiny)).sqrt()

    def train(self, mode: bool = True) -> Self:
        """Follow the parent's mode; with ``evaluation_mode`` the copy stays in eval."""
        super().train(mode)
        if self.evaluation_mode:
            self.module.eval()
        return self

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, buffers={self.buffer_policy!r}, evaluation_mode={self.evaluation_mode}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # every cast and move of a parent passes here: follow the move, refuse half precision
        return super()._apply(lambda tensor: _at_least_float32(tensor, fn(tensor)), recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_slots": None, "_plan": None}  # found anew in a copied or unpickled model

    def _current_slots(self) -> _Slots:
        if self._slots is None or not self._slots.current():
            self._slots = _find_slots(self.module, self.online)
        return self._slots

    def _current_plan(self) -> _Plan:
        """The calls of an update; made anew when a tensor was replaced, cast or moved since."""
        slots = self._current_slots()
        now = slots.tensors(buffers=self.buffer_policy != "own")
        if self._plan is not None and self._plan.holds(now):
            return self._plan
        averaged, copied = _split(self._pairs("parameters"))
        if self.buffer_policy == "ema":
            averaged_buffers, copied_buffers = _split(self._pairs("buffers"))
            averaged, copied = averaged + averaged_buffers, copied + copied_buffers
        elif self.buffer_policy == "copy":
            copied += self._pairs("buffers")
        plan = _Plan(now, [(t.dtype, t.device, t.shape) for t in now], _grouped(averaged), _grouped(copied))
        self._plan = None if any(map(_is_sharded, now)) else plan
        return plan

    def _pairs(self, kind: Literal["parameters", "buffers"]) -> list[_Pair]:
        """(copy's, online's) tensors as they are now, a tied one once."""
        pairs: dict[int, _Pair] = {}
        for path, ours, theirs, name in getattr(self._current_slots(), kind):
            pair = ours[name], theirs[name]
            if pair[0].shape != pair[1].shape or _is_sharded(pair[0]) != _is_sharded(pair[1]):
                raise ConfigError(_mismatch(f"{path}.{name}" if path else name, *pair))
            pairs[id(pair[0])] = pair
        return list(pairs.values())


def _checked(momentum: float) -> float:
    if not 0.0 <= momentum <= 1.0:
        raise ConfigError(f"momentum is {momentum}; it must lie between 0 (follow at once) and 1 (never move)")
    return momentum


def _find_slots(copied: nn.Module, online: nn.Module) -> _Slots:
    ours, theirs = dict(copied.named_modules()), dict(online.named_modules())
    names = [
        {f"{path}.{name}" for path, module in modules.items() for name in _tensor_names(module)}
        for modules in (ours, theirs)
    ]
    if names[0] != names[1]:
        only = [", ".join(sorted(a - b)[:3]) or "nothing" for a, b in (names, names[::-1])]
        raise ConfigError(
            f"the online network and its momentum copy no longer have the same tensors (only in the copy: {only[0]}; "
            f"only online: {only[1]}); build a new MomentumEncoder after changing the network"
        )
    slots = _Slots()
    for path, module in ours.items():
        twin = theirs[path]
        for name in _tensor_names(module):
            kind = "_parameters" if name in module._parameters else "_buffers"
            slot = (path, getattr(module, kind), getattr(twin, kind), name)
            (slots.parameters if kind == "_parameters" else slots.buffers).append(slot)
    for module in (*ours.values(), *theirs.values()):
        slots.children.append((module._modules, tuple(module._modules.values())))
        slots.sizes += [(module._parameters, len(module._parameters)), (module._buffers, len(module._buffers))]
    return slots


def _tensor_names(module: nn.Module) -> list[str]:
    return [name for held in (module._parameters, module._buffers) for name, t in held.items() if t is not None]


def _mismatch(path: str, ours: Tensor, theirs: Tensor) -> str:
    def described(tensor: Tensor) -> str:
        return f"{tuple(tensor.shape)}{', sharded' if _is_sharded(tensor) else ''}"

    if ours.shape == theirs.shape:
        advice = "shard the online network and its copy alike (fully_shard the module that holds both, or each)"
    else:
        advice = "build a new MomentumEncoder after changing the network"
    return f"{path} is {described(theirs)} in the online network but {described(ours)} in its momentum copy; {advice}"


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")  # a DTensor, told without importing torch.distributed.tensor


def _local(tensor: Any) -> Tensor:
    return tensor.to_local() if _is_sharded(tensor) else tensor


def _is_half(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize < 4


def _at_least_float32(before: Tensor, after: Tensor) -> Tensor:
    """``after``, a moved or cast ``before``, unless it lost precision below float32."""
    if not _is_half(after):
        return after
    return after.float() if _is_half(before) else before.to(after.device)


def _widened_input(tensor: Tensor) -> Tensor:
    return tensor.float() if _is_half(tensor) and not torch.is_autocast_enabled(tensor.device.type) else tensor


def _split(pairs: Iterable[_Pair]) -> tuple[list[_Pair], list[_Pair]]:
    """Those that can be averaged (floating point, complex) and those that can only be copied."""
    averaged: list[_Pair] = []
    copied: list[_Pair] = []
    for pair in pairs:
        (averaged if pair[0].is_floating_point() or pair[0].is_complex() else copied).append(pair)
    return averaged, copied


def _grouped(pairs: Iterable[_Pair]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Local shards in lists of one device and dtype, as fused calls want them."""
    groups: defaultdict[tuple[Any, ...], tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for pair in pairs:
        ours, theirs = map(_local, pair)
        if ours.device != theirs.device:
            raise ConfigError(
                f"the online network is on {theirs.device} but its momentum copy on {ours.device}; "
                "move the module that holds both"
            )
        group = groups[ours.device, ours.dtype, theirs.dtype]
        group[0].append(ours)
        group[1].append(theirs)
    return list(groups.values())


def _cast_like(ours: list[Tensor], theirs: list[Tensor]) -> list[Tensor]:
    if ours[0].dtype == theirs[0].dtype:
        return theirs
    cast = [torch.empty_like(tensor) for tensor in ours]
    torch._foreach_copy_(cast, theirs)
    return cast


def _copy(pairs: Iterable[_Pair]) -> None:
    for ours, theirs in _grouped(pairs):
        torch._foreach_copy_(ours, _cast_like(ours, theirs))


def _squared_norms(pairs: Iterable[_Pair]) -> Tensor:
    """(2,): Σ‖θk − θq‖² and Σ‖θq‖² over this process's shards."""
    norms: list[Tensor] = []
    for ours, theirs in _grouped(pairs):
        wide = _cast_like(ours, theirs)
        for tensors in (torch._foreach_sub(ours, wide), wide):
            norms.append(torch.stack(torch._foreach_norm(tensors)).square().sum())
    device = norms[0].device
    return torch.stack([norm.to(device) for norm in norms]).view(-1, 2).sum(0)
