"""Images with object masks: every layout read back from small files, polygons and run lengths, and bad files."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mc_core.errors import ConfigError, DataError
from mc_vision.data.coco import open_coco, rasterize
from mc_vision.data.mask_layouts import open_masks
from mc_vision.data.masks import (
    BACKGROUND,
    VOID,
    MaskedImage,
    MaskedScenes,
    decode_mask,
    number_objects,
    resize_nearest,
)

INDEX = np.array([[0, 0, 3, 3, 3], [0, 7, 7, 3, 255], [7, 7, 7, 0, 255]], np.uint8)
OBJECTS = [[-1, -1, 0, 0, 0], [-1, 1, 1, 0, -2], [1, 1, 1, -1, -2]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MC_CACHE", str(tmp_path / "cache"))


def encoded(pixels, file_format="PNG", mode=None, **options) -> bytes:
    image = Image.fromarray(np.asarray(pixels))
    if mode == "P":
        image.putpalette([channel for i in range(256) for channel in (i, 255 - i, (7 * i) % 256)])
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def photo(height=3, width=5, value=90) -> bytes:
    return encoded(np.full((height, width, 3), value, np.uint8), "JPEG")


def write(root: Path, files: dict) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return root


def write_tar(path: Path, files: dict) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def check(item: MaskedImage, *, ids=(3, 7), objects=OBJECTS):
    assert item.image.mode == "RGB"
    assert item.image.size == (5, 3)
    assert item.ids.tolist() == list(ids)
    assert item.objects.tolist() == objects
    assert item.masks.shape == (len(ids), 3, 5)
    for position, mask in enumerate(item.masks):
        assert (mask == (np.array(objects) == position)).all()


def test_masks_beside_images(tmp_path):
    files = {
        "a/one.jpg": photo(),
        "a/one.seg0.png": encoded(INDEX),
        "a/one.seg1.png": encoded(INDEX // 3),
        "two.v2.jpg": photo(),
        "two.v2.seg0.png": encoded(INDEX, mode="P"),
    }
    found = open_masks(write(tmp_path / "set", files))
    assert (len(found), found.kind, found.names) == (2, "instance", ["a/one", "two.v2"])
    for item in found:
        check(item)
        assert item.group == item.name
        assert item.categories is None
    other = open_masks(tmp_path / "set", mask="seg1.png", void=None)
    assert len(other) == 1
    assert other[0].ids.tolist() == [1, 2, 85]
    assert found.describe()["layout"] == "beside"
    with pytest.raises(DataError, match=r"no masks \*seg7.png"):
        open_masks(tmp_path / "set", mask="seg7.png")
    with pytest.raises(ConfigError, match="split='val' is not for masks beside"):
        open_masks(tmp_path / "set", split="val")
    with pytest.raises(IndexError):
        found[2]


def test_parallel_folders_need_a_mask_for_each_image(tmp_path):
    root = write(tmp_path / "set", {f"images/x/{i}.jpg": photo() for i in range(3)})
    write(root, {f"masks/x/{i}.png": encoded(INDEX) for i in range(3)})
    found = open_masks(root)
    assert found.names == ["x/0", "x/1", "x/2"]
    check(found[-1])
    (root / "masks/x/1.png").unlink()
    with pytest.raises(DataError, match="holds 3 images and 2 masks; image x/1 has no mask"):
        open_masks(root)
    (root / "images/x/1.jpg").unlink()
    (root / "images/x/2.jpg").unlink()
    with pytest.raises(DataError, match="holds 1 image and 2 masks; mask x/2 has no image"):
        open_masks(root)


def test_parts_of_parallel_folders(tmp_path):
    files = {"images/training/a.jpg": photo(), "images/validation/b.jpg": photo()}
    files |= {"annotations/training/a.png": encoded(INDEX), "annotations/validation/b.png": encoded(INDEX)}
    root = write(tmp_path, files)
    with pytest.raises(DataError, match=r"several parts \(training, validation\): name one with split"):
        open_masks(root)
    assert open_masks(root, split="validation").names == ["b"]
    with pytest.raises(DataError, match="does not exist"):
        open_masks(root, split="test")


def test_shards_with_classes(tmp_path):
    """Class 0 has a name, so it is no background; the class named Unlabelled is void; images without masks are left out."""
    classes = {"0": "Sky", "3": "Road", "7": "Car", "9": "Unlabelled"}
    index = np.where(INDEX == 255, 9, INDEX)
    files = {"classes.json": classes, "a.jpg": photo(), "a.seg.png": encoded(index), "b.jpg": photo()}
    found = open_masks(write_tar(tmp_path / "set.tar", files))
    assert (len(found), found.kind, found.names) == (1, "class region", ["a"])
    item = found[0]
    assert item.ids.tolist() == item.categories.tolist() == [0, 3, 7]
    assert (item.objects == VOID).sum() == 2
    assert not (item.objects == BACKGROUND).any()
    plain = open_masks(tmp_path / "set.tar", background=0, void=9, kind="instance")[0]
    check(plain)
    with pytest.raises(DataError, match=r"no sample has a mask \(.seg.png, .seg0.png, .mask.png\)"):
        open_masks(write_tar(tmp_path / "none.tar", {"a.jpg": photo()}))


def test_voc(tmp_path):
    files = {f"JPEGImages/{name}.jpg": photo() for name in "abc"}
    files |= {f"SegmentationClass/{name}.png": encoded(INDEX, mode="P") for name in "ab"}
    files |= {"SegmentationObject/a.png": encoded(np.minimum(INDEX, 7), mode="P")}
    files |= {"ImageSets/Segmentation/val.txt": "b\nc\n", "ImageSets/Main/val.txt": "a\n"}
    root = write(tmp_path, files)
    found = open_masks(root)
    assert (found.kind, found.names) == ("class region", ["a", "b"])
    check(found[0])
    assert found[0].categories.tolist() == [3, 7]
    assert open_masks(root, split="val").names == ["b"]
    instances = open_masks(root, kind="instance")
    assert instances.names == ["a"]
    assert instances[0].categories is None
    with pytest.raises(DataError, match="lists no split 'vla'; closest: val"):
        open_masks(root, split="vla")
    (root / "JPEGImages/a.jpg").unlink()
    with pytest.raises(DataError, match="holds 1 image and 2 masks; mask a has no image"):
        open_masks(root)


def test_davis(tmp_path):
    files = {}
    for video, frames in (("dog", 3), ("car", 2)):
        for frame in range(frames):
            files[f"JPEGImages/480p/{video}/{frame:05}.jpg"] = photo()
            files[f"Annotations/480p/{video}/{frame:05}.png"] = encoded(INDEX, mode="P")
    files["ImageSets/2017/val.txt"] = "dog\n"
    root = write(tmp_path, files)
    found = open_masks(root)
    assert found.kind == "instance"
    assert found.sequences == {"car": [0, 1], "dog": [2, 3, 4]}
    assert [item.group for item in found] == ["car"] * 2 + ["dog"] * 3
    check(found[2])
    assert open_masks(root, split="val").sequences == {"dog": [0, 1, 2]}


def square(x, y, side):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def coco(tmp_path, annotations, name="instances_val.json", **image):
    listed = [{"id": 5, "file_name": "p.jpg", "height": 8, "width": 10, **image}, {"id": 6, "file_name": "q.jpg"}]
    content = {"images": listed, "annotations": annotations, "categories": [{"id": 2, "name": "cat"}]}
    return write(tmp_path, {f"annotations/{name}": content, "val/p.jpg": photo(8, 10)}) / "annotations" / name


def test_coco_smaller_on_top_and_crowds_are_void(tmp_path):
    annotations = [
        {"id": 11, "image_id": 5, "category_id": 2, "segmentation": [square(2, 2, 2)]},
        {"id": 12, "image_id": 5, "category_id": 4, "segmentation": [square(1, 1, 5)]},
        {"id": 13, "image_id": 5, "category_id": 4, "segmentation": [square(7, 0, 1), square(9, 7, 1)]},
        {"id": 14, "image_id": 5, "category_id": 4, "iscrowd": 1, "segmentation": {"counts": [72, 8], "size": [8, 10]}},
        {"id": 15, "image_id": 6, "category_id": 4, "segmentation": []},
    ]
    path = coco(tmp_path, annotations)
    for spec in (path, tmp_path):
        found = open_masks(spec)
        assert (len(found), found.kind, found.names, found.class_names) == (1, "instance", ["p"], {2: "cat"})
        item = found[0]
        expected = np.full((8, 10), BACKGROUND)
        expected[:, 9] = VOID
        expected[1:6, 1:6] = 1
        expected[2:4, 2:4] = 0
        expected[0, 7] = expected[7, 9] = 2
        assert (item.objects == expected).all()
        assert (item.ids.tolist(), item.categories.tolist()) == ([11, 12, 13], [2, 4, 4])
    regions = open_coco(path, kind="class region")[0]
    assert regions.ids.tolist() == regions.categories.tolist() == [2, 4]
    assert regions.masks[1].sum() == 25 - 4 + 2
    assert regions.masks[0].sum() == 4


def test_coco_errors(tmp_path):
    good = {"id": 1, "image_id": 5, "category_id": 2, "segmentation": [square(0, 0, 3)]}

    def opened(change, **image):
        return open_masks(coco(tmp_path, [{**good, **change}], **image))

    with pytest.raises(DataError, match="annotation 1: a polygon needs at least three finite corners"):
        opened({"segmentation": [[0, 0, 1, 1]]})[0]
    with pytest.raises(DataError, match="annotation 1: a polygon is a list of x, y"):
        opened({"segmentation": [[0, 0, 1, 1, 2, 3, 4]]})[0]
    with pytest.raises(DataError, match="annotation 1: neither polygons nor run lengths"):
        opened({"segmentation": {"runs": 3}})[0]
    with pytest.raises(DataError, match=r"run lengths of size \[3, 3\] for an image of height and width \[8, 10\]"):
        opened({"segmentation": {"counts": [9], "size": [3, 3]}})[0]
    with pytest.raises(DataError, match="add up to 79 pixels, the image has 80"):
        opened({"segmentation": {"counts": [79], "size": [8, 10]}})[0]
    with pytest.raises(DataError, match=r"p: the image is 10×8 pixels, its mask 10×9"):
        opened({}, height=9)[0]
    with pytest.raises(DataError, match="an entry lacks, or names an unknown, 99"):
        opened({"image_id": 99})
    with pytest.raises(DataError, match="none of its 2 images has a mask"):
        opened({"segmentation": []})
    with pytest.raises(DataError, match=r"its first image gone.jpg is not in the folders around .* images="):
        opened({}, file_name="gone.jpg")
    with pytest.raises(DataError, match="it has no list 'annotations'"):
        open_masks(write(tmp_path, {"other.json": {"images": []}}) / "other.json")
    coco(tmp_path, [good], name="instances_train.json")
    (tmp_path / "other.json").unlink()
    with pytest.raises(DataError, match="several annotation files .*: name one"):
        open_masks(tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_polygons_by_their_definition(seed):
    """A pixel is inside when a ray from its centre crosses an odd number of edges."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-3, 14, (rng.integers(3, 9), 2)).round(2)
    mask = rasterize([corners.ravel().tolist()], 11, 12)
    for row in range(11):
        for column in range(12):
            x, y, inside = column + 0.5, row + 0.5, False
            for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
                if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
                    inside = not inside
            assert mask[row, column] == inside


