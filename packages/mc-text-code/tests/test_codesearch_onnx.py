"""Queries by ONNX in int8: near the encoder's own, in the same index, without torch, never from other weights."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from mc_core.errors import CheckpointError, ConfigError, RunError
from mc_text_code import EncoderConfig, SentenceEncoder, load_encoder, save_sentence_transformer, train_tokenizer
from mc_text_code.codesearch import CodeIndex, onnx_queries
from mc_text_code.codesearch.onnx_queries import ABOUT, FOLDER, MODEL, OnnxQueries, export_queries
from mc_text_code.fingerprint import model_fingerprint

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

TEXTS = ["open a file and read it", "sort the numbers", "close", "parse " * 80, "größe", "merge_two_lists(a, b)"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model's folder with an encoder for queries, and what was reported."""
    import torch

    folder = tmp_path_factory.mktemp("onnx") / "model"
    tokenizer = train_tokenizer([*TEXTS, "def f(x): return x"] * 5, 300, "bpe")
    config = EncoderConfig(hidden_size=32, heads=2, layers=2, vocabulary=300, max_length=96, pooling="mean")
    torch.manual_seed(0)
    save_sentence_transformer(SentenceEncoder(config, tokenizer).eval(), folder)
    before = model_fingerprint(folder)
    report = export_queries(load_encoder(folder), folder / FOLDER, model=before, length=24, texts=TEXTS)
    assert model_fingerprint(folder) == before
    return folder, report


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_vectors_are_near_the_encoder_s_and_the_report_says_how_near(model):
    folder, report = model
    queries = OnnxQueries(folder / FOLDER)
    assert queries.report == report
    found = queries.encode_queries(TEXTS)
    assert found.dtype == np.float32
    assert found.shape == (len(TEXTS), 32)
    short = [place for place, text in enumerate(TEXTS) if len(text) < 60]  # longer ones are cut at 24 tokens
    own = load_encoder(folder).encode(TEXTS)
    near = cosines(found, own)
    assert near[short].min() > 0.98
    assert report.lowest_cosine == pytest.approx(report.mean_cosine, abs=0.05)
    assert 0.98 < report.lowest_cosine <= report.mean_cosine < 1
    assert report.float32_difference < 1e-4
    assert (report.length, report.texts) == (24, len(TEXTS))
    for place, text in enumerate(TEXTS):  # in a batch as alone
        np.testing.assert_array_equal(queries.encode_queries([text])[0], found[place])
    assert queries.encode_queries([]).shape == (0, 32)


def test_weights_keep_to_seven_bits_so_that_no_cpu_cuts_products_off(model):
    onnx = pytest.importorskip("onnx")
    stored = onnx.load(str(model[0] / FOLDER / MODEL)).graph.initializer
    weights = [onnx.numpy_helper.to_array(t) for t in stored if t.data_type == onnx.TensorProto.INT8]
    matrices = [array for array in weights if array.ndim == 2]
    assert len(matrices) > 5
    assert max(np.abs(array.astype(int)).max() for array in matrices) <= 64


def test_an_index_asks_it_and_embeds_with_the_encoder(model, tmp_path):
    folder, _ = model
    (tmp_path / "a.py").write_text(
        "def open_file(path):\n    return open(path)\n\n\ndef sort(xs):\n    return sorted(xs)\n"
    )
    asked, embedded = [], []

    class Whole:
        identity = model_fingerprint(folder)
        encoder = load_encoder(folder)

        def encode_queries(self, texts):
            embedded.extend(texts)
            return self.encoder.encode(texts)

        encode_code = encode_queries

    class Spy(OnnxQueries):
        def encode_queries(self, texts):
            asked.extend(texts)
            return super().encode_queries(texts)

    with CodeIndex.open(tmp_path, encoder=Whole(), queries=Spy(folder / FOLDER)) as index:
        index.refresh()
        index.embed()
        first = index.search("open a file", mode="dense")
    assert asked == ["open a file"]
    assert "open a file" not in embedded
    assert len(embedded) > 1
    with CodeIndex.open(tmp_path, encoder=Whole()) as index:
        second = index.search("open a file", mode="dense")
    assert [hit.location for hit in first] == [hit.location for hit in second]
    for one, other in zip(first, second, strict=True):
        assert one.dense_score == pytest.approx(other.dense_score, abs=0.05)


def test_asking_loads_no_torch(model):
    folder, _ = model
    script = (
        "import sys; from mc_text_code.codesearch.onnx_queries import OnnxQueries; "
        "from mc_text_code.fingerprint import model_fingerprint; "
        "found = OnnxQueries.beside(sys.argv[1], model_fingerprint(sys.argv[1])); "
        "print(found.encode_queries(['a']).shape, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "(1, 32) []\n"


def test_of_other_weights_it_is_not_used(model, caplog):
    folder, _ = model
    assert OnnxQueries.beside(folder, model_fingerprint(folder)) is not None
    assert OnnxQueries.beside(folder, "another") is None
    assert "made from other weights" in caplog.text
    assert OnnxQueries.beside(folder / "1_Pooling", "another") is None


def test_what_is_broken_is_one_line(model, tmp_path):
    folder, report = model
    with pytest.raises(CheckpointError, match="no ONNX encoder that can be read"):
        OnnxQueries(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in (ABOUT, "tokenizer.json"):
        (broken / name).write_bytes((folder / FOLDER / name).read_bytes())
    (broken / MODEL).write_bytes(b"half")
    with pytest.raises(CheckpointError, match="broken holds no ONNX encoder"):
        OnnxQueries(broken)
    about = json.loads((folder / FOLDER / ABOUT).read_text())
    assert about["report"]["model"] == report.model


def test_an_encoder_that_int8_ruins_is_not_written(model, tmp_path, monkeypatch):
    folder, _ = model
    monkeypatch.setattr(onnx_queries, "LEAST_COSINE", 1.01)
    with pytest.raises(RunError, match="is needed; search with the encoder itself"):
        export_queries(load_encoder(folder), tmp_path / "none", model="x", length=24)
    assert not (tmp_path / "none").exists()
    encoder = load_encoder(folder)
    for length in (3, encoder.positions + 1):
        with pytest.raises(ConfigError, match=f"length {length}"):
            export_queries(encoder, tmp_path / "none", model="x", length=length)
