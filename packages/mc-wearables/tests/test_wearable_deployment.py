"""Encoders for devices: the rewritten network is the same function, and 8 bits are written only where they agree."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

import mc_wearables.deployment as deployment
from mc_core.errors import DataError, MissingDependencyError, RunError
from mc_wearables.data.segments import Segments
from mc_wearables.deployment import export_for_device
from mc_wearables.encoders import SignalEncoder, recalibrate_batchnorm
from mc_wearables.encoders.inference import BLOCK, for_inference
from mc_wearables.encoders_config import EncoderConfig

SHAPE = {"channels": 2, "sampling_rate": 32.0, "seconds": 4.0, "width": 36, "expansion": 2}
KINDS = {
    "efficientnet": {},
    "wide kernels": {"kernel": 5, "expansion": 3, "downsample": 8},
    "resnet": {"architecture": "resnet", "width": 16, "depth": 4, "kernel": 5},
    "vit": {"architecture": "vit", "depth": 2},
}


def waves(count: int = 96, channels: int = 2, samples: int = 128) -> torch.Tensor:
    """Sums of sines with their own rates and phases, and a little noise."""
    generator = torch.Generator().manual_seed(3)
    rate, phase = torch.rand(2, count, channels, 1, generator=generator)
    t = torch.arange(samples) / 32
    x = torch.sin(6.28 * ((0.8 + rate) * t + phase)) + 0.4 * torch.sin(12.56 * ((0.8 + rate) * t + phase * rate))
    return x + 0.05 * torch.randn(count, channels, samples, generator=generator)


def encoder_of(**fields) -> SignalEncoder:
    """Random weights, and BatchNorms that do something."""
    torch.manual_seed(0)
    encoder = SignalEncoder(EncoderConfig.model_validate({**SHAPE, **fields}))
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    recalibrate_batchnorm(encoder, [waves()])
    return encoder.eval()


@pytest.fixture
def narrow(monkeypatch) -> None:
    """Networks of a few random channels lose more in 8 bits than those that are exported."""
    monkeypatch.setattr(deployment, "LEAST_COSINE", 0.8)


@pytest.fixture
def segments() -> Segments:
    x = waves(41)  # not a multiple of any batch
    x = (x - x.mean(2, keepdim=True)) / x.std(2, keepdim=True)
    return Segments.of(x.numpy(), 32.0, "ppg", np.arange(len(x)) % 12)


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
@torch.no_grad()
def test_the_encoder_for_inference_is_the_same_function(fields):
    encoder = encoder_of(**fields).double()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    twin = for_inference(encoder)
    x = waves(5).double()
    torch.testing.assert_close(twin(x), encoder(x), rtol=0, atol=1e-12)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_channels_come_in_whole_blocks_and_no_batchnorm_is_left():
    twin = for_inference(encoder_of())
    stem, *rest = [m for m in twin.modules() if isinstance(m, nn.Conv2d)]
    assert (stem.in_channels, stem.out_channels % BLOCK) == (2, 0)
    assert len(rest) == 16 * 5  # expansion (not in the first), depthwise, two of the gate, projection; the last 1×1
    for conv in rest:
        assert conv.in_channels % BLOCK == conv.out_channels % BLOCK == 0
        assert conv.groups in (1, conv.out_channels)
    assert not [m for m in twin.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("format", ["fp32", "int8"])
@pytest.mark.parametrize("kind", ["efficientnet", "resnet", "vit"])
@pytest.mark.usefixtures("narrow")
def test_what_is_written_takes_raw_units_and_agrees(kind, format, segments, tmp_path, capsys):
    runtime = pytest.importorskip("onnxruntime")
    encoder = encoder_of(**KINDS[kind])
    report = export_for_device(encoder, tmp_path / "new" / "encoder.onnx", segments, format=format)
    assert report.cosine > (0.999999 if format == "fp32" else 0.8)
    assert (report.difference < 1e-3) == (format == "fp32")
    assert [path.name for path in report.path.parent.iterdir()] == ["encoder.onnx"]
    assert capsys.readouterr().out == ""  # standard output belongs to the caller
    session = runtime.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    x = segments.rows(range(3)).numpy()
    first = session.run(None, {name: x})[0]
    assert first.shape == (3, encoder.num_features)
    raw = session.run(None, {name: 1000 + 7 * x})[0]  # the z-score, in 32 bits, comes first
    np.testing.assert_allclose(raw, first, atol=(1e-3 if format == "fp32" else 0.3) * first.std())


@pytest.mark.usefixtures("narrow")
def test_eight_bits_reach_gates_and_activations_of_the_efficientnet_but_not_the_z_score(segments, tmp_path):
    onnx = pytest.importorskip("onnx")
    path = export_for_device(encoder_of(), tmp_path / "e.onnx", segments, format="int8").path
    nodes = list(onnx.load(str(path)).graph.node)
    quantised = {out for node in nodes if node.op_type == "DequantizeLinear" for out in node.output}
    for node in nodes:
        if node.op_type in ("Conv", "Sigmoid", "Mul", "Add", "AveragePool"):
            assert set(node.input[:2]) <= quantised, node.name
    before = nodes[: next(i for i, node in enumerate(nodes) if node.op_type == "QuantizeLinear")]
    assert {"Sub", "Div", "Where"} <= {node.op_type for node in before}


@pytest.mark.parametrize("kind", ["efficientnet", "resnet", "vit"])
@pytest.mark.usefixtures("narrow")
def test_signed_weights_keep_to_seven_bits_so_that_no_cpu_cuts_products_off(kind, segments, tmp_path):
    onnx = pytest.importorskip("onnx")
    path = export_for_device(encoder_of(**KINDS[kind]), tmp_path / "e.onnx", segments, format="int8").path
    stored = [
        onnx.numpy_helper.to_array(t)
        for t in onnx.load(str(path)).graph.initializer
        if t.data_type == onnx.TensorProto.INT8
    ]
    weights = [array for array in stored if array.ndim > 1]
    assert len(weights) > 5
    assert max(np.abs(array.astype(int)).max() for array in weights) == 64  # all of the 7 are used


@pytest.mark.usefixtures("narrow")
def test_the_fastest_variant_that_agrees_is_written(segments, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    tried, agreement = [], deployment._agreement
    quantise = deployment._quantise
    monkeypatch.setattr(deployment, "_quantise", lambda *a: [tried.append(a[2]), quantise(*a)])
    monkeypatch.setattr(
        deployment, "_agreement", lambda *a: (1.0, 0.5) if len(tried) == 1 else agreement(*a)
    )  # the first does not agree
    report = export_for_device(encoder_of(), tmp_path / "e.onnx", segments, format="int8")
    assert tried == list(deployment._VARIANTS[:2])
    assert report.cosine > 0.8


def test_eight_bits_that_do_not_agree_are_not_written(segments, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(deployment, "LEAST_COSINE", 1.5)
    with pytest.raises(RunError, match=r"e\.onnx was not written.*cosine of 0\.9.*--format onnx"):
        export_for_device(
            encoder_of(architecture="resnet", width=16, depth=4), tmp_path / "e.onnx", segments, format="int8"
        )
    monkeypatch.setattr(deployment, "_agreement", lambda *_: (float("nan"), float("nan")))
    monkeypatch.setattr(deployment, "LEAST_COSINE", -1.0)
    with pytest.raises(RunError, match="cosine of nan"):
        export_for_device(
            encoder_of(architecture="resnet", width=16, depth=4), tmp_path / "e.onnx", segments, format="int8"
        )
    assert list(tmp_path.iterdir()) == []


def test_segments_and_the_extra_are_asked_for(segments, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="segments of training people"):
        export_for_device(encoder_of(), tmp_path / "e.onnx", segments.where(np.zeros(len(segments), dtype=bool)))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"onnx.*mc-wearables-app|onnx.*mc-core\[export\]"):
        export_for_device(encoder_of(), tmp_path / "e.onnx", segments)
    assert list(tmp_path.iterdir()) == []
