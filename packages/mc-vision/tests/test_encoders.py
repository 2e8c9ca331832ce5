"""Encoders: shapes and errors over families, the details of MoCo v3's transformer, weights that others can read."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn

from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.export import save_model
from mc_core.momentum import MomentumEncoder
from mc_core.norm import convert_split_batchnorm
from mc_vision.encoders import (
    OWN_BACKBONES,
    TimmEncoder,
    load_encoder,
    moco_v3_vit,
    save_timm_checkpoint,
    sincos_positions,
    use_cifar_stem,
)
from mc_vision.encoders_config import EncoderConfig

# backbone, image size, a size it was not built for but takes
SMALL = [
    ("resnet10-w16", 32, 48),
    ("resnet10-w32", 64, 40),
    ("moco-vit-tiny-8", 32, 48),
    ("test_resnet", 64, 40),
    ("test_vit", 64, 96),
    ("test_convnext", 64, 96),
    ("test_efficientnet", 64, 48),
]


def built(backbone: str = "test_resnet", **options) -> TimmEncoder:
    torch.manual_seed(0)
    return TimmEncoder(EncoderConfig(backbone=backbone, **options)).eval()


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(("name", "size", "other"), SMALL)
def test_every_family_gives_pooled_features(name, size, other, channels):
    encoder = built(name, image_size=size, channels=channels)
    for side in (size, other):
        features = encoder(torch.randn(2, channels, side, side))
        assert features.shape == (2, encoder.num_features)
        assert features.isfinite().all()
    with pytest.raises(DataError, match=rf"encoder '{name}' takes images of shape \(batch, {channels}, .*got \(2, 4,"):
        encoder(torch.randn(2, 4, size, size))
    with pytest.raises(DataError, match="takes images of shape"):
        encoder(torch.randn(channels, size, size))


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vgg11"])
def test_num_features_is_the_width_after_pooling(name):
    encoder = built(name)
    assert encoder(torch.randn(1, 3, 64, 64)).shape == (1, encoder.num_features)
    assert encoder.num_features != encoder.backbone.num_features


@pytest.mark.parametrize(("name", "patch"), [("moco-vit-tiny-8", 8), ("test_vit", 16)])
def test_tokens_are_patches_in_rows(name, patch):
    encoder = built(name, image_size=64)
    x = torch.randn(1, 3, 2 * patch, 3 * patch)
    tokens = encoder.forward_tokens(x)
    assert tokens.shape == (1, 6, encoder.num_features)
    embed = encoder.backbone.patch_embed
    seen = []
    handle = encoder.backbone.blocks.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    changed = x.clone()
    changed[..., :patch, 2 * patch :] += 1  # row 0, column 2
    encoder.forward_tokens(x)
    encoder.forward_tokens(changed)
    handle.remove()
    before, after = (inputs[0, encoder.backbone.num_prefix_tokens :] for inputs in seen)
    assert embed.patch_size == (patch, patch)
    assert (before != after).any(1).nonzero().flatten().tolist() == [2]


def test_wrong_sizes_and_missing_tokens_are_named():
    with pytest.raises(ConfigError, match="'test_resnet' has no patch tokens"):
        built("test_resnet").forward_tokens(torch.randn(1, 3, 64, 64))
    with pytest.raises(DataError, match=r"multiples of 8×8 pixels, got 32×30"):
        built("moco-vit-tiny-8")(torch.randn(1, 3, 32, 30))
    fixed = built("swin_tiny_patch4_window7_224", image_size=56)
    assert fixed(torch.randn(1, 3, 56, 56)).shape == (1, 768)
    with pytest.raises(DataError, match=r"is built for 56×56 pixels, got 112×112: set encoder\.image_size"):
        fixed(torch.randn(1, 3, 112, 112))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet81"}, r"no backbone 'resnet81': did you mean .*resnet"),
        ({"backbone": "moco-vit-small"}, "did you mean moco-vit-small-16"),
        ({"backbone": "hf-hub:timm/resnet18"}, "no backbone"),
        ({"backbone": "test_vit", "cifar_stem": True}, "cifar_stem is for ResNets; 'test_vit' is a VisionTransformer"),
        ({"backbone": "moco-vit-tiny-8", "cifar_stem": True}, "cifar_stem is for ResNets"),
        ({"backbone": "moco-vit-tiny-8", "image_size": 30}, "multiples of 8, got 30×30"),
        ({"backbone": "resnet10-w16", "pretrained": True}, "no published weights for 'resnet10-w16'"),
        ({"backbone": "resnet18", "pretrained": "w.pth"}, r"pretrained 'w\.pth': give a \.safetensors file"),
        (
            {"backbone": "test_vit_relpos", "image_size": 3},
            "cannot be built for 3 channels and image_size 3",
        ),
    ],
)
def test_configurations_that_cannot_be_built(options, message):
    with pytest.raises(ConfigError, match=message) as raised:
        built(**options)
    assert "\n" not in str(raised.value)


def test_weights_that_cannot_be_downloaded(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network:\nnothing there")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    with pytest.raises(ConfigError, match=r"weights of 'resnet18' cannot be had \(no network: nothing there\); check"):
        built("resnet18", pretrained=True)
    rebuilt = TimmEncoder.from_config({"backbone": "resnet18", "pretrained": True})  # the weights come from a file
    assert rebuilt.num_features == 512


@pytest.mark.parametrize("channels", [1, 3])
def test_cifar_stem(channels):
    small, large = (
        built("resnet18", image_size=32, channels=channels),
        built("resnet18", image_size=33, channels=channels),
    )
    stem = small.backbone.conv1
    assert (stem.kernel_size, stem.stride, stem.in_channels) == ((3, 3), (1, 1), channels)
    assert large.backbone.conv1.kernel_size == (7, 7)
    assert small.backbone.forward_features(torch.randn(1, channels, 32, 32)).shape[2:] == (4, 4)
    assert large.backbone.forward_features(torch.randn(1, channels, 32, 32)).shape[2:] == (1, 1)
    assert built("resnet18", image_size=32, cifar_stem=False).backbone.conv1.kernel_size == (7, 7)
    assert built("resnet18", cifar_stem=True).backbone.conv1.kernel_size == (3, 3)
    deep = use_cifar_stem(timm.create_model("resnet26d", num_classes=0))  # a stem of three convolutions
    assert deep(torch.randn(2, 3, 32, 32)).shape == (2, 2048)
    assert not EncoderConfig(image_size=32, pretrained=True).uses_cifar_stem
    spread = stem.weight.std().item()
    assert spread == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.1)


@pytest.mark.parametrize("name", ["resnet18", "resnet10-w16"])
def test_zero_init_residual(name):
    def last(encoder: TimmEncoder) -> list[nn.Module]:
        return [module for path, module in encoder.backbone.named_modules() if path.endswith("bn2")]

    assert all((norm.weight == 1).all() for norm in last(built(name)))
    assert all((norm.weight == 0).all() for norm in last(built(name, zero_init_residual=True)))
    assert len(last(built(name))) >= 4


@pytest.mark.parametrize(("width", "millions"), [(16, 0.3), (32, 1.2)])
def test_small_resnets_are_small(width, millions):
    encoder = built(f"resnet10-w{width}", image_size=32)
    assert encoder.num_features == 8 * width
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, rel=0.07)
    assert encoder.backbone.forward_features(torch.randn(1, 3, 32, 32)).shape[2:] == (2, 2)
    large = built(f"resnet10-w{width}", image_size=64)
    assert large.backbone.forward_features(torch.randn(1, 3, 64, 64)).shape[2:] == (2, 2)


@pytest.mark.parametrize("name", sorted(OWN_BACKBONES.keys() - {"moco-vit-base-16"}))
def test_own_backbones_learn_and_have_a_momentum_copy(name):
    encoder = TimmEncoder(EncoderConfig(backbone=name, image_size=32))
    copy = MomentumEncoder(encoder)
    x = torch.randn(4, 3, 32, 32)
    encoder(x).square().mean().backward()
    assert copy(x).shape == (4, encoder.num_features)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters() if p.requires_grad)


def naive_positions(rows: int, columns: int, dim: int) -> torch.Tensor:
    quarter = dim // 4
    table = torch.zeros(rows * columns, dim)
    for y in range(rows):
        for x in range(columns):
            for i in range(quarter):
                w = 10000 ** (-i / quarter)
                values = (math.sin(x * w), math.cos(x * w), math.sin(y * w), math.cos(y * w))
                for part, value in enumerate(values):
                    table[y * columns + x, part * quarter + i] = value
    return table


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (2, 5), (5, 2), (1, 1)])
def test_positions_are_sines_of_column_and_row(rows, columns):
    torch.testing.assert_close(sincos_positions(rows, columns, 12), naive_positions(rows, columns, 12))


@pytest.mark.parametrize("size", [(16, 40), (40, 16), 32])
def test_moco_vit_starts_as_published(size):
    torch.manual_seed(0)
    vit = moco_v3_vit("moco-vit-tiny-8", image_size=size)
    rows, columns = (side // 8 for side in ((size, size) if isinstance(size, int) else size))
    assert (vit.pos_embed[0, 0] == 0).all()
    torch.testing.assert_close(vit.pos_embed[0, 1:].detach(), naive_positions(rows, columns, 96))
    frozen = {name for name, parameter in vit.named_parameters() if not parameter.requires_grad}
    assert frozen == {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    bounds = {
        "patch_embed.proj": 6 / (3 * 8 * 8 + 96),
        "blocks.0.attn.qkv": 6 / (96 + 96),  # three matrices, not one of 96 × 288
        "blocks.0.attn.proj": 6 / (96 + 96),
        "blocks.3.mlp.fc1": 6 / (96 + 384),
        "blocks.3.mlp.fc2": 6 / (96 + 384),
    }
    for name, squared in bounds.items():
        layer = vit.get_submodule(name)
        assert layer.weight.abs().max().item() == pytest.approx(math.sqrt(squared), rel=0.01), name
        assert layer.weight.std().item() == pytest.approx(math.sqrt(squared / 3), rel=0.03), name
        assert (layer.bias == 0).all()
    assert 0 < vit.cls_token.abs().max() < 1e-5
    assert all(norm.eps == 1e-6 for norm in vit.modules() if isinstance(norm, nn.LayerNorm))
    x = torch.randn(2, 3, 8 * rows, 8 * columns)
    torch.testing.assert_close(vit(x), vit.forward_features(x)[:, 0])  # the class token is read out


@pytest.mark.parametrize(("name", "dim"), [("moco-vit-small-16", 384), ("moco-vit-base-16", 768)])
def test_moco_vits_have_the_published_shape(name, dim):
    with torch.device("meta"):
        vit = moco_v3_vit(name)
    assert (vit.embed_dim, len(vit.blocks)) == (dim, 12)
    assert vit.blocks[0].attn.num_heads == 12
    assert vit.blocks[0].mlp.fc1.out_features == 4 * dim
    assert vit.pos_embed.shape == (1, 1 + 14 * 14, dim)
    with pytest.raises(ConfigError, match=r"no MoCo v3 transformer 'moco-vit-tiny'"):
        moco_v3_vit("moco-vit-tiny")
    with pytest.raises(ConfigError, match="multiple of 4, got 6"):
        sincos_positions(2, 2, 6)


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "resnet10-w16", "image_size": 32},
        {"backbone": "resnet18", "image_size": 32, "channels": 1},
        {"backbone": "test_vit", "image_size": 64},
        {"backbone": "moco-vit-tiny-8"},
    ],
)
def test_saved_encoders_come_back(options, tmp_path):
    encoder = built(**options)
    for norm in encoder.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
    save_model(encoder, tmp_path / "model")
    loaded = load_encoder(tmp_path / "model")
    side, channels = encoder.config.image_size or 32, encoder.config.channels
    x = torch.randn(2, channels, side, side)
    assert isinstance(loaded, TimmEncoder)
    assert loaded.config == encoder.config
    assert torch.equal(loaded(x), encoder(x))


def test_timm_reads_the_checkpoint(tmp_path):
    x = torch.randn(2, 3, 64, 64)
    for name in ("test_resnet", "test_convnext"):
        encoder, path = built(name), tmp_path / f"{name}.safetensors"
        save_timm_checkpoint(encoder, path)
        read = timm.create_model(name, num_classes=0, checkpoint_path=path).eval()
        torch.testing.assert_close(read(x), encoder(x))
    with pytest.raises(ConfigError, match=r"must end in \.safetensors"):
        save_timm_checkpoint(encoder, tmp_path / "weights.pth")
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}


def test_timm_reads_a_cifar_stem_and_a_moco_vit(tmp_path):
    encoder, path = built("resnet18", image_size=32), tmp_path / "stem.safetensors"
    save_timm_checkpoint(encoder, path)
    model = use_cifar_stem(timm.create_model("resnet18", num_classes=0))
    timm.models.load_checkpoint(model, path)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(x), encoder(x))

    encoder, path = built("moco-vit-small-16", image_size=32), tmp_path / "vit.safetensors"
    save_timm_checkpoint(encoder, path)
    model = timm.create_model("vit_small_patch16_224", num_classes=0, num_heads=12, img_size=32, checkpoint_path=path)
    torch.testing.assert_close(model.eval()(x), encoder(x), atol=1e-5, rtol=1e-4)


def test_pretrained_from_a_file(tmp_path):
    encoder, path = built("resnet18", image_size=32, cifar_stem=True), tmp_path / "a.safetensors"
    save_timm_checkpoint(encoder, path)
    x = torch.randn(2, 3, 32, 32)
    torch.manual_seed(7)
    again = TimmEncoder(EncoderConfig(backbone="resnet18", cifar_stem=True, pretrained=str(path))).eval()
    assert torch.equal(again(x), encoder(x))
    with pytest.raises(
        CheckpointError, match=r"does not fit the backbone: conv1\.weight is \(64, 3, 3, 3\), not \(64, 3, 7"
    ):
        built("resnet18", pretrained=str(path))
    with pytest.raises(CheckpointError, match=r"is missing \(and \d+ more\)"):
        built("resnet34", cifar_stem=True, pretrained=str(path))
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors' cannot be read"):
        built("resnet18", pretrained=str(tmp_path / "nothing.safetensors"))
    (tmp_path / "torn.safetensors").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"torn\.safetensors' cannot be read"):
        built("resnet18", pretrained=str(tmp_path / "torn.safetensors"))


def test_pretrained_from_a_file_with_a_classifier(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(3)
    full = timm.create_model("test_resnet", num_classes=10).eval()
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    encoder = built("test_resnet", pretrained=str(tmp_path / "full.safetensors"))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(full.fc(encoder(x)), full(x))


@pytest.mark.parametrize(("backbone", "splits", "laid_out"), [("resnet18", 1, True), ("resnet18", 2, False)])
def test_convolutions_see_channels_last_without_changing_the_result(backbone: str, splits: int, laid_out: bool) -> None:
    encoder = convert_split_batchnorm(TimmEncoder(EncoderConfig(backbone=backbone, image_size=32)), splits).train()
    seen: list[bool] = []
    encoder.backbone.layer2.register_forward_hook(
        lambda module, inputs, output: seen.append(output.is_contiguous(memory_format=torch.channels_last))
    )
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = encoder(images)
    assert seen == [laid_out]
    torch.testing.assert_close(features, encoder.backbone(images), rtol=1e-4, atol=1e-5)
