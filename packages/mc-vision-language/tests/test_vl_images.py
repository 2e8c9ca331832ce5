"""Sets of pictures: what they hold, what may be wrong with one, and that they survive other processes."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from mc_core.errors import BadSampleError, DataError
from mc_testkit.caption_files import picture, pictures, write_tar
from mc_testkit.files import write_broken_image
from mc_vision_language.data import ArrayImages, FileImages, HubImages, ImageSet, TarImages, read_image, squashed


def pixels(image):
    return np.asarray(image)


@pytest.fixture
def sets(tmp_path):
    """The same five pictures as files, in a tar and in an array."""
    names = pictures(tmp_path / "photos", 5)
    tar = write_tar(tmp_path / "t.tar", {f"./a/{n}.seg.JPG": picture(n) for n in range(5)})
    stacked = np.stack([squashed(read_image(picture(n)), 30) for n in range(5)])
    return {
        "files": FileImages(names, tmp_path / "photos"),
        "tar": TarImages.of(tar, [f"a/{n}.seg.jpg" for n in range(5)]),
        "array": ArrayImages(stacked),
    }


@pytest.mark.parametrize("kind", ["files", "tar", "array"])
def test_sets_are_read_taken_and_pickled(sets, kind):
    images = sets[kind]
    assert isinstance(images, ImageSet)
    assert len(images) == 5
    taken = images.take(np.array([4, 0, 4]))
    again = pickle.loads(pickle.dumps(taken.take(np.array([2, 1]))))
    for row, number in enumerate((4, 0)):
        assert np.array_equal(pixels(again.read(row)), pixels(images.read(number)))
        assert again.read(row).mode == "RGB"
    assert len({images.describe()["digest"], taken.describe()["digest"], again.describe()["digest"]}) == 3
    assert taken.describe() == images.take(np.array([4, 0, 4])).describe()
    if kind != "array":
        assert taken.name(1) == images.name(0)
        assert taken.sizes().tolist() == [len(picture(4)), len(picture(0)), len(picture(4))]
        assert taken.key(0) == images.key(4)


def test_all_pictures_of_a_tar(tmp_path):
    tar = write_tar(tmp_path / "t.tar", {"a.jpg": picture(1), "a.json": "{}", "b.png": picture(2)})
    assert len(TarImages.of(tar)) == 2
    with pytest.raises(DataError, match=r"no member 'c.jpg'; it has "):
        TarImages.of(tar, ["c.jpg"])


def test_a_tar_that_became_shorter_is_a_bad_sample(tmp_path):
    tar = write_tar(tmp_path / "t.tar", {"a.jpg": picture(1), "b.jpg": picture(2)})
    images = TarImages.of(tar)
    tar.write_bytes(tar.read_bytes()[:1000])
    with pytest.raises(BadSampleError, match="became shorter"):
        images.read(1)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", r"x.jpg: cannot be decoded, image file is truncated"),
        ("text", r"x.jpg: not an image \(it begins with b'these ar'\)"),
        ("empty", r"x.jpg: empty, 0 bytes"),
        ("missing", r"x.jpg: no such file"),
    ],
)
def test_what_is_no_picture_is_a_bad_sample(tmp_path, kind, words):
    if kind != "missing":
        write_broken_image(tmp_path / "x.jpg", kind)
    for read in (lambda: FileImages(["x.jpg"], tmp_path).read(0), lambda: read_image(tmp_path / "x.jpg")):
        with pytest.raises(BadSampleError, match=words) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_pictures_from_whatever_holds_one():
    expected = pixels(Image.open(io.BytesIO(picture(3))).convert("RGB")).copy()
    grey = expected[..., :1]
    for source in (
        picture(3),
        Image.fromarray(expected),
        Image.fromarray(expected).convert("RGBA"),
        expected,
        expected.transpose(2, 0, 1),
        torch.from_numpy(expected).permute(2, 0, 1),
    ):
        assert np.array_equal(pixels(read_image(source)), expected)
    for source in (grey, grey[..., 0], grey.transpose(2, 0, 1), Image.fromarray(grey[..., 0])):
        assert np.array_equal(pixels(read_image(source)), np.repeat(grey, 3, axis=2))
    turned = Image.fromarray(expected)
    turned.getexif()[0x0112] = 6
    assert read_image(turned).size == (30, 40)
    for wrong in (expected / 255, expected[..., :2], np.zeros((2, 3, 4, 4), np.uint8)):
        with pytest.raises(DataError, match=r"an array of shape .*; give uint8 of shape \(3, H, W\)"):
            read_image(wrong)


def test_squashed_is_the_official_evaluation():
    from torchvision.transforms import v2

    image = read_image(picture(5, 77, 51))
    resize = v2.Resize((24, 24), interpolation=v2.InterpolationMode.BICUBIC)
    assert np.array_equal(squashed(image, 24), pixels(resize(image)).transpose(2, 0, 1))


def test_arrays_of_another_shape_are_refused():
    for wrong in (np.zeros((2, 1, 4, 4), np.uint8), np.zeros((2, 3, 4, 4)), np.zeros((3, 4, 4), np.uint8)):
        with pytest.raises(DataError, match=r"shape \(N, 3, H, W\) and type uint8"):
            ArrayImages(wrong)


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path):
    (tmp_path / "x.jpg").write_bytes(picture(1, 800, 600))
    images = FileImages(["x.jpg"], tmp_path)
    assert images.read(0).size == (800, 600)
    assert images.read(0, min_side=70).size == (100, 75)
    assert read_image(tmp_path / "x.jpg", min_side=70).size == (100, 75)


def test_a_data_set_with_chosen_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image()})
    cells = [{"bytes": picture(n), "path": None} for n in range(4)] + [None]
    data = datasets.Dataset.from_dict({"image": cells}, features=features)
    for rows, images in (
        (range(5), HubImages(data, "image", "x")),
        ((4, 2), HubImages(data.select([4, 2]), "image", "x")),
    ):
        assert images.sizes().tolist() == [-1 if n == 4 else len(picture(n)) for n in rows]
        for row, number in enumerate(rows):
            if number == 4:
                with pytest.raises(BadSampleError, match=rf"x\[{row}\]: the image cell is empty"):
                    images.read(row)
            else:
                assert np.array_equal(pixels(images.read(row)), pixels(read_image(picture(number))))