def compress(counts):
    """The compressed text of COCO, written by its definition: 5 bits a character, signed, differences from the fourth."""
    text = ""
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + (32 if more else 0))
            if not more:
                break
    return text


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_round_trip(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((40, 37)) < rng.uniform(0.01, 0.9)
    mask[:, 5:30] |= rng.random() < 0.5  # long runs take several characters
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, flat.size]).tolist()
    if flat[0]:
        counts.insert(0, 0)
    for form in (counts, compress(counts)):
        assert (rasterize({"counts": form, "size": [40, 37]}, 40, 37) == mask).all()


def test_numbers_in_masks():
    deep = np.array([[0, 300], [70, 65535]], np.uint16)
    assert decode_mask(encoded(deep)).tolist() == deep.tolist()
    assert decode_mask(encoded(INDEX, mode="P")).tolist() == INDEX.tolist()
    assert decode_mask(encoded(np.array([[True, False]]))).tolist() == [[1, 0]]
    assert decode_mask(encoded(INDEX, "BMP")).tolist() == INDEX.tolist()
    objects, ids = number_objects(INDEX.astype(np.int64), background=None, void=None)
    assert (ids.tolist(), objects.min()) == ([0, 3, 7, 255], 0)


def test_no_index_mask(tmp_path):
    def opened(mask: bytes, image: bytes = b""):
        return open_masks(write(tmp_path, {"a.jpg": image or photo(), "a.seg.png": mask}))[0]

    with pytest.raises(DataError, match=r"a.seg.png is no index mask: its pixels are colours \(RGB\).*palette PNG"):
        opened(encoded(np.zeros((3, 5, 3), np.uint8)))
    with pytest.raises(DataError, match="a.seg.png is no index mask: JPEG changes pixel values"):
        opened(encoded(INDEX, "JPEG"))
    with pytest.raises(DataError, match="mask .*a.seg.png: not an image"):
        opened(b"no picture at all")
    with pytest.raises(DataError, match=r"a: the image is 6×4 pixels, its mask 5×3; a mask has the size"):
        opened(encoded(INDEX), photo(4, 6))
    write(tmp_path, {"a.jpg": b""})
    with pytest.raises(DataError, match="a.jpg: empty"):
        open_masks(tmp_path)[0]
    with pytest.raises(DataError, match="mask .*gone.png cannot be read"):
        decode_mask(tmp_path / "gone.png")


