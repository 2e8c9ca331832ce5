"""LARS, Adam without detours, and the optimizer a :class:`~mc_core.engine.config.Fit` asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from mc_core.errors import ConfigError

if TYPE_CHECKING:
    from mc_core.engine.config import Fit


_FUSED = ("cpu", "cuda")  # devices whose fused optimizers are used
_ADAM = ("exp_avg", "exp_avg_sq", "step")  # what torch's Adam keeps for each tensor


class LARS(Optimizer):
    """SGD with momentum whose step is scaled, per tensor, to a fixed share of the tensor's norm; for large batches.

    For each tensor: ``g ← g + wd·p``; ``g ← g · trust·‖p‖/‖g‖`` (by 1 where either norm is 0);
    ``buffer ← momentum·buffer + g``; ``p ← p − lr·buffer``. All tensors at once in fused calls, without waiting for the
    device.

    Args:
        params: parameters or groups, as for any torch optimizer.
        lr: learning rate, ≥ 0.
        momentum: in [0, 1).
        weight_decay: ≥ 0.
        trust_coefficient: > 0.
        exclude_1d: leave tensors with fewer than two dimensions (biases, normalisation) to plain SGD with momentum and
            no decay, as MoCo v3, SimCLR and BYOL do. False adapts all, as SwAV's LARC did.

    Raises:
        ConfigError: a value out of range.

    Source: You et al. 2017 (arXiv:1708.03888); the order of operations is that of MoCo v3's released code.

    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> weight.grad = torch.tensor([[0.0, 10.0]])
    >>> LARS([weight], lr=1.0, trust_coefficient=0.1).step()  # 0.1 · 5/10 of the gradient
    >>> weight.data
    tensor([[3.0000, 3.5000]])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        exclude_1d: bool = True,
    ) -> None:
        if not lr >= 0 or not 0 <= momentum < 1 or not weight_decay >= 0 or not trust_coefficient > 0:
            raise ConfigError(
                f"LARS with lr {lr}, momentum {momentum}, weight_decay {weight_decay}, trust_coefficient "
                f"{trust_coefficient}: lr and decay are at least 0, momentum in [0, 1), the trust coefficient above 0"
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "exclude_1d": exclude_1d,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step. ``closure``, if given, recomputes the loss with gradients and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [(p, p.grad) for p in group["params"] if p.grad is not None]
            adapted = [(p, g) for p, g in trained if p.ndim > 1 or not group["exclude_1d"]]
            plain = [(p, g) for p, g in trained if p.ndim <= 1 and group["exclude_1d"]]
            if adapted:
                self._descend([p for p, _ in adapted], _trusted(adapted, group), group)
            if plain:
                self._descend([p for p, _ in plain], [g for _, g in plain], group)
        return loss

    def _descend(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        torch._foreach_add_(parameters, buffers, alpha=-group["lr"])


def _trusted(pairs: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> list[Tensor]:
    """New tensors ``(g + wd·p) · trust·‖p‖/‖g + wd·p‖`` for pairs (p, g)."""
    parameters = [p for p, _ in pairs]
    gradients = list(torch._foreach_add([g for _, g in pairs], parameters, alpha=group["weight_decay"]))
    p_norms, g_norms = (torch.stack(torch._foreach_norm(x)) for x in (parameters, gradients))
    ratios = torch.where((p_norms > 0) & (g_norms > 0), group["trust_coefficient"] * p_norms / g_norms, 1.0)
    torch._foreach_mul_(gradients, ratios.unbind())
    return gradients


class StraightAdam(Adam):
    """torch's fused Adam or AdamW, to the bit, with less between two calls of its kernel.

    What torch looks up and sorts for each tensor at each step takes longer than the step itself where tensors are small. Here
    groups whose tensors are of one kind go to the kernel as they are; whatever else there is, and each first step, goes torch's
    way. State and its names are torch's, so that either continues a run of the other.

    Args:
        params, lr, betas, eps, weight_decay, decoupled_weight_decay: as of :class:`torch.optim.Adam`; ``fused`` is always on.

    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = StraightAdam([weight], lr=0.5, decoupled_weight_decay=True, weight_decay=0.0)
    >>> for _ in range(2):
    ...     weight.grad = torch.tensor([2.0, -3.0])
    ...     _ = optimizer.step()
    >>> weight.data.round(decimals=4)
    tensor([0., 2.])
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float, **options: Any) -> None:
        super().__init__(params, lr, fused=True, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; see :meth:`torch.optim.Adam.step`."""
        scaled = getattr(self, "grad_scale", None) is not None or getattr(self, "found_inf", None) is not None
        ready = None if scaled or closure is not None else [self._ready(group) for group in self.param_groups]
        if ready is None or None in ready:
            return super().step(closure)
        for group, tensors in zip(self.param_groups, ready, strict=True):
            assert tensors is not None
            parameters, gradients, averages, squares, steps = tensors
            if not parameters:
                continue
            torch._foreach_add_(steps, 1)
            kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
            kernel(
                parameters,
                gradients,
                averages,
                squares,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
        return None

    def _ready(self, group: dict[str, Any]) -> tuple[list[Tensor], ...] | None:
        """Parameters, gradients, both averages and counts of steps; None where torch's way is needed."""
        if not group["fused"] or group["amsgrad"] or group["maximize"] or isinstance(group["lr"], Tensor):
            return None
        gradients = [p.grad for p in group["params"]]
        parameters = [p for p, g in zip(group["params"], gradients, strict=True) if g is not None]
        gradients = [g for g in gradients if g is not None]
        if not parameters:
            return [], [], [], [], []
        kind, device = parameters[0].dtype, parameters[0].device
        states = [self.state.get(p) for p in parameters]
        if not all(states) or any(p.dtype is not kind or p.device != device for p in parameters):
            return None
        if any(g.dtype is not kind or g.layout is not torch.strided for g in gradients):
            return None
        averages, squares, steps = ([state[name] for state in states] for name in _ADAM)  # type: ignore[index]
        return parameters, gradients, averages, squares, steps


@torch.no_grad()
def clip_each_gradient(parameters: Iterable[Tensor], max_norm: float) -> None:
    """Scale every gradient by ``min(1, max_norm / ‖g‖)``, each by its own norm, in place and without waiting.

    Unlike ``torch.nn.utils.clip_grad_norm_``, one large gradient does not shrink the others. Sharded gradients (FSDP2)
    are clipped by the norm of the whole tensor.

    Args:
        parameters: those without a gradient are skipped.
        max_norm: > 0.

    Source: the released code of DINO (Caron et al. 2021, arXiv:2104.14294), ``clip_gradients``.

    >>> weight, bias = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    >>> weight.grad, bias.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.5])
    >>> clip_each_gradient([weight, bias], 1.0)
    >>> weight.grad, bias.grad
    (tensor([0.6000, 0.8000]), tensor([0.5000]))
    """
    trained = [p for p in parameters if p.grad is not None]
    whole: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for p in trained:
        assert p.grad is not None
        if hasattr(p.grad, "to_local"):
            torch.nn.utils.clip_grad_norm_([p], max_norm)
        else:
            whole.setdefault((p.grad.device, p.grad.dtype), []).append(p.grad)
    for gradients in whole.values():
        norms = torch.stack(torch._foreach_norm(gradients))
        torch._foreach_mul_(gradients, (max_norm / (norms + 1e-6)).clamp(max=1.0).unbind())


def build_optimizer(groups: Iterable[dict[str, Any]], fit: Fit) -> Optimizer:
    """The optimizer ``fit.optimizer`` names, at the peak learning rate ``fit.lr_at_batch()``.

    Args:
        groups: such as :meth:`~mc_core.engine.method.Method.parameter_groups` returns; what a group does not set
            itself comes from ``fit``.
        fit: the run's configuration.

    Raises:
        ConfigError: nothing to train.

    >>> from mc_core.engine.config import Fit
    >>> groups = [{"params": [torch.nn.Parameter(torch.zeros(2, 2))], "weight_decay": 0.0}]
    >>> build_optimizer(groups, Fit(optimizer="lars", lr=0.3, lr_scaling="linear", batch_size=4096)).defaults["lr"]
    4.8
    """
    groups = [{**group, "params": list(group["params"])} for group in groups]
    if not any(group["params"] for group in groups):
        raise ConfigError("there is nothing to train: no parameter requires a gradient")
    lr = fit.lr_at_batch()
    # One pass over memory. Not in fp16, where a fused step hides from the trainer that it was skipped, nor for sharded
    # weights, which fused SGD does not take.
    fused = fit.precision != "fp16" and all(
        p.device.type in _FUSED and p.is_floating_point() and not hasattr(p, "to_local") for p in _all(groups)
    )
    how: dict[str, Any] = {"fused": True} if fused else {"foreach": True}
    if fit.optimizer == "sgd":
        sgd = SGD(groups, lr, momentum=fit.momentum, weight_decay=fit.weight_decay, **how)
        if fused and fit.momentum:  # which fails where a first gradient comes later than those of other parameters
            for p in _all(groups):
                sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return sgd
    if fit.optimizer == "lars":
        return LARS(
            groups,
            lr,
            momentum=fit.momentum,
            weight_decay=fit.weight_decay,
            trust_coefficient=fit.trust_coefficient,
            exclude_1d=not fit.adapt_1d,
        )
    decoupled = fit.optimizer == "adamw"
    if fused:
        return StraightAdam(
            groups, lr, betas=fit.betas, weight_decay=fit.weight_decay, decoupled_weight_decay=decoupled
        )
    return (AdamW if decoupled else Adam)(groups, lr, betas=fit.betas, weight_decay=fit.weight_decay, foreach=True)


def _all(groups: Iterable[dict[str, Any]]) -> Iterable[Tensor]:
    return (p for group in groups for p in group["params"])
