"""Maps of a phrase over patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mc_core.errors import DataError
from mc_medical.evaluation import overlay, phrase_map, pointing_hit, write_overlay
from mc_medical.evaluation.similarity import enlarge

RNG = np.random.default_rng(0)
PATCHES, PHRASE = RNG.normal(size=(3, 4, 5)), RNG.normal(size=5)


class TestMap:
    def test_by_definition(self):
        found = phrase_map(PATCHES, PHRASE)
        for i in range(3):
            for j in range(4):
                cosine = PATCHES[i, j] @ PHRASE / np.sqrt((PATCHES[i, j] ** 2).sum() * (PHRASE**2).sum())
                assert found[i, j] == pytest.approx(cosine, abs=1e-14)

    def test_length_does_not_count(self):
        assert np.allclose(phrase_map(7 * PATCHES, 0.1 * PHRASE), phrase_map(PATCHES, PHRASE))

    def test_the_patch_of_the_phrase_is_highest(self):
        patches = PATCHES.copy()
        patches[2, 1] = PHRASE
        found = phrase_map(patches, PHRASE)
        assert np.unravel_index(found.argmax(), found.shape) == (2, 1)
        assert found.max() == pytest.approx(1)

    def test_bad_input(self):
        with pytest.raises(DataError, match=r"patches \(3, 4, 5\) and phrase \(4,\)"):
            phrase_map(PATCHES, PHRASE[:4])
        with pytest.raises(DataError, match="length zero"):
            phrase_map(PATCHES, np.zeros(5))
        with pytest.raises(DataError, match="finite"):
            phrase_map(PATCHES * np.nan, PHRASE)


class TestPicture:
    @pytest.mark.parametrize(("height", "width"), [(12, 16), (7, 50), (3, 4), (2, 2)])
    def test_enlarged_as_torch_does(self, height, width):
        values = RNG.normal(size=(3, 4))
        other = torch.nn.functional.interpolate(
            torch.from_numpy(values)[None, None], size=(height, width), mode="bilinear", align_corners=False
        )
        assert enlarge(values, height, width) == pytest.approx(other[0, 0].numpy(), abs=1e-12)

    def test_one_patch_is_one_colour(self):
        assert (enlarge(np.array([[3.0]]), 4, 5) == 3).all()

    def test_where_nothing_is_similar_the_radiograph_is_untouched(self):
        pixels = RNG.random((24, 32))
        similarity = np.zeros((3, 4))
        similarity[0, 3] = 1
        found = overlay(pixels, similarity).astype(int)
        grey = np.round(255 * pixels).astype(int)
        assert (found[12:, :16] == grey[12:, :16, None]).all()
        hot = found[:6, 27:]
        assert (hot[..., 0] > hot[..., 2] + 40).all()

    def test_a_flat_map_colours_nothing(self):
        pixels = RNG.random((8, 8))
        found = overlay(pixels, np.full((2, 2), 0.7))
        assert (found == np.round(255 * pixels)[..., None]).all()

    def test_a_file(self, tmp_path):
        pixels = RNG.random((24, 32))
        write_overlay(tmp_path / "map.png", pixels, PATCHES[..., 0])
        with Image.open(tmp_path / "map.png") as image:
            assert (np.asarray(image) == overlay(pixels, PATCHES[..., 0])).all()


class TestPointing:
    def test_inside_and_outside(self):
        similarity = np.zeros((4, 4))
        similarity[2, 0] = 1
        assert pointing_hit(similarity, (0, 64, 32, 96), 128, 128)
        assert not pointing_hit(similarity, (96, 0, 128, 128), 128, 128)
        assert not pointing_hit(similarity, (0, 96, 32, 128), 128, 128)
