"""The search index: what it finds is what the model says, nothing is encoded twice, and nothing half-written is left."""

from __future__ import annotations

import copy
import doctest
import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mc_core.engine.run import locked
from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.files import read_json, write_json
from mc_vision_language import index_files, search
from mc_vision_language.data.images import ArrayImages, FileImages
from mc_vision_language.data.stored_images import TarImages
from mc_vision_language.gallery import Captions
from mc_vision_language.index_files import INDEX_FILE, pack_tokens
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.search import SearchIndex, captions_for

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_tasks.py"))))
TEXT = "a large red three"


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return tiny.pretrained()


def write_photos(folder: Path, count: int, seed: int = 0) -> FileImages:
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return FileImages([f"{i}.png" for i in range(count)], folder)


@pytest.fixture
def photos(tmp_path: Path) -> FileImages:
    return write_photos(tmp_path / "photos", 9)


def expected(model: VisionLanguageModel, photos, rerank: int) -> tuple[list[int], np.ndarray, np.ndarray]:
    """The whole order of rows, cosines and logits, from the model alone."""
    images = [photos.read(row) for row in range(len(photos))]
    cosines = model.encode_image(images) @ model.encode_text([TEXT])[0]
    logits = model.match_scores(images, [TEXT] * len(images))
    order = np.argsort(-cosines, kind="stable")
    head = order[:rerank]
    return [*head[np.argsort(-logits[head], kind="stable")].tolist(), *order[rerank:].tolist()], cosines, logits


def counted(model: VisionLanguageModel, monkeypatch) -> list[int]:
    """How many pictures each pass through the encoder takes."""
    passes: list[int] = []
    tokens = model.backbone.image_tokens
    monkeypatch.setattr(model.backbone, "image_tokens", lambda pixels: passes.append(len(pixels)) or tokens(pixels))
    return passes


class TestSearch:
    @pytest.mark.parametrize("rerank", [0, 1, 4, 32])
    def test_is_what_the_model_says(self, model: VisionLanguageModel, photos: FileImages, tmp_path, rerank) -> None:
        index = SearchIndex.build(model, photos, tmp_path / "index", tokens="float16")
        order, cosines, logits = expected(model, photos, rerank)
        found = index.search(TEXT, top=99, rerank=rerank)
        assert [hit.row for hit in found] == order
        assert [hit.name for hit in found] == [photos.name(row) for row in order]
        for place, hit in enumerate(found):
            assert hit.cosine == pytest.approx(cosines[hit.row], abs=1e-5)
            assert (hit.match is None) == (place >= rerank)
            if hit.match is not None:
                assert hit.match == pytest.approx(logits[hit.row], abs=5e-3)
        assert index.search(TEXT, top=2, rerank=rerank) == found[:2]

    def test_bytes_are_nearly_as_good(self, model: VisionLanguageModel, photos: FileImages, tmp_path) -> None:
        *_, logits = expected(model, photos, 9)
        found = SearchIndex.build(model, photos, tmp_path / "index").search(TEXT, top=9)
        error = max(abs(hit.match - logits[hit.row]) for hit in found)
        assert error < 0.1 * np.ptp(logits)

    def test_opened_again_it_answers_the_same(self, model: VisionLanguageModel, photos: FileImages, tmp_path) -> None:
        built = SearchIndex.build(model, photos, tmp_path / "index")
        opened = SearchIndex.open(model, tmp_path / "index")
        assert opened.search(TEXT) == built.search(TEXT)
        assert isinstance(opened.files.tokens, np.memmap)
        assert len(opened) == 9

    def test_without_tokens_cosines_remain(self, model: VisionLanguageModel, photos: FileImages, tmp_path) -> None:
        index = SearchIndex.build(model, photos, tmp_path / "index", tokens="none")
        assert [hit.match for hit in index.search(TEXT, rerank=0)] == [None] * 9
        with pytest.raises(DataError, match="keeps no tokens"):
            index.search(TEXT)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"top": 0}, ConfigError, "top=0"),
            ({"rerank": -1}, ConfigError, "rerank=-1"),
            ({"text": " "}, DataError, "no words"),
        ],
    )
    def test_says_what_is_wrong(self, model, photos, tmp_path, arguments, error, message) -> None:
        index = SearchIndex.build(model, photos, tmp_path / "index")
        with pytest.raises(error, match=message):
            index.search(**{"text": TEXT, **arguments})


