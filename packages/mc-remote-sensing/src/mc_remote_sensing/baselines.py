"""What a model should beat: logistic regression on each pixel's own bands and elevation, without looking around.

Legend: B tiles, C image bands, F features of a pixel, N pixels.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mc_core.errors import DataError
from mc_core.random import sample_rng

Inputs = Literal["image", "elevation", "both"]

_STEPS, _RIDGE = 30, 1e-3


class PixelLogistic(nn.Module):
    """Probability of the target from a pixel's own values: a segmenter of stride 1 that sees one pixel.

    Args:
        inputs: what it looks at.
        mean: (F,) of the features.
        scale: (F,) their deviation.
        weight: (F,) of the standardised features.
        bias: of the logit.
    """

    stride = 1
    receptive_field = 1
    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, inputs: Inputs, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.inputs = inputs
        for name, value in (("mean", mean), ("scale", scale), ("weight", weight), ("bias", bias)):
            self.register_buffer(name, value.float())

    def forward(self, image: Tensor | None, elevation: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """(B, H, W) probabilities of (B, C, H, W) bands and (B, 4, H, W) elevation."""
        x_BFHW = _features(self.inputs, image, elevation)
        standard = (x_BFHW - self.mean[:, None, None]) / self.scale[:, None, None]
        return torch.sigmoid(torch.einsum("bfhw,f->bhw", standard, self.weight) + self.bias)


def _features(inputs: Inputs, image: Tensor | None, elevation: Tensor | None) -> Tensor:
    parts = []
    if inputs != "elevation":
        if image is None:
            raise DataError("this baseline looks at the image, and there is none")
        parts.append(image)
    if inputs != "image":
        if elevation is None:
            raise DataError("this baseline looks at the elevation, and there is none")
        parts += [elevation, elevation[:, :3] ** 2]  # a bowl is neither steep nor flat, so squares help
    return torch.cat(parts, dim=1)


def fit_pixel_logistic(
    data: Any, inputs: Inputs, *, tiles: int = 128, pixels: int = 50_000, seed: int = 0
) -> PixelLogistic:
    """Fit it by Newton's method with a small ridge, to labelled pixels of training tiles.

    Args:
        data: a data set whose samples hold ``image`` (C, T, T), ``elevation`` (4, T, T) and ``labels`` (T, T).
        inputs: what it may look at.
        tiles: drawn from the data.
        pixels: kept at most, of each class.
        seed: of the draws.

    Raises:
        DataError: no pixel of one of the classes.

    >>> class Data:
    ...     def __len__(self):
    ...         return 4
    ...
    ...     def get(self, index, rng):
    ...         image = torch.linspace(-1, 1, 64).reshape(1, 8, 8)
    ...         labels = (image[0] + 0.3 * torch.randn(8, 8) > 0.5).to(torch.uint8)
    ...         return {"image": image, "elevation": torch.zeros(4, 8, 8), "labels": labels}
    >>> found = fit_pixel_logistic(Data(), "image", tiles=4)(torch.tensor([[[[-1.0, 1.0]]]]))
    >>> [round(p) for p in found.flatten().tolist()]
    [0, 1]
    """
    kept: dict[int, list[Tensor]] = {0: [], 1: []}
    for index in range(tiles):
        sample = data.get(index % len(data), sample_rng(seed, index // len(data), index % len(data), stream=0x91))
        labels = torch.as_tensor(sample["labels"])
        image, elevation = (sample[n][None].float() if n in sample else None for n in ("image", "elevation"))
        x_FN = _features(inputs, image, elevation)[0].flatten(1)
        for of_class in (0, 1):
            rows = x_FN[:, (labels == of_class).flatten()].T
            if len(rows) > (most := max(1, 2 * pixels // tiles)):
                chosen = sample_rng(seed, 1, index, stream=0x92 + of_class).choice(len(rows), most, replace=False)
                rows = rows[torch.from_numpy(np.sort(chosen))]
            kept[of_class].append(rows)
    classes = {of_class: torch.cat(rows)[:pixels].double() for of_class, rows in kept.items()}
    for of_class, rows in classes.items():
        if not len(rows):
            raise DataError(f"no labelled pixel of class {of_class} in {tiles} training tiles")
    x = torch.cat([classes[0], classes[1]])
    y = torch.cat([torch.zeros(len(classes[0])), torch.ones(len(classes[1]))]).double()
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-12)
    weight = _newton(((x - mean) / scale), y)
    return PixelLogistic(inputs, mean, scale, weight[:-1], weight[-1])


def _newton(x_NF: Tensor, y_N: Tensor) -> Tensor:
    """(F + 1,) weights and bias that minimise the cross-entropy, each class weighing half, with a ridge on the weights."""
    x = torch.cat([x_NF, torch.ones(len(x_NF), 1, dtype=x_NF.dtype)], dim=1)
    share = y_N.mean()
    balance = torch.where(y_N > 0.5, 0.5 / share, 0.5 / (1 - share)) / len(y_N)
    ridge = _RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
    ridge[-1, -1] = 1e-9
    weight = torch.zeros(x.shape[1], dtype=x.dtype)
    for _ in range(_STEPS):
        p = torch.sigmoid(x @ weight)
        gradient = x.T @ (balance * (p - y_N)) + ridge @ weight
        hessian = (x * (balance * p * (1 - p)).clamp_min(1e-12)[:, None]).T @ x + ridge
        step = torch.linalg.solve(hessian, gradient)
        weight = weight - step
        if step.abs().max() < 1e-8:
            break
    return weight
