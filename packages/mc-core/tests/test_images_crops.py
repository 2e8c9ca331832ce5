"""Random crops: the boxes by the published procedure, the pixels by Pillow; and what Parquet cells weigh."""

import io
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mc_core.errors import BadSampleError
from mc_core.images import crops
from mc_core.images.parquet import ParquetCells, cell_sizes
from mc_core.random import uniform


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    """(N, 3, H, W) uint8: waves, steps, noise that overshoots when it is resized by a cubic."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:height, :width]
    waves = 127 + 120 * np.sin(x / 5 + np.arange(3)[:, None, None]) * np.cos(y / 7)
    steps = np.broadcast_to((x // 8 * 30 % 256)[None], (3, height, width))
    noise = np.where(rng.random((3, height, width)) < 0.1, 255.0, 0.0)
    return torch.from_numpy(np.stack([(waves, steps, noise)[i % 3] for i in range(count)]).astype(np.uint8))


def as_image(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(picture.numpy().transpose(1, 2, 0)))


def one_box(u, height, width, scale, ratio):
    """torchvision's ``RandomResizedCrop.get_params``, fed with the same numbers."""
    for i in range(crops.ATTEMPTS):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u[i])
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + (high - low) * u[crops.ATTEMPTS + i])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(u[-2] * (height - h + 1)), int(u[-1] * (width - w + 1)), h, w
    whole = width / height
    w, h = width, height
    if whole < ratio[0]:
        h = round(w / ratio[0])
    elif whole > ratio[1]:
        w = round(h * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(("height", "width"), [(60, 80), (20, 200), (31, 17)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.9, 1.0)])
def test_boxes_are_drawn_as_torchvision_draws_them(height, width, scale):
    u = uniform(0, 0, torch.arange(500), 2 * crops.ATTEMPTS + 2)
    found = crops.random_boxes(u, height, width, scale, (3 / 4, 4 / 3))
    expected = [one_box(row, height, width, scale, (3 / 4, 4 / 3)) for row in u.double().tolist()]
    assert (found != torch.tensor(expected)).any(
        1
    ).float().mean() <= 0.004  # a half that rounds the other way in float32


def test_crops_cover_the_areas_asked_for():
    boxes = crops.random_boxes(uniform(0, 0, torch.arange(4000), 22), 60, 80, (0.2, 1.0), (3 / 4, 4 / 3))
    top, left, height, width = boxes.unbind(1)
    share = height * width / (60 * 80)
    assert 0.18 < share.min() < 0.22
    assert 0.98 < share.max() <= 1
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 60).all()
    assert (left + width <= 80).all()
    ratio = width / height
    assert ratio.min() > 0.7
    assert ratio.max() < 1.4


@pytest.mark.parametrize(("size", "box"), [(16, (3, 5, 30, 41)), (32, (0, 0, 50, 70)), (24, (10, 20, 12, 9))])
@pytest.mark.parametrize("flip", [False, True])
def test_bicubic_crops_are_those_of_pillow(size, box, flip):
    x = pictures(6, 50, 70)
    found = crops.crop_resize(
        x.float(), torch.tensor([box]).float(), size, torch.full((6,), flip), kernel="bicubic", levels=True
    )
    top, left, height, width = box
    corners = (left, top, left + width, top + height)
    for one, got in zip(x, found, strict=True):
        expected = np.array(as_image(one).resize((size, size), Image.Resampling.BICUBIC, box=corners))
        expected = torch.from_numpy(expected).permute(2, 0, 1).float()
        far = ((got.flip(-1) if flip else got) - expected).abs()
        assert far.max() <= 1
        assert (far > 0).float().mean() < 0.02


def test_weights_of_a_cubic_sum_to_one_and_leave_a_picture_of_its_own_size_alone():
    weights = crops.resize_weights(torch.tensor([0.0, 2.5]), torch.tensor([9.0, 4.0]), 9, 9, kernel="bicubic")
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 9))
    torch.testing.assert_close(weights[0], torch.eye(9), atol=1e-6, rtol=0)
    x = pictures(2, 9, 9)
    same = crops.crop_resize(x.float(), torch.tensor([[0.0, 0, 9, 9]]), 9, kernel="bicubic", levels=True)
    assert torch.equal(same, x.float())


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (level + 1, 3), level).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["binary", "struct"])
@pytest.mark.parametrize("mapped", [False, True])
def test_sizes_of_parquet_cells(tmp_path, monkeypatch, kind, mapped):
    monkeypatch.setattr("mc_core.images.parquet.IN_MEMORY", 0 if mapped else 1 << 30)
    (tmp_path / "x.png").write_bytes(png(9))
    cells = [png(1), None, png(40)]
    if kind == "struct":
        cells = [None if one is None else {"bytes": one, "path": "a.png"} for one in cells]
        cells += [{"bytes": None, "path": "x.png"}, {"bytes": None, "path": "gone.png"}]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet", row_group_size=2)
    pq.write_table(pa.table({"image": cells[:1]}), tmp_path / "b.parquet")
    found = ParquetCells(
        [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")], "image", cache_dir=tmp_path / "cache"
    )
    known = [len(png(1)), -1, len(png(40))] + ([len(png(9)), -1] if kind == "struct" else [])
    assert found.sizes().tolist() == [*known, len(png(1))]
    for row, size in enumerate(known):
        if size < 0:
            with pytest.raises(BadSampleError):
                found.read(row)
        else:
            assert len(found.read(row)) == size
    sliced = pa.chunked_array([pa.array(cells)[1:]])
    assert cell_sizes(sliced.chunks, [str(tmp_path)] * len(cells)).tolist() == known[1:]
