"""The pixel baseline: the optimum of its loss, what it ignores, and that it needs both classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mc_core.errors import DataError
from mc_remote_sensing.baselines import _RIDGE, fit_pixel_logistic


class Tiles:
    """Two bands of which the first tells the class, and elevation of which the slope does."""

    def __init__(self, ignore: bool = False, single: bool = False) -> None:
        self.ignore, self.single = ignore, single

    def __len__(self) -> int:
        return 6

    def get(self, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        labels = (rng.random((12, 12)) < 0.3).astype(np.uint8) * (0 if self.single else 1)
        noise = rng.normal(size=(7, 12, 12)).astype(np.float32)
        image = noise[:2] * 100 + 1000
        image[0] += 150 * labels
        elevation = noise[2:6]
        elevation[3] = 1
        elevation[1] += 1.0 * labels
        if self.ignore:
            labels = labels.copy()
            labels[:, :6] = 255
            image[0, :, :6] = 1e6  # must not be looked at
        return {"image": torch.tensor(image), "elevation": torch.tensor(elevation), "labels": torch.tensor(labels)}


def separation(model, inputs, data=None):
    sample = (data or Tiles()).get(0, np.random.default_rng(9))
    p = model(sample["image"][None], sample["elevation"][None])[0]
    labels = sample["labels"]
    return (p[labels == 1].mean() - p[labels == 0].mean()).item()


def test_it_stands_where_the_gradient_of_the_balanced_loss_is_zero():
    model = fit_pixel_logistic(Tiles(), "both", tiles=6)
    x, y = [], []
    from mc_core.random import sample_rng

    for index in range(6):
        sample = Tiles().get(index, sample_rng(0, 0, index, stream=0x91))
        features = torch.cat([sample["image"], sample["elevation"], sample["elevation"][:3] ** 2]).double().flatten(1)
        x.append(features.T)
        y.append(sample["labels"].flatten().double())
    x, y = torch.cat(x), torch.cat(y)
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-12)
    w = torch.cat([model.weight, model.bias[None]]).double().requires_grad_()
    p = x @ w[:-1] + w[-1]
    losses = torch.nn.functional.binary_cross_entropy_with_logits(p, y, reduction="none")
    loss = 0.5 * losses[y == 1].mean() + 0.5 * losses[y == 0].mean() + 0.5 * _RIDGE * (w[:-1] ** 2).sum()
    loss.backward()
    assert w.grad.abs().max() < 1e-5


@pytest.mark.parametrize("inputs", ["image", "elevation"])
def test_each_input_alone_tells_something_and_both_tell_more(inputs):
    alone = separation(fit_pixel_logistic(Tiles(), inputs, tiles=6), inputs)
    both = separation(fit_pixel_logistic(Tiles(), "both", tiles=6), "both")
    assert alone > 0.1
    assert both > alone


def test_what_is_ignored_is_not_looked_at():
    model = fit_pixel_logistic(Tiles(ignore=True), "image", tiles=6)
    assert model.mean[0] < 2000


def test_it_needs_both_classes():
    with pytest.raises(DataError, match="class 1"):
        fit_pixel_logistic(Tiles(single=True), "both", tiles=6)


def test_a_missing_input_is_said():
    model = fit_pixel_logistic(Tiles(), "both", tiles=6)
    with pytest.raises(DataError, match="elevation"):
        model(torch.zeros(1, 2, 4, 4), None)
