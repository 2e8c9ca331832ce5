"""Retrieval of a model: every score is that of the pair alone, and ranks are those of the definition."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mc_core.errors import BadSampleError, ConfigError, DataError
from mc_vision_language import gallery as gallery_module
from mc_vision_language.data.images import ArrayImages, FileImages
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.evaluation.ranking import best_ranks
from mc_vision_language.evaluation.retrieval import retrieval
from mc_vision_language.gallery import Captions, Gallery, picture_batches, score_pairs
from mc_vision_language.model import VisionLanguageModel

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_tasks.py"))))
SIDE = tiny.SIDE
TEXTS = ("a large red three", "is it blue", "what is it", "a small two", "red", "is it", "blue two left of red", "no")


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return tiny.pretrained()


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Seven pictures with one to three captions each; picture 6 is picture 2 again, and words occur twice."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (7, 3, SIDE, SIDE), dtype=np.uint8)
    pixels[6] = pixels[2]
    image_of = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 5, 6, 6])
    texts = rng.integers(0, len(TEXTS), 12)
    return Pairs(
        ArrayImages(pixels),
        tuple(TEXTS[i] for i in texts),
        image_of,
        image_ids=np.array([0, 1, 2, 3, 4, 5, 2]),
        text_ids=texts.astype(np.int64),
        splits=np.array(["test"] * 7),
    )


@pytest.fixture(scope="module")
def alone(model: VisionLanguageModel, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """(N, M) cosines and logits of a match, pair by pair."""
    cosines, match = np.zeros((2, len(pairs), len(pairs.captions)))
    for i in range(len(pairs)):
        for j, text in enumerate(pairs.captions):
            image = [pairs.images.read(i)]
            cosines[i, j] = model.encode_image(image)[0] @ model.encode_text([text])[0]
            match[i, j] = model.match_scores(image, [text])[0]
    return cosines, match


def right_by_definition(pairs: Pairs) -> np.ndarray:
    ids, words, place = pairs.image_ids, pairs.captions, pairs.image_of
    texts_of = {key: {words[j] for j in range(len(words)) if ids[place[j]] == key} for key in set(ids.tolist())}
    return np.array([[word in texts_of[int(key)] for word in words] for key in ids])


class TestScores:
    @pytest.mark.parametrize("keep", [1 << 30, 0])
    def test_are_those_of_each_pair_alone(self, model: VisionLanguageModel, pairs: Pairs, alone, keep: int) -> None:
        cosines, match = alone
        gallery, captions = Gallery(model, pairs.images, batch_size=3, keep=keep), Captions(model, pairs.captions)
        assert np.abs(gallery.features @ captions.features.T - cosines).max() < 1e-5
        image, text = np.divmod(np.random.default_rng(1).permutation(7 * 12), 12)
        scores = score_pairs(gallery, captions, image, text)
        assert np.abs(scores - match[image, text]).max() < 1e-4
        assert np.ptp(match) > 0.01

    def test_pairs_beyond_a_batch(self, model: VisionLanguageModel, pairs: Pairs, monkeypatch) -> None:
        gallery, captions = Gallery(model, pairs.images, batch_size=2), Captions(model, pairs.captions, batch_size=5)
        image, text = np.divmod(np.arange(7 * 12), 12)
        whole = score_pairs(gallery, captions, image, text)
        monkeypatch.setattr(gallery_module, "_PAIRS", 5)
        assert np.abs(score_pairs(gallery, captions, image, text) - whole).max() < 1e-5

    def test_a_picture_meets_its_captions_with_keys_made_once(
        self, model: VisionLanguageModel, pairs: Pairs, monkeypatch
    ) -> None:
        made = []
        keys = model.backbone.keys
        monkeypatch.setattr(model.backbone, "keys", lambda tokens: made.append(len(tokens)) or keys(tokens))
        gallery, captions = Gallery(model, pairs.images, batch_size=4), Captions(model, pairs.captions)
        score_pairs(gallery, captions, *np.divmod(np.arange(7 * 12), 12))
        assert made == [4, 3]

    def test_the_model_keeps_its_mode(self, model: VisionLanguageModel, pairs: Pairs) -> None:
        model.train()
        try:
            retrieval(model, pairs, k=2, draws=0)
            assert model.training
        finally:
            model.eval()

    def test_lengths_must_match(self, model: VisionLanguageModel, pairs: Pairs) -> None:
        gallery, captions = Gallery(model, pairs.images), Captions(model, pairs.captions)
        with pytest.raises(DataError, match=r"\(2,\) pictures and \(3,\) captions"):
            score_pairs(gallery, captions, np.arange(2), np.arange(3))


class TestRetrieval:
    @pytest.mark.parametrize("k", [1, 3, 99])
    @pytest.mark.parametrize("add_cosine", [False, True])
    def test_equals_brute_force(
        self, model: VisionLanguageModel, pairs: Pairs, alone, k: int, add_cosine: bool
    ) -> None:
        cosines, match = alone
        right = right_by_definition(pairs)
        found = retrieval(model, pairs, k=k, everything=True, add_cosine=add_cosine, draws=0)
        logit = match + (cosines if add_cosine else 0)

        def measured(scores: np.ndarray) -> list[float]:
            ranks = best_ranks(scores, right), best_ranks(scores.T, right.T)
            return [float((rank <= one).mean()) for rank in ranks for one in (1, 5, 10)]

        def flat(which) -> list[float]:
            return [one.value for way in (which.image_to_text, which.text_to_image) for one in way.values()]

        # rounded, so that equal words and equal pictures tie as they do in truth
        cosines, logit = cosines.round(5), logit.round(4)
        assert flat(found.contrast) == pytest.approx(measured(cosines))
        assert flat(found.matching) == pytest.approx(measured(logit))
        lifted = []
        for scores, second in ((cosines, logit), (cosines.T, logit.T)):
            order = np.argsort(-scores, axis=1, kind="stable")
            place = np.argsort(order, axis=1)
            lifted.append(np.where(place < k, 1e3 + second, scores))
        ranks = best_ranks(lifted[0], right), best_ranks(lifted[1], right.T)
        assert flat(found.reranked) == pytest.approx(
            [float((rank <= one).mean()) for rank in ranks for one in (1, 5, 10)]
        )
        assert found.reranked.mean.value == pytest.approx(np.mean(flat(found.reranked)))

    def test_everything_or_the_candidates_alone(self, model: VisionLanguageModel, pairs: Pairs) -> None:
        with_all = retrieval(model, pairs, k=4, everything=True, draws=20)
        without = retrieval(model, pairs, k=4, draws=20)
        assert without.matching is None
        assert with_all.reranked == without.reranked
        assert retrieval(model, pairs, k=99, draws=20).reranked == with_all.matching

    def test_without_re_ranking(self, model: VisionLanguageModel, pairs: Pairs, monkeypatch) -> None:
        monkeypatch.setattr(model.backbone, "keys", None)
        found = retrieval(model, pairs, rerank=False, draws=0)
        assert found.reranked is None
        assert found.best is found.contrast
        assert "reranked" not in found.to_dict()

    def test_does_not_depend_on_batches(self, model: VisionLanguageModel, pairs: Pairs) -> None:
        assert retrieval(model, pairs, k=3, batch_size=1).to_dict() == retrieval(model, pairs, k=3).to_dict()

    def test_chance_counts_several_captions(self, model: VisionLanguageModel, pairs: Pairs) -> None:
        found = retrieval(model, pairs, rerank=False, draws=0)
        right = right_by_definition(pairs)
        assert found.chance[0] == pytest.approx(right.mean(axis=1).mean())
        assert found.chance[3] == pytest.approx(right.mean(axis=0).mean())
        assert (found.images, found.captions) == (7, 12)

    def test_a_model_that_knows_finds_everything(self, model: VisionLanguageModel, pairs: Pairs, monkeypatch) -> None:
        """Matching that is right lifts every picture whose caption is a candidate; cosines stay as they were."""
        right = right_by_definition(pairs)
        monkeypatch.setattr(
            "mc_vision_language.evaluation.retrieval.score_pairs",
            lambda gallery, captions, image, text: right[image, text].astype(np.float32),
        )
        found = retrieval(model, pairs, k=12, draws=0)
        assert found.reranked.mean.value == 1.0
        assert found.contrast.mean.value < 1.0

    def test_says_what_is_wrong(self, model: VisionLanguageModel, pairs: Pairs) -> None:
        with pytest.raises(ConfigError, match="k=0"):
            retrieval(model, pairs, k=0)
        bare = Pairs(
            pairs.images,
            pairs.captions[:2],
            np.array([0, 1]),
            image_ids=pairs.image_ids,
            text_ids=pairs.text_ids[:2],
            splits=pairs.splits,
        )
        with pytest.raises(DataError, match="pictures with captions, each at least one"):
            retrieval(model, bare)


class TestPictures:
    def test_files_come_in_order_as_the_model_prepares_them(self, model: VisionLanguageModel, tmp_path) -> None:
        from PIL import Image

        rng = np.random.default_rng(0)
        for i in range(5):
            Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        files = FileImages([f"{i}.png" for i in range(5)], tmp_path)
        found = list(picture_batches(files, SIDE, rows=[4, 0, 2], batch_size=2))
        assert [rows.tolist() for rows, _ in found] == [[4, 0], [2]]
        expected = model.pixels_of([tmp_path / f"{i}.png" for i in (4, 0, 2)])
        assert torch.equal(torch.cat([pixels for _, pixels in found]).float() / 255, expected)
        assert list(picture_batches(files, SIDE, rows=[])) == []

    def test_a_broken_file_is_named(self, tmp_path) -> None:
        (tmp_path / "a.png").write_bytes(b"no picture")
        with pytest.raises(BadSampleError, match=r"a\.png"):
            list(picture_batches(FileImages(["a.png"], tmp_path), SIDE))
