"""Static tables: distilled by the formula, read by other programs, the mean of their tokens."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from mc_core.errors import CheckpointError, ConfigError
from mc_text_code.codesearch import CodeIndex
from mc_text_code.codesearch.static import StaticEncoder, distil, distil_encoder, is_static_folder, token_vectors
from mc_text_code.tokenizers import train_tokenizer

TEXTS = [
    "read the lines of a file",
    "def parse_arguments(self, line): return line.split()",
    "sort numbers in place",
    "close the socket and free what it holds",
]


def words_tokenizer(words: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(TEXTS * 10, 150, "bpe")


@pytest.fixture
def encoder(trained):
    rng = np.random.default_rng(0)
    return StaticEncoder(rng.standard_normal((len(trained), 12)), trained.backend_tokenizer, name="a test")


def test_distilling_is_centring_projecting_and_weighting():
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((50, 8)) @ np.diag([5, 4, 3, 2, 1, 1, 1, 1])
    table = distil(vectors, dim=3, sif=1e-2)
    centred = vectors - vectors.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    ranks = 1 / np.arange(2, 52)
    weights = 1e-2 / (1e-2 + ranks / ranks.sum())
    expected = centred @ axes[:3].T * weights[:, None]
    np.testing.assert_allclose(np.abs(table), np.abs(expected), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(table @ table.T, expected @ expected.T, rtol=1e-4, atol=1e-5)
    unweighted = distil(vectors, dim=8, sif=None)
    np.testing.assert_allclose(unweighted @ unweighted.T, centred @ centred.T, rtol=1e-4, atol=1e-4)


def test_distilling_again_gives_the_same_signs():
    vectors = np.random.default_rng(2).standard_normal((40, 6))
    np.testing.assert_array_equal(distil(vectors, dim=4), distil(vectors.copy(), dim=4))
    flipped = distil(-vectors, dim=4, sif=None)
    np.testing.assert_allclose(np.abs(flipped), np.abs(distil(vectors, dim=4, sif=None)), atol=1e-5)


def test_counted_frequencies_take_the_place_of_zipfs_law():
    vectors = np.random.default_rng(3).standard_normal((4, 4))
    counts = np.array([1.0, 0.0, 7.0, 2.0])
    plain, weighted = distil(vectors, sif=None), distil(vectors, sif=0.1, frequencies=counts)
    np.testing.assert_allclose(weighted, plain * (0.1 / (0.1 + counts / 10))[:, None], rtol=1e-5)


def test_unused_tokens_are_zero_and_do_not_move_the_centre():
    vectors = np.random.default_rng(4).standard_normal((6, 3))
    outlier = vectors.copy()
    outlier[2] = 1e6
    table = distil(outlier, sif=None, unused=[2])
    assert not table[2].any()
    rest = np.delete(table, 2, axis=0)
    np.testing.assert_allclose(
        rest @ rest.T,
        distil(np.delete(vectors, 2, axis=0), sif=None) @ distil(np.delete(vectors, 2, axis=0), sif=None).T,
        atol=1e-4,
    )


@pytest.mark.parametrize("arguments", [{"dim": 0}, {"sif": 0.0}, {"sif": 1.0}, {"frequencies": np.ones(3)}])
def test_arguments_out_of_range(arguments):
    with pytest.raises(ConfigError):
        distil(np.eye(4), **arguments)


def test_token_vectors_put_each_token_between_the_special_ones():
    seen = []

    def forward(ids, mask):
        seen.append(ids.clone())
        assert mask.all()
        return torch.nn.functional.one_hot(ids[:, 1], 10).float() * 2

    vectors = token_vectors(forward, 10, before=[7], after=[8, 9], batch_size=4)
    np.testing.assert_array_equal(vectors, np.eye(10) * 2)
    assert torch.cat(seen).tolist() == [[7, token, 8, 9] for token in range(10)]


def test_an_encoder_becomes_a_table(trained):
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(len(trained), 16)

    def forward(ids, mask):
        assert (ids[:, 0] == trained.cls_token_id).all()
        assert (ids[:, -1] == trained.sep_token_id).all()
        return embedding(ids[:, 1])

    static = distil_encoder(forward, trained, dim=8, sif=None, name="toy")
    assert static.table.shape == (len(trained), 8)
    for special in trained.all_special_ids:
        assert not static.table[special].any()
    weighted = distil_encoder(forward, trained, dim=8, corpus=TEXTS)
    frequent = trained.backend_tokenizer.encode(" the", add_special_tokens=False).ids[0]
    assert np.linalg.norm(weighted.table[frequent]) < np.linalg.norm(static.table[frequent])


def test_a_text_is_the_mean_of_its_tokens_made_unit_length():
    table = np.array([[9.0, 9.0], [1.0, 0.0], [0.0, 2.0]])
    table[0] = 0  # unknown words weigh nothing, as special tokens do in a distilled table
    static = StaticEncoder(table, words_tokenizer(["red", "cat"]))
    found = static.encode_queries(["red", "red cat", "cat cat red", "unknown", ""])
    expected = [[1, 0], np.array([1, 2]) / 5**0.5, np.array([1, 4]) / 17**0.5, [0, 0], [0, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(static.encode_code(["red cat"]), found[1:2])
    assert static.encode_queries([]).shape == (0, 2)


def test_long_texts_are_cut():
    static = StaticEncoder(np.eye(3), words_tokenizer(["red", "cat"]), max_tokens=2)
    np.testing.assert_allclose(static.encode_code(["red red cat cat cat"]), [[0, 1, 0]])


def test_saved_and_read_it_is_the_same(encoder, tmp_path):
    encoder.save(tmp_path / "table")
    again = StaticEncoder.load(tmp_path / "table")
    np.testing.assert_array_equal(again.encode_code(TEXTS), encoder.encode_code(TEXTS))
    assert again.identity == encoder.identity
    assert is_static_folder(tmp_path / "table")
    assert not is_static_folder(tmp_path)
    changed = StaticEncoder(encoder.table + 1e-3, encoder._tokenizer)
    assert changed.identity != encoder.identity
    assert StaticEncoder(encoder.table, encoder._tokenizer, max_tokens=7).identity != encoder.identity


def test_the_folder_has_the_form_that_model2vec_reads(encoder, tmp_path):
    folder = encoder.save(tmp_path / "table")
    weights = load_file(folder / "model.safetensors")
    assert list(weights) == ["embeddings"]
    assert weights["embeddings"].dtype == np.float32
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert weights["embeddings"].shape == (tokenizer.get_vocab_size(), 12)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "model2vec"
    assert config["architectures"] == ["StaticModel"]
    assert config["normalize"] is True
    assert config["hidden_dim"] == 12
    assert config["embedding_dtype"] == "float32"
    ids = tokenizer.encode(TEXTS[1], add_special_tokens=False).ids
    mean = weights["embeddings"][ids].mean(axis=0)
    np.testing.assert_allclose(encoder.encode_code([TEXTS[1]])[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_sentence_transformers_reads_the_folder(encoder, tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = encoder.save(tmp_path / "table")
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(theirs, encoder.encode_code(TEXTS), atol=1e-6)


def test_folders_with_weights_and_mapping_are_read(encoder, tmp_path):
    folder = encoder.save(tmp_path / "table")
    rng = np.random.default_rng(0)
    small = rng.standard_normal((5, 12)).astype(np.float16)
    mapping = rng.integers(0, 5, len(encoder.table))
    weights = rng.uniform(0.5, 2, len(encoder.table)).astype(np.float32)
    save_file({"embeddings": small, "mapping": mapping, "weights": weights}, folder / "model.safetensors")
    expected = small.astype(np.float32)[mapping] * weights[:, None]
    np.testing.assert_allclose(StaticEncoder.load(folder).table, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "how", ["none", "no weights", "other model", "torn", "another tokenizer", "no tokenizer", "text"]
)
def test_folders_that_are_none_are_told_in_one_line(encoder, tmp_path, how):
    folder = encoder.save(tmp_path / "table")
    if how == "none":
        folder = tmp_path / "nowhere"
    elif how == "no weights":
        (folder / "model.safetensors").unlink()
    elif how == "other model":
        (folder / "config.json").write_text('{"model_type": "bert"}')
    elif how == "torn":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif how == "another tokenizer":
        words_tokenizer(["a"]).save(str(folder / "tokenizer.json"))
    elif how == "no tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    else:
        (folder / "model.safetensors").write_text("text")
    with pytest.raises(CheckpointError) as error:
        StaticEncoder.load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_and_a_tokenizer_that_do_not_belong_together(trained):
    with pytest.raises(ConfigError, match="a row for each"):
        StaticEncoder(np.zeros((3, 4)), trained.backend_tokenizer)


def test_search_with_a_table_loads_no_torch(encoder, tmp_path):
    encoder.save(tmp_path / "table")
    (tmp_path / "code").mkdir()
    (tmp_path / "code/a.py").write_text("def read_lines(file):\n    return file.readlines()\n")
    script = (
        "import sys\nfrom mc_text_code.codesearch import CodeIndex\nfrom mc_text_code.codesearch.static import StaticEncoder\n"
        f"encoder = StaticEncoder.load({str(tmp_path / 'table')!r})\n"
        f"with CodeIndex.open({str(tmp_path / 'code')!r}, encoder=encoder) as index:\n"
        "    index.refresh(); index.embed()\n"
        "    assert index.search('read the lines').mode == 'hybrid'\n"
        "assert not {'torch', 'transformers', 'scipy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_table_serves_an_index(encoder, tmp_path):
    (tmp_path / "a.py").write_text("def read_lines(file):\n    return file.readlines()\n")
    with CodeIndex.open(tmp_path, encoder=encoder, folder=tmp_path.parent / "index-of-table") as index:
        index.refresh()
        index.embed()
        hit = index.search("read the lines", 1, mode="dense")[0]
    expected = (
        encoder.encode_queries(["read the lines"])[0]
        @ encoder.encode_code(["read_lines\ndef read_lines(file):\n    return file.readlines()", "read lines"]).T
    )
    assert hit.dense_score == pytest.approx(expected.max(), abs=1e-3)
