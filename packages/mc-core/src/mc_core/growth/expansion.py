"""Lossless expansion: a larger transformer that is the same function as the smaller one it came from.

What becomes of the entries that a larger tensor has and the smaller one had not (*drawn*: as the fresh model has them):

=================  ====================================================================================================
a block            at the end of its part, W_o, b_o, W_2, b_2 = 0: it adds nothing to the stream yet
heads              queries, keys and values drawn, their columns of W_o = 0
hidden units       rows of W_1 drawn, their columns of W_2 = 0
width d → D        writers into the residual stream lose their mean over its channels (every reader is behind a LayerNorm, which
                   does not see it) and write 0 into new channels; readers of new channels are drawn; a stream of mean 0 has its
                   variance changed by d/D alone, which gains · √(d/D) and ε · d/D undo
joint width        the new rows of every projection are drawn, and c = 5e-4 of the old ones in size (see below)
=================  ====================================================================================================

The function is kept to rounding: bit by bit by a block, up to the order of a sum by heads and hidden units. Every new entry has
a gradient after at most two updates (a block's inside has none at the first).

**Joint width.** Let W_v z and W_t z′ be compared by their cosine, both W of full row rank e. A linear widening to W′ in which all
cosines stay exact needs |W′_v z|² = a²|W_v z|², |W′_t z′|² = b²|W_t z′|² and W′_vᵀW′_t = ab·W_vᵀW_t. Then W′_v = a·Q_v W_v and
W′_t = b·Q_t W_t with isometries of which Q_vᵀQ_t = 1, hence Q_v = Q_t (|Q_v x − Q_t x|² = 2|x|² − 2xᵀQ_vᵀQ_t x = 0). So every
embedding stays in the e dimensions that Q spans, and the gradient of any loss of cosines, a sum of such embeddings, does too: an
exact widening is dead for ever under gradient descent, whatever its signs. But a part A orthogonal to the old dimensions changes
a cosine in second order only, by (|A_v z|/|W_v z|)² and its like, while its gradient is of first order. So the new rows are small
noise: with a relative size of 5e-4 cosines move by less than 5e-6, gradients are there at the first update, an optimizer that
scales each weight (Adam) trains them at full speed at once, and embeddings stored before stay comparable when zeros are appended.

Copying a block, or tiling and dividing weights, is not lossless and not done here.

Sources: GrowCLIP (Deng et al. 2023, arXiv:2308.11331) grows such a model; the operators here are this project's. Growing without
changing the function is Net2Net's aim (Chen et al. 2016, arXiv:1511.05641).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mc_core.errors import ConfigError
from mc_core.growth._vision_block import NORMS, vision_block_axes
from mc_core.growth.blocks import Block
from mc_core.growth.layout import Axis, Residual
from mc_core.momentum import MomentumEncoder

__all__ = ["Expansion", "Growable", "drawn", "grow", "grow_optimizer_state"]

JOINT_NOISE = 5e-4
M = TypeVar("M", bound=nn.Module)


class Growable(Protocol):
    """What a model offers to be grown by :func:`grow`."""

    def residual(self) -> Residual:
        """Where the model touches its residual stream outside its blocks."""
        ...

    def resized(self, spec: Any) -> nn.Module:
        """An untrained model of another size, with everything else as it is here."""
        ...


def drawn(model: Growable, spec: Any, seed: int) -> nn.Module:
    """An untrained model of another size, a function of (model's settings, spec, seed); torch's random state stays as it was.

    Args:
        model: what says how to build one.
        spec: the size.
        seed: of the draw.

    >>> class Tower(nn.Linear):
    ...     def resized(self, spec):
    ...         return Tower(2, spec)
    ...
    ...     def residual(self):
    ...         return Residual()
    >>> torch.equal(drawn(Tower(2, 2), 3, seed=0).weight, drawn(Tower(2, 2), 3, seed=0).weight)
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return model.resized(spec)


def grow(model: M, spec: Any, seed: int, *, joint_noise: float = JOINT_NOISE) -> M:
    """A larger model that is the same function; the one given stays as it is.

    A moving average of the model that is grown with the same seed gets the same new entries.

    Args:
        model: a :class:`Growable`.
        spec: the size to grow to, as its ``resized`` takes it.
        seed: of the new entries.
        joint_noise: see :class:`Expansion`.

    Raises:
        ConfigError: not a :class:`Growable`, a smaller target, or a part that cannot grow.
    """
    if not all(callable(getattr(model, name, None)) for name in ("residual", "resized")):
        raise ConfigError(
            f"{type(model).__name__} says neither what its residual stream is (residual()) nor how to build a larger one "
            "(resized(spec)); models like timm's VisionTransformer grow by mc_core.growth.grow_vision_transformer"
        )
    return Expansion(model, drawn(cast(Growable, model), spec, seed), joint_noise=joint_noise)(model)


@dataclass(frozen=True)
class _Rule:
    """How one parameter grows."""

    before: torch.Size | None  # None: of a new block
    after: torch.Size
    axes: tuple[Axis, ...] = ()  # those that grow
    silent: bool = False  # a writer of a new block

    def corner(self, grown: Tensor) -> Tensor:
        """A view of where the old entries lie."""
        view, places = _ungrouped(grown, self.axes)
        assert self.before is not None
        for axis, dim in zip(self.axes, places, strict=True):
            view = view.narrow(dim, 0, self.before[axis.dim] // axis.groups)
        return view

    def split(self, old: Tensor) -> Tensor:
        """Old entries in the shape of their corner."""
        return _ungrouped(old, self.axes)[0]

    def beyond(self, grown: Tensor, axis: Axis) -> Tensor:
        """A view of the new entries along one axis."""
        view, places = _ungrouped(grown, self.axes)
        dim = places[self.axes.index(axis)]
        assert self.before is not None
        held = self.before[axis.dim] // axis.groups
        return view.narrow(dim, held, view.shape[dim] - held)

    def growing(self, *roles: str) -> Iterator[Axis]:
        """Axes that grow in one of some roles."""
        return (axis for axis in self.axes if axis.role in roles)

    def ratio(self, axis: Axis) -> float:
        """d/D along an axis."""
        assert self.before is not None
        return self.before[axis.dim] / self.after[axis.dim]


def _ungrouped(tensor: Tensor, axes: Sequence[Axis]) -> tuple[Tensor, list[int]]:
    """The tensor with each packed axis as (groups, rest), and where the axes lie in it."""
    places: list[int] = []
    for i, axis in enumerate(axes):
        shift = sum(other.groups > 1 and other.dim < axis.dim for other in axes)
        places.append(axis.dim + shift + (axis.groups > 1))
        assert i == 0 or axes[i - 1].dim < axis.dim
    for axis in reversed(axes):
        if axis.groups > 1:
            tensor = tensor.unflatten(axis.dim, (axis.groups, -1))
    return tensor, places


@dataclass
class Described:
    """A model's parameters with their axes, its norms over the stream, and blocks by stack."""

    axes: dict[str, tuple[Axis, ...]] = field(default_factory=dict)
    norms: list[str] = field(default_factory=list)
    blocks: dict[str, int] = field(default_factory=dict)


class Expansion:
    """A way from one size of a model to a larger one: made once, applied to the model, its moving average, optimizer moments.

    Args:
        old: the smaller model. Its weights play no part here, only its sizes.
        fresh: an untrained model of the larger size, whose weights are what new entries are drawn from.
        residual: where the models touch their residual stream; default: what ``old.residual()`` says.
        joint_noise: size of new rows of the joint projections, relative to the old ones. 0 leaves cosines exact and the new
            dimensions without gradient for ever.

    Raises:
        ConfigError: a size that shrinks, a parameter that changes its shape in a way nobody described, or a part that cannot
            grow, each named.

    >>> class Tower(nn.Module):
    ...     def __init__(self, width, blocks):
    ...         super().__init__()
    ...         self.embed = nn.Linear(3, width)
    ...         self.blocks = nn.ModuleList(Block(width, 2, 4, 16) for _ in range(blocks))
    ...         self.norm = stream_norm(width)
    ...         self.head = nn.Linear(width, 5)
    ...
    ...     def residual(self):
    ...         return Residual(("blocks",), {"embed.weight": 0, "embed.bias": 0}, {"head.weight": 1}, ("norm",))
    ...
    ...     def forward(self, x):
    ...         x = self.embed(x)
    ...         for block in self.blocks:
    ...             x = block(x)
    ...         return self.head(self.norm(x))
    >>> from mc_core.growth import Block, stream_norm
    >>> old = Tower(width=12, blocks=1)
    >>> new = Expansion(old, Tower(width=20, blocks=3))(old)
    >>> x = torch.randn(2, 7, 3)
    >>> torch.allclose(new(x), old(x), atol=5e-6), len(new.blocks)
    (True, 3)
    """

    def __init__(
        self,
        old: nn.Module,
        fresh: nn.Module,
        residual: Residual | None = None,
        *,
        joint_noise: float = JOINT_NOISE,
    ) -> None:
        if not 0.0 <= joint_noise <= 0.1:
            raise ConfigError(f"joint_noise is {joint_noise}; choose 0 (dead) to 0.1, such as {JOINT_NOISE}")
        if residual is None:
            if not callable(getattr(old, "residual", None)):
                raise ConfigError(f"{type(old).__name__} has no residual(): pass a Residual that describes it")
            residual = cast(Growable, old).residual()
        self.old, self.fresh, self.joint_noise = old, fresh, joint_noise
        before, after = described(old, residual), described(fresh, residual)
        self._norms = before.norms
        self._rules = dict(_rules(old, fresh, before, after))
        self._check_norms()

    def __call__(self, module: M) -> M:
        """The grown form of the smaller model or of its moving average; neither it nor the fresh model is changed.

        It is in the module's mode, precision and place. Buffers that do not grow are copied, others are the fresh model's.

        Raises:
            ConfigError: the module has other parameters than the model this expansion was made for.
        """
        given = self._checked(module)
        grown = copy.deepcopy(self.fresh)
        reference = next(iter(given.values()), None)
        with torch.no_grad():
            for name, parameter in grown.named_parameters():
                old = given.get(name)
                value = self._value(self._rules[name], old, parameter)
                like = reference if old is None else old
                parameter.data = value if like is None else value.to(like)
                parameter.requires_grad_(parameter.requires_grad if old is None else old.requires_grad)
            _copy_buffers(module, grown)
        for path in self._norms:
            norm, twin = module.get_submodule(path), grown.get_submodule(path)
            assert isinstance(norm, nn.LayerNorm)
            assert isinstance(twin, nn.LayerNorm)
            twin.eps = norm.eps * norm.normalized_shape[0] / twin.normalized_shape[0]
        return cast(M, grown.train(module.training))

    def twin(self, encoder: MomentumEncoder, online: nn.Module) -> MomentumEncoder:
        """The grown form of a moving average, following ``online``: by the same rules and draws, never a new copy of it.

        Args:
            encoder: of the smaller model.
            online: the larger model, grown by this expansion.
        """
        grown = MomentumEncoder(
            online, encoder.momentum, buffers=encoder.buffer_policy, evaluation_mode=encoder.evaluation_mode
        )
        grown.module.load_state_dict(self(encoder.module).state_dict())
        return grown.train(encoder.training)

    @torch.no_grad()
    def extracted(self, large: nn.Module) -> nn.Module:
        """The smaller model that lies in a larger one: its first blocks, heads and hidden units, as a model that stands alone.

        Args:
            large: of the size of ``fresh``, trained or not.

        Raises:
            ConfigError: the two differ in width or joint width, which cannot be cut off, or ``large`` has another size.
        """
        for name, rule in self._rules.items():
            if rule.before is not None and any(axis.role not in ("new", "unread") for axis in rule.axes):
                raise ConfigError(
                    f"{name} grows from {tuple(rule.before)} to {tuple(rule.after)}: a model can be extracted by blocks, heads "
                    "and hidden units, not by width"
                )
        given = dict(large.named_parameters())
        if found := [
            name for name, rule in self._rules.items() if name not in given or given[name].shape != rule.after
        ]:
            raise ConfigError(f"{found[0]} is not of the size this expansion grows to; pass a model like the fresh one")
        small = copy.deepcopy(self.old)
        for name, parameter in small.named_parameters():
            parameter.copy_(self._rules[name].corner(given[name]).reshape(parameter.shape))
        _copy_buffers(large, small)
        return small.train(large.training)

    @torch.no_grad()
    def moment(self, name: str, old: Tensor, *, power: int = 1) -> Tensor:
        """A moment of a parameter's gradient in the grown model: 0 for new entries.

        Args:
            name: of the parameter.
            old: its moment in the smaller model.
            power: of the gradient, 1 or 2: where a gain was scaled by s, its gradient is scaled by 1/s.
        """
        rule = self._rules[name]
        grown = old.new_zeros(rule.after)
        for axis in rule.growing("gain"):
            old = old * rule.ratio(axis) ** (-0.5 * power)
        rule.corner(grown).copy_(rule.split(old))
        return grown

    def is_new(self, name: str) -> bool:
        """Whether a parameter of the larger model belongs to a new block."""
        return self._rules[name].before is None

    def _value(self, rule: _Rule, old: Tensor | None, fresh: Tensor) -> Tensor:
        if old is None:
            return torch.zeros_like(fresh) if rule.silent else fresh.detach().clone()
        if not rule.axes:
            return old.detach().clone()
        new = fresh.detach().to(old).clone(memory_format=torch.contiguous_format)
        exact = old.detach().double()
        for axis in rule.growing("write"):
            exact = exact - exact.mean(axis.dim, keepdim=True)
        for axis in rule.growing("gain"):
            exact = exact * rule.ratio(axis) ** 0.5
        for axis in rule.growing("joint"):
            rows = rule.beyond(new, axis)
            drawn_norm = rows.narrow(1 - axis.dim, 0, old.shape[1 - axis.dim]).norm()
            rows.mul_(self.joint_noise * old.detach().norm() / drawn_norm.clamp_min(torch.finfo(new.dtype).tiny))
        for axis in rule.growing("write", "shift", "unread"):
            rule.beyond(new, axis).zero_()
        rule.corner(new).copy_(rule.split(exact))
        return new

    def _checked(self, module: nn.Module) -> dict[str, nn.Parameter]:
        given = dict(module.named_parameters())
        expected = {name: rule.before for name, rule in self._rules.items() if rule.before is not None}
        for name in (*expected, *given):
            shape = given[name].shape if name in given else None
            if shape != expected.get(name):
                told = ["missing" if one is None else str(tuple(one)) for one in (shape, expected.get(name))]
                raise ConfigError(
                    f"{name} is {told[0]}, but {told[1]} in the model this expansion starts from; make one for this model"
                )
        return given

    def _check_norms(self) -> None:
        """A stream that grows is read behind norms that grow, and have gains to be rescaled."""
        for path in self._norms:
            norm, twin = self.old.get_submodule(path), self.fresh.get_submodule(path)
            if norm.normalized_shape != twin.normalized_shape and norm.weight is None:
                raise ConfigError(
                    f"{path} is a LayerNorm without gains, which a growth in width has to rescale; it can be handled with "
                    "elementwise_affine=True"
                )
        sizes: dict[str, set[int]] = {"read": set(), "gain": set(), "write": set()}
        for rule in self._rules.values():
            for axis in rule.growing(*sizes):
                sizes[axis.role].add(rule.after[axis.dim])
        for role, told in (("read", "read"), ("write", "written")):
            if missing := sizes[role] - sizes["gain"]:
                raise ConfigError(
                    f"a residual stream that grows to {min(missing)} channels is {told}, but no LayerNorm over it grows so; a "
                    "model can grow in width where every reader is behind a LayerNorm (Residual.norms)"
                )


def _rules(old: nn.Module, fresh: nn.Module, before: Described, after: Described) -> Iterator[tuple[str, _Rule]]:
    for stack, count in before.blocks.items():
        if after.blocks[stack] < count:
            raise ConfigError(
                f"the growth target is smaller than the model: {stack or type(old).__name__} has {count} blocks, "
                f"the target {after.blocks[stack]}; a model can only grow"
            )
    new_blocks = tuple(
        _prefix(stack, i) for stack, count in after.blocks.items() for i in range(before.blocks[stack], count)
    )
    held = dict(old.named_parameters())
    for name, parameter in fresh.named_parameters():
        axes = after.axes.get(name, ())
        if name in held:
            yield name, _rule(name, held.pop(name).shape, parameter.shape, axes)
        elif name.startswith(new_blocks):
            yield name, _Rule(None, parameter.shape, silent=any(axis.role == "write" for axis in axes))
        else:
            raise ConfigError(
                f"{name} is in the larger model only; growth adds blocks at the end of a stack and entries to tensors, "
                "nothing else"
            )
    if held:
        raise ConfigError(f"{next(iter(held))} is in the smaller model only; a model can only grow")


def _rule(name: str, before: torch.Size, after: torch.Size, axes: tuple[Axis, ...]) -> _Rule:
    if len(before) != len(after):
        raise ConfigError(f"{name} changes from {tuple(before)} to {tuple(after)}; only sizes can grow")
    known = {axis.dim: axis for axis in axes}
    grown: list[Axis] = []
    for dim, (small, large) in enumerate(zip(before, after, strict=True)):
        if large < small:
            raise ConfigError(
                f"the growth target is smaller than the model: {name} is {tuple(before)} in the model, {tuple(after)} in the "
                "target; a model can only grow"
            )
        if large == small:
            continue
        if dim not in known:
            raise ConfigError(
                f"{name} grows from {tuple(before)} to {tuple(after)} along axis {dim}, but nothing says what that axis is; "
                "name it among Residual's writers, readers, norms or joint, or keep it as it is"
            )
        grown.append(known[dim])
    return _Rule(before, after, tuple(grown))


def described(model: nn.Module, residual: Residual) -> Described:
    """The tables of a model and of its blocks, as axes of parameters."""
    found = Described()
    parameters = dict(model.named_parameters())
    for role, table in (("write", residual.writers), ("read", residual.readers), ("joint", residual.joint)):
        for name, dim in table.items():
            if name not in parameters:
                raise ConfigError(f"Residual names {name}, but {type(model).__name__} has no such parameter")
            dim %= parameters[name].ndim
            if role == "joint" and parameters[name].ndim == 1:
                role = "shift"
            axes = (*found.axes.get(name, ()), Axis(dim, cast(Any, role)))
            found.axes[name] = tuple(sorted(axes, key=lambda axis: axis.dim))
    found.norms += residual.norms
    for stack in residual.stacks:
        blocks = model.get_submodule(stack)
        count = 0
        for i, block in enumerate(blocks.children()):
            prefix = _prefix(stack, i)
            if isinstance(block, Block):
                axes, norms = block.axes(), block.norms()
            else:
                axes, norms = vision_block_axes(block, prefix[:-1]), NORMS
            found.axes |= {prefix + name: axis for name, axis in axes.items()}
            found.norms += [prefix + name for name in norms]
            count += 1
        found.blocks[stack] = count
    for path in found.norms:
        norm = model.get_submodule(path)
        if not isinstance(norm, nn.LayerNorm) or len(norm.normalized_shape) != 1:
            raise ConfigError(
                f"{path} is a {type(norm).__name__}, which the expansion cannot handle; it can handle LayerNorm"
            )
        for name, role in (("weight", "gain"), ("bias", "shift")):
            if f"{path}.{name}" in parameters:
                found.axes[f"{path}.{name}"] = (Axis(0, cast(Any, role)),)
    return found


def _prefix(stack: str, block: int) -> str:
    """What the names of a block's parameters begin with."""
    return f"{stack}.{block}." if stack else f"{block}."


def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    held = dict(source.named_buffers())
    for name, buffer in target.named_buffers():
        if name in held and held[name].shape == buffer.shape:
            buffer.data = held[name].detach().clone()


def grow_optimizer_state(
    old: Optimizer,
    new: Optimizer,
    expansion: Expansion,
    old_model: nn.Module,
    new_model: nn.Module,
    *,
    restart: bool = True,
) -> None:
    """Moments of an optimizer of the smaller model, put into one of the larger model; 0 for new entries.

    With ``restart`` a tensor's bias correction starts again in the only way that suits moments which are not 0: the old
    estimates count as one gradient seen so far, and a new entry as one gradient of 0. Neither the first update of an old entry
    is inflated (by 1/(1 − β1), were the count alone set back) nor that of a new one (by (1 − β1)/√(1 − β2), were it kept).

    Args:
        old: of the smaller model; ``exp_avg`` and ``exp_avg_sq`` (Adam, AdamW) or ``momentum_buffer`` (SGD).
        new: of the larger model, without state; its state is set in place.
        expansion: by which the model grew.
        old_model: whose parameters ``old`` holds.
        new_model: whose parameters ``new`` holds.
        restart: bias correction; without it step counts go on.

    Raises:
        ConfigError: a parameter that belongs to no model, or a state that growth does not know.
    """
    names = {id(parameter): name for name, parameter in old_model.named_parameters()}
    targets = dict(new_model.named_parameters())
    held = {id(parameter) for group in new.param_groups for parameter in group["params"]}
    for group in old.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise ConfigError(
                    "the optimizer holds a parameter that is not the smaller model's; pass the model it trains"
                )
            name = names[id(parameter)]
            state = old.state.get(parameter)
            if not state or id(targets[name]) not in held:
                continue
            new.state[targets[name]] = _grown_state(name, state, group, expansion, restart)


def _grown_state(
    name: str, state: Mapping[str, Any], group: Mapping[str, Any], expansion: Expansion, restart: bool
) -> dict[str, Any]:
    powers = {"exp_avg": 1, "exp_avg_sq": 2, "momentum_buffer": 1}
    if unknown := set(state) - {*powers, "step"}:
        raise ConfigError(
            f"the optimizer keeps {', '.join(sorted(unknown))}, which growth does not know; it knows Adam, AdamW and SGD: "
            "start another optimizer anew"
        )
    grown: dict[str, Any] = {}
    for key, value in state.items():
        if key == "step":
            grown[key] = torch.ones_like(value) if restart else value.clone()
            continue
        moment = None if value is None else expansion.moment(name, value, power=powers[key])
        if moment is not None and restart and key in ("exp_avg", "exp_avg_sq"):
            beta = group["betas"][powers[key] - 1]
            moment *= (1 - beta) / (1 - beta ** float(state["step"]))
        grown[key] = moment
    return grown
