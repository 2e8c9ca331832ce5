"""Watches a run: says what is wrong with a representation, since when, and what to try, before days are spent on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mc_core.engine.method import Progress
from mc_core.errors import CollapseError, NonFiniteError
from mc_core.evaluation import alignment, effective_rank, feature_spread, uniformity
from mc_core.momentum import MomentumEncoder
from mc_core.queue import FeatureQueue

SPREAD_FLOOR = 0.01
"""Below this feature spread (1 is isotropic, 0 a single point) the features count as collapsed: mean cosine above 0.9999."""
PATIENCE = 3
"""Checks in a row that must find a collapse before the run is stopped."""


class LossWatch:
    """Notices a NaN or infinite loss: at once on a CPU, at the next reading on a GPU, without a synchronisation per step."""

    def __init__(self, device: torch.device) -> None:
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self._reads_are_free = device.type == "cpu"

    @torch.no_grad()
    def see(self, loss: Tensor, step: int) -> None:
        """Look at the loss of step ``step`` before it is used.

        Raises:
            NonFiniteError: on a CPU, when the loss is not finite.
        """
        if self._reads_are_free:
            if not torch.isfinite(loss):
                self._fail(step, f"the loss is {loss.item()}")
        else:
            bad = ~torch.isfinite(loss) & (self._first_bad < 0)
            self._first_bad = torch.where(bad, step, self._first_bad)

    def read(self) -> None:
        """Raise if a loss seen so far was not finite (synchronises)."""
        first = int(self._first_bad)
        if first >= 0:
            self._fail(first, "the loss is not finite")

    @staticmethod
    def check_parameters(module: nn.Module, step: int) -> None:
        """Raise if a parameter is not finite: a checkpoint must not hold one (one fused pass, one synchronisation)."""
        by_device: dict[torch.device, list[Tensor]] = {}
        for parameter in module.parameters():
            value = parameter.detach()
            value = value.to_local() if hasattr(value, "to_local") else value  # type: ignore[operator]
            if value.is_floating_point() and value.numel():
                by_device.setdefault(value.device, []).append(value)
        for tensors in by_device.values():
            if not torch.isfinite(torch.stack(torch._foreach_norm(tensors, ord=float("inf")))).all():
                LossWatch._fail(step, "a parameter is not finite")

    @staticmethod
    def _fail(step: int, what: str) -> None:
        raise NonFiniteError(
            f"{what} at step {step}; earlier checkpoints are kept. "
            "Try a lower fit.lr, a warm-up (fit.warmup_epochs), fit.clip_norm, or fit.precision fp32, and check the data for NaN"
        )


class HealthMonitor:
    """Feature spread, effective rank, alignment, uniformity, queue age and momentum drift; a collapse is counted here.

    Args:
        method: the method under training; its momentum encoders and queues are found by type.
    """

    def __init__(self, method: nn.Module) -> None:
        self._encoders = {n: m for n, m in method.named_modules() if isinstance(m, MomentumEncoder)}
        self._queues = {n: m for n, m in method.named_modules() if isinstance(m, FeatureQueue)}
        self.collapsed_checks = 0
        self.collapsed_since = -1
        self.healthy_once = False

    @torch.no_grad()
    def check(self, features: Mapping[str, Tensor]) -> dict[str, float]:
        """Figures of this moment, by name. ``features`` are the (B, dim) embeddings of one micro-batch."""
        found: dict[str, float] = {}
        named = {name: value.detach().float() for name, value in features.items() if value.ndim == 2 and len(value) > 1}
        if named:
            first = next(iter(named.values()))
            found["spread"] = float(feature_spread(first))
            found["effective_rank"] = float(effective_rank(first))
            found["uniformity"] = float(uniformity(first))
        if "query" in named and "key" in named and named["query"].shape == named["key"].shape:
            found["alignment"] = float(alignment(named["query"], named["key"]))
        for name, encoder in self._encoders.items():
            found[f"drift/{name}" if len(self._encoders) > 1 else "drift"] = float(encoder.drift())
        for name, queue in self._queues.items():
            label = f"/{name}" if len(self._queues) > 1 else ""
            found[f"queue_fill{label}"] = len(queue) / queue.size
            found[f"queue_age{label}"] = float(queue.oldest_age)
        return found

    def verdict(self, found: Mapping[str, float], progress: Progress) -> str | None:
        """A warning in words when the features have collapsed.

        Raises nothing itself; after :data:`PATIENCE` checks in a row :meth:`collapsed` is true. The first tenth of a run (at
        most 500 steps) does not count until the features have been spread once: a fresh network may start nearly constant.
        """
        spread = found.get("spread")
        if spread is None:
            return None
        if spread >= SPREAD_FLOOR:
            self.healthy_once, self.collapsed_checks, self.collapsed_since = True, 0, -1
            return None
        if not self.healthy_once and progress.step < min(0.1 * progress.total_steps, 500):
            return None
        if self.collapsed_checks == 0:
            self.collapsed_since = progress.step
        self.collapsed_checks += 1
        return (
            f"the representation has collapsed: all samples have nearly the same features (spread {spread:.4f}, 1 is ideal) "
            f"since step {self.collapsed_since}"
        )

    def raise_if_collapsed(self, message: str | None) -> None:
        """Stop the run once a collapse has been seen :data:`PATIENCE` times in a row."""
        if message and self.collapsed_checks >= PATIENCE:
            raise CollapseError(
                f"{message}. Try a lower fit.lr or a warm-up, a slower momentum encoder, a lower temperature, or "
                "stronger augmentation; fit.stop_on_collapse false goes on regardless. Earlier checkpoints are kept"
            )

    def state_dict(self) -> dict[str, Any]:
        """Counters, for the checkpoint."""
        return {"checks": self.collapsed_checks, "since": self.collapsed_since, "healthy": self.healthy_once}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Counters, from the checkpoint."""
        self.collapsed_checks, self.collapsed_since = int(state["checks"]), int(state["since"])
        self.healthy_once = bool(state["healthy"])
