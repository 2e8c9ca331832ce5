"""Composed digit scenes: independent of count and batch, labelled truthfully, and not solved by raw pixels."""

from __future__ import annotations

import dataclasses
import sys
from importlib.abc import MetaPathFinder

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_digits
from torch import Tensor

from mc_core.errors import ConfigError, DataError, MissingDependencyError
from mc_core.evaluation import knn_accuracy
from mc_core.samples import COLORS, DIGITS, RELATIONS, SIZES, DigitScenes, SceneConfig, digit_scenes
from mc_core.samples.painting import strokes


@pytest.fixture(scope="module")
def crowd() -> DigitScenes:
    return digit_scenes(300, size=64, digits=(1, 4), seed=3)


LIGHT_INKS = {"white", "yellow", "orange", "pink", "turquoise"}


def _grey(scenes: DigitScenes) -> Tensor:
    return (scenes.images.float() / 255 * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)


def _columns(scenes: DigitScenes) -> dict[str, Tensor]:
    tensors = {name: value for name, value in vars(scenes).items() if isinstance(value, Tensor)}
    return tensors | vars(scenes.objects)


class TestReproducible:
    def test_a_scene_is_a_function_of_seed_split_and_index(self) -> None:
        whole = digit_scenes(600, size=33, digits=(1, 3), seed=5)  # three chunks
        for start, count in ((0, 100), (250, 17), (599, 1)):
            part = digit_scenes(count, size=33, digits=(1, 3), seed=5, start=start)
            for name, column in _columns(part).items():
                expected = _columns(whole)[name][start : start + count]
                assert torch.equal(column.nan_to_num(-1), expected.nan_to_num(-1)), name
            assert part.captions == whole.captions[start : start + count]

    def test_seed_and_split_change_the_scene(self) -> None:
        base, seed, split = (
            digit_scenes(4, size=32, **changed).images for changed in ({}, {"seed": 1}, {"split": "test"})
        )
        assert not (base == seed).flatten(1).all(1).any()
        assert not (base == split).flatten(1).all(1).any()
        train, test = (digit_scenes(50, size=16, split=name).objects.angle for name in ("train", "test"))
        assert not (train == test).any()

    def test_train_and_test_share_no_scan(self) -> None:
        train, test = (
            set(digit_scenes(4000, size=16, split=split).objects.source.flatten().tolist())
            for split in ("train", "test")
        )
        assert max(train) < 1437 == min(test)
        assert len(train) > 1300
        assert len(test) == 360

    def test_every_scan_is_held_out_once(self) -> None:
        seen: list[set[int]] = []
        for fifth in range(5):
            config = SceneConfig(held_out=fifth)
            held, rest = (
                set(digit_scenes(4000, size=16, split=split, config=config).objects.source.flatten().tolist())
                for split in ("test", "train")
            )
            assert not held & rest
            assert max(held) - min(held) < 360  # one after the other, as they were collected
            seen.append(held)
        assert sum(map(len, seen)) == len(set().union(*seen)) == 1797
        assert min(seen[0]) > max(seen[1]) > max(seen[4])


