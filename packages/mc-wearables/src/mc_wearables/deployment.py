"""Encoders for devices: ONNX with the z-score inside, in 32-bit floats or 8-bit integers, measured on this CPU.

Legend: B segments, C channels, T samples, E width of the embedding.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mc_core.errors import DataError, RunError
from mc_core.export import export_onnx
from mc_core.files import atomic_path, explain_write_error
from mc_core.optional import require
from mc_wearables.data.segments import Segments
from mc_wearables.encoders import SignalEncoder
from mc_wearables.encoders.inference import for_inference

_EXTRA = "mc-core[export]"
_COMPARED = 256  # segments on which the exported encoder is compared with PyTorch
_CALIBRATION = 64  # of them, behind the ranges of 8-bit activations
_PERCENTILE = 99.99  # of the absolute activations, in range
_ROUNDS = 6
_REST = 0.05  # seconds until the threads of the other runtime, which wait busily for more work, sleep
LEAST_COSINE = 0.95
"""An 8-bit encoder whose centred embeddings agree less with the 32-bit ones, in the median, is not written."""


@dataclass(frozen=True)
class DeviceReport:
    """What :func:`export_for_device` wrote.

    Attributes:
        path: of the ONNX file.
        format: ``"fp32"`` or ``"int8"``.
        megabytes: of the file.
        difference: largest difference to PyTorch, as a share of the standard deviation of its embeddings.
        cosine: median over segments of the cosine between both embeddings, centred.
        ms: for one segment on this CPU, median.
        ms_torch: of PyTorch for the same, eager.
        segments_per_second: in batches of 32.
        threads: of the CPU.
    """

    path: Path
    format: Literal["fp32", "int8"]
    megabytes: float
    difference: float
    cosine: float
    ms: float
    ms_torch: float
    segments_per_second: float
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "path": str(self.path)}


def export_for_device(
    encoder: SignalEncoder,
    path: str | os.PathLike[str],
    segments: Segments,
    *,
    format: Literal["fp32", "int8"] = "fp32",
) -> DeviceReport:
    """Write an encoder that takes raw (B, C, T) segments in any unit, filtered but not z-scored.

    Args:
        encoder: trained.
        path: of the ``.onnx`` file.
        segments: to compare on, and for ``int8`` to calibrate the ranges of activations with: some hundreds of training people.
        format: 32-bit floats, or 8-bit weights and activations. For the EfficientNet everything behind the z-score is in 8 bits
            if its embeddings then still agree (:data:`LEAST_COSINE`), else, and for the others, convolutions and products.

    Raises:
        MissingDependencyError: onnx, onnxscript or onnxruntime is not installed.
        DataError: no segments.
        ConfigError: the place cannot be written.
        RunError: the export disagrees with PyTorch; no file is left.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require(name, extra=_EXTRA, purpose="export to ONNX")
    if not len(segments):
        raise DataError("give segments of training people, to compare the exported encoder on")
    path = Path(path)
    rows = np.linspace(0, len(segments) - 1, min(_COMPARED, len(segments))).round().astype(np.int64)
    x_BCT = segments.rows(rows)
    module = encoder.standardising().cpu().eval()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_write_error(error, path.parent) from error
    if format == "fp32":
        _exported(module, x_BCT, path)
    else:
        _quantised(module, x_BCT, path)
    return _measured(module, x_BCT, path, format)


@dataclass(frozen=True)
class _Variant:
    """What is computed in 8 bits, how the ranges of activations are found, and what weights are rounded to.

    x86 CPUs without VNNI add two products of signed and unsigned bytes in 16 bits, and cut them off there. A file must mean the
    same on every CPU: signed weights keep to 7 of their 8 bits. Unsigned ones do not overflow, and take longer.
    """

    operators: tuple[str, ...]
    method: Literal["Percentile", "MinMax"]
    weights: Literal["signed", "unsigned"] = "signed"


_CONVOLUTIONS = ("Conv", "MatMul", "Gemm")
_VARIANTS = (  # from the fastest to the closest
    _Variant((*_CONVOLUTIONS, "Sigmoid", "Mul", "Add", "AveragePool"), "Percentile"),
    _Variant(_CONVOLUTIONS, "Percentile"),
    _Variant(_CONVOLUTIONS, "MinMax"),
    _Variant(_CONVOLUTIONS, "MinMax", "unsigned"),
)