class TestCaptions:
    CAPTIONS = ("is it red", "is it blue", "no", "a small two", "what is it")

    @pytest.mark.parametrize("rerank", [0, 2, 32])
    def test_are_what_the_model_says(self, model: VisionLanguageModel, photos: FileImages, rerank: int) -> None:
        cosines = model.encode_text(self.CAPTIONS) @ model.encode_image([photos.read(3)])[0]
        logits = model.match_scores([photos.read(3)] * 5, self.CAPTIONS)
        order = np.argsort(-cosines, kind="stable")
        order[:rerank] = order[:rerank][np.argsort(-logits[order[:rerank]], kind="stable")]
        found = captions_for(model, photos.name(3), self.CAPTIONS, top=9, rerank=rerank)
        assert [hit.text for hit in found] == [self.CAPTIONS[row] for row in order]
        for place, hit in enumerate(found):
            assert hit.cosine == pytest.approx(cosines[hit.row], abs=1e-5)
            assert hit.match is None if place >= rerank else hit.match == pytest.approx(logits[hit.row], abs=1e-4)

    def test_known_captions_are_not_read_again(self, model, photos, monkeypatch) -> None:
        known = Captions(model, self.CAPTIONS)
        before = captions_for(model, photos.read(0), self.CAPTIONS)
        monkeypatch.setattr(model.backbone, "text_states", None)
        assert captions_for(model, photos.read(0), known) == before

    def test_say_what_is_wrong(self, model, photos) -> None:
        with pytest.raises(DataError, match="no captions"):
            captions_for(model, photos.read(0), [])
        with pytest.raises(ConfigError, match="top=0"):
            captions_for(model, photos.read(0), self.CAPTIONS, top=0)


class TestBuild:
    def test_only_what_changed_is_encoded(self, model, photos: FileImages, tmp_path, monkeypatch) -> None:
        SearchIndex.build(model, photos, tmp_path / "index")
        changed = tmp_path / "photos" / "4.png"
        Image.fromarray(np.full((24, 30, 3), 200, np.uint8)).save(changed)
        os.utime(changed, ns=(1, 1))
        (tmp_path / "photos" / "2.png").unlink()
        write_photos(tmp_path / "more", 1, seed=5)
        (tmp_path / "more" / "0.png").rename(tmp_path / "photos" / "new.png")
        now = FileImages(["new.png", *[f"{i}.png" for i in range(9) if i != 2]], tmp_path / "photos")
        passes = counted(model, monkeypatch)
        index = SearchIndex.build(model, now, tmp_path / "index")
        assert (sum(passes), index.encoded) == (2, 2)
        fresh = SearchIndex.build(model, now, tmp_path / "fresh")
        assert sum(passes) == 2 + 9
        assert index.files.names == fresh.files.names
        for part in ("features", "tokens", "scales"):
            assert np.array_equal(getattr(index.files, part), getattr(fresh.files, part))

    def test_nothing_new_nothing_encoded(self, model, photos: FileImages, tmp_path, monkeypatch) -> None:
        first = SearchIndex.build(model, photos, tmp_path / "index")
        passes = counted(model, monkeypatch)
        again = SearchIndex.build(model, photos, tmp_path / "index")
        assert (passes, first.encoded, again.encoded) == ([], 9, 0)
        assert again.search(TEXT, rerank=0) == first.search(TEXT, rerank=0)

    def test_a_folder_is_known_from_wherever_it_is_named(self, model, photos, tmp_path, monkeypatch) -> None:
        SearchIndex.build(model, photos, tmp_path / "index")
        monkeypatch.chdir(tmp_path)
        index = SearchIndex.build(model, FileImages([f"{i}.png" for i in range(9)], "photos"), tmp_path / "index")
        assert index.encoded == 0
        assert index.files.names[0] == os.path.join("photos", "0.png")

    def test_another_model_or_another_precision_starts_anew(self, model, photos, tmp_path, monkeypatch) -> None:
        SearchIndex.build(model, photos, tmp_path / "index")
        other = tiny.pretrained(seed=1)
        assert SearchIndex.build(other, photos, tmp_path / "index").encoded == 9
        assert SearchIndex.build(other, photos, tmp_path / "index", tokens="float16").encoded == 9
        with pytest.raises(CheckpointError, match="was made by another model"):
            SearchIndex.open(model, tmp_path / "index")

    def test_does_not_depend_on_batches(self, model, photos, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(search, "_BATCHES", 2)
        small, large = (SearchIndex.build(model, photos, tmp_path / f"{n}", batch_size=n) for n in (2, 32))
        assert np.abs(small.files.features - large.files.features).max() < 1e-6
        assert small.files.names == large.files.names

    def test_arrays_and_tars_are_known_by_their_content(self, model, photos, tmp_path) -> None:
        import tarfile

        with tarfile.open(tmp_path / "photos.tar", "w") as tar:
            for i in range(3):
                tar.add(tmp_path / "photos" / f"{i}.png", f"{i}.png")
        pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), dtype=np.uint8)
        for images, count in ((TarImages.of(tmp_path / "photos.tar"), 3), (ArrayImages(pixels), 4)):
            assert SearchIndex.build(model, images, tmp_path / f"i{count}").encoded == count
            assert SearchIndex.build(model, images, tmp_path / f"i{count}").encoded == 0
        pixels[2] += 1
        assert SearchIndex.build(model, ArrayImages(pixels), tmp_path / "i4").encoded == 1

    def test_pictures_that_cannot_be_read_are_left_out_and_named(self, model, photos, tmp_path) -> None:
        (tmp_path / "photos" / "3.png").write_bytes(b"no picture")
        (tmp_path / "photos" / "5.png").unlink()
        index = SearchIndex.build(model, photos, tmp_path / "index")
        assert len(index) == 7
        assert [Path(error.name).name for error in index.left_out] == ["3.png", "5.png"]
        assert not any(name.endswith(("3.png", "5.png")) for name in index.files.names)
        whole = write_photos(tmp_path / "photos", 9)
        assert len(SearchIndex.build(model, whole, tmp_path / "index")) == 9

    def test_progress_is_told(self, model, photos, tmp_path) -> None:
        told: list[float] = []
        SearchIndex.build(model, photos, tmp_path / "index", progress=told.append)
        assert told == [1.0]


