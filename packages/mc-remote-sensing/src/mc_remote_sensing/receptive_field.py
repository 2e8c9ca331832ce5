"""How far a segmentation network looks: measured on a copy of it, since it depends on the backbone.

A strip of constant pixels is sent through a copy whose convolutions all average, whose normalisations and dropouts are left out
and whose maxima are means. Everything is then positive, so that an output depends on an input exactly where the gradient is not 0.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mc_remote_sensing.methods.hpcl_net.network import SegmentationNetwork

_WIDEST = 1 << 14
_FAINT = 1e-15  # so small that gates stay open whatever the residual sums grow to


class _Mean(nn.AvgPool2d):
    """Average pooling with the geometry of a maximum."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode)


def measure_receptive_field(network: SegmentationNetwork) -> int | None:
    """Side, in pixels, of the square of input that an output pixel depends on, itself in the middle.

    The square is that of the neediest pixel of a cell; it may be up to two strides wider than needed.

    Returns:
        An odd number; None where the output depends on the whole tile (squeeze and excitation, group normalisation), or on more
        than 16,384 pixels.
    """
    if any(isinstance(module, (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)) for module in network.modules()):
        return None
    averaging = _averaging(network)
    stride, width = network.stride, 512
    while width <= _WIDEST:
        seen = _seen(averaging, width)
        first, last = int(seen[0]), int(seen[-1])
        if first > 0 and last < width - 1:
            start = _start(width, stride)
            return 2 * max(start + stride - 1 - first, last - start) + 1
        width *= 2
    return None


def _start(width: int, stride: int) -> int:
    """First pixel of the cell in the middle."""
    return width // 2 // stride * stride


def _seen(network: SegmentationNetwork, width: int) -> Tensor:
    """The columns that the outputs of the cell in the middle depend on."""
    inputs = {
        name: torch.full(
            (1, network.encoder(name).channels, network.stride, width), _FAINT, dtype=torch.float64, requires_grad=True
        )
        for name in network.encoders
    }
    output = network.decoder(*network.encode(inputs))
    start = _start(width, network.stride)
    cell = output[0, :, start : start + network.stride]
    weights = torch.rand(cell.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    gradients = torch.autograd.grad((cell * weights).sum(), list(inputs.values()))
    touched = torch.stack([(gradient != 0).flatten(0, 2).any(0) for gradient in gradients]).any(0)
    return touched.nonzero().squeeze(1)


def _averaging(network: SegmentationNetwork) -> SegmentationNetwork:
    """A copy in float64 that shows which inputs matter."""
    made = copy.deepcopy(network).double().cpu().eval()
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.Dropout)):
                setattr(parent, name, nn.Identity())
            elif isinstance(child, nn.MaxPool2d):
                setattr(parent, name, _Mean(child))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1:  # unequal, or the difference of both classes would be 0
                uneven = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5
                parameter.copy_(uneven / parameter[0].numel())
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return made
