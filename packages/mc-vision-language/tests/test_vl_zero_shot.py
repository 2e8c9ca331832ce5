"""Zero-shot classification: the classifier of the definition, and the layouts in which labelled sets are published."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mc_core.errors import ConfigError, DataError, MissingDependencyError
from mc_vision_language.data.images import ArrayImages
from mc_vision_language.data.labelled import LabelledImages, open_labelled
from mc_vision_language.evaluation.prompts import SCENES, TEMPLATES, read_templates
from mc_vision_language.evaluation.zero_shot import class_embeddings, default_templates, labelled_scenes, zero_shot

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_tasks.py"))))
SIDE = tiny.SIDE
CLASSES = ("two", "large red three", "blue")
PROMPTS = ("a {}", "is it {}", "what is a small {}")


@pytest.fixture(scope="module")
def model():
    return tiny.pretrained()


@pytest.fixture(scope="module")
def pictures() -> LabelledImages:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 3, SIDE, SIDE), dtype=np.uint8)
    return LabelledImages(ArrayImages(pixels), np.array([0, 1, 2, 0, 1, 2, 0, 1, 0, 1, 0]), CLASSES)


def normalised(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x.astype(np.float64) ** 2).sum())


def test_a_class_is_the_normalised_mean_of_its_normalised_sentences(model):
    found = class_embeddings(model, CLASSES, PROMPTS)
    for row, name in zip(found, CLASSES, strict=True):
        each = [normalised(model.encode_text([prompt.replace("{}", name)])[0]) for prompt in PROMPTS]
        np.testing.assert_allclose(row, normalised(np.mean(each, axis=0)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(class_embeddings(model, CLASSES[::-1], PROMPTS[::-1]), found[::-1], atol=1e-6)


def test_a_picture_belongs_to_the_nearest_class(model, pictures):
    found = zero_shot(model, pictures, templates=PROMPTS, draws=50)
    weights = class_embeddings(model, CLASSES, PROMPTS)
    for row in range(len(pictures)):
        cosine = weights @ model.encode_image([pictures.images.read(row)])[0]
        assert found.predictions[row] == int(np.argmax(cosine))
    hit = found.predictions == pictures.labels
    assert found.accuracy.value == pytest.approx(hit.mean())
    assert found.accuracy.low <= found.accuracy.value <= found.accuracy.high
    for label in range(3):
        assert found.per_class[label] == pytest.approx(hit[pictures.labels == label].mean())
    assert found.mean_per_class == pytest.approx(found.per_class.mean())
    assert found.chance == pytest.approx(1 / 3)
    assert found.top5 is None
    order = np.random.default_rng(1).permutation(len(pictures))
    again = zero_shot(model, pictures.take(order), templates=PROMPTS, draws=0, batch_size=2)
    np.testing.assert_array_equal(again.predictions, found.predictions[order])


def test_a_class_without_pictures_does_not_count_and_five_nearest_are_counted_of_more_than_five(model, pictures):
    six = LabelledImages(pictures.images, pictures.labels, (*CLASSES, "red", "left of red", "what"))
    found = zero_shot(model, six, draws=0)
    assert np.isnan(found.per_class[3:]).all()
    assert 0 <= found.mean_per_class <= 1
    assert found.top5 is not None
    assert found.accuracy.value <= found.top5 <= 1
    assert found.to_dict()["per_class"]["red"] is None


def test_pictures_that_cannot_be_read_are_left_out_and_told(model, tmp_path):
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), name).save(tmp_path / name / "0.png")
    (tmp_path / "red" / "1.png").write_bytes(b"no picture")
    found = zero_shot(model, open_labelled(tmp_path), draws=0)
    assert (len(found.labels), len(found.left_out)) == (2, 1)
    for name in ("red", "blue"):
        (tmp_path / name / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of the 3 pictures can be read"):
        zero_shot(model, open_labelled(tmp_path), draws=0)


def test_digit_scenes_have_their_digits_as_classes():
    scenes = labelled_scenes("validation", count=4)
    assert len(scenes.classes) == 10
    assert default_templates(scenes.kind) == SCENES
    assert "a large red {}" in SCENES
    assert len(SCENES) == 22


def test_every_standard_template_has_one_place():
    assert set(TEMPLATES) - {"digit scenes", "plain digits"} == {
        "imagenet",
        "cifar10",
        "cifar100",
        "caltech101",
        "flowers102",
        "food101",
        "sun397",
        "dtd",
        "pets",
    }
    for templates in TEMPLATES.values():
        assert len(set(templates)) == len(templates)
        assert all(one.count("{}") == 1 for one in templates)
    assert "a photo of the {}." in TEMPLATES["cifar10"]
    assert {"the plastic {}.", "the {} in a video game.", "art of the {}."} <= set(TEMPLATES["caltech101"])


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (shade, shade, shade)).save(path)


def shades(found: LabelledImages) -> list[int]:
    return [int(np.asarray(found.images.read(row))[0, 0, 0]) for row in range(len(found))]


def cifar(folder: Path) -> None:
    (folder / "cifar-10-batches-bin").mkdir(parents=True)
    rows = [bytes([label, *[40 * label] * 3072]) for label in (1, 0, 1)]
    (folder / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(b"".join(rows))
    (folder / "cifar-10-batches-bin" / "batches.meta.txt").write_text("airplane\nautomobile\n\n")


def cifar100(folder: Path) -> None:
    rows = [bytes([9, label, *[40 * label] * 3072]) for label in (1, 0, 1)]
    folder.mkdir()
    (folder / "test.bin").write_bytes(b"".join(rows))
    (folder / "fine_label_names.txt").write_text("apple\naquarium_fish\n")


def flowers(folder: Path) -> None:
    from scipy.io import savemat

    for number, shade in ((1, 0), (2, 40), (3, 40)):
        picture(folder / "jpg" / f"image_{number:05d}.jpg", shade)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2, 2]])})
    savemat(folder / "setid.mat", {"tstid": np.array([[2, 1, 3]])})


def food(folder: Path) -> None:
    for name, shade in (("apple_pie/1", 0), ("beet_salad/2", 40), ("beet_salad/3", 40), ("apple_pie/4", 99)):
        picture(folder / "food-101" / "images" / f"{name}.jpg", shade)
    (folder / "food-101" / "meta").mkdir()
    (folder / "food-101" / "meta" / "classes.txt").write_text("apple_pie\nbeet_salad\n")
    (folder / "food-101" / "meta" / "test.txt").write_text("beet_salad/2\napple_pie/1\nbeet_salad/3\n")


def dtd(folder: Path) -> None:
    for name, shade in (("banded/a.jpg", 0), ("dotted/b.jpg", 40), ("dotted/c.jpg", 40), ("dotted/train.jpg", 99)):
        picture(folder / "images" / name, shade)
    (folder / "labels").mkdir()
    (folder / "labels" / "test1.txt").write_text("dotted/b.jpg\nbanded/a.jpg\ndotted/c.jpg\n")


def pets(folder: Path) -> None:
    for name, shade in (("Abyssinian_1", 0), ("basset_hound_2", 40), ("basset_hound_3", 40)):
        picture(folder / "images" / f"{name}.jpg", shade)
    (folder / "annotations").mkdir()
    (folder / "annotations" / "test.txt").write_text("basset_hound_2 2 2 1\nAbyssinian_1 1 1 1\nbasset_hound_3 2 2 1\n")


def sun(folder: Path) -> None:
    for name, shade in (("a/abbey/1", 0), ("c/chicken_coop/indoor/2", 40), ("c/chicken_coop/indoor/3", 40)):
        picture(folder / f"{name}.jpg", shade)
    (folder / "ClassName.txt").write_text("/a/abbey\n/c/chicken_coop/indoor\n")
    (folder / "Testing_01.txt").write_text(
        "/c/chicken_coop/indoor/2.jpg\n/a/abbey/1.jpg\n/c/chicken_coop/indoor/3.jpg\n"
    )


LAYOUTS = {
    "cifar10": (cifar, ("airplane", "automobile")),
    "cifar100": (cifar100, ("apple", "aquarium fish")),
    "food101": (food, ("apple pie", "beet salad")),
    "dtd": (dtd, ("banded", "dotted")),
    "pets": (pets, ("Abyssinian", "basset hound")),
    "sun397": (sun, ("abbey", "indoor chicken coop")),
    "flowers102": (flowers, ("rose", "lily")),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_test_part_of_a_standard_set_in_its_published_layout(kind, tmp_path):
    make, classes = LAYOUTS[kind]
    make(tmp_path / "set")
    names = None
    if kind == "flowers102":
        with pytest.raises(ConfigError, match=r"flowers102 comes without names.*--names"):
            open_labelled(tmp_path / "set")
        names = tmp_path / "names.txt"
        names.write_text("rose\nlily\n")
    found = open_labelled(tmp_path / "set", names=names)
    assert (found.kind, found.classes) == (kind, classes)
    assert found.labels.tolist() == [1, 0, 1]
    assert [round(shade / 40) for shade in shades(found)] == [1, 0, 1]


def test_folders_of_classes_and_caltech_without_its_background(tmp_path):
    for name, shade in (("wild_cat", 40), ("barrel", 0)):
        picture(tmp_path / "mine" / name / "deep" / "one.png", shade)
        picture(tmp_path / "caltech" / "101_ObjectCategories" / name / "one.jpg", shade)
    picture(tmp_path / "caltech" / "101_ObjectCategories" / "BACKGROUND_Google" / "one.jpg", 99)
    (tmp_path / "mine" / "barrel" / "notes.txt").write_text("no picture")
    mine, caltech = open_labelled(tmp_path / "mine"), open_labelled(tmp_path / "caltech")
    assert (mine.kind, mine.classes, mine.labels.tolist()) == ("folder", ("barrel", "wild cat"), [0, 1])
    assert (caltech.kind, caltech.classes, len(caltech)) == ("caltech101", ("barrel", "wild cat"), 2)


def test_numbers_of_wordnet_need_names(tmp_path):
    for name in ("n01440764", "n01443537"):
        picture(tmp_path / "val" / name / "one.JPEG", 0)
    with pytest.raises(ConfigError, match="'n01440764'.*numbers of WordNet.*--names"):
        open_labelled(tmp_path / "val")
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01443537 goldfish, Carassius auratus\nn01440764 tench, Tinca\n")
    found = open_labelled(tmp_path / "val")
    assert (found.kind, found.classes) == ("imagenet", ("tench", "goldfish"))
    (tmp_path / "names.tsv").write_text("n01443537\tgold fish\nn01440764\ta tench\n")
    assert open_labelled(tmp_path / "val", names=tmp_path / "names.tsv").classes == ("a tench", "gold fish")
    (tmp_path / "names.tsv").write_text("n01443537\tgold fish\n")
    with pytest.raises(ConfigError, match="names no class 'n01440764'"):
        open_labelled(tmp_path / "val", names=tmp_path / "names.tsv")


def test_a_set_of_torchvision_by_its_name(tmp_path):
    pytest.importorskip("torchvision")
    for part in ("train", "test"):
        (tmp_path / "gtsrb" / part).mkdir(parents=True)
    eurosat = tmp_path / "eurosat" / "2750"
    for name, shade in (("AnnualCrop", 0), ("Forest", 40)):
        picture(eurosat / name / "one.jpg", shade)
    found = open_labelled("torchvision:EuroSAT", root=tmp_path)
    assert (found.kind, found.classes, found.labels.tolist()) == ("eurosat", ("AnnualCrop", "Forest"), [0, 1])
    assert [round(shade / 40) for shade in shades(found.take([1, 0]))] == [1, 0]
    with pytest.raises(DataError, match="no data set 'EuroSATT'.*EuroSAT"):
        open_labelled("torchvision:EuroSATT", root=tmp_path)
    with pytest.raises(ConfigError, match="--root"):
        open_labelled("torchvision:EuroSAT")
    with pytest.raises(DataError, match="does not hold CIFAR10"):
        open_labelled("torchvision:CIFAR10", root=tmp_path)


def test_torchvision_is_named_where_it_is_missing(monkeypatch, tmp_path):
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "torchvision":
                raise ModuleNotFoundError(f"No module named {name!r}", name="torchvision")

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(MissingDependencyError, match="'torchvision' is needed to open the data set CIFAR10"):
        open_labelled("torchvision:CIFAR10", root=tmp_path)


def test_what_cannot_be_used_is_said_in_one_line(tmp_path, model, pictures):
    with pytest.raises(DataError, match="no such folder"):
        open_labelled(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no folder of a class"):
        open_labelled(tmp_path / "empty")
    for name in ("train", "test"):
        (tmp_path / "parts" / name).mkdir(parents=True)
    with pytest.raises(DataError, match="holds the parts test, train: name one of them"):
        open_labelled(tmp_path / "parts")
    (tmp_path / "bare" / "one").mkdir(parents=True)
    with pytest.raises(DataError, match="1 folders and no picture"):
        open_labelled(tmp_path / "bare")
    cifar(tmp_path / "cut")
    (tmp_path / "cut" / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(b"12345")
    with pytest.raises(DataError, match="5 bytes are no whole number of pictures of 3073"):
        open_labelled(tmp_path / "cut")
    food(tmp_path / "food")
    (tmp_path / "food" / "food-101" / "meta" / "classes.txt").write_text("apple_pie\n")
    with pytest.raises(DataError, match="of the class 'beet_salad', which is none of the 1 known"):
        open_labelled(tmp_path / "food")
    (tmp_path / "names.txt").write_text("one\n")
    picture(tmp_path / "two" / "a" / "1.png", 0)
    picture(tmp_path / "two" / "b" / "1.png", 0)
    with pytest.raises(ConfigError, match="1 names for 2 classes"):
        open_labelled(tmp_path / "two", names=tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("same\nsame\n")
    with pytest.raises(DataError, match="two classes are called 'same'"):
        open_labelled(tmp_path / "two", names=tmp_path / "names.txt")
    with pytest.raises(ConfigError, match="template 1 'a photo'"):
        zero_shot(model, pictures, templates=["a photo"])
    with pytest.raises(DataError, match="no class"):
        class_embeddings(model, [], PROMPTS)


def test_templates_of_a_file(tmp_path):
    (tmp_path / "t.txt").write_text("# of pets\na photo of a {}, a pet\n\n  the {}  \n")
    assert read_templates(tmp_path / "t.txt") == ("a photo of a {}, a pet", "the {}")
    (tmp_path / "t.txt").write_text("a {}\nno place\n")
    with pytest.raises(ConfigError, match=r"t.txt, template 2 'no place'"):
        read_templates(tmp_path / "t.txt")
    (tmp_path / "t.txt").write_text("\n")
    with pytest.raises(ConfigError, match="holds no template"):
        read_templates(tmp_path / "t.txt")
