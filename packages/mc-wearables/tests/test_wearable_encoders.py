"""The published encoder layer by layer, its alternatives, and how encoders are saved and made ready."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from mc_core.errors import CheckpointError, DataError
from mc_core.export import save_model
from mc_testkit.toys import ToyEncoder
from mc_wearables.data.segments import standardise
from mc_wearables.encoders import SignalEncoder, load_encoder, recalibrate_batchnorm
from mc_wearables.encoders.layers import EveryStep, as_grid
from mc_wearables.encoders.resnet import BasicBlock
from mc_wearables.encoders_config import EncoderConfig

SMALL = {"channels": 2, "sampling_rate": 32.0, "seconds": 4.0, "width": 36, "expansion": 2}
KINDS = [{}, {"architecture": "resnet", "width": 16, "depth": 5, "kernel": 5}, {"architecture": "vit", "depth": 2}]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def small(**fields) -> SignalEncoder:
    torch.manual_seed(0)
    return SignalEncoder(EncoderConfig.model_validate({**SMALL, **fields}))


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 3_146_129),
        ({"channels": 1, "expansion": 6, "sampling_rate": 128, "seconds": 30}, 2_468_755),
        ({"kernel": 15}, 3_299_513),
        ({"architecture": "resnet"}, 17_217_152),
        ({"architecture": "vit"}, 7_141_376),
    ],
)
def test_parameter_counts(fields, count):
    assert parameters(SignalEncoder(EncoderConfig(**fields))) == count


def test_widths_kernels_strides_and_lengths_are_those_of_the_published_table():
    encoder = SignalEncoder(EncoderConfig()).eval()
    layers = encoder.backbone.layers
    x = torch.randn(1, 4, 1, 3840)
    seen = []
    with torch.no_grad():
        for layer in layers:
            x = layer(x)
            seen.append((x.shape[1], x.shape[3]))
    seen = seen[2:3] + seen[3:-3] + seen[-1:]  # stem, 16 blocks, last convolution
    expected = [(42, 1920), (28, 1920), *[(35, 960)] * 2, *[(49, 480)] * 2, *[(64, 240)] * 3, *[(78, 120)] * 3]
    assert seen == [*expected, *[(99, 60)] * 4, (128, 60), (256, 60)]
    depthwise = [m.kernel_size[1] for m in layers.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert depthwise == [3, 3, 3, 5, 5, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 5]
    assert {(m.eps, m.momentum) for m in layers.modules() if isinstance(m, nn.BatchNorm2d)} == {(1e-3, 0.1)}


def reference(state: dict[str, torch.Tensor], x: torch.Tensor, config: EncoderConfig) -> torch.Tensor:
    """The page's layers with conv1d in float64, BatchNorm in evaluation mode."""
    state = {name.removeprefix("backbone.layers."): value.double() for name, value in state.items()}

    def conv(x, name, stride=1, depthwise=False):
        weight = state[f"{name}.weight"].squeeze(2)
        groups = len(weight) if depthwise else 1
        return F.conv1d(x, weight, state.get(f"{name}.bias"), stride, weight.shape[2] // 2, groups=groups)

    def norm(x, name):
        mean, var, scale, shift = (
            state[f"{name}.{part}"][:, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3).sqrt() * scale + shift

    x = F.silu(norm(conv(x, "0", 2), "1"))
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1]
    for block, stride in enumerate(strides, start=3):
        y, at = x, f"{block}.layers"
        first = 0
        if block > 3:
            y, first = F.silu(norm(conv(y, f"{at}.0"), f"{at}.1")), 3
        y = F.silu(norm(conv(y, f"{at}.{first}", stride, depthwise=True), f"{at}.{first + 1}"))
        gate = F.silu(conv(y.mean(2, keepdim=True), f"{at}.{first + 3}.reduce"))
        y = y * conv(gate, f"{at}.{first + 3}.expand").sigmoid()
        y = norm(conv(y, f"{at}.{first + 4}"), f"{at}.{first + 5}")
        x = x + y if stride == 1 and x.shape[1] == y.shape[1] else y
    return F.silu(norm(conv(x, "19"), "20")).mean(2)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_efficientnet_is_the_plain_one_dimensional_network(channels):
    encoder = small(channels=channels)
    recalibrate_batchnorm(encoder, [torch.randn(32, channels, 128)])
    x = torch.randn(5, channels, 128)
    with torch.no_grad():
        made = encoder.eval()(x)
    expected = reference(encoder.state_dict(), x.double(), encoder.config)
    torch.testing.assert_close(made.double(), expected, rtol=1e-4, atol=1e-5)
    assert float(made.min()) >= -0.2785  # it follows a SiLU
    assert float(expected.std(0).mean()) > 0.01


def test_strides_follow_the_downsampling():
    lengths = {}
    for factor in (1, 8, 64):
        layers = small(downsample=factor).eval().backbone.layers
        lengths[factor] = layers(torch.randn(1, 2, 1, 128)).shape[3]
    assert lengths == {1: 128, 8: 16, 64: 2}


@pytest.mark.parametrize("channels", [1, 4])
def test_on_a_cpu_channels_lie_last_also_when_there_is_one(channels):
    x = torch.randn(3, channels, 50)
    grid = as_grid(x)
    assert torch.equal(grid.squeeze(2), x)
    assert grid.stride(1) == 1
    made = nn.Conv2d(channels, 8, (1, 3), padding=(0, 1))(grid)
    assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("fields", KINDS)
def test_every_architecture_maps_segments_to_embeddings(fields):
    encoder = small(**fields)
    x = torch.randn(3, *encoder.input_shape)
    made = encoder(x)
    assert made.shape == (3, encoder.num_features)
    made.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in encoder.parameters())
    encoder.eval()
    with torch.no_grad():
        longer = encoder(torch.randn(2, 2, 192))  # not the length it was made for
        torch.testing.assert_close(encoder(x)[:1], encoder(x[:1]), rtol=1e-4, atol=1e-6)
    assert longer.shape == (2, encoder.num_features)


