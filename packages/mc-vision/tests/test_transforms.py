"""Views: each operation against torchvision or PIL, the distribution of the draws, independence of the batch."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms.v2 import functional as F

from mc_core.data import BadSampleError, StepPlan, finish_on_device, stack_samples, step_loader
from mc_core.errors import ConfigError, DataError
from mc_core.images import crops
from mc_core.random import BatchRandom, sample_rng, uniform
from mc_vision import _batched_ops as ops
from mc_vision import transforms
from mc_vision.data.source import ArraySource
from mc_vision.transforms import DRAWS, EvalDataset, ViewDataset, crop_boxes, make_views, view_sheet
from mc_vision.transforms_config import PRESETS, View, Views, views_preset

LEVEL = 1 / 255
PLAIN = View(
    size=16, crop_scale=(1, 1), crop_ratio=(1, 1), flip_p=0, jitter_p=0, grayscale_p=0, blur_p=0, mean=(0,), std=(1,)
)


def pictures(count: int, height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(N, C, H, W) uint8: smooth waves with noise, so that both edges and areas matter."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    phase = rng.uniform(0, 6, (count, channels, 1, 1))
    waves = 127 + 90 * np.sin(phase + y / 5 + x / 3 * (1 + np.arange(channels))[:, None, None])
    return (waves + rng.normal(0, 15, waves.shape)).clip(0, 255).astype(np.uint8)


def floats(count: int = 4, side: int = 20, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(pictures(count, side, side, channels, seed)).float() / 255


def as_image(image_CHW: np.ndarray) -> Image.Image:
    return ArraySource(image_CHW[None]).load(0)


class Pictures:
    """A source without an array: as if decoded from files."""

    labels = None
    classes = None

    def __init__(self, images: list, ids: np.ndarray | None = None) -> None:
        self.images, self.ids = images, ids

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int):
        return self.images[index]

    def name(self, index: int) -> str:
        return f"picture {index}"

    def describe(self) -> dict:
        return {"kind": "list", "count": len(self)}


BOXES = [
    ((40, 60), (3, 7, 30, 44), 16),  # reduced
    ((40, 60), (0, 0, 40, 60), 16),  # the whole image
    ((20, 20), (5, 6, 7, 6), 24),  # enlarged
    ((3, 200), (0, 50, 3, 4), 16),
    ((1, 1), (0, 0, 1, 1), 8),
    ((31, 29), (2.5, 3.25, 17.5, 20.75), 13),  # fractions of pixels
]


@pytest.mark.parametrize(("shape", "box", "size"), BOXES)
@pytest.mark.parametrize("flip", [False, True])
def test_crop_resize_is_that_of_pil(shape, box, size, flip):
    image_CHW = pictures(1, *shape)[0]
    top, left, height, width = box
    expected = as_image(image_CHW).resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
    )
    expected = torch.from_numpy(np.array(expected)).permute(2, 0, 1).float()
    x = torch.from_numpy(image_CHW[None]).float()
    found = crops.crop_resize(x, torch.tensor([box], dtype=torch.float32), size, torch.tensor([flip]))[0]
    torch.testing.assert_close(found.flip(-1) if flip else found, expected, atol=1.1, rtol=0)  # PIL rounds twice


def test_crop_resize_is_that_of_torchvision_inside_the_crop():
    x = floats(1, 60)
    box = [6, 9, 44, 40]
    expected = F.resized_crop(x, *box, [16, 16], antialias=True)
    found = crops.crop_resize(x, torch.tensor([box], dtype=torch.float32), 16)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-5, rtol=0)
    whole = torch.tensor([[0.0, 0, 60, 60]])
    torch.testing.assert_close(
        crops.crop_resize(x, whole, 16), F.resize(x, [16, 16], antialias=True), atol=1e-5, rtol=0
    )


def corner_colors() -> torch.Tensor:
    """(1, 3, 1, n): every mixture of 0, ½ and 1, where the hexagon of hues has its corners, and gray."""
    levels = torch.tensor(list(itertools.product([0.0, 0.25, 0.5, 1.0], repeat=3)))
    return levels.T[None, :, None, :].contiguous()


TONES = {ops.BRIGHTNESS: F.adjust_brightness, ops.CONTRAST: F.adjust_contrast, ops.SATURATION: F.adjust_saturation}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", TONES)
def test_tones_are_those_of_torchvision(kind, channels):
    x, factors = floats(5, channels=channels), torch.tensor([0.0, 0.3, 1.0, 1.4, 2.5])
    found = ops.adjust_tone(x, ops.tone_weights(factors, torch.full((5,), kind)))
    for image, factor, result in zip(x, factors.tolist(), found, strict=True):
        torch.testing.assert_close(result, TONES[kind](image, factor), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shift", [-0.5, -0.31, -0.1, 0.0, 0.1, 1 / 6, 0.4, 0.5])
@pytest.mark.parametrize("x", [corner_colors(), floats(1)], ids=["corners", "picture"])
def test_hue_is_that_of_torchvision(x, shift):
    found = ops.adjust_hue(x, torch.full((1,), shift))
    torch.testing.assert_close(found, F.adjust_hue(x, shift), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("side", "reach"), [(20, 6), (8, 3), (5, 6), (1, 6)])
def test_blur_is_that_of_torchvision(side, reach):
    x, sigmas = floats(3, side), torch.tensor([0.1, 0.8, 2.0])
    taps = 2 * min(reach, side - 1) + 1
    found = ops.gaussian_blur(x, sigmas, reach)
    for image, sigma, result in zip(x, sigmas.tolist(), found, strict=True):
        torch.testing.assert_close(result, F.gaussian_blur(image, [taps, taps], [sigma, sigma]), atol=1e-6, rtol=0)


def test_blur_of_oblong_images():
    x = torch.from_numpy(pictures(1, 12, 30)).float()
    found = ops.gaussian_blur(x, torch.tensor([1.5]), 4)
    torch.testing.assert_close(found, F.gaussian_blur(x, [9, 9], [1.5, 1.5]), atol=1e-3, rtol=0)


def test_grayscale_and_solarize_are_those_of_torchvision():
    x = floats()
    torch.testing.assert_close(ops.grayscale(x), F.rgb_to_grayscale(x, 3), atol=1e-6, rtol=0)
    every_level = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    found = ops.solarize(every_level.float() / 255).mul(255).round().byte()
    assert torch.equal(found, F.solarize(every_level, 128))


def test_jitter_follows_each_of_the_24_orders():
    x = floats(24)
    factors = torch.tensor([1.6, 0.5, 1.9, 0.21]).repeat(24, 1)
    found = ops.color_jitter(x.clone(), factors, torch.arange(24))
    steps = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    for image, order, result in zip(x, itertools.permutations(range(4)), found, strict=True):
        for step in order:
            image = steps[step](image, factors[0, step].item())
        torch.testing.assert_close(result, image, atol=1e-5, rtol=0)
    assert len({tuple(result.flatten()[:50].tolist()) for result in found}) > 20  # the order matters


def naive_box(u: np.ndarray, height: int, width: int, view: View) -> tuple[float, ...]:
    """torchvision's RandomResizedCrop.get_params with given random numbers."""
    for area_u, ratio_u in zip(u[:10], u[10:20], strict=True):
        area = height * width * (view.crop_scale[0] + (view.crop_scale[1] - view.crop_scale[0]) * area_u)
        low, high = np.log(view.crop_ratio)
        ratio = math.exp(low + (high - low) * ratio_u)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u[20] * (height - h + 1)), int(u[21] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < view.crop_ratio[0]:
        h = round(w / view.crop_ratio[0])
    elif width / height > view.crop_ratio[1]:
        w = round(h * view.crop_ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(("height", "width"), [(224, 224), (300, 500), (32, 32), (3, 200), (200, 3), (1, 1), (50, 66)])
def test_crops_are_drawn_as_by_torchvision(height, width):
    view = View(crop_scale=(0.08, 1))
    u = uniform(0, 0, torch.arange(1000), DRAWS)
    found = crop_boxes(u, height, width, view)
    expected = torch.tensor([naive_box(row, height, width, view) for row in u.double().numpy()])
    same = (found == expected).all(1)
    assert same.float().mean() > 0.99  # single precision may round a side the other way
    assert (found[~same] - expected[~same]).abs().le(1).all()
    top, left, h, w = found.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()


def test_crops_cover_scale_ratio_and_place_evenly():
    view = View(crop_scale=(0.2, 1.0))
    top, left, h, w = crop_boxes(uniform(1, 0, torch.arange(20000), DRAWS), 1000, 1000, view).unbind(1)
    assert (h * w / 1e6).min() > 0.19
    assert 0.7 < (w / h).min() < 0.76 < 1.32 < (w / h).max() < 1.35
    assert abs((w.log() - h.log()).mean()) < 0.01
    small = (h * w) < 0.3e6
    assert abs((top / (1000 - h))[small].mean() - 0.5) < 0.02
    assert abs((left / (1000 - w))[small].mean() - 0.5) < 0.02
    assert abs(torch.corrcoef(torch.stack([top / (1001 - h), left / (1001 - w)]))[0, 1]) < 0.03


@pytest.mark.parametrize("name", PRESETS)
def test_choices_have_the_probabilities_and_ranges_asked_for(name):
    count = 20000
    for number, view in enumerate(views_preset(name).views):
        drawn = transforms._Choices.draw(uniform(3, 0, torch.arange(count), DRAWS, stream=number), view)
        expected = {
            "flip": view.flip_p,
            "jitter": view.jitter_p,
            "gray": view.grayscale_p,
            "blur": view.blur_p,
            "solarize": view.solarize_p,
        }
        for choice, p in expected.items():
            share = getattr(drawn, choice).float().mean().item()
            assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / count), choice
        for column, strength in enumerate(view.jitter):
            low, high = (-strength, strength) if column == ops.HUE else (max(0, 1 - strength), 1 + strength)
            values = drawn.factors[:, column]
            assert low <= values.min() < low + 0.01
            assert high - 0.01 < values.max() <= high + 1e-6
            assert abs(values.mean() - (low + high) / 2) < 0.01
        assert view.blur_sigma[0] <= drawn.sigma.min() < drawn.sigma.max() <= view.blur_sigma[1]
        assert torch.bincount(drawn.order, minlength=24).float().div(count).sub(1 / 24).abs().max() < 0.006
        together = torch.stack([getattr(drawn, choice).float() for choice, p in expected.items() if 0 < p < 1])
        if len(together) > 1:
            assert (torch.corrcoef(together) - torch.eye(len(together))).abs().max() < 0.03


def test_presets_are_the_published_ones():
    first, second = views_preset("moco-v3").views
    assert (first.blur_p, second.blur_p, first.solarize_p, second.solarize_p) == (1.0, 0.1, 0.0, 0.2)
    assert first.jitter == second.jitter == (0.4, 0.4, 0.2, 0.1)
    assert views_preset("moco-v1").views[0].order == "grayscale-first"
    assert views_preset("moco-v1").views[0].jitter == (0.4,) * 4
    assert views_preset("moco-v2").views == (View(), View())
    assert views_preset("simclr").views[0].jitter == (0.8, 0.8, 0.8, 0.2)
    assert views_preset("cifar").views[0].blur_p == 0
    assert [view.size for view in views_preset("digits", 28).views] == [28, 28]
    with pytest.raises(ConfigError, match=r"no views named 'mocov2': did you mean moco-v2"):
        views_preset("mocov2")
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        views_preset("cifar", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_scale": (0.5, 0.2)}, "0 < low ≤ high ≤ 1"),
        ({"crop_ratio": (0, 1)}, "0 < low ≤ high"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "at most 0.5 turns"),
        ({"blur_sigma": (0, 1)}, "in pixels"),
        ({"mean": (0.5,)}, "one number per channel"),
        ({"std": (1, 0, 1)}, "must be positive"),
        ({"flip_p": 1.5}, "less than or equal to 1"),
        ({"blur": 0.5}, "Extra inputs"),
    ],
)
def test_views_refuse_what_cannot_be(change, message):
    with pytest.raises(ValidationError, match=message):
        View(**change)


