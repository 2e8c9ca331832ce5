"""Label propagation through videos: a float64 loop, closed forms of J and F, a moving square, and bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from mc_core.errors import ConfigError, DataError
from mc_vision.data.masks import VOID, MaskedImages, MaskedScenes
from mc_vision.encoders import TimmEncoder
from mc_vision.encoders_config import EncoderConfig
from mc_vision.propagation import (
    boundaries,
    boundary_accuracy,
    evaluate_propagation,
    frame_size,
    harden,
    propagate,
    region_similarity,
)

H, W = 4, 5


def features(seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(H, W, 3, generator=generator), dim=2)


@pytest.mark.parametrize(("context", "radius", "top_k"), [(2, 1, 3), (0, 0, 5), (7, 2, 1)])
def test_propagation_by_loops(context, radius, top_k):
    frames = [features(i) for i in range(5)]
    first = torch.rand(3, H, W, generator=torch.Generator().manual_seed(9))
    first = first / first.sum(0)
    found = list(propagate(frames, first, context=context, radius=radius, top_k=top_k, temperature=0.2))
    labels = [first.double().numpy()]
    for t in range(1, 5):
        known = [0, *range(max(1, t - context), t)]
        now = np.zeros((3, H, W))
        for i in range(H):
            for j in range(W):
                near = []
                for k in known:
                    for a in range(H):
                        for b in range(W):
                            if not radius or (abs(a - i) <= radius and abs(b - j) <= radius):
                                s = float(frames[t][i, j].double() @ frames[k][a, b].double())
                                near.append((s, labels[k][:, a, b]))
                near.sort(key=lambda pair: -pair[0])
                weights = np.array([math.exp(s / 0.2) for s, _ in near[:top_k]])
                now[:, i, j] = (weights / weights.sum()) @ np.array([label for _, label in near[:top_k]])
        labels.append(now)
    for soft, expected in zip(found, labels, strict=True):
        assert np.allclose(soft, expected, atol=1e-5)
        assert np.allclose(soft.sum(0), 1, atol=1e-5)


def test_a_still_video_keeps_its_labels():
    z = torch.eye(H * W).view(H, W, H * W)
    first = F.one_hot(torch.arange(H * W).view(H, W) % 3, 3).permute(2, 0, 1).float()
    for soft in propagate([z] * 4, first, top_k=1):
        assert torch.equal(soft, first)


def test_settings_out_of_range():
    with pytest.raises(ConfigError, match=r"context=-1, radius=12, top_k=5, temperature=0.1"):
        list(propagate([features(0)], torch.ones(1, H, W), context=-1))
    with pytest.raises(ConfigError, match="short side 100 is not a multiple of the patch"):
        frame_size(480, 640, 16, short_side=100)


def test_sizes_of_frames():
    assert frame_size(480, 854, 8) == (480, 832)
    assert frame_size(1080, 1080, 16) == (480, 480)
    assert frame_size(500, 333, 16, short_side=32) == (48, 32)
    assert frame_size(300, 600, 12, short_side=48) == (48, 96)


def test_maps_become_labels():
    soft = torch.zeros(3, 2, 2)
    soft[0] = 0.9
    soft[0, 0, 0] = 0.8
    soft[1, 0, 0] = 0.2  # weak, but the best there is of this object
    hard = harden(soft, 4, 16, 16)
    assert hard.shape == (16, 16)
    assert (hard[:4, :4] == 1).all()
    assert set(np.unique(hard)) <= {0, 1}  # the third has no pixel anywhere


def test_region_similarity():
    a = torch.zeros(3, 4, 4, dtype=torch.bool)
    a[0, :2], a[1, 0, 0] = True, True
    b = a.clone()
    b[0, 2] = True
    b[1] = False
    assert region_similarity(a, b).tolist() == [8 / 12, 0, 1]


def naive_boundary_measure(predicted, true, tolerance):
    height, width = true.shape
    reach = math.ceil(tolerance * math.hypot(height, width))

    def edge(mask):
        found = set()
        for i in range(height):
            for j in range(width):
                near = [mask[min(i + a, height - 1), min(j + b, width - 1)] for a, b in ((0, 1), (1, 0), (1, 1))]
                if any(value != mask[i, j] for value in near):
                    found.add((i, j))
        return found

    p, t = edge(predicted), edge(true)

    def close(points, others):
        return sum(any((i - a) ** 2 + (j - b) ** 2 <= reach**2 for a, b in others) for i, j in points)

    precision = close(p, t) / len(p) if p else 1.0
    recall = close(t, p) / len(t) if t else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("tolerance", [0.008, 0.1])
def test_boundary_measure_by_loops(tolerance):
    rng = np.random.default_rng(0)
    low = rng.random((6, 2, 5, 6)) < 0.4
    low[4, 0], low[5] = False, False
    predicted, true = torch.from_numpy(low.repeat(4, 2).repeat(4, 3)).unbind(1)
    found = boundary_accuracy(predicted, true, tolerance=tolerance)
    for k in range(6):
        expected = naive_boundary_measure(predicted[k].numpy(), true[k].numpy(), tolerance)
        assert found[k].item() == pytest.approx(expected, abs=1e-12)
    assert (found[4].item(), found[5].item()) == (0, 1)
    assert torch.equal(boundary_accuracy(true, true), torch.ones(6, dtype=torch.float64))


def test_a_boundary_within_the_tolerance_is_right():
    square = torch.zeros(1, 300, 400, dtype=torch.bool)
    square[0, 100:200, 100:200] = True
    assert boundaries(square).sum() == 400
    # 0.008 · 500 = 4 pixels
    assert boundary_accuracy(square.roll(4, 2), square).item() == 1
    sides = slice(110, 190)  # without corners
    assert (
        boundary_accuracy(square.roll(5, 2)[:, sides], square[:, sides], tolerance=4 / math.hypot(80, 400)).item() == 0
    )


class Video(MaskedImages):
    """Squares of two colours that move over a ground of noise."""

    def __init__(self, frames=6, side=64):
        rng = np.random.default_rng(0)
        self.frames = []
        for t in range(frames):
            pixels = rng.integers(100, 140, (side, side, 3), dtype=np.uint8)
            objects = np.full((side, side), -1, np.int32)
            for k, (row, color) in enumerate(((8, (230, 30, 30)), (40, (30, 30, 230)))):
                objects[row : row + 16, 8 + 4 * t : 24 + 4 * t] = k
                pixels[objects == k] = color
            objects[-4:] = VOID
            self.frames.append((Image.fromarray(pixels), objects))
        super().__init__("video", "instance", [f"v/{t}" for t in range(frames)], sequences={"v": list(range(frames))})

    def _load(self, index):
        image, objects = self.frames[index]
        return image, objects, np.array([3, 8]), None


class Colors(TimmEncoder):
    """Patch tokens that are nothing but colours."""

    def forward_tokens(self, x_BCHW):
        return nn.functional.avg_pool2d(x_BCHW, 8).flatten(2).transpose(1, 2)


def encoder(kind=TimmEncoder):
    torch.manual_seed(0)
    return kind(EncoderConfig(backbone="moco-vit-tiny-8", image_size=64)).eval()


def test_colours_are_followed():
    calls = []
    result = evaluate_propagation(
        encoder(Colors), Video(), short_side=128, radius=4, progress=lambda done, total: calls.append((done, total))
    )
    assert (result.videos, result.frames) == (1, 4)  # the first frame is given, the last is not scored
    assert set(result.by_object) == {"v/3", "v/8"}
    assert result.jf == pytest.approx((result.j + result.f) / 2)
    assert result.j > 0.8
    assert result.f > 0.5
    assert calls == [(t, 6) for t in range(1, 7)]
    assert result.to_dict()["frames"] == 4


def test_videos_are_needed():
    with pytest.raises(DataError, match="digit scenes: label propagation needs videos"):
        evaluate_propagation(encoder(), MaskedScenes(3))
    with pytest.raises(DataError, match="no video has three frames"):
        evaluate_propagation(encoder(), Video(frames=2))
    with pytest.raises(ConfigError, match="has no patch tokens"):
        evaluate_propagation(TimmEncoder(EncoderConfig(backbone="resnet10-w16", image_size=32)), Video())
