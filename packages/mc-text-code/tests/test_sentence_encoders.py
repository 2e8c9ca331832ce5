"""Encoders: pooling by hand, the same rows in any company, and folders that plain sentence-transformers reads alike."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, DistilBertConfig, MPNetConfig, RobertaConfig

from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_text_code.encoders import SentenceEncoder, new_transformer, quiet_loading
from mc_text_code.encoders_config import EncoderConfig
from mc_text_code.saving import ForeignEncoder, load_encoder, save_sentence_transformer
from mc_text_code.tokenizers import load_tokenizer, train_tokenizer

TEXTS = ["a red boat", "Two boats sail over the wide, wide sea", "sea", "", "over the red sea " * 5]
WIDTHS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
POOLINGS = ["cls", "mean", "first-last"]


def architecture(kind, tokenizer):
    size, pad = len(tokenizer), tokenizer.pad_token_id
    if kind == "bert":
        return BertConfig(vocab_size=size, pad_token_id=pad, max_position_embeddings=64, **WIDTHS)
    if kind == "roberta":
        return RobertaConfig(vocab_size=size, pad_token_id=pad, max_position_embeddings=66, type_vocab_size=1, **WIDTHS)
    if kind == "mpnet":
        return MPNetConfig(vocab_size=size, pad_token_id=pad, max_position_embeddings=66, **WIDTHS)
    return DistilBertConfig(
        vocab_size=size, pad_token_id=pad, max_position_embeddings=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders as published ones are: a transformer with random weights and its tokenizer."""
    found = {}
    for kind in ("bert", "roberta", "mpnet", "distilbert"):
        tokenizer = train_tokenizer(
            TEXTS * 3, 400, "bpe" if kind in ("roberta", "mpnet") else "wordpiece", positions=64
        )
        place = tmp_path_factory.mktemp(kind)
        torch.manual_seed(1)
        transformer = new_transformer(architecture(kind, tokenizer))
        with torch.no_grad():
            for parameter in transformer.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        with quiet_loading():
            transformer.save_pretrained(place)
        tokenizer.save_pretrained(place)
        found[kind] = place
    return found


def encoder_of(folder, **fields):
    return SentenceEncoder(EncoderConfig(name=str(folder), **fields)).eval()


def by_hand(encoder, text, pooling):
    """One sentence, its states, and the mean written out."""
    ids = encoder.tokenizer(text, return_tensors="pt").input_ids
    output = encoder.transformer(input_ids=ids, output_hidden_states=True)
    states = output.last_hidden_state[0]
    if pooling == "cls":
        return states[0]
    if pooling == "mean":
        return sum(states) / len(states)
    return sum((a + b) / 2 for a, b in zip(output.hidden_states[0][0], states, strict=True)) / len(states)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "distilbert"])
def test_pooling_by_hand_for_every_architecture(folders, kind, pooling):
    encoder = encoder_of(folders[kind], pooling=pooling)
    assert encoder.positions == 64
    found = encoder.encode(TEXTS)
    assert found.shape == (5, 16)
    assert found.dtype == np.float32
    for row, text in zip(found, TEXTS, strict=True):
        expected = by_hand(encoder, text, pooling).detach().numpy()
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(TEXTS, normalize=True), axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_plain_sentence_transformers_gives_the_same_vectors(folders, tmp_path, kind, pooling):
    from sentence_transformers import SentenceTransformer

    encoder = encoder_of(folders[kind], pooling=pooling)
    folder = save_sentence_transformer(encoder, tmp_path / "saved", card={"method": "ESimCSE", "steps": 3})
    with quiet_loading():
        model = SentenceTransformer(str(folder), local_files_only=True)
    texts = [*TEXTS, "sea boat " * 100]  # longer than it takes
    expected = encoder.encode(texts)
    np.testing.assert_allclose(model.encode(texts), expected, rtol=0, atol=1e-5)
    assert model.max_seq_length == encoder.positions
    names = [type(module).__name__ for module in model]
    assert names == ["Transformer", *(["WeightedLayerPooling"] if pooling == "first-last" else []), "Pooling"]
    again = load_encoder(folder)
    assert isinstance(again, SentenceEncoder)
    assert again.config.pooling == pooling
    assert not again.training
    np.testing.assert_array_equal(again.encode(texts), expected)
    card = (folder / "README.md").read_text()
    for words in (
        "library_name: sentence-transformers",
        "arXiv:2109.04380",
        "| method | ESimCSE |",
        "SentenceTransformer(",
    ):
        assert words in card