class TestTruth:
    def test_shapes_and_dtypes(self, crowd: DigitScenes) -> None:
        assert len(crowd) == 300
        assert (crowd.images.shape, crowd.images.dtype) == ((300, 3, 64, 64), torch.uint8)
        assert (crowd.masks.shape, crowd.masks.dtype) == ((300, 64, 64), torch.uint8)
        assert (crowd.boxes.shape, crowd.boxes.dtype) == ((300, 4, 4), torch.float32)
        assert (crowd.labels.shape, crowd.labels.dtype) == ((300,), torch.int64)
        assert crowd.images.flatten(1).float().std(1).min() > 5

    def test_labels_are_those_of_the_scans(self, crowd: DigitScenes) -> None:
        present = crowd.objects.source >= 0
        target = torch.from_numpy(load_digits().target)
        assert torch.equal(crowd.objects.digit[present], target[crowd.objects.source[present]])
        assert torch.equal(crowd.labels, crowd.objects.digit[:, 0])
        assert set(crowd.labels.tolist()) == set(range(10))

    def test_places_beyond_the_count_are_empty(self, crowd: DigitScenes) -> None:
        objects = crowd.objects
        assert torch.bincount(objects.count, minlength=5)[1:].min() > 40
        for place in range(4):
            gone = objects.count <= place
            assert torch.equal(crowd.boxes[:, place, 0] == -1, gone)
            assert torch.equal((crowd.masks == place + 1).flatten(1).any(1), ~gone)
            for name in ("digit", "color", "size", "source"):
                assert torch.equal(getattr(objects, name)[:, place] == -1, gone), name
            for name in ("height", "angle"):
                assert torch.equal(getattr(objects, name)[:, place].isnan(), gone), name

    def test_boxes_surround_masks(self, crowd: DigitScenes) -> None:
        for scene in range(60):
            for place in range(int(crowd.objects.count[scene])):
                rows, columns = np.nonzero(crowd.masks[scene].numpy() == place + 1)
                expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert crowd.boxes[scene, place].tolist() == expected

    def test_digits_keep_apart_and_whole(self, crowd: DigitScenes) -> None:
        """Each mask has the area that its scan has ink for, so nothing is cut off or covered."""
        scans = torch.from_numpy(load_digits().images).float() / 16
        present = crowd.objects.source >= 0
        area = torch.stack([(crowd.masks == place + 1).sum((1, 2)) for place in range(4)], 1)[present]
        ink = scans[crowd.objects.source[present]].sum((1, 2)) * (crowd.objects.height[present] / 8) ** 2
        ratio = area / ink
        assert 0.8 < ratio.mean() < 1.3
        assert ratio.min() > 0.5

    def test_the_mask_has_the_colour_that_the_caption_names(self, crowd: DigitScenes) -> None:
        """The mean colour inside each mask is nearest to the colours of other digits with the same name."""
        pixels = crowd.images.permute(0, 2, 3, 1).float() / 255
        means, names = [], []
        for scene in range(len(crowd)):
            for place in range(int(crowd.objects.count[scene])):
                means.append(pixels[scene][crowd.masks[scene] == place + 1].mean(0))
                names.append(int(crowd.objects.color[scene, place]))
        mean, name = torch.stack(means), torch.tensor(names)
        center = torch.stack([mean[name == color].mean(0) for color in range(len(COLORS))])
        assert (torch.cdist(mean, center).argmin(1) == name).float().mean() > 0.97
        assert center[COLORS.index("red")].argmax() == 0
        assert center[COLORS.index("green")].argmax() == 1
        assert center[COLORS.index("blue")].argmax() == 2
        assert center[COLORS.index("white")].min() > 0.8 > 0.2 > center[COLORS.index("black")].max()

    def test_brightness_alone_shows_every_digit(self, crowd: DigitScenes) -> None:
        for scenes in (crowd, digit_scenes(300, size=48)):
            grey = _grey(scenes)
            for scene in range(len(scenes)):
                ground = grey[scene][scenes.masks[scene] == 0].mean()
                for place in range(int(scenes.objects.count[scene])):
                    gap = grey[scene][scenes.masks[scene] == place + 1].mean() - ground
                    assert gap.abs() > 0.15
                    assert (gap > 0) == (COLORS[scenes.objects.color[scene, place]] in LIGHT_INKS)

    @pytest.mark.parametrize("turn", [90, -90, 180])
    def test_a_turn_of_all_digits_turns_the_picture(self, turn: int) -> None:
        """A quarter turn about the centre moves every pixel of the strokes to another."""
        plain = SceneConfig(rotation=0, scale=(0.7, 0.7), texture=0, clouds=0, tint=0, noise=0)
        upright, turned = (
            digit_scenes(8, size=64, config=plain.model_copy(update={"turn": degrees})) for degrees in (0, turn)
        )
        assert (turned.objects.angle == turn).all()
        assert torch.equal(turned.objects.digit, upright.objects.digit)
        assert turned.captions == upright.captions
        for scene in range(8):
            where = [tuple(round(float(x)) for x in made.objects.center[scene, 0]) for made in (upright, turned)]
            assert where[0] == where[1]
            x, y = where[0]
            reach = min(x, y, 64 - x, 64 - y)
            before, after = (
                made.masks[scene, y - reach : y + reach, x - reach : x + reach] for made in (upright, turned)
            )
            expected = torch.rot90(before, -turn // 90)  # clockwise
            assert (expected != after).float().mean() < 0.06  # the centre lies between pixels

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_some_digits_alone(self, split: str) -> None:
        config = SceneConfig(classes=("three", "seven"))
        scenes = digit_scenes(200, size=16, digits=(1, 2), split=split, config=config)  # type: ignore[arg-type]
        shown = scenes.objects.digit[scenes.objects.digit >= 0]
        assert set(shown.tolist()) == {3, 7}
        assert 0.35 < (shown == 3).float().mean() < 0.65
        used = scenes.objects.source[scenes.objects.source >= 0]
        assert (used < 1437).all() if split == "train" else (used >= 1437).all()
        assert len(used.unique()) > 50
        with pytest.raises(ValidationError, match="classes names 'ten'; choose from zero, one"):
            SceneConfig(classes=("ten",))
        with pytest.raises(ValidationError, match="classes is empty"):
            SceneConfig(classes=())

    def test_the_angle_turns_the_upright_digit_clockwise(self) -> None:
        upright, turned = (digit_scenes(60, size=96, config=SceneConfig(rotation=limit)) for limit in (0, 45))
        assert turned.objects.angle.abs().max() > 40
        for scene, angle in enumerate(turned.objects.angle[:, 0].deg2rad().tolist()):
            before, after = (np.cov(np.nonzero(part.masks[scene].numpy().T)) for part in (upright, turned))
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])  # x right, y down
            assert np.abs(turn @ before @ turn.T - after).max() < 0.06 * np.trace(before)

    def test_sizes_differ_by_their_names(self, crowd: DigitScenes) -> None:
        height, size = crowd.objects.height, crowd.objects.size
        small, large = height[size == SIZES.index("small")], height[size == SIZES.index("large")]
        assert 0.24 * 64 <= small.min() < small.max() < large.min() < large.max() <= 0.46 * 64

    def test_captions_say_what_the_boxes_show(self, crowd: DigitScenes) -> None:
        objects, boxes = crowd.objects, crowd.boxes
        middle = (boxes[..., :2] + boxes[..., 2:]) / 2
        seen = set()
        for scene, caption in enumerate(crowd.captions):
            count = int(objects.count[scene])
            assert caption.startswith(objects.phrase(scene, 0))
            assert sum(caption.count(relation) for relation in RELATIONS) == count - 1
            assert len({objects.phrase(scene, place).split()[2] for place in range(count)}) == count
            for place in range(1, count):
                relation = RELATIONS[int(objects.relation(0, place)[scene])]
                assert f"{relation} {objects.phrase(scene, place)}" in caption
                x, y = (middle[scene, 0] - middle[scene, place]).tolist()
                assert {"left of": -x, "right of": x, "above": -y, "below": y}[relation] > 0
                seen.add(relation)
        assert seen == set(RELATIONS)

    def test_relation_is_antisymmetric_and_minus_one_where_absent(self, crowd: DigitScenes) -> None:
        forth, back = crowd.objects.relation(0, 2), crowd.objects.relation(2, 0)
        absent = crowd.objects.count < 3
        assert torch.equal(forth == -1, absent)
        assert torch.equal(forth[~absent] ^ 1, back[~absent])

    def test_a_phrase_in_words(self, crowd: DigitScenes) -> None:
        objects = crowd.objects
        words = objects.phrase(7, 0).split()
        assert words[0] == "a"
        assert (SIZES.index(words[1]), COLORS.index(words[2]), DIGITS.index(words[3])) == tuple(
            int(column[7, 0]) for column in (objects.size, objects.color, objects.digit)
        )


