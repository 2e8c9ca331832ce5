"""An encoder's queries by ONNX in int8: the same space as its vectors of code, without torch.

The index keeps the vectors that the encoder itself made; only what is asked goes through the smaller copy, whose weights have 8
bits (dynamic quantisation, one scale for a matrix; 7 of the 8 are used, because products of whole bytes overflow on x86 CPUs
without VNNI). How near the two are is measured when it is made, and kept beside it. The folder, ``onnx`` inside that of the model,
holds::

    queries-int8.onnx    token ids and mask, (B, L) int64 → (B, D)
    tokenizer.json       of the encoder
    queries.json         what it was made from, L, and how near it is

Legend: N texts, L tokens, D width of a vector.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mc_core.errors import CheckpointError, ConfigError, RunError
from mc_core.files import StrPath, atomic_path, read_json, write_json
from mc_core.optional import require

if TYPE_CHECKING:
    from mc_text_code.encoders import SentenceEncoder

FOLDER, MODEL, TOKENIZER, ABOUT = "onnx", "queries-int8.onnx", "tokenizer.json", "queries.json"
LENGTH = 64
LEAST_COSINE = 0.9
"""On average over the texts it is tried on; an encoder that int8 changes more than that is not written."""
_EXAMPLES = (
    "open a file and read its lines",
    "parse the command line arguments of a program",
    "how to sort a dictionary by its values?",
    "the smallest number of a list",
    "parse_args",
    "connect to a server, send a request and wait for the answer; raise an error when it takes too long",
    "convert a date to a string",
    "remove duplicates while keeping the order",
)


@dataclass(frozen=True)
class OnnxReport:
    """What was written, and how near it is to PyTorch.

    Attributes:
        model: fingerprint of the encoder it was made from.
        length: tokens of a query; longer ones are cut.
        dim: numbers of a vector.
        float32_difference: largest difference of the same graph before its weights were cut to 8 bits.
        lowest_cosine: of a query's two vectors, over those it was tried on.
        mean_cosine: likewise.
        texts: how many.
        megabytes: of the file.
    """

    model: str
    length: int
    dim: int
    float32_difference: float
    lowest_cosine: float
    mean_cosine: float
    texts: int
    megabytes: float


class OnnxQueries:
    """Queries to vectors, several threads at once.

    Args:
        folder: ``onnx`` inside a model's folder; see :func:`export_queries`.

    Raises:
        CheckpointError: it holds no such encoder, or one that cannot be read.
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(self, folder: StrPath) -> None:
        from tokenizers import Tokenizer

        runtime: Any = require("onnxruntime", extra="mc-core[export]", purpose="search with an ONNX encoder")
        folder = Path(folder)
        try:
            about = read_json(folder / ABOUT)
            self.report = OnnxReport(**about["report"])
            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
            options = runtime.SessionOptions()
            options.log_severity_level = 3
            self._session = runtime.InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])
            pad_id, pad_token = int(about["pad_id"]), str(about["pad_token"])
        except Exception as error:  # each of the three libraries has its own
            raise CheckpointError(f"{folder} holds no ONNX encoder that can be read ({error})") from error
        self._tokenizer.enable_truncation(self.report.length)
        self._tokenizer.enable_padding(pad_id=pad_id, pad_token=pad_token, length=self.report.length)
        self._inputs = [one.name for one in self._session.get_inputs()]

    @classmethod
    def beside(cls, model: StrPath, fingerprint: str) -> Self | None:
        """That of a model's folder; None where it has none, or one made from other weights."""
        folder = Path(model) / FOLDER
        if not (folder / ABOUT).is_file():
            return None
        found = cls(folder)
        if found.report.model != fingerprint:
            logging.getLogger("mc_core").warning(
                "%s was made from other weights than those beside it, and is not used: export it again", folder
            )
            return None
        return found

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32, not normalised. One after the other: activations are scaled by what is passed together."""
        found = np.zeros((len(texts), self.report.dim), np.float32)
        for place, row in enumerate(self._tokenizer.encode_batch_fast(list(texts))):
            given = (np.array([one], dtype=np.int64) for one in (row.ids, row.attention_mask))
            found[place] = self._session.run(None, dict(zip(self._inputs, given, strict=True)))[0][0]
        return found


def export_queries(
    encoder: SentenceEncoder,
    folder: StrPath,
    *,
    model: str,
    length: int = LENGTH,
    texts: Sequence[str] = (),
) -> OnnxReport:
    """Write an encoder for queries in int8, tried against PyTorch first.

    Args:
        encoder: with its tokenizer, on the CPU.
        folder: ``onnx`` inside the model's folder, or another.
        model: fingerprint of the encoder; see :func:`mc_text_code.fingerprint.model_fingerprint`.
        length: tokens of a query, special ones included.
        texts: queries it is tried on; default: a few of ours.

    Raises:
        ConfigError: an encoder without tokenizer or padding token, or a length that it does not take.
        MissingDependencyError: onnx, onnxscript or onnxruntime is not installed.
        RunError: it differs from PyTorch by too much; nothing is left.
    """
    import torch

    from mc_core.export import export_onnx

    tokenizer = encoder.tokenizer
    if tokenizer is None or tokenizer.pad_token is None:
        raise ConfigError("an ONNX encoder needs a tokenizer with a padding token, which this encoder does not have")
    if not 4 <= length <= encoder.positions:
        raise ConfigError(f"length {length}: the encoder takes 4 to {encoder.positions} tokens")
    tried = list(texts) or list(_EXAMPLES)
    rows = tokenizer(list(_EXAMPLES[:2]), padding="max_length", max_length=length, truncation=True)
    example = (torch.tensor(rows["input_ids"]), torch.tensor(rows["attention_mask"]))
    folder = Path(folder)
    with tempfile.TemporaryDirectory() as work:
        whole, small = Path(work) / "whole.onnx", Path(work) / MODEL
        exact = export_onnx(_pooled(encoder), example, whole)
        _cut_to_int8(whole, small)
        tokenizer.backend_tokenizer.save(str(Path(work) / TOKENIZER))
        about = {"pad_id": encoder.pad_id, "pad_token": tokenizer.pad_token}
        report = OnnxReport(model, length, encoder.num_features, exact.max_abs_difference, 0, 0, len(tried), 0)
        write_json(Path(work) / ABOUT, {**about, "report": asdict(report)})
        cosine = _cosines(OnnxQueries(work).encode_queries(tried), _cut(encoder, tried, length))
        if not cosine.mean() >= LEAST_COSINE:
            raise RunError(
                f"{folder} was not written: in int8 a query's vector has a cosine of {cosine.mean():.2f} with PyTorch's on "
                f"average, {LEAST_COSINE:g} is needed; search with the encoder itself"
            )
        report = OnnxReport(
            model,
            length,
            encoder.num_features,
            exact.max_abs_difference,
            float(cosine.min()),
            float(cosine.mean()),
            len(tried),
            small.stat().st_size / 1e6,
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ABOUT).unlink(missing_ok=True)  # until all is there, there is none
        for name in (MODEL, TOKENIZER):
            with atomic_path(folder / name) as draft:
                draft.write_bytes((Path(work) / name).read_bytes())
        write_json(folder / ABOUT, {**about, "report": asdict(report)})
    return report


def _pooled(encoder: SentenceEncoder) -> Any:
    """The encoder without its grouping by length, which depends on the data."""
    from torch import Tensor, nn

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return encoder._pooled(input_ids, attention_mask)

    return Pooled()


def _cut_to_int8(whole: Path, small: Path) -> None:
    quantization: Any = require("onnxruntime.quantization", extra="mc-core[export]", purpose="export in int8")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a step that changes nothing here
    try:
        quantization.quantize_dynamic(whole, small, weight_type=quantization.QuantType.QInt8, reduce_range=True)
    finally:
        root.setLevel(level)


def _cut(encoder: SentenceEncoder, texts: Sequence[str], length: int) -> np.ndarray:
    """What PyTorch makes of the same tokens."""
    import torch

    assert encoder.tokenizer is not None
    rows = encoder.tokenizer(list(texts), padding=True, max_length=length, truncation=True)
    with torch.inference_mode():
        found = encoder.eval()(torch.tensor(rows["input_ids"]), torch.tensor(rows["attention_mask"]))
    return found.float().numpy()


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(axis=1) / np.maximum(lengths, 1e-12)
