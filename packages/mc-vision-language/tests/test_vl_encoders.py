"""Image and text encoders: tokens in their places, published transformers in two halves, and what is refused."""

import pytest
import torch

from mc_core.errors import ConfigError, DataError
from mc_vision_language.backbone import Backbone
from mc_vision_language.encoders import ImageEncoder, TextEncoder
from mc_vision_language.encoders_config import ImageEncoderConfig, TextEncoderConfig, VisionLanguageConfig

SMALL_IMAGE = {"image_size": 32, "patch_size": 8, "width": 12, "depth": 2, "heads": 3}


def image_encoder(**changes):
    torch.manual_seed(0)
    return ImageEncoder(ImageEncoderConfig.model_validate({**SMALL_IMAGE, **changes})).eval()


class TestImages:
    @pytest.mark.parametrize("stem", ["patch", "convolution"])
    def test_the_class_token_comes_first_then_patches_row_by_row(self, stem):
        encoder = image_encoder(stem=stem, depth=1)
        pixels = torch.rand(2, 3, 32, 32)
        tokens = encoder(pixels)
        assert tokens.shape == (2, 17, 12)
        assert encoder.grid == (4, 4)
        torch.testing.assert_close(encoder(pixels[:1]), tokens[:1], rtol=1e-4, atol=1e-5)

    def test_patches_stand_row_by_row(self):
        encoder = image_encoder()
        pixels = torch.rand(2, 3, 32, 32)
        changed = pixels.clone()
        changed[:, :, 20, 12] += 1  # row 2, column 1 of the patches
        embedded, moved = (encoder.backbone.patch_embed(x) for x in (pixels, changed))
        assert (moved - embedded).abs().sum((0, 2)).nonzero().flatten().tolist() == [9]

    def test_pixels_are_standardised_as_configured(self):
        plain = image_encoder(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        clip = image_encoder()
        pixels = torch.rand(2, 3, 32, 32)
        mean = torch.tensor(ImageEncoderConfig().mean)[:, None, None]
        std = torch.tensor(ImageEncoderConfig().std)[:, None, None]
        torch.testing.assert_close(clip(pixels), plain((pixels - mean) / std))

    @pytest.mark.parametrize("block", [0, -1])
    def test_attention_on_request_changes_no_token_and_is_in_the_graph(self, block):
        encoder = image_encoder()
        pixels = torch.rand(2, 3, 32, 32)
        tokens, attention = encoder(pixels, attention_of=block)
        torch.testing.assert_close(tokens, encoder(pixels), rtol=1e-4, atol=1e-5)
        assert attention.shape == (2, 3, 17, 17)
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, 17))
        (gradient,) = torch.autograd.grad(tokens[:, 0].square().sum() + tokens[:, 0, 0].sum(), attention)
        assert gradient.abs().max() > 0
        assert encoder.backbone.blocks[block].attn.fused_attn == encoder.backbone.blocks[0].attn.fused_attn

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"depth": 1},
            {"stem": "convolution"},
            {"name": "deit_tiny_patch16_224"},
            {"name": "vit_small_patch14_reg4_dinov2", "image_size": 28},  # registers and layer scale
            {"name": "deit_tiny_distilled_patch16_224"},  # which is taken whole
        ],
        ids=lambda changes: "-".join(map(str, changes.values())) or "ours",
    )
    def test_the_class_token_alone_is_the_same(self, changes):
        encoder = image_encoder(**changes).double()
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        pixels = torch.rand(2, 3, encoder.config.image_size, encoder.config.image_size, dtype=torch.float64)
        torch.testing.assert_close(encoder.class_token(pixels), encoder(pixels)[:, 0], rtol=0, atol=1e-12)
        with pytest.raises(DataError, match="this encoder takes"):
            encoder.class_token(pixels[:, :, 1:])

    def test_a_timm_model_of_any_size(self):
        encoder = image_encoder(name="vit_tiny_patch16_224", image_size=48)
        assert encoder(torch.rand(1, 3, 48, 48)).shape == (1, 10, 192)
        assert encoder.grid == (3, 3)

    def test_other_prefix_tokens_are_left_out(self):
        """DeiT's distillation token is none of the image's."""
        encoder = image_encoder(name="deit_tiny_distilled_patch16_224", image_size=32)
        tokens, attention = encoder(torch.rand(1, 3, 32, 32), attention_of=-1)
        assert tokens.shape == (1, 5, 192)
        assert attention.shape == (1, 3, 5, 5)

    @pytest.mark.parametrize("name", ["convnext_atto", "resnet10t", "vit_wee_patch16_reg1_gap_256"])
    def test_an_encoder_without_class_and_patch_tokens_is_refused(self, name):
        with pytest.raises(ConfigError, match=f"image encoder '{name}' gives no class token .* deit_base_patch16_224"):
            image_encoder(name=name, image_size=64)

    def test_no_such_model(self):
        with pytest.raises(
            ConfigError, match="timm has no model 'vit_tinny_patch16_224'; did you mean .*vit_tiny_patch16_224"
        ):
            image_encoder(name="vit_tinny_patch16_224")

    def test_no_such_file_of_weights(self):
        with pytest.raises(ConfigError, match=r"image.pretrained: nowhere.pth is no file"):
            image_encoder(name="vit_tiny_patch16_224", pretrained="nowhere.pth")

    def test_images_of_another_size(self):
        with pytest.raises(
            DataError, match=r"images of shape \(1, 3, 16, 16\); this encoder takes \(batch, 3, 32, 32\)"
        ):
            image_encoder()(torch.rand(1, 3, 16, 16))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"patch_size": 7}, "image_size 32 does not divide into patches of 7"),
            ({"width": 13}, "width 13 does not divide into 3 heads"),
            ({"pretrained": True}, "pretrained needs the name of a timm model"),
            ({"image_size": 36, "patch_size": 12, "stem": "convolution"}, "patch_size 12 is no power of 2"),
            ({"std": (1.0, 0.0, 1.0)}, "must be above 0"),
        ],
    )
    def test_settings_that_cannot_work(self, changes, message):
        with pytest.raises(ValueError, match=message):
            ImageEncoderConfig.model_validate({**SMALL_IMAGE, **changes})