def test_no_masks(tmp_path):
    write(tmp_path / "set", {"a.jpg": photo()})
    with pytest.raises(DataError, match=r"no masks in .*\(1 file\); understood are images beside"):
        open_masks(tmp_path / "set")
    with pytest.raises(DataError, match="does not exist"):
        open_masks(tmp_path / "nowhere")
    with pytest.raises(DataError, match="of no kind known here"):
        open_masks(tmp_path / "set" / "a.jpg")
    with pytest.raises(DataError, match="holds 0 images and 1 mask; mask b has no image"):
        open_masks(write(tmp_path / "other", {"b.seg.png": encoded(INDEX)}))
    with pytest.raises(ConfigError, match="images='x' is not for anything but a COCO file"):
        open_masks(tmp_path / "set", images="x")


def test_black_and_white_is_one_object(tmp_path):
    write(tmp_path, {"a.jpg": photo(), "a.seg.png": encoded(np.where(INDEX == 7, 255, 0).astype(np.uint8))})
    item = open_masks(tmp_path)[0]
    assert item.ids.tolist() == [1]
    assert (item.masks[0] == (INDEX == 7)).all()
    regions = open_masks(tmp_path, kind="class region")[0]
    assert (len(regions.ids), (regions.objects == VOID).sum()) == (0, 5)