def test_the_vit_sees_the_order_of_its_patches():
    encoder = small(architecture="vit", depth=2).eval()
    x = torch.randn(1, 2, 128)
    swapped = torch.cat([x[..., 64:], x[..., :64]], dim=2)
    with torch.no_grad():
        assert not torch.allclose(encoder(x), encoder(swapped), atol=1e-4)


def test_resnet_depth_is_the_number_of_its_blocks():
    for fields, count in (({}, 18), ({"depth": 4}, 4), ({"depth": 7}, 7)):
        blocks = [m for m in small(architecture="resnet", width=16, **fields).modules() if isinstance(m, BasicBlock)]
        assert len(blocks) == count


@pytest.mark.parametrize("fields", KINDS)
def test_an_encoder_survives_saving(tmp_path, fields):
    encoder = small(**fields)
    recalibrate_batchnorm(encoder, [torch.randn(8, *encoder.input_shape)])
    save_model(encoder, tmp_path / "model")
    loaded = load_encoder(tmp_path / "model")
    x = torch.randn(2, *encoder.input_shape)
    assert loaded.config == encoder.config
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(x), encoder.eval()(x))


def test_a_model_of_another_kind_is_refused(tmp_path):
    save_model(ToyEncoder({"width": 2}), tmp_path / "toy")
    with pytest.raises(
        CheckpointError, match=r"not from an installed mc_|holds a ToyEncoder, not an encoder of signals"
    ):
        load_encoder(tmp_path / "toy")


def test_the_z_score_inside_is_that_of_the_segments(tmp_path):
    encoder = small().eval()
    recalibrate_batchnorm(encoder, [torch.randn(16, 2, 128)])
    raw = 1000 + 50 * torch.randn(3, 2, 128)
    raw[1, 1] = 7.0  # a flat channel
    whole = encoder.standardising()
    assert not encoder.config.standardise
    save_model(whole, tmp_path / "whole")
    loaded = load_encoder(tmp_path / "whole")
    expected = torch.from_numpy(standardise(raw.numpy()))
    with torch.no_grad():  # an untrained network enlarges the rounding of float32 some hundred times
        torch.testing.assert_close(loaded(raw), encoder.eval()(expected), rtol=0, atol=5e-3)
    loaded.backbone = nn.Identity()
    torch.testing.assert_close(loaded(raw), expected, rtol=0, atol=5e-6)
    assert torch.equal(loaded(raw)[1, 1], torch.zeros(128))


