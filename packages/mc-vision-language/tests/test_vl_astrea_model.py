"""Astrea as a model: found by retrieval and search, saved and loaded, asked and told to caption."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mc_core.engine import Fit, fit
from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.recipes import merge
from mc_testkit.toys import captioned_images
from mc_vision_language.data.images import ArrayImages
from mc_vision_language.data.pairs import Pairs, array_ids
from mc_vision_language.evaluation.retrieval import retrieval
from mc_vision_language.evaluation.zero_shot import class_embeddings
from mc_vision_language.methods.astrea import AstreaConfig, AstreaJoint, AstreaModel, load_astrea
from mc_vision_language.methods.growclip.config import GrowCLIPConfig
from mc_vision_language.methods.growclip.model import GrowCLIPModel
from mc_vision_language.model import load_vision_language_model
from mc_vision_language.search import SearchIndex
from mc_vision_language.tokenizers import train_tokenizer

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_astrea.py"))))
CAPTIONS = [f"a {color} {thing}" for color in ("red", "green", "blue") for thing in ("dog", "cat", "car", "house")]
EXPERT = {"image_size": 16, "width": 4, "stages": 2, "class_names": ["a", "b"]}


def tokenizer():
    return train_tokenizer([*CAPTIONS, "what is it"], 64)


def real(seed: int = 0, with_tokenizer: bool = True, **more) -> AstreaModel:
    """With small experts of the package, of two kinds."""
    torch.manual_seed(seed)
    fields = merge(
        tiny.fields(
            expert_features={},
            experts=[{"kind": "segmentation", **EXPERT}, {"kind": "classification", **EXPERT}],
            text={**tiny.TEXT, "cls_id": 2, "sep_id": 3, "mask_id": 4},
        ),
        more,
    )
    made = AstreaModel(AstreaConfig.model_validate(fields), tokenizer() if with_tokenizer else None)
    tiny.stirred(made.fusion)
    return made


def pairs() -> Pairs:
    images = np.random.default_rng(0).integers(0, 256, (len(CAPTIONS), 3, 16, 16), dtype=np.uint8)
    rows = np.arange(len(CAPTIONS))
    ids = array_ids(images)
    return Pairs(ArrayImages(images), tuple(CAPTIONS), rows, ids, rows, np.array(["train"] * len(CAPTIONS)))


def pictures(count: int = 5, side: int = 16) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def test_what_is_filled_in():
    model = real()
    assert model.config.kinds == ("classification", "segmentation")
    assert model.config.expert_features == {"classification": 8, "segmentation": 8}
    assert all(one.mean is not None for one in model.config.experts)
    assert model.words == model.config.text.vocabulary == len(model.tokenizer)
    assert model.image_size == 16
    assert not model.config.matching
    assert not model.shows_where
    assert float(model.temperature.detach()) == pytest.approx(float(torch.exp(-model.fusion.logit_scale.detach())))


def test_experts_are_frozen_also_in_training():
    model = real().train()
    assert model.fusion.training
    assert not any(part.training for part in model.own.experts.modules())
    assert not any(parameter.requires_grad for parameter in model.own.experts.parameters())
    view = torch.rand(2, 3, 16, 16, requires_grad=True)
    assert not any(one.requires_grad for one in model.own.maps(view).values())


def test_rows_of_pictures_and_texts_are_of_unit_length_and_of_their_own_input_alone():
    model = real()
    images, texts = model.encode_image(pictures()), model.encode_text(CAPTIONS)
    assert images.shape == (5, 8)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(model.encode_image(pictures()[3:4])[0], images[3], atol=1e-5)
    np.testing.assert_allclose(model.encode_text(CAPTIONS[4:5])[0], texts[4], atol=1e-5)
    assert np.abs(images[0] - images[1]).max() > 1e-3
    own = model.own
    view = torch.from_numpy(pictures()).float() / 255
    with torch.no_grad():
        np.testing.assert_allclose(model.eval().fusion.embed(own.maps(view)).numpy(), images, atol=1e-5)


def test_retrieval_search_and_classes_by_words(tmp_path):
    model = real()
    found = retrieval(model, pairs(), draws=0)
    assert found.reranked is None
    assert 0 <= found.best.mean.value <= 1
    index = SearchIndex.build(model, pairs().images, tmp_path / "index")
    hits = index.search("a red dog", top=3)
    cosines = (
        model.encode_image(np.stack([pairs().images.array[row] for row in range(12)]))
        @ model.encode_text(["a red dog"])[0]
    )
    assert [hit.row for hit in hits] == np.argsort(-cosines)[:3].tolist()
    assert SearchIndex.open(model, tmp_path / "index").search("a red dog", top=3) == hits
    with pytest.raises(ConfigError, match="learned no matching"):
        index.search("a red dog", rerank=4)
    assert class_embeddings(model, ["dog", "cat"], ["a {}"]).shape == (2, 8)


@pytest.mark.parametrize("settings", [{}, {"residual": {"probability": 0.5, "source": "ema"}}, {"fusion": "concat"}])
def test_a_saved_model_is_the_same(tmp_path, settings):
    model = real(**settings).eval()
    if model.own.reference is not None:
        with torch.no_grad():
            model.own.reference.positions.add_(1.0)
    if model.fusion.router is not None:
        model.fusion.router.allocator.update(torch.tensor([1.0, -2.0]))
    model.save(tmp_path / "model")
    loaded = load_astrea(tmp_path / "model")
    assert loaded.config == model.config
    assert not loaded.training
    np.testing.assert_array_equal(loaded.encode_image(pictures()), model.encode_image(pictures()))
    np.testing.assert_array_equal(loaded.encode_text(CAPTIONS), model.encode_text(CAPTIONS))
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert isinstance(load_vision_language_model(tmp_path / "model"), AstreaModel)


def test_another_model_is_not_taken_for_it(tmp_path):
    GrowCLIPModel(GrowCLIPConfig(width=16, head_width=8, dim=4, image={"image_size": 16, "patch_size": 8})).save(
        tmp_path / "m"
    )
    with pytest.raises(CheckpointError, match="holds a GrowCLIPModel, not an AstreaModel"):
        load_astrea(tmp_path / "m")


@pytest.mark.parametrize("text", [False, True])
def test_it_answers_captions_and_is_saved_with_what_it_says(tmp_path, text):
    model = real(router={"text": text})
    with pytest.raises(ConfigError, match="no language model"):
        model.caption(pictures())
    model.add_language()
    model.eval()
    answers = model.ask(pictures(), ["what is it", "", "a dog", "what is it", "a cat"])
    assert len(answers) == 5
    assert all(isinstance(answer, str) for answer in answers)
    assert model.ask(pictures(), ["what is it", "", "a dog", "what is it", "a cat"], batch_size=2) == answers
    assert model.caption(pictures())[1] == answers[1]
    model.save(tmp_path / "model")
    loaded = load_astrea(tmp_path / "model")
    assert loaded.ask(pictures(), ["what is it", "", "a dog", "what is it", "a cat"]) == answers
    with pytest.raises(DataError, match="5 images and 1 questions"):
        model.ask(pictures(), ["what is it"])
    with pytest.raises(ConfigError, match="give a list of questions"):
        model.ask(pictures(), "what is it")


def test_a_question_routes_where_the_router_reads_it():
    model = real(router={"text": True}).eval()
    with torch.no_grad():
        model.fusion.router.gate.weight.normal_()
    plain, empty, asked = (model.seen(pictures(), one).weights for one in (None, [""] * 5, ["what is it"] * 5))
    assert torch.equal(plain, empty)
    assert not torch.allclose(asked, plain, atol=1e-3)
    with pytest.raises(DataError, match="5 images and 2 questions"):
        model.seen(pictures(), ["a", "b"])


def test_without_a_tokenizer_nothing_is_answered():
    model = real(with_tokenizer=False)
    model.add_language()
    with pytest.raises(ConfigError, match="the language model has no tokenizer"):
        model.caption(pictures())


def test_views_of_another_size_and_missing_experts():
    model = real()
    assert model.encode_image(pictures(side=40)).shape == (5, 8)
    bare = AstreaModel(tiny.config(), experts={})
    with pytest.raises(DataError, match="the classification expert is not part of this model"):
        bare.own.maps(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ConfigError, match="there is no classification expert"):
        AstreaModel(tiny.config(expert_features={}), experts={})


def test_only_the_expert_of_a_single_baseline_is_built():
    model = real(fusion="single", single="segmentation")
    assert list(model.own.experts) == ["segmentation"]
    assert [one.kind for one in model.config.experts] == ["segmentation"]
    assert model.encode_image(pictures()).shape == (5, 8)


def test_a_run_leaves_a_model_that_loads(tmp_path):
    model = real(with_tokenizer=False, text={"cls_id": 1, "sep_id": 2, "mask_id": 63})
    method = AstreaJoint(model.config, None, model)
    found = fit(
        method,
        captioned_images(),
        fit=Fit(steps=3, batch_size=8, lr=1e-3, optimizer="adamw", log_every=1, device="cpu", workers=0),
        run_dir=tmp_path / "run",
    )
    loaded = load_astrea(tmp_path / "run")
    batch = tiny.batch()
    with torch.no_grad():
        torch.testing.assert_close(loaded.own.embed_images(batch["view"]), found.method.eval().encode(batch))
    assert found.metrics["entropy"] > 0
    assert "weight/segmentation" in found.metrics
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "the only part of the paper that could be read" in card
