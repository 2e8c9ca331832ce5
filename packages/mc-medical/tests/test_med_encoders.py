"""Encoders and the model that a run saves: batch mates and padding change nothing, positions are known, folders load again."""

import numpy as np
import pytest
import torch
from torch import nn

from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.export import load_model
from mc_core.recipes import validated
from mc_medical.encoders import ImageEncoder, TextEncoder, resized
from mc_medical.encoders_config import ImageEncoderConfig, ImageTextConfig, TextEncoderConfig
from mc_medical.model import ImageTextModel, load_image_text_model
from mc_medical.tokenizers import load_tokenizer, train_tokenizer

TEXTS = ["Left pleural effusion.", "No effusion.", "Large right pneumothorax with mediastinal shift.", "Edema."]
SMALL = ImageEncoderConfig(image_size=32, width=8, stages=2)
WORDS = TextEncoderConfig(hidden_size=16, heads=2, layers=1, max_length=16)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocabulary=120)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return ImageTextModel(ImageTextConfig(image=SMALL, text=WORDS, dim=8), tokenizer).eval()


def encoder(**fields):
    torch.manual_seed(0)
    return ImageEncoder(ImageEncoderConfig.model_validate({"image_size": 32, **fields})).eval()


CASES = [
    {"width": 8},
    {"width": 8, "stages": 2, "depth": 2},
    {"name": "vit_tiny_patch16_224"},
    {"name": "vit_tiny_patch16_224", "pooling": "model"},
    {"name": "convnext_atto"},
    {"name": "swin_tiny_patch4_window7_224", "image_size": 64},
    {"name": "resnet18", "batch_norm": "freeze"},
]
NAMES = ["small", "small-deep", "vit", "vit-token", "convnext", "swin", "resnet-frozen"]


@pytest.mark.parametrize("fields", CASES, ids=NAMES)
def test_features_do_not_depend_on_the_batch(fields):
    net = encoder(**fields)
    side = net.config.image_size
    pixels = torch.rand(3, 1, side, side)
    with torch.no_grad():
        for mode in (False, True):  # training too: nothing looks at batch statistics
            net.train(mode)
            whole = net(pixels)
            assert whole.shape == (3, net.num_features)
            torch.testing.assert_close(net(pixels[1:2]), whole[1:2], rtol=1e-4, atol=1e-5)
        net.eval()
        places = net.positions(pixels)
        assert places.shape[0] == 3
        assert places.shape[-1] == net.num_features
        if fields.get("pooling") != "model" and "vit" in str(fields.get("name")):
            torch.testing.assert_close(places.mean((1, 2)), whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fields", CASES[:5], ids=NAMES[:5])
def test_encoders_know_left_from_right(fields):
    """A spot and its mirror image are told apart by more than rounding, also by the mean over positions."""
    net = encoder(**fields)
    side = net.config.image_size
    pixels = torch.full((1, 1, side, side), 0.5)
    pixels[0, 0, side // 2 : 3 * side // 4, side // 8 : 3 * side // 8] = 0.9
    with torch.no_grad():
        here, there, none = net(pixels)[0], net(pixels.flip(-1))[0], net(torch.full_like(pixels, 0.5))[0]
    effect = (here - none).norm()
    assert (here - there).norm() > 0.05 * effect


def test_a_network_without_positions_would_not():
    """What the test above sees: with its sense of place taken away, a spot and its mirror image are one."""
    net = encoder(width=8)
    with torch.no_grad():
        net.backbone.place.weight.zero_()
        net.backbone.stem.weight[:, 1:].zero_()
        for conv in (part for part in net.modules() if isinstance(part, nn.Conv2d)):
            conv.weight.copy_((conv.weight + conv.weight.flip(-1)) / 2)
            conv.stride, conv.padding_mode = (1, 1), "circular"
            conv._reversed_padding_repeated_twice = [1, 1, 1, 1]
        pixels = torch.full((1, 1, 32, 32), 0.5)
        pixels[0, 0, 16:24, 4:12] = 0.9
        torch.testing.assert_close(net(pixels), net(pixels.flip(-1)), rtol=1e-4, atol=1e-5)


def test_images_of_another_size_are_refused():
    with pytest.raises(DataError, match=r"takes \(batch, 1, 32, 32\)"):
        encoder(width=8)(torch.rand(2, 1, 40, 40))
    with pytest.raises(ValueError, match="multiple of 16"):
        ImageEncoderConfig(image_size=40)


def test_unknown_models_and_weights_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="did you mean"):
        encoder(name="convnext_tinny")
    with pytest.raises(ConfigError, match="is no file"):
        encoder(name="convnext_atto", pretrained=str(tmp_path / "none.safetensors"))
    with pytest.raises(ConfigError, match="recipe: pretrained needs the name of a timm model"):
        validated(ImageEncoderConfig, {"pretrained": True}, source="recipe")


def test_weights_of_a_file_are_loaded(tmp_path):
    from safetensors.torch import save_file

    net = encoder(name="convnext_atto")
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in net.backbone.state_dict().items()}, path)
    torch.manual_seed(9)
    again = ImageEncoder(ImageEncoderConfig(name="convnext_atto", image_size=32, pretrained=str(path))).eval()
    pixels = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels), net(pixels))