def _quantised(encoder: SignalEncoder, x_BCT: torch.Tensor, path: Path) -> None:
    """The first variant that agrees well enough."""
    shape = require("onnxruntime.quantization.shape_inference", extra=_EXTRA, purpose="quantise to 8 bits")
    variants = [v for v in _VARIANTS if encoder.config.architecture == "efficientnet" or v.operators == _CONVOLUTIONS]
    with atomic_path(path) as draft:
        plain, prepared = draft.with_suffix(".fp32.onnx"), draft.with_suffix(".prepared.onnx")
        try:
            _exported(encoder, x_BCT, plain)
            shape.quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
            cosines: list[float] = []
            for variant in variants:
                _quantise(prepared, draft, variant, x_BCT)
                cosines.append(_agreement(encoder, x_BCT, _session(draft))[1])
                if cosines[-1] >= LEAST_COSINE:
                    return
            raise RunError(
                f"{path} was not written: in 8 bits the embeddings agree to a cosine of {max(cosines):.3f} with those in 32 bits, "
                f"less than {LEAST_COSINE}; export with --format onnx instead"
            )
        finally:
            for leftover in (plain, prepared):
                leftover.unlink(missing_ok=True)


def _quantise(source: Path, target: Path, variant: _Variant, x_BCT: torch.Tensor) -> None:
    """Weights and activations in 8 bits from the first convolution on: the z-score before it stays exact."""
    onnx = require("onnx", extra=_EXTRA, purpose="quantise to 8 bits")
    quantization = require("onnxruntime.quantization", extra=_EXTRA, purpose="quantise to 8 bits")
    graph = onnx.load(str(source)).graph
    name = graph.input[0].name
    first = next((i for i, node in enumerate(graph.node) if node.op_type in _CONVOLUTIONS), 0)

    class Calibration(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            # the percentile method keeps all activations in memory, and wants batches of one size
            rows = np.linspace(0, len(x_BCT) - 1, min(_CALIBRATION, len(x_BCT))).round().astype(np.int64)
            self._batches = iter([{name: part.numpy()} for part in x_BCT[rows].split(1)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    with contextlib.redirect_stdout(io.StringIO()):  # the percentile method prints its progress
        quantization.quantize_static(
            str(source),
            str(target),
            Calibration(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=list(variant.operators),
            nodes_to_exclude=[node.name for node in graph.node[:first]],
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType["QInt8" if variant.weights == "signed" else "QUInt8"],
            reduce_range=variant.weights == "signed",
            calibrate_method=quantization.CalibrationMethod[variant.method],
            extra_options={"CalibPercentile": _PERCENTILE} if variant.method == "Percentile" else {},
        )


def _exported(encoder: SignalEncoder, x_BCT: torch.Tensor, path: Path) -> None:
    with torch.inference_mode():
        scale = float(encoder(x_BCT[:32]).std())
    export_onnx(for_inference(encoder), x_BCT[:2], path, tolerance=max(1e-4 * scale, 1e-9))


def _session(path: Path) -> Any:
    runtime = require("onnxruntime", extra=_EXTRA, purpose="run ONNX")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(session: Any, x_BCT: torch.Tensor) -> np.ndarray:
    return session.run(None, {session.get_inputs()[0].name: x_BCT.numpy()})[0]


@torch.inference_mode()
def _agreement(module: SignalEncoder, x_BCT: torch.Tensor, session: Any) -> tuple[float, float]:
    """Largest difference as a share of the deviation, and the median cosine of centred embeddings."""
    expected = torch.cat([module(part) for part in x_BCT.split(32)]).double()
    found = torch.cat([torch.from_numpy(_run(session, part)) for part in x_BCT.split(32)]).double()
    difference = float((found - expected).abs().max() / expected.std().clamp_min(1e-300))
    mean = expected.mean(0)
    return difference, float(torch.nn.functional.cosine_similarity(found - mean, expected - mean, dim=1).median())


@torch.inference_mode()
def _measured(module: SignalEncoder, x_BCT: torch.Tensor, path: Path, format: Literal["fp32", "int8"]) -> DeviceReport:
    session = _session(path)
    one, many = x_BCT[:1], x_BCT[:32]
    works = {
        "onnx": (partial(_run, session, one), 5),
        "torch": (partial(module, one), 5),
        "batch": (partial(_run, session, many), 1),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(_ROUNDS):  # in turns, so that other work on this CPU meets all alike
        for name, (work, count) in works.items():
            time.sleep(_REST)
            work()  # wakes its own threads
            for _ in range(count):
                start = time.perf_counter()
                work()
                times[name].append(time.perf_counter() - start)
    difference, cosine = _agreement(module, x_BCT, session)
    return DeviceReport(
        path=path,
        format=format,
        megabytes=path.stat().st_size / 1e6,
        difference=difference,
        cosine=cosine,
        ms=1e3 * float(np.median(times["onnx"])),
        ms_torch=1e3 * float(np.median(times["torch"])),
        segments_per_second=len(many) / float(np.median(times["batch"])),
        threads=torch.get_num_threads(),
    )