class TestDifficulty:
    def test_raw_pixels_stay_near_chance_but_shapes_are_there(self) -> None:
        train, test = (digit_scenes(n, size=32, split=split) for n, split in ((5000, "train"), (1000, "test")))
        raw = [scenes.images.flatten(1).float() for scenes in (train, test)]
        accuracy = knn_accuracy(raw[0], train.labels, raw[1], test.labels)
        assert 0.1 < accuracy < 0.25
        centred = [rows - raw[0].mean(0) for rows in raw]
        assert knn_accuracy(centred[0], train.labels, centred[1], test.labels) < 0.25

        shapes = [_upright(scenes) for scenes in (train, test)]
        assert knn_accuracy(shapes[0], train.labels, shapes[1], test.labels) > 0.85

    def test_grounds_come_light_and_dark(self) -> None:
        scenes = digit_scenes(500, size=32)
        level = torch.stack([g[m == 0].mean() for g, m in zip(_grey(scenes), scenes.masks, strict=True)])
        assert 0.4 < (level < 0.5).float().mean() < 0.6
        assert ((level - 0.5).abs() > 0.1).all()

    def test_clouds_of_colour_change_no_brightness(self) -> None:
        quiet = {"clouds": 0, "texture": 0, "noise": 0}
        plain, tinted = (digit_scenes(100, size=32, config=SceneConfig(tint=tint, **quiet)) for tint in (0, 0.1))
        ground = plain.masks == 0
        assert (_grey(plain) - _grey(tinted))[ground].abs().max() < 0.03
        assert (plain.images - tinted.images.float()).abs().amax(1)[ground].mean() > 15

    def test_inks_can_be_chosen(self) -> None:
        scenes = digit_scenes(100, size=16, config=SceneConfig(colors=("black", "white")))
        assert {COLORS[color] for color in scenes.objects.color[:, 0].tolist()} == {"black", "white"}
        with pytest.raises(ConfigError, match="on light or on dark grounds only 1 of colors="):
            digit_scenes(1, digits=(1, 2), config=SceneConfig(colors=("black", "white", "yellow")))

    def test_configuration_reaches_the_picture(self) -> None:
        plain = SceneConfig(texture=0, clouds=0, tint=0, noise=0, rotation=0, scale=(0.5, 0.5))
        scenes = digit_scenes(50, size=32, config=plain)
        assert (scenes.objects.height == 16).all()
        assert (scenes.objects.angle == 0).all()
        for image, mask in zip(scenes.images, scenes.masks, strict=True):
            corner = image[:, [0, 0, -1, -1], [0, -1, 0, -1]][:, mask[[0, 0, -1, -1], [0, -1, 0, -1]] == 0]
            assert (corner == corner[:, :1]).all()