def test_padding_and_batch_mates_change_no_text():
    torch.manual_seed(0)
    net = TextEncoder(TextEncoderConfig(hidden_size=16, heads=2, layers=2, vocabulary=64, max_length=16)).eval()
    ids = torch.randint(3, 64, (3, 6))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    longer = torch.cat([ids, torch.randint(3, 64, (3, 5))], dim=1)  # what stands under the padding is of no account
    longer_mask = torch.cat([mask, torch.zeros(3, 5, dtype=torch.int64)], dim=1)
    with torch.no_grad():
        found = net(ids, mask)
        torch.testing.assert_close(net(longer, longer_mask), found, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(net(ids[1:2, :4], mask[1:2, :4]), found[1:2], rtol=1e-5, atol=1e-6)


def test_a_text_is_the_mean_of_its_own_tokens():
    torch.manual_seed(0)
    net = TextEncoder(TextEncoderConfig(hidden_size=16, heads=2, layers=1, vocabulary=64, max_length=16)).eval()
    ids, mask = torch.randint(3, 64, (1, 5)), torch.tensor([[1, 1, 1, 0, 0]])
    with torch.no_grad():
        states = net.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(net(ids, mask)[0], states[0, :3].mean(0))


def test_embeddings_have_length_one_and_depend_on_themselves_alone(model):
    images = np.random.default_rng(0).random((5, 48, 48), dtype=np.float32)
    found = model.encode_image(images)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    for size in (1, 2):
        np.testing.assert_allclose(model.encode_image(images, batch_size=size), found, atol=1e-5)
    texts = model.encode_text(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(model.encode_text(TEXTS[::-1], batch_size=1)[::-1], texts, atol=1e-5)
    assert np.array_equal(model.encode_text(TEXTS), texts)


def test_encoding_leaves_the_mode_as_it_was(model):
    model.train()
    before = model.encode_text(TEXTS)
    assert model.training
    model.eval()
    np.testing.assert_array_equal(model.encode_text(TEXTS), before)


def test_arrays_of_several_kinds_are_the_same_image(model):
    grey = (np.random.default_rng(0).random((256, 256)) * 255).astype(np.uint8)
    one = model.encode_image(grey[None])
    np.testing.assert_allclose(model.encode_image([grey]), one, atol=1e-4)
    np.testing.assert_allclose(model.encode_image(grey[None].astype(np.float32) / 255), one, atol=1e-5)
    np.testing.assert_allclose(model.encode_image(torch.from_numpy(grey)[None]), one, atol=1e-5)


def test_files_are_read_as_in_training(model, tmp_path):
    from PIL import Image

    grey = (np.random.default_rng(0).random((256, 256)) * 255).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "one.png")
    found = model.encode_image([tmp_path / "one.png", str(tmp_path / "one.png")])
    np.testing.assert_allclose(found, np.repeat(model.encode_image(grey[None]), 2, axis=0), atol=1e-4)


def test_smaller_images_are_averaged():
    stripes = torch.zeros(1, 1, 64, 64)
    stripes[..., ::2] = 1.0
    small = resized(stripes, 16)
    assert (small[..., 2:-2] - 0.5).abs().max() < 0.05
    assert torch.equal(resized(stripes, 64), stripes)


def test_places_are_projected_as_if_each_were_the_image(model):
    pixels = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        places = model.patch_embeddings(pixels)
        assert places.shape == (2, 4, 4, 8)
        torch.testing.assert_close(places.norm(dim=-1), torch.ones(2, 4, 4))
        maps = model.encoders.image.features(pixels)
        one = model.encoders.image.backbone.norm(maps[0, :, 1, 2])
        expected = nn.functional.normalize(model.encoders.image_projection(one), dim=0)
        torch.testing.assert_close(places[0, 1, 2], expected)


def test_a_saved_model_is_the_same_model(model, tmp_path):
    folder = model.save(tmp_path / "model", card={"title": "T"})
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {f.name for f in folder.iterdir()}
    assert not list(tmp_path.glob(".*"))
    again = load_image_text_model(folder)
    images = np.random.default_rng(1).random((2, 32, 32), dtype=np.float32)
    np.testing.assert_array_equal(again.encode_image(images), model.encode_image(images))
    np.testing.assert_array_equal(again.encode_text(TEXTS), model.encode_text(TEXTS))
    assert again.kappa == pytest.approx(model.kappa)
    model.save(folder)  # renewed in place
    np.testing.assert_array_equal(load_image_text_model(folder).encode_text(TEXTS), model.encode_text(TEXTS))


def test_a_published_text_encoder_needs_its_folder_only_once(tokenizer, tmp_path):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    published = tmp_path / "bert"
    shape = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(shape).save_pretrained(published)
    tokenizer.save_pretrained(published)
    text = TextEncoderConfig(name=str(published), max_length=16)
    first = ImageTextModel(ImageTextConfig(image=SMALL, text=text, dim=8)).eval()
    wanted = BertModel.from_pretrained(published).embeddings.word_embeddings.weight
    torch.testing.assert_close(first.encoders.text.transformer.embeddings.word_embeddings.weight, wanted)
    folder = first.save(tmp_path / "model")
    published.rename(tmp_path / "gone")
    np.testing.assert_array_equal(load_image_text_model(folder).encode_text(TEXTS), first.encode_text(TEXTS))
    with pytest.raises(ConfigError, match="text.max_length 64 is more than the 32"):
        TextEncoder(TextEncoderConfig(name=str(tmp_path / "gone"), max_length=64))
    with pytest.raises(ConfigError, match="is no folder here.*--method.text.download"):
        TextEncoder(TextEncoderConfig(name="nobody/nothing", max_length=16))


def test_what_cannot_be_loaded_or_encoded_is_said(model, tmp_path):
    nn_folder = tmp_path / "none"
    nn_folder.mkdir()
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        load_image_text_model(nn_folder)
    with pytest.raises(ConfigError, match="put it into brackets"):
        model.encode_text("one text")
    with pytest.raises(DataError, match="give squares"):
        model.prepare(np.zeros((2, 30, 40), dtype=np.uint8))
    bare = ImageTextModel(ImageTextConfig(image=SMALL, text=WORDS, dim=8))
    with pytest.raises(ConfigError, match="no tokenizer"):
        bare.encode_text(["a"])
    assert load_model(bare.save(tmp_path / "bare")).tokenizer is None


def test_the_same_reports_give_the_same_tokenizer():
    assert train_tokenizer(TEXTS).get_vocab() == train_tokenizer(TEXTS).get_vocab()
    with pytest.raises(ConfigError, match="is no folder here"):
        load_tokenizer("nobody/nothing")


GOLDEN = [0.74203, 0.77429, 0.73723, 0.76976]


def test_cosines_are_those_that_were_stored(tokenizer):
    """Weights by a formula, an image by a formula, two reports: whoever changes what is computed must mean to.

    A saved model would give other scores after an update otherwise, and nobody would notice.
    """
    model = ImageTextModel(ImageTextConfig(image=SMALL, text=WORDS, dim=8), tokenizer)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(model.encoders.named_parameters())):
            wave = torch.sin(torch.arange(parameter.numel()) * 0.37 + number).view_as(parameter)
            parameter.copy_(0.3 * wave + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0))
    y, x = np.mgrid[:256, :256] / 256
    images = np.stack([0.5 + 0.5 * np.sin(9 * x + 4 * y), x * y]).astype(np.float32)
    cosines = model.encode_image(images) @ model.encode_text(TEXTS[:2]).T
    assert cosines.flatten().tolist() == pytest.approx(GOLDEN, abs=2e-4)
