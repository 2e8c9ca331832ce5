"""Models that learned no matching: all that ranks by cosine works, and asking for more is one line."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mc_core.errors import ConfigError
from mc_vision_language.data.pairs import scene_pairs
from mc_vision_language.evaluation.retrieval import retrieval
from mc_vision_language.methods.albef import ALBEF, ALBEFConfig
from mc_vision_language.model import load_vision_language_model
from mc_vision_language.search import SearchIndex, captions_for
from mc_vision_language.tasks.grounding import ground

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_tasks.py"))))
LINE = r"^this model learned no matching \(config.matching is false\), .* rank by cosine alone \(rerank 0\)$"


@pytest.fixture(scope="module")
def models():
    """The same weights, with and without the word that matching was trained."""
    found = tiny.pretrained(), tiny.pretrained()
    found[1].config = found[1].config.model_copy(update={"matching": False})
    return found


@pytest.fixture(scope="module")
def pairs():
    return scene_pairs(tiny.scenes()["test"], "test")


def test_search_ranks_by_cosine(models, tmp_path):
    plain, without = models
    pictures = tiny.pictures(6)
    one, other = (SearchIndex.build(m, pictures, tmp_path / str(i)) for i, m in enumerate((plain, without)))
    found = other.search("a large red three", top=4)
    assert found == one.search("a large red three", top=4, rerank=0) == other.search("a large red three", 4, rerank=0)
    assert [hit.match for hit in found] == [None] * 4
    assert one.search("a large red three", top=4)[0].match is not None
    with pytest.raises(ConfigError, match=LINE):
        other.search("a large red three", rerank=2)


def test_captions_too(models):
    plain, without = models
    picture = tiny.pictures(1).read(0)
    found = captions_for(without, picture, tiny.WORDS)
    assert found == captions_for(plain, picture, tiny.WORDS, rerank=0)
    assert captions_for(plain, picture, tiny.WORDS)[0].match is not None
    with pytest.raises(ConfigError, match=LINE):
        captions_for(without, picture, tiny.WORDS, rerank=1)


def test_evaluation_measures_the_contrast_alone(models, pairs):
    plain, without = models
    found, expected = retrieval(without, pairs, draws=0), retrieval(plain, pairs, draws=0)
    assert found.reranked is None
    assert expected.reranked is not None
    assert found.best.mean.value == expected.contrast.mean.value
    for more in ({"rerank": True}, {"everything": True}):
        with pytest.raises(ConfigError, match=LINE):
            retrieval(without, pairs, draws=0, **more)


def test_a_score_of_a_match_is_not_to_be_had(models):
    _, without = models
    with pytest.raises(ConfigError, match=LINE):
        without.match_scores(torch.rand(1, 3, 16, 16), ["red"])
    with pytest.raises(ConfigError, match=LINE):
        ground(without, tiny.pictures(1).read(0), "red")
    assert ground(without, tiny.pictures(1).read(0), "red", mode="itc").heat.shape == (16, 16)


def test_it_is_kept_in_a_saved_model(models, tmp_path):
    for model in models:
        model.save(tmp_path / "model")
        assert load_vision_language_model(tmp_path / "model").config.matching == model.config.matching


@pytest.mark.parametrize("itm", [0.0, 1.0])
def test_training_it_makes_it_one_that_matches(itm):
    model = tiny.pretrained()
    model.config = model.config.model_copy(update={"matching": False})
    method = ALBEF(ALBEFConfig(itm=itm, **tiny.encoders()), None, model)
    assert method.config.matching == model.config.matching == bool(itm)
