"""Views of radiographs: what is drawn, on what it depends, and that sides stay sides."""

import math

import pytest
import torch

from mc_core.random import BatchRandom
from mc_medical.augment import flip_coins, make_view
from mc_medical.augment_config import AugmentConfig

STILL = {"rotation": 0.0, "scale": (1.0, 1.0), "shift": 0.0, "brightness": 0.0, "contrast": 0.0, "crop": 1.0}


def random(count=8, seed=0, epoch=0, first=0):
    return BatchRandom(seed, epoch, torch.arange(first, first + count))


def pictures(count=8, side=72, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 9, 9, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return (smooth * 255).to(torch.uint8)


def test_without_changes_a_view_is_the_picture():
    pixels = pictures()
    view = make_view(pixels, random(), 1, AugmentConfig(size=72, **STILL))
    torch.testing.assert_close(view, pixels.float() / 255, rtol=0, atol=1e-5)
    torch.testing.assert_close(make_view(pixels[:, 0], random(), 1, AugmentConfig(size=72, **STILL)), view)


def test_a_crop_is_a_window_of_the_picture():
    pixels = pictures(64, side=64)
    config = AugmentConfig(size=56, **{**STILL, "crop": 0.875})
    views = make_view(pixels, random(64), 1, config)
    exact = pixels.float() / 255
    found = set()
    for picture, view in zip(exact, views, strict=True):
        windows = picture[0].unfold(0, 56, 1).unfold(1, 56, 1).reshape(-1, 56, 56)
        distance = (windows - view).abs().amax((1, 2))
        assert distance.min() < 0.1  # between two pixels, at most half a step (1/16) from a window along both axes
        found.add(int(distance.argmin()))
    assert len(found) > 20  # all over the picture


def test_a_view_depends_on_seed_epoch_index_and_view_alone():
    pixels, config = pictures(), AugmentConfig(size=56)
    view = make_view(pixels, random(), 1, config)
    torch.testing.assert_close(make_view(pixels[3:5], random(2, first=3), 1, config), view[3:5], rtol=0, atol=1e-6)
    for other in (random(seed=1), random(epoch=1)):
        assert (make_view(pixels, other, 1, config) - view).abs().mean() > 0.01
    assert (make_view(pixels, random(), 2, config) - view).abs().mean() > 0.01
    assert view.min() >= 0
    assert view.max() <= 1


def test_turns_and_magnifications_stay_within_their_bounds():
    """A bright disc off the centre: how far it turns and moves outwards is what was asked for."""
    side, count = 128, 400
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    disc = ((x - 96) ** 2 + (y - 63.5) ** 2 < 36).to(torch.uint8) * 255
    config = AugmentConfig(size=side, **{**STILL, "rotation": 10.0, "scale": (0.8, 1.1)})
    views = make_view(disc.expand(count, 1, side, side), random(count), 1, config)[:, 0]
    mass = views.sum((1, 2))
    dx = (views.sum(1) * torch.arange(side)).sum(1) / mass - 63.5
    dy = (views.sum(2) * torch.arange(side)).sum(1) / mass - 63.5
    angle, distance = torch.rad2deg(torch.atan2(dy, dx)), (dx**2 + dy**2).sqrt() / 32.5
    assert -10.3 < angle.min() < -9
    assert 9 < angle.max() < 10.3
    assert distance.min() == pytest.approx(0.8, abs=0.03)
    assert distance.max() == pytest.approx(1.1, abs=0.03)
    assert (mass / mass.mean()).max() < (1.1 / 0.8) ** 2 * 1.15


def test_shifts_stay_within_their_bounds_and_show_black_beyond_the_edge():
    side, count = 64, 300
    config = AugmentConfig(size=side, **{**STILL, "shift": 0.0625})
    white = torch.full((count, 1, side, side), 255, dtype=torch.uint8)
    views = make_view(white, random(count), 1, config)[:, 0]
    black = (views.mean(2) < 0.5).sum(1)
    assert 3 <= int(black.max()) <= 4  # of 64 rows
    assert (views.mean((1, 2)) > (1 - 0.0625) ** 2 - 0.02).all()


def test_brightness_and_contrast_are_those_factors():
    count = 500
    flat = torch.full((count, 1, 16, 16), 0.5)
    flat[:, :, :8] = 0.3
    config = AugmentConfig(size=16, **{**STILL, "brightness": 0.2, "contrast": 0.2})
    views = make_view(flat, random(count), 1, config)
    mean = views.mean((1, 2, 3)) / 0.4
    gap = (views[:, 0, 12, 0] - views[:, 0, 3, 0]) / 0.2 / mean
    for values in (mean, gap):
        assert values.min() == pytest.approx(0.8, abs=0.02)
        assert values.max() == pytest.approx(1.2, abs=0.02)
    assert abs(torch.corrcoef(torch.stack([mean, gap]))[0, 1]) < 0.15


def test_left_stays_left_unless_the_words_are_changed_too():
    side, count = 64, 64
    spot = torch.zeros(count, 1, side, side)
    spot[:, :, 24:40, 4:16] = 1.0
    config = AugmentConfig(size=side)

    def on_the_left(views):
        return views[..., :32].sum((1, 2, 3)) > views[..., 32:].sum((1, 2, 3))

    assert on_the_left(make_view(spot, random(count), 1, config)).all()
    swapped = AugmentConfig(size=side, flip="swap")
    coins = flip_coins(0, 0, torch.arange(count))
    assert 0.3 < coins.float().mean() < 0.7
    for view in (1, 2):
        assert torch.equal(on_the_left(make_view(spot, random(count), view, swapped)), ~coins)


def test_turning_and_mirroring_do_not_shear():
    """Distances between three spots keep their proportions, mirrored or not."""
    side = 128
    picture = torch.zeros(1, 1, side, side)
    places = [(40, 40), (90, 45), (60, 90)]
    for y, x in places:
        picture[0, 0, y - 2 : y + 3, x - 2 : x + 3] = 1.0
    config = AugmentConfig(size=side, **{**STILL, "rotation": 10.0, "flip": "swap"})
    views = make_view(picture.expand(32, 1, side, side), random(32), 1, config)[:, 0]
    axis = torch.arange(side, dtype=torch.float32)
    wanted = sorted(math.dist(a, b) for i, a in enumerate(places) for b in places[i + 1 :])
    for view in views:
        found = []
        rest = view.clone()
        for _ in range(3):
            peak = int(torch.nn.functional.avg_pool2d(rest[None, None], 7, 1, 3).argmax())
            cy, cx = divmod(peak, side)
            window = rest[cy - 8 : cy + 9, cx - 8 : cx + 9]
            mass = window.sum()
            found.append(
                (
                    float((window.sum(1) * axis[cy - 8 : cy + 9]).sum() / mass),
                    float((window.sum(0) * axis[cx - 8 : cx + 9]).sum() / mass),
                )
            )
            window.zero_()
        got = sorted(math.dist(a, b) for i, a in enumerate(found) for b in found[i + 1 :])
        assert got == pytest.approx(wanted, abs=0.8)