class TestFolder:
    def test_holds_one_index_and_nothing_else(self, model, photos, tmp_path) -> None:
        for _ in range(2):
            SearchIndex.build(model, photos, tmp_path / "index")
        described = read_json(tmp_path / "index" / INDEX_FILE)
        assert {path.name for path in (tmp_path / "index").iterdir()} == {
            INDEX_FILE,
            ".lock",
            *described["files"].values(),
        }
        assert described["count"] == 9

    def test_a_failure_keeps_the_old_index(self, model, photos, tmp_path, monkeypatch) -> None:
        before = SearchIndex.build(model, photos, tmp_path / "index").search(TEXT)
        files = sorted(path.name for path in (tmp_path / "index").iterdir())
        now = write_photos(tmp_path / "photos", 9, seed=7)
        for path in (tmp_path / "photos").iterdir():
            os.utime(path, ns=(2, 2))

        def fail(path: Path, content: object) -> None:
            if path.name == INDEX_FILE:
                raise OSError(28, "No space left on device")
            write_json(path, content)

        monkeypatch.setattr(index_files, "write_json", fail)
        with pytest.raises(OSError, match="No space"):
            SearchIndex.build(model, now, tmp_path / "index")
        assert sorted(path.name for path in (tmp_path / "index").iterdir()) == files
        assert SearchIndex.open(model, tmp_path / "index").search(TEXT) == before

    def test_of_something_else_is_left_alone(self, model, photos, tmp_path) -> None:
        with pytest.raises(ConfigError, match=r"holds files but no index\.json"):
            SearchIndex.build(model, photos, tmp_path / "photos")
        assert not (tmp_path / "photos" / ".lock").exists()

    def test_one_process_writes_at_a_time(self, model, photos, tmp_path) -> None:
        with locked(tmp_path / "index"), pytest.raises(ConfigError):
            SearchIndex.build(model, photos, tmp_path / "index")

    @pytest.mark.parametrize(
        ("harm", "message"),
        [
            (lambda folder: (folder / INDEX_FILE).unlink(), "holds no index"),
            (lambda folder: (folder / INDEX_FILE).write_text('{"format": 0}'), "no index of this version"),
            (lambda folder: next(folder.glob("features-*")).write_bytes(b"1"), "is damaged"),
            (lambda folder: next(folder.glob("tokens-*")).unlink(), "is damaged"),
            (lambda folder: write_json(next(folder.glob("pictures-*")), {"names": []}), "is damaged"),
        ],
        ids=["missing", "old", "cut", "gone", "names"],
    )
    def test_damage_is_said_and_mended(self, model, photos, tmp_path, harm, message: str) -> None:
        SearchIndex.build(model, photos, tmp_path / "index")
        harm(tmp_path / "index")
        with pytest.raises(CheckpointError, match=message):
            SearchIndex.open(model, tmp_path / "index")
        if message == "is damaged":
            assert SearchIndex.build(model, photos, tmp_path / "index").encoded == 9

    def test_needs_a_picture(self, model, photos, tmp_path) -> None:
        with pytest.raises(DataError, match="no pictures to index"):
            SearchIndex.build(model, FileImages([], tmp_path), tmp_path / "index")
        for path in (tmp_path / "photos").iterdir():
            path.write_bytes(b"")
        with pytest.raises(DataError, match="none of the 9 pictures can be read"):
            SearchIndex.build(model, photos, tmp_path / "index")
        assert [path.name for path in (tmp_path / "index").iterdir()] == [".lock"]

    def test_precision_is_checked(self, model, photos, tmp_path) -> None:
        with pytest.raises(ConfigError, match="tokens='int4'"):
            SearchIndex.build(model, photos, tmp_path / "index", tokens="int4")


