"""The model that a run saves: embedding, matching, and the way to disk and back."""

import numpy as np
import pytest
import torch

from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.export import save_model
from mc_testkit.toys import ToyEncoder
from mc_vision_language.encoders_config import ImageEncoderConfig, TextEncoderConfig, VisionLanguageConfig
from mc_vision_language.model import VisionLanguageModel, load_vision_language_model
from mc_vision_language.tokenizers import train_tokenizer

CAPTIONS = ["a red dog on the grass", "two cats", "a blue car left of a house", "grass"]
CONFIG = VisionLanguageConfig(
    image=ImageEncoderConfig(image_size=16, patch_size=8, width=12, depth=1, heads=2),
    text=TextEncoderConfig(hidden_size=16, heads=2, text_layers=1, fusion_layers=2, max_length=12),
    dim=6,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = VisionLanguageModel(CONFIG, train_tokenizer(CAPTIONS, vocabulary=64))
    with torch.no_grad():
        for parameter in made.backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 3, 20, 28), dtype=np.uint8)


def test_the_tokenizer_fills_in_what_the_encoder_must_know(model):
    text, tokenizer = model.config.text, model.tokenizer
    assert (text.pad_id, text.cls_id, text.sep_id, text.mask_id) == (
        tokenizer.pad_token_id,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        tokenizer.mask_token_id,
    )
    assert text.vocabulary == len(tokenizer) == model.words


def test_texts_begin_with_cls_and_do_not_end_with_sep(model):
    ids, mask = model.tokens_of(["Two CATS!", "a red dog on the grass"])
    assert ids[0, 0] == ids[1, 0] == model.config.text.cls_id
    assert model.config.text.sep_id not in ids
    pieces = [len(model.tokenizer.tokenize(text)) for text in ("two cats", "a red dog on the grass")]
    assert mask.sum(1).tolist() == [1 + pieces[0], 1 + pieces[1]]
    assert (ids[mask == 0] == model.config.text.pad_id).all()


def test_rows_are_unit_vectors_that_depend_on_their_input_alone(model, images):
    together, one = model.encode_image(images), model.encode_image(images[2:3])
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(together[2:3], one, atol=1e-6)
    np.testing.assert_allclose(model.encode_image(images, batch_size=1), together, atol=1e-6)
    texts = model.encode_text(CAPTIONS, batch_size=2)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    for row, caption in enumerate(CAPTIONS):
        np.testing.assert_allclose(model.encode_text([caption])[0], texts[row], atol=1e-6)
    assert model.encode_image(images[:0]).shape == model.encode_text([]).shape == (0, 6)


def test_images_may_be_files_pictures_or_arrays(model, images, tmp_path):
    from PIL import Image

    picture = Image.fromarray(images[0].transpose(1, 2, 0))
    picture.save(tmp_path / "one.png")
    expected = model.encode_image([picture])
    np.testing.assert_array_equal(model.encode_image([tmp_path / "one.png"]), expected)
    np.testing.assert_array_equal(model.encode_image([images[0].transpose(1, 2, 0)]), expected)
    # whole batches are resized by torch, single pictures by Pillow: nearly the same
    np.testing.assert_allclose(model.encode_image(images[:1]), expected, atol=0.02)


def test_matching_is_the_logit_of_class_1_of_texts_beside_images(model, images):
    with torch.no_grad():
        tokens = model.backbone.image_tokens(model.prepare(images))
        ids, mask = model.tokens_of(CAPTIONS)
        states = model.backbone.text_states(ids, mask)
        fused = model.backbone.fuse(states, mask, model.backbone.keys(tokens))
        expected = fused[:, 0] @ model.itm_head.weight[1] + model.itm_head.bias[1]
        torch.testing.assert_close(model.match(tokens, ids, mask), expected)
        torch.testing.assert_close(model.match(model.backbone.keys(tokens), ids, mask), expected)
    scores = model.match_scores(images, CAPTIONS, batch_size=3)
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)
    swapped = model.match_scores(images[[1, 0, 2, 3]], CAPTIONS)
    assert abs(swapped[0] - scores[0]) > 1e-4


def test_encoding_leaves_training_mode_as_it_was(model, images):
    model.train()
    model.encode_image(images)
    model.encode_text(CAPTIONS)
    assert model.training
    assert model.backbone.fusion.layers[0].dropout.training
    model.eval()


@pytest.mark.parametrize("exists", [False, True])
def test_it_goes_to_disk_and_back(model, images, tmp_path, exists):
    folder = tmp_path / "run" / "model"
    if exists:
        model.save(folder)
    model.save(folder)
    for place in (folder, folder.parent):
        again = load_vision_language_model(place)
        assert again.config == model.config
        np.testing.assert_array_equal(again.encode_image(images), model.encode_image(images))
        np.testing.assert_array_equal(again.encode_text(CAPTIONS), model.encode_text(CAPTIONS))
        np.testing.assert_array_equal(again.match_scores(images, CAPTIONS), model.match_scores(images, CAPTIONS))


def test_shapes_of_what_enters(model):
    floats = torch.rand(2, 3, 16, 16)
    assert torch.equal(model.prepare(floats), floats)
    assert model.prepare(np.zeros((1, 3, 40, 10), dtype=np.uint8)).shape == (1, 3, 16, 16)
    with pytest.raises(DataError, match=r"images of shape \(2, 16, 16, 3\); give \(count, 3, height, width\)"):
        model.prepare(torch.rand(2, 16, 16, 3))


def test_bad_input(model, images, tmp_path):
    with pytest.raises(ConfigError, match="not one text: put it into brackets"):
        model.encode_text("two cats")
    with pytest.raises(ConfigError, match="this model has no tokenizer"):
        VisionLanguageModel(CONFIG).encode_text(["two cats"])
    with pytest.raises(DataError, match="4 images and 1 texts"):
        model.match_scores(images, ["two cats"])
    save_model(ToyEncoder({"width": 2}), tmp_path / "toy", card="toy")
    with pytest.raises(CheckpointError):
        load_vision_language_model(tmp_path / "toy")


def test_a_tokenizer_without_a_mask_is_refused():
    tokenizer = train_tokenizer(CAPTIONS, vocabulary=64)
    tokenizer.mask_token = None
    with pytest.raises(ConfigError, match="the tokenizer has no mask_token"):
        VisionLanguageModel(CONFIG, tokenizer)


def test_the_temperature_starts_as_configured():
    config = CONFIG.model_copy(update={"temperature": 0.2})
    assert float(VisionLanguageModel(config).temperature.detach()) == pytest.approx(0.2)