def test_a_saved_folder_is_plain_and_silent(folders, tmp_path, caplog):
    """No head, no copy, no queue, no pickle, and no report of weights that are missing."""
    from sentence_transformers import SentenceTransformer
    from transformers import logging as told

    folder = save_sentence_transformer(encoder_of(folders["bert"]), tmp_path / "saved")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        "1_Pooling/config.json",
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    told.disable_progress_bar()
    told.enable_propagation()
    try:
        model = SentenceTransformer(str(folder), local_files_only=True)
    finally:
        told.disable_propagation()
        told.enable_progress_bar()
    assert "MISSING" not in caplog.text
    assert model[0].auto_model.pooler is None


def test_saving_again_renews_the_model_and_nothing_else(folders, tmp_path):
    folder = save_sentence_transformer(encoder_of(folders["bert"], pooling="mean"), tmp_path / "saved")
    (folder / "notes.txt").write_text("mine")
    save_sentence_transformer(encoder_of(folders["roberta"]), folder)
    assert (folder / "notes.txt").read_text() == "mine"
    again = load_encoder(folder)
    np.testing.assert_array_equal(again.encode(TEXTS), encoder_of(folders["roberta"]).encode(TEXTS))
    assert not list(tmp_path.glob(".*"))


def test_folders_of_sentence_transformers_own(folders, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    with quiet_loading():
        transformer = Transformer(str(folders["bert"]), max_seq_length=7)
        model = SentenceTransformer(modules=[transformer, Pooling(16, "mean")])
        model.save(str(tmp_path / "plain"))
        more = SentenceTransformer(modules=[transformer, Pooling(16, "max"), Normalize()])
        more.save(str(tmp_path / "more"))
    found = load_encoder(tmp_path / "plain")
    assert isinstance(found, SentenceEncoder)
    assert found.positions == 7
    np.testing.assert_allclose(found.encode(TEXTS), model.encode(TEXTS), rtol=0, atol=1e-5)
    other = load_encoder(tmp_path / "more")
    assert isinstance(other, ForeignEncoder)
    assert (other.num_features, other.positions) == (16, 7)
    np.testing.assert_allclose(other.encode(TEXTS), more.encode(TEXTS), rtol=0, atol=1e-5)
    assert other.encode([]).shape == (0, 16)
    plain = load_encoder(folders["roberta"])
    assert plain.config.pooling == "mean"
    with quiet_loading():
        expected = SentenceTransformer(str(folders["roberta"])).encode(TEXTS)
    np.testing.assert_allclose(plain.encode(TEXTS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_rows_are_the_same_in_any_company(folders, pooling):
    """Grouped by length, padded together, padded on the left of nothing, alone: one embedding."""
    encoder = encoder_of(folders["roberta"], pooling=pooling)
    texts = [" ".join(["sea boat red the"] * n) for n in (9, 1, 4, 1, 9, 2, 7, 3, 1, 8)] * 8
    batch = encoder.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        grouped = encoder(batch.input_ids, batch.attention_mask)
        together = encoder._pooled(batch.input_ids, batch.attention_mask)
    torch.testing.assert_close(grouped, together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(encoder.encode(texts, batch_size=3)), grouped, rtol=1e-4, atol=1e-5)
    full = batch.input_ids[:1, : int(batch.attention_mask[0].sum())]
    with torch.no_grad():
        torch.testing.assert_close(encoder(full), grouped[:1], rtol=1e-4, atol=1e-5)


def test_gradients_do_not_depend_on_the_grouping(folders):
    encoder = encoder_of(folders["bert"])
    batch = encoder.tokenizer(TEXTS * 9, padding=True, return_tensors="pt")
    weights = torch.randn(45, 16, generator=torch.Generator().manual_seed(0))
    found = []
    for forward in (encoder, encoder._pooled):
        encoder.zero_grad()
        (forward(batch.input_ids, batch.attention_mask) * weights).sum().backward()
        found.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_encoding_leaves_the_mode_and_takes_lists(folders):
    encoder = encoder_of(folders["bert"]).train()
    first = encoder.encode(TEXTS)
    assert encoder.training
    assert encoder.transformer.training
    np.testing.assert_array_equal(first, encoder.encode(tuple(TEXTS)))
    assert encoder.encode([]).shape == (0, 16)
    with pytest.raises(ConfigError, match="takes a list of texts"):
        encoder.encode("a boat")


def test_dropout_of_every_architecture(folders):
    for kind in ("bert", "roberta", "distilbert", "mpnet"):
        encoder = encoder_of(folders[kind], dropout=0.0).train()
        ids = encoder.tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
        assert torch.equal(encoder(ids.input_ids, ids.attention_mask), encoder(ids.input_ids, ids.attention_mask))
        encoder = encoder_of(folders[kind], dropout=0.5).train()
        assert not torch.equal(encoder(ids.input_ids, ids.attention_mask), encoder(ids.input_ids, ids.attention_mask))


def test_an_encoder_that_cannot_be_reached_says_which_folder_to_give(tmp_path):
    for make in (lambda: load_tokenizer("no-such-bert"), lambda: SentenceEncoder(EncoderConfig(name="no-such-bert"))):
        with pytest.raises(ConfigError) as caught:
            make()
        text = str(caught.value)
        assert "\n" not in text
        for words in (
            "'no-such-bert' is no folder here",
            "give a folder with its config.json",
            "--method.encoder.download",
        ):
            assert words in text
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="the folder holds no transformer that can be read"):
        SentenceEncoder(EncoderConfig(name=str(tmp_path)))


def test_a_name_that_cannot_be_fetched(monkeypatch):
    from transformers import AutoTokenizer

    def refuse(*_, **__):
        raise OSError("no route to host\nsecond line")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ConfigError, match="nor can it be fetched: give a folder") as caught:
        load_tokenizer("bert-base-uncased", download=True)
    assert "encoder.download" not in str(caught.value)


def test_lengths_that_do_not_fit(folders):
    with pytest.raises(ConfigError, match="max_length 65 is more than the 64 tokens"):
        encoder_of(folders["roberta"], max_length=65)
    with pytest.raises(Exception, match="max_length 600 is more than the encoder's 512 positions"):
        EncoderConfig(max_length=600)


def test_a_pooling_that_does_not_fit_its_transformer(folders, tmp_path):
    folder = save_sentence_transformer(encoder_of(folders["bert"]), tmp_path / "saved")
    file = folder / "1_Pooling" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "word_embedding_dimension": 768}))
    with pytest.raises(CheckpointError, match=r"width 768, but the transformer in .* gives 16"):
        load_encoder(folder)


@pytest.mark.parametrize("damage", ["weights", "modules", "a tensor"])
def test_a_damaged_folder_ends_in_one_line(folders, tmp_path, damage):
    folder = save_sentence_transformer(encoder_of(folders["bert"]), tmp_path / "saved")
    if damage == "weights":
        (folder / "model.safetensors").write_bytes(b"nothing")
    elif damage == "a tensor":
        weights = load_file(folder / "model.safetensors")
        del weights["encoder.layer.1.output.dense.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        (folder / "modules.json").write_text("[")
    with pytest.raises((CheckpointError, ConfigError, DataError)) as caught:
        load_encoder(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_encoder(tmp_path / "none")
    with pytest.raises(DataError, match="neither a run"):
        load_encoder(tmp_path)
    with pytest.raises(ConfigError, match="has no tokenizer"):
        save_sentence_transformer(SentenceEncoder(EncoderConfig(hidden_size=16, heads=2)), tmp_path / "x")
    with pytest.raises(ConfigError, match="has no tokenizer"):
        SentenceEncoder(EncoderConfig(hidden_size=16, heads=2)).encode(["a"])
    assert not (tmp_path / "x").exists()