def test_recalibration_replaces_statistics_by_plain_averages():
    encoder = small()
    batches = [torch.randn(6, 2, 128) * scale for scale in (1, 2, 3)]
    with torch.no_grad():
        before = encoder.eval()(batches[0]).std(0).mean()
    encoder.train()
    assert recalibrate_batchnorm(encoder, iter(batches)) == 18
    assert all(module.training for module in encoder.modules())
    stem, norm = encoder.backbone.layers[0], encoder.backbone.layers[1]
    with torch.no_grad():
        outputs = [stem(batch.unsqueeze(2)) for batch in batches]
        after = encoder.eval()(batches[0]).std(0).mean()
    torch.testing.assert_close(norm.running_mean, torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0))
    assert norm.momentum == 0.1
    assert float(before) < 1e-6  # what fresh statistics leave of a signal after 16 gates
    assert float(after) > 0.05


def test_recalibration_needs_segments():
    encoder = small()
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.raises(DataError, match="no segments to take BatchNorm statistics from"):
        recalibrate_batchnorm(encoder, [])
    assert all(torch.equal(state[name], value) for name, value in encoder.state_dict().items())


def test_segments_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"shape \(batch, 2, samples\), got \(3, 1, 128\); set encoder.channels"):
        small()(torch.zeros(3, 1, 128))
    with pytest.raises(DataError, match="whole patches of 16 samples, got 120"):
        small(architecture="vit", depth=1)(torch.zeros(1, 2, 120))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel": 4}, "kernel 4 has no middle; take 5"),
        ({"downsample": 3}, "downsample 3 is none of 1, 2, 4"),
        ({"depth": 3}, "the efficientnet has 16 blocks"),
        ({"architecture": "resnet", "depth": 3}, "four stages of at least one block"),
        ({"architecture": "vit", "seconds": 10.25}, r"patches of 0.5 s \(32 samples\) do not fill 656 samples"),
        ({"architecture": "vit", "width": 6}, "a vit needs a multiple of 4"),
        ({"seconds": 0.001}, "hold no sample"),
    ],
)
def test_configurations_that_cannot_be_built_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        EncoderConfig(**fields)


ODD_BATCHES = """
import torch
from mc_wearables.encoders import SignalEncoder
from mc_wearables.encoders_config import EncoderConfig

torch.set_num_threads(2)
for architecture, width in (("resnet", 64), ("resnet", 36), ("efficientnet", 36), ("vit", 64)):
    config = EncoderConfig(architecture=architecture, channels=1, sampling_rate=64, seconds=10, width=width, expansion=2)
    encoder = SignalEncoder(config).train()
    for batch in (3, 33, 59):
        encoder(torch.randn(batch, 1, 640)).sum().backward()
print("alive")
"""


def test_odd_batches_do_not_end_the_process():
    """With two threads, a strided convolution of length 1 over 8 channels did: it read outside its memory."""
    done = subprocess.run([sys.executable, "-c", ODD_BATCHES], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.strip() == "alive", f"exit code {done.returncode}: {done.stderr[-500:]}"


def test_every_step_before_a_convolution_is_the_convolution_with_a_stride():
    torch.manual_seed(0)
    strided = torch.nn.Conv2d(6, 4, 1, stride=(1, 3), bias=False).double()
    plain = torch.nn.Conv2d(6, 4, 1, bias=False).double()
    plain.load_state_dict(strided.state_dict())
    for length in (7, 9):
        x = torch.randn(2, 6, 1, length, dtype=torch.float64)
        torch.testing.assert_close(plain(EveryStep(3)(x)), strided(x))