def test_a_byte_is_within_half_a_step() -> None:
    tokens = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    tokens[1, 2] = 0
    packed, scales = pack_tokens(tokens, "int8")
    assert packed.dtype == np.int8
    assert (np.abs(packed * scales[..., None] - tokens.numpy()) <= scales[..., None] / 2 + 1e-7).all()
    assert np.abs(packed).max() == 127


def test_a_file_changed_in_size_or_in_time_alone_is_another(tmp_path) -> None:
    path = tmp_path / "a.jpg"

    def mark(content: bytes, time: int) -> str:
        path.write_bytes(content)
        os.utime(path, ns=(time, time))
        return index_files.identities(FileImages(["a.jpg"], tmp_path))[1][0]

    known = mark(b"1234", 10**18)
    assert mark(b"4321", 10**18) == known
    assert mark(b"4321", 10**18 + 10**9) != known
    assert mark(b"12345", 10**18) != known


def test_the_stamp_of_a_model_knows_its_settings(model: VisionLanguageModel) -> None:
    """The same weights that read other parts of a sentence find other pictures."""
    other = copy.deepcopy(model)
    assert index_files.model_fingerprint(other) == index_files.model_fingerprint(model)
    captions = model.config.captions.model_copy(update={"max_words": 2})
    other.config = model.config.model_copy(update={"captions": captions})
    assert index_files.model_fingerprint(other) != index_files.model_fingerprint(model)


def test_the_stamp_of_a_model_knows_its_words(model: VisionLanguageModel) -> None:
    """The same weights with other words for the same ids find other pictures."""
    other = copy.deepcopy(model)
    other.take_tokenizer(tiny.tokenizer([word[::-1] for word in tiny.WORDS]))
    assert index_files.model_fingerprint(other) != index_files.model_fingerprint(model)


def test_what_a_killed_build_left_goes_with_the_next(model: VisionLanguageModel, photos, tmp_path) -> None:
    SearchIndex.build(model, photos, tmp_path / "index")
    left = tmp_path / "index" / ".features.abcd1234.part"
    left.write_bytes(b"half")
    SearchIndex.build(model, photos, tmp_path / "index")
    assert not left.exists()


def test_each_token_has_a_scale_of_its_own() -> None:
    """A large token does not take the precision of the small ones beside it."""
    tokens = (
        torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([100.0, 1, 0.01, 1])[:, None]
    )
    packed, scales = pack_tokens(tokens, "int8")
    assert (np.abs(packed).max(-1) == 127).all()
    error = np.abs(packed * scales[..., None] - tokens.numpy()).max(-1)
    assert (error <= tokens.abs().amax(-1).numpy() / 250).all()


def test_examples() -> None:
    assert doctest.testmod(search).failed == doctest.testmod(index_files).failed == 0
