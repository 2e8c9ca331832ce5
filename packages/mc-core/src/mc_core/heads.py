"""Projection heads, prediction heads and prototypes, with the exact layers of the papers.

Legend: B rows, D dim of a row, P prototypes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mc_core.errors import ConfigError, closest

ProjectionKind = Literal["linear", "mlp", "mlp-bn", "simclr", "moco-v3", "moco-v3-vit"]
PredictionKind = Literal["moco-v3", "moco-v3-vit"]
LastNorm = Literal["none", "plain", "affine"]


def mlp(
    in_dim: int,
    hidden_dim: int,
    out_dim: int,
    *,
    layers: int = 2,
    bias: bool = True,
    norm: bool = False,
    last_norm: LastNorm = "none",
) -> list[nn.Module]:
    """The layers of ``Linear, [BatchNorm], ReLU, …, Linear, [BatchNorm]``, for a :class:`torch.nn.Sequential`.

    Args:
        in_dim, hidden_dim, out_dim: widths, at least 1.
        layers: number of linear layers, at least 1 (then ``hidden_dim`` is not used).
        bias: whether the linear layers have one.
        norm: a batch norm after each hidden linear layer.
        last_norm: batch norm after the last one: none, without (``"plain"``) or with scale and shift (``"affine"``).

    Raises:
        ConfigError: a width or number of layers below 1.

    >>> [type(layer).__name__ for layer in mlp(8, 16, 4, norm=True, bias=False)]
    ['Linear', 'BatchNorm1d', 'ReLU', 'Linear']
    """
    if min(in_dim, hidden_dim, out_dim, layers) < 1:
        raise ConfigError(
            f"a head of {layers} layers with widths {in_dim}, {hidden_dim}, {out_dim} is empty; all must be at least 1"
        )
    widths = [in_dim] + [hidden_dim] * (layers - 1)
    modules: list[nn.Module] = []
    for width, following in pairwise(widths):
        modules.append(nn.Linear(width, following, bias=bias))
        if norm:
            modules.append(nn.BatchNorm1d(following))
        modules.append(nn.ReLU(inplace=True))
    modules.append(nn.Linear(widths[-1], out_dim, bias=bias))
    if last_norm != "none":
        modules.append(nn.BatchNorm1d(out_dim, affine=last_norm == "affine"))
    return modules


class ProjectionHead(nn.Sequential):
    """From backbone features to the space the loss works in. The output is not normalised.

    ================  ==========================================================  ====================  ============
    kind              layers                                                      hidden (default)      source
    ================  ==========================================================  ====================  ============
    ``linear``        Linear                                                      –                     MoCo v1
    ``mlp``           Linear, ReLU, Linear                                        in_dim                MoCo v2
    ``mlp-bn``        Linear, BN, ReLU, Linear                                    in_dim                SwAV
    ``simclr``        Linear°, BN, ReLU, Linear°, BN                              in_dim                SimCLR, DCL
    ``moco-v3``       Linear°, BN, ReLU, Linear°, BN without scale and shift      4096                  MoCo v3 R50
    ``moco-v3-vit``   (Linear°, BN, ReLU) twice, Linear°, BN without the same     4096                  MoCo v3 ViT
    ================  ==========================================================  ====================  ============

    ° without bias, which the batch norm after it would cancel. With batch norm, training needs two rows or more.

    Args:
        in_dim: width of the features.
        out_dim: width of the output (published: 128; MoCo v3: 256).
        kind: one of the above.
        hidden_dim: instead of the default.

    Shapes: (B, in_dim) → (B, out_dim).

    Raises:
        ConfigError: an unknown kind or a width below 1.

    Source: He et al. 2020 (arXiv:1911.05722), Chen et al. 2020 (MoCo v2, arXiv:2003.04297), Caron et al. 2020
    (arXiv:2006.09882), Chen et al. 2020 (SimCLR, arXiv:2002.05709), Chen et al. 2021 (MoCo v3, arXiv:2104.02057).

    >>> ProjectionHead(2048, 128, kind="mlp")(torch.zeros(2, 2048)).shape
    torch.Size([2, 128])
    """

    def __init__(
        self, in_dim: int, out_dim: int = 128, *, kind: ProjectionKind = "mlp", hidden_dim: int | None = None
    ) -> None:
        _check_kind(kind, get_args(ProjectionKind))
        hidden = hidden_dim if hidden_dim is not None else 4096 if kind.startswith("moco-v3") else in_dim
        if kind == "linear":
            layers = mlp(in_dim, hidden, out_dim, layers=1)
        elif kind in ("mlp", "mlp-bn"):
            layers = mlp(in_dim, hidden, out_dim, norm=kind == "mlp-bn")
        elif kind == "simclr":
            layers = mlp(in_dim, hidden, out_dim, norm=True, bias=False, last_norm="affine")
        else:
            depth = 3 if kind == "moco-v3-vit" else 2
            layers = mlp(in_dim, hidden, out_dim, layers=depth, norm=True, bias=False, last_norm="plain")
        super().__init__(*layers)


class PredictionHead(nn.Sequential):
    """MoCo v3's predictor, on the query side only: Linear, BN, ReLU, Linear, no biases.

    Args:
        dim: width of the projection, and of the output.
        kind: ``"moco-v3"`` (ResNet) ends there; ``"moco-v3-vit"`` ends with a BN without scale and shift.
        hidden_dim: width in between.

    Shapes: (B, dim) → (B, dim).

    Raises:
        ConfigError: an unknown kind or a width below 1.

    Source: Chen et al. 2021 (MoCo v3, arXiv:2104.02057), section 4 and the released code.

    >>> [type(layer).__name__ for layer in PredictionHead(256)]
    ['Linear', 'BatchNorm1d', 'ReLU', 'Linear']
    """

    def __init__(self, dim: int = 256, *, kind: PredictionKind = "moco-v3", hidden_dim: int = 4096) -> None:
        _check_kind(kind, get_args(PredictionKind))
        last: LastNorm = "plain" if kind == "moco-v3-vit" else "none"
        super().__init__(*mlp(dim, hidden_dim, dim, norm=True, bias=False, last_norm=last))


class Prototypes(nn.Linear):
    """Trainable unit vectors that embeddings are scored against: ``scores = z Cᵀ``, cosines where ``z`` is normalised.

    The rows are brought back to length 1 in place, without gradient, before a forward pass whenever the weight has
    changed since (an optimizer step, a loaded checkpoint). Further passes leave it alone, so that several passes share
    one backward.

    Args:
        dim: D ≥ 1.
        count: P ≥ 1.

    Shapes: (…, D) → (…, P).

    Raises:
        ConfigError: dim or count below 1.

    Source: Caron et al. 2020 (SwAV, arXiv:2006.09882), section 3.1.

    >>> prototypes = Prototypes(dim=4, count=3)
    >>> scores = prototypes(prototypes.weight.detach())
    >>> [round(score, 4) for score in scores.diagonal().tolist()]  # of each with itself
    [1.0, 1.0, 1.0]
    """

    def __init__(self, dim: int, count: int) -> None:
        if dim < 1 or count < 1:
            raise ConfigError(f"{count} prototypes of dim {dim}: both must be at least 1")
        super().__init__(dim, count, bias=False)
        self.normalise()

    @torch.no_grad()
    def normalise(self) -> None:
        """Bring the rows back to length 1, in place. Those that have it stay as they are: doing it again changes no bit."""
        length_P1 = self.weight.norm(dim=1, keepdim=True)
        close = 8 * torch.finfo(torch.promote_types(self.weight.dtype, torch.float32)).eps
        unit_PD = self.weight / length_P1.clamp_min(1e-12)
        self.weight.copy_(torch.where((length_P1 - 1).abs() <= close, self.weight, unit_PD))
        self._normalised = self._stamp()

    def _stamp(self) -> tuple[int, int]:
        return id(self.weight), self.weight._version

    def forward(self, input: Tensor) -> Tensor:
        """Scores of ``input`` (…, D), which is used as it is: normalise it before."""
        if self._stamp() != self._normalised:
            self.normalise()
        return super().forward(input)


def _check_kind(kind: str, choices: tuple[str, ...]) -> None:
    if kind not in choices:
        raise ConfigError(f"head {kind!r} is not known; did you mean {closest(kind, choices)}?")