def _upright(scenes: DigitScenes) -> Tensor:
    """Masks brought back to 12×12 upright pixels with the recorded centre, height and angle."""
    objects, size = scenes.objects, scenes.images.shape[-1]
    turn, reach = objects.angle[:, 0].deg2rad(), objects.height[:, 0] / size * 1.1
    center = objects.center[:, 0] / size * 2 - 1
    matrix = torch.stack(
        [
            torch.stack([turn.cos() * reach, -turn.sin() * reach, center[:, 0]], 1),
            torch.stack([turn.sin() * reach, turn.cos() * reach, center[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, [len(scenes), 1, 12, 12], align_corners=False)
    return F.grid_sample((scenes.masks[:, None] > 0).float(), grid, align_corners=False).flatten(1)


class TestSave:
    def test_writes_one_folder_per_class(self, tmp_path) -> None:
        scenes = digit_scenes(12, size=24, start=100)
        folder = scenes.save(tmp_path / "new" / "digits")
        files = sorted(folder.rglob("*.png"))
        assert len(files) == 12
        for file in files:
            row = int(file.stem) - 100
            assert file.parent.name == str(int(scenes.labels[row]))
            assert np.array_equal(np.asarray(Image.open(file)), scenes.images[row].permute(1, 2, 0).numpy())
        assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["digits"]

    def test_refuses_a_folder_with_files(self, tmp_path) -> None:
        scenes = digit_scenes(2, size=16)
        (tmp_path / "note.txt").write_text("mine")
        with pytest.raises(DataError, match="exists and is not empty"):
            scenes.save(tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["note.txt"]

    def test_a_failure_leaves_nothing_behind(self, tmp_path) -> None:
        scenes = digit_scenes(3, size=16)
        broken = dataclasses.replace(scenes, index=scenes.index[:2])
        with pytest.raises(ValueError, match="shorter"):
            broken.save(tmp_path / "digits")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count=0"),
        ({"count": 3, "start": -1}, "start=-1"),
        ({"count": 3, "size": 8}, "size=8: the canvas must be 16 to 512"),
        ({"count": 3, "digits": (2, 5)}, r"digits=\(2, 5\)"),
        ({"count": 3, "digits": (3, 2)}, r"digits=\(3, 2\)"),
        ({"count": 3, "split": "val"}, "split='val'"),
    ],
)
def test_says_what_is_wrong(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        digit_scenes(**arguments)


def test_configuration_is_checked() -> None:
    with pytest.raises(ValidationError, match="two rising shares"):
        SceneConfig(scale=(0.8, 0.4))
    with pytest.raises(ValidationError, match="colors names 'mauve'; choose from red"):
        SceneConfig(colors=("mauve",))
    with pytest.raises(ValidationError, match="rotation"):
        SceneConfig(rotation=180)


def test_names_the_extra_when_scikit_learn_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    strokes.cache_clear()

    class NotInstalled(MetaPathFinder):
        def find_spec(self, fullname: str, *_: object) -> None:
            if fullname == "sklearn":
                raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    for module in ("sklearn", "sklearn.datasets"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "meta_path", [NotInstalled(), *sys.meta_path])
    with pytest.raises(MissingDependencyError, match=r"mc-core\[samples\]"):
        digit_scenes(1)
