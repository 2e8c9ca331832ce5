"""Views against Pillow, operation by operation, and what they may depend on."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from mc_core.images import crops
from mc_core.random import BatchRandom
from mc_vision_language import augment, rand_augment
from mc_vision_language.augment import make_views
from mc_vision_language.augment_config import OPERATIONS, AugmentConfig

SIDE = 40


def pictures(count: int = 6, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    """(N, 3, H, W) uint8: waves, steps, narrow ranges, one level alone, two levels."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:height, :width]
    waves = 127 + 120 * np.sin(x / 5 + np.arange(3)[:, None, None]) * np.cos(y / 7)
    kinds = [
        waves,
        waves / 3 + 60,
        np.broadcast_to((x // 8 * 50)[None], (3, height, width)),
        np.full((3, height, width), 77.0),
        np.where(rng.random((3, height, width)) < 0.1, 200.0, 10.0),
        rng.random((3, height, width)) ** 3 * 255,
    ]
    return torch.from_numpy(np.stack([kinds[i % len(kinds)] for i in range(count)]).astype(np.uint8))


def as_image(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(picture.numpy().transpose(1, 2, 0)))


def affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)
    )


def by_pillow(image: Image.Image, name: str, sign: float, magnitude: float) -> Image.Image:
    """The operation as the official code writes it, with Pillow's functions. ``sign`` is that of the map from output to input."""
    share, (width, height) = magnitude / 10, image.size
    factor = share * 1.8 + 0.1
    angle = math.radians(30 * share * sign)
    cos, sin = math.cos(angle), math.sin(angle)
    match name:
        case "identity":
            return image
        case "autocontrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
        case "brightness":
            return ImageEnhance.Brightness(image).enhance(factor)
        case "sharpness":
            return ImageEnhance.Sharpness(image).enhance(factor)
        case "shear_x":
            return affine(image, (1, sign * 0.3 * share, 0, 0, 1, 0))
        case "shear_y":
            return affine(image, (1, 0, 0, sign * 0.3 * share, 1, 0))
        case "translate_x":
            return affine(image, (1, 0, sign * 10 * share, 0, 1, 0))
        case "translate_y":
            return affine(image, (1, 0, 0, 0, 1, sign * 10 * share))
        case "rotate":
            middle_x, middle_y = width / 2, height / 2
            return affine(
                image,
                (
                    cos,
                    sin,
                    middle_x - cos * middle_x - sin * middle_y,
                    -sin,
                    cos,
                    middle_y + sin * middle_x - cos * middle_y,
                ),
            )
    raise AssertionError(name)


@pytest.mark.parametrize("magnitude", [7.0, 2.0])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_pillow(name, sign, magnitude):
    config = AugmentConfig(rand_augment=1, rand_augment_p=1.0, operations=(name,), magnitude=magnitude)
    x = pictures()
    draws = torch.tensor([[0.5, 0.0, 0.2 if sign < 0 else 0.9]]).expand(len(x), 3)
    found = rand_augment.rand_augment(x.float(), draws, config)
    expected = torch.stack(
        [torch.from_numpy(np.array(by_pillow(as_image(one), name, sign, magnitude))).permute(2, 0, 1) for one in x]
    )
    assert torch.equal(found, found.round())
    assert found.min() >= 0
    assert found.max() <= 255
    exact = name in ("identity", "autocontrast", "equalize", "brightness", "sharpness")
    far = (found - expected).abs() > (0 if exact else 1)
    assert far.float().mean() < (1e-9 if exact else 2e-3), far.float().mean()  # the last bit of a place at an edge


