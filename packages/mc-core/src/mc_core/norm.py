"""Batch normalisation that does not give the positive away: split statistics, and keys shuffled over processes.

With per-device BatchNorm a query and its key share batch statistics, and the network can tell the positive by them.

Legend: B rows of this process, W processes, G = W·B, C channels, S splits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mc_core.distributed import broadcast_permutation, gather_rows, own_rows, world_size
from mc_core.errors import ConfigError, DataError

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class SplitBatchNorm(_BatchNorm):
    """BatchNorm that computes its statistics on ``splits`` parts of the batch, as that many devices would.

    In train mode part j holds the rows n ≡ j (mod S), each normalised by its own mean and variance; the running
    statistics move towards the mean over parts (of means, and of unbiased variances). In eval mode it is BatchNorm,
    whose state dict it shares.

    Shapes: (N, C) or (N, C, …) → the same, in the same memory format; N a multiple of S in train mode.

    Args:
        num_features: C.
        splits: S ≥ 1; 1 is BatchNorm.
        eps, momentum, affine, track_running_stats: as in ``nn.BatchNorm2d``.

    Raises:
        ConfigError: splits below 1.
        DataError: on forward, a batch that does not divide, or an input of fewer than two dimensions.

    Source: He et al. 2020 (MoCo, arXiv:1911.05722) §3.3 for the reason; splits are the one-device form of its remedy.

    >>> norm = SplitBatchNorm(1, splits=2, affine=False)
    >>> norm(torch.tensor([[0.0], [10.0], [2.0], [30.0]])).flatten().round(decimals=3).tolist()
    [-1.0, -1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        num_features: int,
        splits: int = 8,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        if splits < 1:
            raise ConfigError(f"splits is {splits}; it must be at least 1")
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.splits = splits

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        rows, splits = input.shape[0], self.splits
        if rows % splits:
            raise DataError(
                f"a batch of {rows} rows does not divide into {splits} splits; "
                f"take a multiple of {splits} (drop the last partial batch) or another number of splits"
            )
        # reshape, not view: a channels_last input has other strides, and viewing it would mix rows
        parts = input.reshape(rows // splits, splits * self.num_features, *input.shape[2:])
        weight, bias = (None if p is None else p.repeat(splits) for p in (self.weight, self.bias))
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            mean_SC = torch.zeros_like(self.running_mean).repeat(splits)
            var_SC = torch.zeros_like(self.running_var).repeat(splits)
            out = F.batch_norm(parts, mean_SC, var_SC, weight, bias, True, 1.0, self.eps)  # 1.0: to this batch's own
            with torch.no_grad():
                factor = self._step_factor()
                self.running_mean.lerp_(mean_SC.view(splits, -1).mean(0), factor)
                self.running_var.lerp_(var_SC.view(splits, -1).mean(0), factor)
        else:
            out = F.batch_norm(parts, None, None, weight, bias, True, 0.0, self.eps)
        out = out.reshape(input.shape)
        memory_format = _CHANNELS_LAST.get(input.ndim)
        if memory_format is not None and not input.is_contiguous() and input.is_contiguous(memory_format=memory_format):
            out = out.contiguous(memory_format=memory_format)
        return out

    def _step_factor(self) -> Tensor:
        """How far the running statistics move; counts the batch."""
        assert self.running_mean is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return self.num_batches_tracked.to(self.running_mean.dtype).reciprocal()  # cumulative average
        return torch.full_like(self.running_mean[0], 0.0 if self.momentum is None else self.momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2 or input.shape[1] != self.num_features:
            raise DataError(f"input has shape {tuple(input.shape)}; this layer takes (N, {self.num_features}, …)")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, splits={self.splits}"


def convert_split_batchnorm(module: nn.Module, splits: int = 8) -> nn.Module:
    """Replace every BatchNorm in ``module`` by :class:`SplitBatchNorm` with the same parameters and buffers.

    Children are replaced in place; the result is ``module``, or the new layer where ``module`` is a BatchNorm itself.
    Layers already split get the new number of splits.

    Raises:
        ConfigError: splits below 1, or a BatchNorm of another class (SyncBatchNorm, one with a fused activation), which
            cannot be replaced without changing what it computes. Nothing is replaced then.

    >>> convert_split_batchnorm(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), splits=4)[1].splits
    4
    """
    known = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, SplitBatchNorm)
    found = {path: part for path, part in module.named_modules() if isinstance(part, _BatchNorm)}
    for path, part in found.items():
        if type(part) not in known:
            raise ConfigError(
                f"'{path}' is a {type(part).__name__}, which split statistics cannot replace; "
                "convert the parts of the network that use plain BatchNorm"
            )
    replacements = {part: _split(part, splits) for part in found.values()}
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, replacements[child])
    return replacements.get(module, module) if isinstance(module, _BatchNorm) else module


def _split(norm: _BatchNorm, splits: int) -> SplitBatchNorm:
    new = SplitBatchNorm(
        norm.num_features,
        splits,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
    )
    new._parameters.update(norm._parameters)  # the same objects, so that an optimizer still holds them
    new._buffers.update(norm._buffers)
    return new.train(norm.training)


@contextmanager
def no_running_stats(module: nn.Module) -> Generator[None]:
    """Within it, BatchNorm layers in train mode use batch statistics but leave their running statistics alone.

    For passes that are repeated, such as the first of a two-pass accumulation, which would otherwise count each batch
    twice. Layers in eval mode are not affected.

    >>> norm = nn.BatchNorm1d(2)
    >>> with no_running_stats(norm):
    ...     _ = norm(torch.randn(4, 2))
    >>> int(norm.num_batches_tracked)
    0
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False  # in train mode the flag alone decides; in eval mode the buffers do
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def shuffle_rows(x: Tensor, seed: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Exchange rows between processes at random, so that each key is normalised among other rows than its query.

    In a single process this does nothing, and ``x`` itself comes back: the statistics of ordinary BatchNorm do not
    depend on the order of rows. Use :class:`SplitBatchNorm` there.

    Shapes: (B, …) → (B, …), with equally many rows on each process.

    Args:
        x: this process's rows, such as the images of the keys.
        seed: the same on every process and another one each step: ``derive_seed(seed, step)``.

    Returns:
        This process's share of the shuffled rows, and a function that takes the features of that share (B, D), without
        gradient, and returns those of the rows of ``x`` in their order (B, D). Both are collective.

    Raises:
        ConfigError: the features handed to the returned function require grad, which the exchange would drop.

    Source: He et al. 2020 (MoCo, arXiv:1911.05722), §3.3 "Shuffling BN".
    """
    if world_size() == 1:
        return x, lambda features: features
    batch = x.shape[0]
    all_rows = gather_rows(x)
    order_G = broadcast_permutation(all_rows.shape[0], seed, device=x.device)

    def restore(features: Tensor) -> Tensor:
        if features.requires_grad:
            raise ConfigError(
                "shuffled features require grad, which the exchange would drop; encode keys under no_grad"
            )
        return gather_rows(features)[order_G.argsort()[own_rows(batch)]]

    return all_rows[order_G[own_rows(batch)]], restore


def shuffled(forward: Callable[[Tensor], Tensor], x: Tensor, seed: int) -> Tensor:
    """``forward(x)`` with rows shuffled over processes on the way in and put back after; see :func:`shuffle_rows`.

    >>> shuffled(lambda rows: rows * 2, torch.arange(3), seed=0).tolist()
    [0, 2, 4]
    """
    rows, restore = shuffle_rows(x, seed)
    return restore(forward(rows))
