"""Tiles change as a whole: image, elevation and labels keep fitting; light and relief change by themselves, by index alone."""

import math

import numpy as np
import pytest
import torch

from mc_core.data import StepPlan, finish_on_device, step_loader
from mc_core.errors import DataError
from mc_core.random import BatchRandom
from mc_remote_sensing.augment import AugmentedTiles, Geometry, TileAugment
from mc_remote_sensing.augment_config import AugmentConfig
from mc_remote_sensing.data.relief import laplacian, slope_degrees
from mc_remote_sensing.encoders_config import BandsConfig
from mc_testkit.toys import labelled_tiles, scene_pairs

BANDS = BandsConfig(names=("a", "b"), mean=(100.0, 5.0), std=(20.0, 2.0))
STILL = {
    "flip": False,
    "scale": (1.0, 1.0),
    "brightness": 0.0,
    "contrast": 0.0,
    "gamma": 0.0,
    "blur_p": 0.0,
    "elevation_scale": 0.0,
    "elevation_noise": 0.0,
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def random(count=8, seed=0, epoch=0, first=0):
    return BatchRandom(seed, epoch, torch.arange(first, first + count))


def tiles(count=8, side=24, seed=0):
    """A batch in which every pixel of every layer tells where it was."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.arange(side * side).view(1, 1, side, side).float()
    image = torch.cat([at, at * 2 + 1], 1).repeat(count, 1, 1, 1)
    elevation = torch.cat([at / 1000, at / 2000, at / 3000, torch.ones_like(at)], 1).repeat(count, 1, 1, 1)
    labels = (at[0, 0] % 2).to(torch.uint8).repeat(count, 1, 1)
    valid = torch.rand(count, side, side, generator=generator) < 0.95
    return {"image": image, "image_valid": valid, "elevation": elevation, "labels": labels}


def augment(**changes):
    views = changes.pop("second_view", True)
    return TileAugment(AugmentConfig.model_validate({**STILL, **changes}), BANDS, second_view=views)


def test_nothing_asked_for_changes_nothing():
    batch = tiles()
    made = augment()(batch, random())
    for name, value in batch.items():
        torch.testing.assert_close(made[name], value, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(made["image_2"], made["image"])
    torch.testing.assert_close(made["elevation_2"], made["elevation"])


def test_the_eight_flips_and_turns_move_every_layer_alike():
    batch = tiles(count=64)
    made = augment(flip=True)(batch, random(64))
    at = batch["image"][:, 0]
    seen = set()
    for i in range(64):
        options = [
            turned
            for flipped in (lambda x: x, lambda x: x.mT)
            for turned in (lambda x, f=flipped, k=k: torch.rot90(f(x), k, (-2, -1)) for k in range(4))
        ]
        matching = [n for n, turn in enumerate(options) if torch.allclose(made["image"][i, 0], turn(at[i]), atol=1e-3)]
        assert len(matching) == 1
        seen.add(matching[0])
        turn = options[matching[0]]
        for name in ("elevation", "labels", "image_valid"):
            torch.testing.assert_close(made[name][i], turn(batch[name][i]), rtol=1e-6, atol=1e-6)
    assert seen == set(range(8))


def test_a_crop_is_a_piece_of_the_tile_in_every_layer():
    batch = tiles(count=16)
    made = augment(size=10)(batch, random(16))
    assert made["image"].shape == (16, 2, 10, 10)
    corners = set()
    for i in range(16):
        top, left = divmod(round(made["image"][i, 0, 0, 0].item()), 24)
        corners.add((top, left))
        piece = (..., slice(top, top + 10), slice(left, left + 10))
        for name in ("image", "labels", "image_valid", "elevation"):
            torch.testing.assert_close(made[name][i], batch[name][i][piece], rtol=1e-6, atol=1e-4)
    assert len(corners) > 10
    assert all(0 <= top <= 14 and 0 <= left <= 14 for top, left in corners)


@pytest.mark.parametrize("scale", [(1.5, 1.5), (1.2, 1.4), (0.75, 0.75)])
def test_a_zoom_reads_every_layer_at_the_same_place(scale):
    side = 32
    at = torch.arange(side).float() + 0.5
    rows, columns = at[:, None].expand(side, side), at[None, :].expand(side, side)
    image = torch.stack([rows, columns]).repeat(6, 1, 1, 1)
    elevation = torch.stack([rows, columns, rows, torch.ones(side, side)]).repeat(6, 1, 1, 1)
    labels = ((rows.long() * 7 + columns.long()) % 200).to(torch.uint8).repeat(6, 1, 1)
    made = augment(scale=scale, flip=True)({"image": image, "elevation": elevation, "labels": labels}, random(6))
    inside = made["image_valid"]
    torch.testing.assert_close(
        made["elevation"][:, :1][inside[:, None]], made["image"][:, :1][inside[:, None]], rtol=0, atol=0.3
    )
    row, column = made["image"][:, 0], made["image"][:, 1]
    deep = inside & (row > 2) & (row < side - 2) & (column > 2) & (column < side - 2)
    assert deep.sum() > 500
    label = ((row - 1e-3).floor().long() * 7 + (column - 1e-3).floor().long()) % 200
    alike = (label == made["labels"].long())[deep].float().mean()
    assert alike > 0.95  # but for pixels whose place lies on an edge
    assert (made["labels"][~inside & (made["labels"] == 255)] == 255).all()
    if scale[0] < 1:
        share = (made["labels"] == 255).float().mean()
        assert share == pytest.approx(1 - 0.75**2, abs=0.08), "what lies beyond the tile is unknown"
        assert not inside[made["labels"] == 255].float().mean() > 0.2
        assert (made["elevation"][:, 3] == inside).all()
        assert (made["elevation"][:, :3] * ~inside[:, None] == 0).all()


def test_the_zoom_keeps_means_and_ignores_what_is_not_valid():
    """A resize with antialiasing: a constant stays one, whatever stands in invalid pixels."""
    batch = tiles()
    batch["image"] = torch.where(batch["image_valid"][:, None], 42.0, 1e6).repeat(1, 2, 1, 1)
    made = augment(scale=(0.8, 1.4), flip=True)(batch, random())
    values = made["image"].transpose(0, 1)[:, made["image_valid"]]
    assert values.numel() > 1000
    torch.testing.assert_close(values, torch.full_like(values, 42.0), rtol=1e-4, atol=1e-2)


def test_slope_and_curvature_of_turned_terrain_are_the_turned_ones():
    """Inputs made before a flip agree with those made after it: the elevation's channels have no direction."""
    height = np.random.default_rng(0).normal(size=(40, 40)).cumsum(0).cumsum(1)
    for turn in (np.fliplr, np.flipud, np.rot90, np.transpose):
        for derivative in (slope_degrees, laplacian):
            after, before = derivative(np.ascontiguousarray(turn(height)), 5.0, 5.0), derivative(height, 5.0, 5.0)
            assert before.std() > 0
            np.testing.assert_allclose(after, turn(before), rtol=0, atol=1e-6 * np.abs(before).max())


def test_heights_times_a_factor_change_slope_and_curvature_exactly():
    """tan of the slope and the curvature grow as the heights do."""
    slope = torch.linspace(0, 80, 16 * 16).view(1, 1, 16, 16) / 45
    curvature = torch.linspace(-0.8, 0.8, 16 * 16).view(1, 1, 16, 16)
    elevation = torch.cat([curvature * 3, slope, curvature, torch.ones_like(slope)], 1)
    changer = augment(elevation_scale=0.1)
    factors = []
    for view in (1, 2):
        made = changer.relief(elevation, random(1), view)
        factor = (made[0, 0] / elevation[0, 0]).median()
        factors.append(factor.item())
        assert 0.9 <= factor <= 1.1
        torch.testing.assert_close(
            torch.tan(torch.deg2rad(made[0, 1] * 45)),
            factor * torch.tan(torch.deg2rad(elevation[0, 1] * 45)),
            rtol=1e-4,
            atol=1e-5,
        )
        torch.testing.assert_close(made[0, 2], factor * elevation[0, 2], rtol=1e-4, atol=1e-6)
        assert torch.equal(made[0, 3], elevation[0, 3])
    assert factors[0] != factors[1]


def test_noise_of_the_relief_is_small_smooth_and_only_where_it_is_known():
    elevation = torch.zeros(64, 4, 32, 32)
    elevation[:, 3] = 1
    elevation[:, 3, :5] = 0
    made = augment(elevation_noise=0.05).relief(elevation, random(64), 1)
    assert (made[:, :3, :5] == 0).all()
    assert 0.02 < made[:, 0, 5:].std() < 0.05
    assert (made[:, 0, 5:, 1:] - made[:, 0, 5:, :-1]).abs().max() < 0.05  # no jumps
    assert (made[:, 1] >= 0).all(), "a slope is never negative"
    assert made[:, 2].abs().max() <= 1


def test_contrast_and_brightness_are_measured_in_deviations_of_each_band():
    image = torch.stack([100 + 20 * torch.randn(64, 20, 20), 5 + 2 * torch.randn(64, 20, 20)], 1)
    valid = torch.ones(64, 20, 20, dtype=torch.bool)
    made = augment(brightness=0.5).tone(image, valid, random(64), 1)
    shift = (made - image) / torch.tensor([20.0, 2.0]).view(2, 1, 1)
    torch.testing.assert_close(shift, shift[:, :1, :1, :1].expand_as(shift), rtol=1e-3, atol=1e-3)
    assert shift.abs().max() <= 0.5
    assert shift[:, 0, 0, 0].std() > 0.2
    made = augment(contrast=0.4).tone(image, valid, random(64), 1)
    ratio = made.std((2, 3)) / image.std((2, 3))
    torch.testing.assert_close(ratio[:, 0], ratio[:, 1], rtol=1e-3, atol=1e-3)
    assert 0.6 <= ratio.min() < 0.8
    assert 1.2 < ratio.max() <= 1.401
    torch.testing.assert_close(made.mean((2, 3)), image.mean((2, 3)), rtol=1e-3, atol=1e-2)


def test_gamma_bends_between_three_deviations_and_keeps_order():
    values = torch.linspace(100 - 90, 100 + 90, 400)
    image = torch.stack([values, values / 10 - 5]).view(1, 2, 20, 20).repeat(16, 1, 1, 1)
    made = augment(gamma=0.5).tone(image, torch.ones(16, 20, 20, dtype=torch.bool), random(16), 1)
    flat = made[:, 0].flatten(1)
    assert (flat.diff(dim=1) >= -1e-3).all()
    far = (values < 100 - 60) | (values > 100 + 60)
    torch.testing.assert_close(flat[:, far], values[far].expand(16, -1), rtol=1e-4, atol=1e-2)
    middle = ((flat[:, 200] - 40) / 120).log() / ((values[200] - 40) / 120).log()  # the exponent
    assert ((middle > 1 / 1.5 - 0.01) & (middle < 1.51)).all()
    assert middle.std() > 0.1


def test_blur_is_at_most_the_mean_of_the_neighbours():
    image = torch.randn(32, 2, 16, 16) * 10 + 100
    valid = torch.ones(32, 16, 16, dtype=torch.bool)
    made = augment(blur_p=1.0).tone(image, valid, random(32), 1)
    neighbours = torch.nn.functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    amount = ((made - image) / (neighbours - image)).flatten(1).median(1).values
    assert amount.min() >= -0.01
    assert amount.max() <= 1.01
    assert amount.std() > 0.1
    torch.testing.assert_close(made, torch.lerp(image, neighbours, amount[:, None, None, None]), rtol=1e-3, atol=0.05)
    assert torch.allclose(augment(blur_p=0.0).tone(image, valid, random(32), 1), image, atol=1e-3)


def test_invalid_pixels_take_no_part_in_the_light():
    image, valid = torch.randn(8, 2, 16, 16) * 10 + 100, torch.rand(8, 16, 16) < 0.8
    everything = augment(brightness=0.4, contrast=0.4, gamma=0.3, blur_p=1.0)
    poisoned = torch.where(valid[:, None], image, 1e9)
    first, second = (
        everything.tone(x, valid, random(), 1) for x in (torch.where(valid[:, None], image, 0.0), poisoned)
    )
    inside = valid[:, None].expand_as(first)
    torch.testing.assert_close(first[inside], second[inside])
    assert (second[~inside] == 1e9).all()


def test_both_views_lie_on_the_same_ground_in_other_light():
    made = augment(flip=True, brightness=0.4, contrast=0.4, elevation_scale=0.1)(tiles(), random())
    one, two = (x.flatten(2) for x in (made["image"], made["image_2"]))
    correlation = torch.nn.functional.cosine_similarity(
        one - one.mean(2, keepdim=True), two - two.mean(2, keepdim=True), dim=2
    )
    assert (correlation > 0.99).all()
    assert not torch.allclose(made["image"], made["image_2"])
    assert not torch.allclose(made["elevation"], made["elevation_2"])


def test_the_first_view_does_not_know_whether_there_is_a_second():
    settings = {"flip": True, "scale": (0.8, 1.2), "brightness": 0.4, "blur_p": 0.5, "elevation_noise": 0.1}
    both = augment(**settings)(tiles(), random())
    alone = augment(**settings, second_view=False)(tiles(), random())
    assert set(both) - set(alone) == {"image_2", "elevation_2"}
    for name, value in alone.items():
        assert torch.equal(value, both[name]), name


def test_a_tile_changes_alike_in_any_batch_and_anew_each_epoch():
    settings = AugmentConfig(size=20)
    changer = TileAugment(settings, BANDS)
    whole = changer(tiles(), random())
    part = changer({name: value[3:5] for name, value in tiles().items()}, random(2, first=3))
    for name, value in part.items():
        torch.testing.assert_close(value, whole[name][3:5], rtol=1e-5, atol=1e-3)
    later = changer(tiles(), random(epoch=1))
    assert not torch.equal(later["labels"], whole["labels"])


def test_pairs_share_their_geometry_and_nothing_else():
    batch = scene_pairs().get_batch(range(8), 0, 0)
    ground = {name: value for name, value in batch.items() if not name.startswith("elevation")}
    ground |= {"image_2": batch["image_1"].clone(), "elevation": batch["elevation_1"]}
    bands = BandsConfig()
    moved = TileAugment(AugmentConfig.model_validate({**STILL, "flip": True, "size": 20}), bands)(ground, random())
    assert moved["image_1"].shape == (8, 3, 20, 20)
    torch.testing.assert_close(moved["image_1"], moved["image_2"], rtol=1e-5, atol=1e-5)
    assert torch.equal(moved["valid_1"], moved["valid_2"])
    torch.testing.assert_close(moved["elevation_1"], moved["elevation_2"])
    assert "elevation" not in moved
    lit = TileAugment(AugmentConfig(), bands)(ground, random())
    assert not torch.allclose(lit["image_1"], lit["image_2"])
    assert not torch.allclose(lit["elevation_1"], lit["elevation_2"])
    assert torch.equal(lit["ids"], batch["ids"])


def test_layers_that_are_not_there_are_not_missed():
    batch = tiles()
    only = augment(flip=True)({"elevation": batch["elevation"], "labels": batch["labels"]}, random())
    assert sorted(only) == ["elevation", "elevation_2", "labels"]
    empty = augment(flip=True)({**batch, "image": batch["image"][:, :0]}, random())
    assert empty["image"].shape == (8, 0, 24, 24)
    assert "image_2" not in empty
    assert augment()({"ids": torch.arange(8)}, random()).keys() == {"ids"}


def test_other_bands_than_those_measured_are_refused():
    with pytest.raises(DataError, match="3 bands, the statistics are of 2"):
        augment()({"image": torch.zeros(8, 3, 8, 8)}, random())


def test_a_data_set_hands_out_changed_tiles():
    plain = labelled_tiles()
    changer = TileAugment(AugmentConfig(size=24), BandsConfig())
    data = AugmentedTiles(plain, changer)
    assert len(data) == len(plain)
    assert data.describe()["kind"] == "tensors"
    assert data.describe()["augment"]["size"] == 24
    batch = next(iter(step_loader(data, StepPlan(len(data), 4, 0), start=0, stop=1, workers=0)))
    made = finish_on_device(data, batch, 7)
    assert made["image"].shape == (4, 3, 24, 24)
    again = changer(batch, BatchRandom(7, 0, batch["index"]))
    assert torch.equal(made["image_2"], again["image_2"])
    assert data.get(0, None)["image"].shape == (3, 32, 32)


def test_zooms_are_spread_evenly_over_their_logarithm():
    geometry = Geometry.draw(random(4000), AugmentConfig(scale=(0.5, 2.0)), 32)
    zoom = (32 / geometry.length).log2()
    assert zoom.min() >= -1.0001
    assert zoom.max() <= 1.0001
    assert abs(zoom.mean().item()) < 0.05
    assert zoom.std().item() == pytest.approx(2 / math.sqrt(12), abs=0.02)
    with pytest.raises(ValueError, match="smaller zoom first"):
        AugmentConfig(scale=(1.5, 0.75))