BERT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders of a tiny BERT of five layers and a tiny RoBERTa of four, each with its head for words."""
    from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

    place = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(num_hidden_layers=5, **BERT)).save_pretrained(place / "bert")
    RobertaForMaskedLM(RobertaConfig(num_hidden_layers=4, pad_token_id=1, **BERT)).save_pretrained(place / "roberta")
    return place


def text_config(**changes):
    return TextEncoderConfig(**{"text_layers": 2, "fusion_layers": 2, "max_length": 12, **changes})


class TestTexts:
    IDS = torch.tensor([[2, 9, 30, 7], [2, 11, 0, 0]])
    MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])

    @pytest.mark.parametrize("kind", ["bert", "roberta"])
    def test_both_halves_and_the_head_are_those_of_the_published_model(self, published, kind):
        """With nothing to see, text and fusion layers in a row are its first four layers, and its words are predicted."""
        from transformers import AutoModelForMaskedLM

        config = VisionLanguageConfig(
            image=ImageEncoderConfig(**SMALL_IMAGE), text=text_config(name=str(published / kind), dropout=0.0), dim=4
        )
        backbone = Backbone(config).eval()
        for layer in backbone.fusion.layers:
            torch.nn.init.zeros_(layer.cross_attention.output.weight)
            layer.cross_norm = torch.nn.Identity()
        whole = AutoModelForMaskedLM.from_pretrained(published / kind).eval()
        whole.base_model.encoder.layer = whole.base_model.encoder.layer[:4]
        ids = self.IDS if kind == "bert" else torch.where(self.MASK > 0, self.IDS + 2, 1)
        with torch.no_grad():
            keys = backbone.keys(torch.rand(2, 17, 12))
            fused = backbone.fuse(backbone.text_states(ids, self.MASK), self.MASK, keys)
            expected = whole(input_ids=ids, attention_mask=self.MASK).logits
        found = backbone.lm_logits(fused)
        torch.testing.assert_close(found[self.MASK.bool()], expected[self.MASK.bool()], rtol=1e-4, atol=1e-4)

    def test_a_saved_configuration_needs_no_folder(self, published):
        first = TextEncoder(text_config(name=str(published / "bert"))).eval()
        config = TextEncoderConfig.model_validate({**first.config.model_dump(), "name": "gone"})
        again = TextEncoder(config, load_pretrained=False).eval()
        again.load_state_dict(first.state_dict())
        assert torch.equal(again(self.IDS, self.MASK), first(self.IDS, self.MASK))
        assert len(again.transformer.encoder.layer) == 2
        assert again.described["num_hidden_layers"] == 5

    @pytest.mark.parametrize("padded", [True, False])
    def test_every_token_sees_what_follows_it(self, padded):
        torch.manual_seed(0)
        encoder = TextEncoder(TextEncoderConfig(hidden_size=16, heads=2, text_layers=1, vocabulary=40)).eval()
        mask = self.MASK if padded else torch.ones_like(self.MASK)
        changed = self.IDS.clone()
        changed[0, 3] = 12
        moved = (encoder(changed, mask) - encoder(self.IDS, mask)).abs().amax(-1)
        assert moved[0, 0] > 1e-4
        assert moved[1].max() == 0

    def test_the_embeddings_are_what_enters_the_first_layer(self):
        encoder = TextEncoder(TextEncoderConfig(hidden_size=16, heads=2, text_layers=1, vocabulary=40)).eval()
        embedded = encoder.embed(self.IDS)
        assert embedded.shape == (2, 4, 16)
        encoder.transformer.encoder.layer = torch.nn.ModuleList()
        assert torch.equal(encoder(self.IDS, self.MASK), embedded)

    def test_dropout_as_configured(self, published):
        for rate, name in ((0.3, None), (0.4, str(published / "bert"))):
            encoder = TextEncoder(text_config(name=name, dropout=rate))
            assert {m.p for m in encoder.modules() if isinstance(m, torch.nn.Dropout)} == {rate}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"text_layers": 4}, "has 5 layers, fewer than text_layers 4 and fusion_layers 2 together"),
            ({"max_length": 21}, "text.max_length 21 is more than the 20 tokens"),
        ],
    )
    def test_a_transformer_that_is_too_small(self, published, changes, message):
        with pytest.raises(ConfigError, match=message):
            TextEncoder(text_config(name=str(published / "bert"), **changes))

    def test_a_transformer_of_another_build(self, tmp_path):
        from transformers import DistilBertConfig, DistilBertForMaskedLM

        small = {
            "vocab_size": 40,
            "dim": 16,
            "n_heads": 2,
            "hidden_dim": 24,
            "n_layers": 4,
            "max_position_embeddings": 20,
        }
        DistilBertForMaskedLM(DistilBertConfig(**small)).save_pretrained(tmp_path / "distil")
        with pytest.raises(ConfigError, match="is not built like BERT"):
            TextEncoder(text_config(name=str(tmp_path / "distil")))

    def test_no_such_transformer(self):
        with pytest.raises(ConfigError, match="encoder 'no/such-model' is no folder here"):
            TextEncoder(text_config(name="no/such-model"))

    def test_settings_that_cannot_work(self):
        with pytest.raises(ValueError, match="hidden_size 18 does not divide into 4 heads"):
            TextEncoderConfig(hidden_size=18, heads=4)
        with pytest.raises(ValueError, match="max_length 99 is more than the 64 positions"):
            TextEncoderConfig(max_length=99)