@pytest.mark.parametrize("order", ["jitter-first", "grayscale-first"])
def test_order_of_jitter_and_grayscale(order):
    view = PLAIN.model_copy(update={"jitter": (0, 0, 0, 0.5), "jitter_p": 1.0, "grayscale_p": 1.0, "order": order})
    image = torch.from_numpy(pictures(3, 16, 16))
    u = uniform(0, 0, torch.arange(3), DRAWS)
    x = image.float() / 255
    shift = transforms._Choices.draw(u, view).factors[:, ops.HUE]
    expected = ops.grayscale(x if order == "grayscale-first" else ops.adjust_hue(x, shift))
    torch.testing.assert_close(make_views(image, u, view), expected, atol=1e-5, rtol=0)
    assert (ops.grayscale(x) - ops.grayscale(ops.adjust_hue(x, shift))).abs().max() > 0.05


def test_each_operation_reaches_the_view_and_the_last_is_normalisation():
    image, u = torch.from_numpy(pictures(3, 16, 16)), uniform(0, 0, torch.arange(3), DRAWS)
    x = image.float() / 255
    drawn = transforms._Choices.draw(u, PLAIN)
    expected = {
        "flip_p": x.flip(-1),
        "grayscale_p": ops.grayscale(x),
        "blur_p": ops.gaussian_blur(x, drawn.sigma, 6),
        "solarize_p": ops.solarize(x),
        "jitter_p": ops.color_jitter(x.clone(), drawn.factors, drawn.order),
    }
    for name, result in expected.items():
        found = make_views(
            image, u, PLAIN.model_copy(update={name: 1.0, "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)})
        )
        found = found * torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1) + torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
        torch.testing.assert_close(found, result, atol=1e-5, rtol=0)
        assert (found - x).abs().max() > 0.01, name


@pytest.mark.parametrize("cropped", [False, True])
@pytest.mark.parametrize("name", ["moco-v1", "moco-v3", "cifar"])
def test_a_view_does_not_depend_on_its_batch(name, cropped, monkeypatch):
    images = torch.from_numpy(pictures(12, 24, 24))
    for view in views_preset(name, 24).views:
        whole = make_views(images, uniform(5, 2, torch.arange(12), DRAWS), view, cropped=cropped)
        monkeypatch.setattr(transforms, "_CACHE_FLOATS", 5 * 3 * 24 * 24)  # chunks of 5, 5 and 2
        torch.testing.assert_close(
            make_views(images, uniform(5, 2, torch.arange(12), DRAWS), view, cropped=cropped), whole, atol=1e-5, rtol=0
        )
        order = torch.tensor([7, 0, 3])
        some = make_views(images[order], uniform(5, 2, order, DRAWS), view, cropped=cropped)
        torch.testing.assert_close(some, whole[order], atol=1e-5, rtol=0)


def test_inputs_stay_as_they_were_and_autocast_changes_nothing():
    images, u = torch.from_numpy(pictures(4, 24, 24)), uniform(0, 0, torch.arange(4), DRAWS)
    before = images.clone()
    plain = make_views(images, u, View(size=16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(make_views(images, u, View(size=16)), plain)
    assert torch.equal(images, before)
    assert plain.dtype == torch.float32


def test_the_way_of_accelerators_makes_the_same_views(monkeypatch):
    images, u = torch.from_numpy(pictures(16, 40, 48)), uniform(0, 0, torch.arange(16), DRAWS)
    for name, cropped in itertools.product(("moco-v1", "moco-v3"), (False, True)):
        view = views_preset(name, 32).views[1]
        source = images[..., :32, :32] if cropped else images
        expected = make_views(source, u, view, cropped=cropped)
        with monkeypatch.context() as patch:
            patch.setattr(crops, "_may_gather", lambda x: False)
            torch.testing.assert_close(make_views(source, u, view, cropped=cropped), expected, atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_and_cpu_make_the_same_views():
    images = torch.from_numpy(pictures(16, 40, 48))
    for view in views_preset("moco-v3", 32).views:
        u = uniform(0, 0, torch.arange(16), DRAWS)
        torch.testing.assert_close(
            make_views(images.cuda(), u.cuda(), view).cpu(), make_views(images, u, view), atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("name", ["moco-v1", "moco-v3", "digits"])
def test_worker_and_device_make_the_same_view_of_the_same_numbers(name):
    images = pictures(6, 40, 56)
    views = views_preset(name, 24)
    worker = ViewDataset(ArraySource(images), views, where="worker")
    for index in range(6):
        sample, rng = worker.get(index, sample_rng(0, 0, index)), sample_rng(0, 0, index)
        for number, view in enumerate(views.views, start=1):
            u = torch.from_numpy(rng.random((1, DRAWS), dtype=np.float32))
            expected = make_views(torch.from_numpy(images[index][None]), u, view)[0]
            difference = (sample[f"view_{number}"] - expected).abs() * torch.tensor(view.std).view(3, 1, 1)
            assert difference.mean() < LEVEL  # PIL rounds to whole levels before the jitter multiplies them
            if not view.solarize_p:
                assert difference.max() < 8 * LEVEL


def test_workers_draw_from_the_given_generator_alone():
    dataset = ViewDataset(ArraySource(pictures(3, 30, 30)), views_preset("moco-v2", 16), where="worker")
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = dataset.get(1, sample_rng(0, 0, 1))
    again = dataset.get(1, sample_rng(0, 0, 1))
    other = dataset.get(1, sample_rng(0, 1, 1))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["view_1"], other["view_1"])
    assert not torch.equal(first["view_1"], first["view_2"])


def batches(dataset: ViewDataset, workers: int) -> list[dict]:
    plan = StepPlan(length=len(dataset), batch_size=4, seed=0)
    loaded = step_loader(dataset, plan, start=0, stop=2, workers=workers)
    return [finish_on_device(dataset, batch, seed=0) for batch in loaded]


@pytest.mark.parametrize("where", ["worker", "device"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_views_through_the_loader(where, in_memory):
    images, ids = pictures(8, 20, 28), np.arange(8) // 2
    source = ArraySource(images, ids=ids) if in_memory else Pictures([as_image(image) for image in images], ids)
    views = Views(views=(View(size=16), View(size=16), View(size=12)))
    dataset = ViewDataset(source, views, where=where)
    alone, helped = batches(dataset, 0), batches(dataset, 2)
    for batch, same in zip(alone, helped, strict=True):
        assert batch.keys() == {"view_1", "view_2", "view_3", "ids", "index", "epoch"}
        assert batch["view_2"].shape == (4, 3, 16, 16)
        assert batch["view_3"].shape == (4, 3, 12, 12)
        assert torch.equal(batch["ids"], torch.from_numpy(ids)[batch["index"]])
        assert all(torch.equal(batch[f"view_{n}"], same[f"view_{n}"]) for n in (1, 2, 3))
        assert not torch.equal(batch["view_1"], batch["view_2"])


def test_device_views_of_one_sample_are_the_same_in_any_batch():
    dataset = ViewDataset(ArraySource(pictures(8, 20, 20)), views_preset("cifar", 16), where="device")
    make = dataset.device_transform
    get = dataset.get_batch
    assert make is not None
    assert get is not None
    big = make(get(range(8), 0, 0), BatchRandom(3, 1, torch.arange(8)))
    small = make(get([6, 2], 0, 0), BatchRandom(3, 1, torch.tensor([6, 2])))
    torch.testing.assert_close(small["view_2"], big["view_2"][[6, 2]], atol=1e-5, rtol=0)
    later = make(get([6, 2], 0, 0), BatchRandom(3, 2, torch.tensor([6, 2])))
    assert not torch.allclose(later["view_2"], small["view_2"])


def test_where_decides_who_works(monkeypatch):
    small, large = ArraySource(pictures(2, 20, 20)), ArraySource(pictures(2, 20, 200))
    views = views_preset("cifar", 16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ViewDataset(small, views).where == "device"
    assert ViewDataset(large, views).where == "worker"
    assert ViewDataset(Pictures([]), views).where == "worker"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert ViewDataset(Pictures([]), views).where == "device"
    worker = ViewDataset(small, views, where="worker")
    assert worker.get_batch is None
    assert worker.device_transform is None
    crops = ViewDataset(Pictures([as_image(pictures(1, 20, 20)[0])]), views, where="device")
    assert crops.get_batch is None
    assert crops.get(0, sample_rng(0, 0, 0))["view_1"].dtype == torch.uint8


def made(dataset: ViewDataset, indices: Sequence[int]) -> dict:
    """The finished batch of these samples."""
    batch = stack_samples([dataset.get(index, sample_rng(0, 0, index)) for index in indices])
    return finish_on_device(dataset, {**batch, "index": torch.tensor(indices), "epoch": 0}, seed=0)


@pytest.mark.parametrize("where", ["worker", "device"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 200), (200, 1)])
def test_images_of_odd_sizes(where, height, width):
    image = pictures(1, height, width)[0]
    for source in (ArraySource(image[None]), Pictures([as_image(image)])):
        dataset = ViewDataset(source, views_preset("moco-v3", 16), where=where)
        batch = made(dataset, [0])
        assert batch["view_1"].shape == batch["view_2"].shape == (1, 3, 16, 16)
        assert batch["view_1"].isfinite().all()
        assert EvalDataset(source, 16).get(0)["image"].isfinite().all()


@pytest.mark.parametrize("where", ["worker", "device"])
@pytest.mark.parametrize(("stored", "wanted"), [(1, 1), (1, 3), (3, 1)])
def test_gray_and_colour(where, stored, wanted):
    images = pictures(4, 20, 20, stored)
    view = PLAIN.model_copy(
        update={"size": 20, "mean": (0.2, 0.3, 0.4), "std": (0.5, 0.5, 0.5), "jitter": (0, 0, 0.4, 0.1)}
    )
    view = view.model_copy(update={"jitter_p": float(wanted == 1)})  # of one channel, neither saturation nor hue
    dataset = ViewDataset(ArraySource(images), Views(views=(view,)), where=where, channels=wanted)
    batch = made(dataset, range(4))
    x = torch.from_numpy(images).float() / 255
    x = ops.luma(x) if stored == 3 else x.expand(-1, wanted, -1, -1)
    mean = torch.tensor([0.3] if wanted == 1 else [0.2, 0.3, 0.4]).view(-1, 1, 1)
    torch.testing.assert_close(batch["view_1"], (x - mean) / 0.5, atol=2 * LEVEL, rtol=0)


def test_data_that_views_cannot_be_made_of():
    four = np.zeros((2, 4, 8, 8), np.uint8)
    views = views_preset("cifar", 8)
    with pytest.raises(DataError, match="4 channels"):
        ViewDataset(ArraySource(four), views)
    with pytest.raises(BadSampleError, match=r"picture 0: 4 channels"):
        ViewDataset(Pictures([four[0].transpose(1, 2, 0)]), views, where="worker").get(0, sample_rng(0, 0, 0))
    with pytest.raises(ConfigError, match="channels 2"):
        ViewDataset(Pictures([]), views, channels=2)
    with pytest.raises(ConfigError, match=r"where 'gpu'.*'worker'.*'device'"):
        ViewDataset(Pictures([]), views, where="gpu")
    with pytest.raises(ConfigError, match=r"resize_ratio 0.5"):
        EvalDataset(Pictures([]), 8, resize_ratio=0.5)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (61, 37), (32, 32), (10, 10)])
@pytest.mark.parametrize("ratio", [1.0, 256 / 224])
def test_evaluation_view_is_resize_and_centre_crop(height, width, ratio):
    images = pictures(3, height, width)
    dataset = EvalDataset(ArraySource(images, [2, 0, 1]), 28, resize_ratio=ratio)
    get_batch = dataset.get_batch
    assert get_batch is not None
    batch = get_batch([2, 0, 1], 0, 0)
    assert batch["label"].tolist() == [1, 2, 0]
    for row, index in enumerate([2, 0, 1]):
        sample = dataset.get(index)
        resized = F.center_crop(F.resize(as_image(images[index]), [round(28 * ratio)]), [28, 28])
        expected = F.normalize(
            F.to_dtype(F.pil_to_tensor(resized), scale=True), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        )
        torch.testing.assert_close(sample["image"], expected, atol=1.1 * LEVEL / 0.224, rtol=0)  # PIL rounds the box
        assert sample["label"] == batch["label"][row]
        torch.testing.assert_close(batch["image"][row], expected, atol=1.5 * LEVEL / 0.224, rtol=0)
    assert "label" not in EvalDataset(Pictures([as_image(images[0])]), 28).get(0)


def test_describe_tells_source_and_views():
    source = ArraySource(pictures(2, 20, 20))
    first = ViewDataset(source, views_preset("cifar"), where="worker").describe()
    assert first["count"] == 2
    assert [view["size"] for view in first["views"]] == [32, 32]
    assert first == ViewDataset(source, views_preset("cifar"), where="device").describe()
    assert first != ViewDataset(source, views_preset("small"), where="worker").describe()
    assert EvalDataset(source, 8).describe() != EvalDataset(source, 9).describe()


@pytest.mark.parametrize("where", ["worker", "device"])
def test_view_sheet_shows_originals_and_views(where):
    images = pictures(3, 32, 32)
    dataset = ViewDataset(ArraySource(images), Views(views=(PLAIN.model_copy(update={"size": 32}),) * 2), where=where)
    sheet = np.array(view_sheet(dataset, [2, 0], cell=32))
    assert sheet.shape == (2 * 34 + 2, 3 * 34 + 2, 3)
    for row, index in enumerate([2, 0]):
        expected = images[index].transpose(1, 2, 0).astype(int)
        for column in range(3):
            top, left = 2 + 34 * row, 2 + 34 * column
            assert abs(sheet[top : top + 32, left : left + 32] - expected).max() <= 1
    assert (sheet[:2] == 255).all()


def test_configurations_import_no_torch():
    code = "import sys, mc_vision.transforms_config, mc_vision.encoders_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_views_need_enough_pixels():
    assert Views(views=(View(size=100, crop_scale=(0.25, 1)), View(size=10, crop_scale=(0.01, 1)))).min_side == 200