def test_nearest_resize():
    index = np.arange(12).reshape(3, 4)
    assert (resize_nearest(index, 3, 4) == index).all()
    assert (resize_nearest(index, 9, 8) == index.repeat(3, 0).repeat(2, 1)).all()
    assert resize_nearest(index.repeat(3, 0).repeat(3, 1), 3, 4).tolist() == index.tolist()


def test_scenes():
    scenes = MaskedScenes(4, size=48, digits=(1, 3), seed=3)
    again = MaskedScenes(2, size=48, digits=(1, 3), seed=3, start=2)
    for item in scenes:
        assert item.masks.shape == (len(item.ids), 48, 48)
        assert item.masks.any((1, 2)).all()
        assert item.categories.shape == item.ids.shape
    assert (scenes[3].objects == again[1].objects).all()
    assert scenes[3].name == again[1].name
    assert (np.asarray(scenes[3].image) == np.asarray(again[1].image)).all()


@pytest.mark.skipif("MC_DATA" not in os.environ, reason="MC_DATA names no folder of real data")
@pytest.mark.parametrize(
    ("path", "count", "kind", "ids", "void"),
    [
        ("vision/bsds500-segments.tar", 70, "instance", set(), False),
        ("vision/camvid-street-masks.tar", 90, "class region", set(range(11)), True),
        ("vision-language/coco-captions-mini.tar", 123, "class region", {1, 18, 90}, False),
    ],
)
def test_real_masks(path, count, kind, ids, void):
    file = Path(os.environ["MC_DATA"]) / path
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    found = open_masks(file)
    assert (len(found), found.kind) == (count, kind)
    items = list(found)
    assert ids <= {int(i) for item in items for i in item.ids}
    assert any((item.objects == VOID).any() for item in items) == void
    assert all(len(item.ids) for item in items)