def test_levels_are_those_of_the_official_code():
    config = AugmentConfig()
    assert (config.rand_augment, config.rand_augment_p, config.magnitude, config.fill) == (2, 0.5, 7, 128)
    assert rand_augment._factor(config) == pytest.approx(1.36)
    ramp = torch.arange(SIDE).float().expand(1, 3, SIDE, SIDE).clone()
    only = {"rand_augment": 1, "rand_augment_p": 1.0}
    moved = rand_augment.rand_augment(
        ramp.clone(), torch.tensor([[0.0, 0.0, 0.9]]), AugmentConfig(operations=("translate_x",), **only)
    )
    assert moved[0, 0, 5, :3].tolist() == [7, 8, 9]
    assert moved[0, 0, 5, -7:].tolist() == [128] * 7
    sheared = rand_augment.rand_augment(
        ramp.clone(), torch.tensor([[0.0, 0.0, 0.9]]), AugmentConfig(operations=("shear_x",), **only)
    )
    assert sheared[0, 0, 10, 5] == round(5 + 0.21 * 10.5)
    assert set(OPERATIONS) == {
        *("identity", "autocontrast", "equalize", "brightness", "sharpness"),
        *("shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    }


def test_operations_are_drawn_evenly_and_applied_half_of_the_time():
    config = AugmentConfig(size=16, rand_augment=1)
    seen = []
    x = pictures(1, 16, 16).float()
    u = BatchRandom(0, 0, torch.arange(4000)).uniform(3, stream=1)
    which = (u[:, 0] * 10).long()
    counts = torch.bincount(which, minlength=10).float()
    assert ((counts - 400) ** 2 / 400).sum() < 21.7  # chi-square, 9 degrees of freedom, 1 %
    for number in range(10):
        rows = torch.cat([(which == number).nonzero()[:40, 0]])
        out = rand_augment.rand_augment(x.expand(len(rows), -1, -1, -1).clone(), u[rows], config)
        changed = (out != x).flatten(1).any(1)
        assert torch.equal(changed, u[rows, 1] < 0.5) or number == 0, OPERATIONS[number]
        seen.append(bool(changed.any()))
    assert seen == [False] + [True] * 9


def test_two_operations_follow_one_another():
    x = pictures(2).float()
    both = AugmentConfig(rand_augment=2, rand_augment_p=1.0, operations=("brightness", "rotate"))
    first = AugmentConfig(rand_augment=1, rand_augment_p=1.0, operations=("brightness",))
    then = AugmentConfig(rand_augment=1, rand_augment_p=1.0, operations=("rotate",))
    u = torch.tensor([[0.1, 0.0, 0.9, 0.9, 0.0, 0.9]] * 2)
    apart = rand_augment.rand_augment(rand_augment.rand_augment(x.clone(), u[:, :3], first), u[:, 3:], then)
    assert torch.equal(rand_augment.rand_augment(x.clone(), u, both), apart)


def random_of(count: int, seed: int = 0, epoch: int = 0) -> BatchRandom:
    return BatchRandom(seed, epoch, torch.arange(count))


@pytest.mark.parametrize("cropped", [False, True])
def test_a_view_is_a_function_of_seed_epoch_and_index_alone(cropped, monkeypatch):
    x = pictures(12, 32, 32 if cropped else 48)
    config = AugmentConfig(size=32)
    whole = make_views(x, random_of(12), config, cropped=cropped)
    assert whole.shape == (12, 3, 32, 32)
    assert whole.dtype == torch.float32
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert torch.equal((whole * 255).round() / 255, whole)
    order = torch.tensor([7, 3, 11])
    assert torch.equal(make_views(x[order], BatchRandom(0, 0, order), config, cropped=cropped), whole[order])
    monkeypatch.setattr(crops, "_may_gather", lambda x: False)  # as on an accelerator
    torch.testing.assert_close(make_views(x, random_of(12), config, cropped=cropped), whole, atol=1e-6, rtol=0)
    monkeypatch.undo()
    monkeypatch.setattr(augment, "_CACHE_FLOATS", 1)
    assert torch.equal(make_views(x, random_of(12), config, cropped=cropped), whole)
    monkeypatch.undo()
    for other in (random_of(12, seed=1), random_of(12, epoch=1)):
        assert (make_views(x, other, config, cropped=cropped) != whole).flatten(1).any(1).sum() >= 10
    assert not torch.equal(make_views(x, random_of(12), config, cropped=cropped, stream=1), whole)


def test_the_pictures_are_not_written_to():
    x = pictures(4)
    before = x.clone()
    make_views(x, random_of(4), AugmentConfig(size=24))
    make_views(x, random_of(4), AugmentConfig(size=SIDE), cropped=True)
    assert torch.equal(x, before)


def test_without_randomness_a_view_is_the_bicubic_picture_of_pillow():
    x = pictures(6, 50, 70)
    config = AugmentConfig(size=32, resize="squash", flip=0.0, rand_augment=0)
    found = make_views(x, random_of(6), config) * 255
    expected = torch.stack(
        [
            torch.from_numpy(np.array(as_image(one).resize((32, 32), Image.Resampling.BICUBIC))).permute(2, 0, 1)
            for one in x
        ]
    )
    assert (found - expected).abs().max() <= 1.01


def test_half_of_the_views_are_mirrored():
    x = pictures(1).expand(400, -1, -1, -1)
    config = AugmentConfig(size=SIDE, resize="squash", rand_augment=0)
    views = make_views(x, random_of(400), config)
    same = (views * 255).byte() == x
    mirrored = (views * 255).byte() == x.flip(-1)
    same, mirrored = same.flatten(1).all(1), mirrored.flatten(1).all(1)
    assert torch.equal(same, ~mirrored)
    assert 160 < mirrored.sum() < 240
    assert not (make_views(x, random_of(400), config.model_copy(update={"flip": 0.0})) != views[same][0]).any()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"scale": (0.5, 0.2)}, "rising shares"),
        ({"scale": (0.0, 1.0)}, "rising shares"),
        ({"ratio": (2.0, 1.0)}, "rising positive"),
        ({"operations": ()}, "operations is empty"),
        ({"operations": ("solarize",)}, "operations"),
        ({"magnitude": 11}, "less than or equal to 10"),
        ({"flips": 0.5}, "flips"),
    ],
)
def test_wrong_options_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        AugmentConfig(**wrong)
