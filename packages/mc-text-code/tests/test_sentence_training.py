"""A whole run on sentences: warm start by masked tokens, contrast, what it leaves, and that it goes on where it was."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, gelu, layer_norm
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from mc_core.engine.checkpoint import CheckpointFolder
from mc_core.engine.method import Progress
from mc_core.errors import CheckpointError, ConfigError
from mc_core.files import read_jsonl
from mc_core.random import BatchRandom
from mc_text_code import METHODS, load_encoder, pretrain_sentences, resolve_recipe
from mc_text_code.data.pairs import SentenceData
from mc_text_code.encoders import SentenceEncoder, quiet_loading
from mc_text_code.encoders_config import EncoderConfig
from mc_text_code.methods.mlm.config import MaskedLMConfig
from mc_text_code.methods.mlm.model import MaskedLM
from mc_text_code.recipe import WarmStart
from mc_text_code.tokenizers import train_tokenizer
from mc_text_code.training import warm_start

WORDS = ["red", "wide", "old", "green", "boat", "house", "sea", "hill", "sails", "stands", "over", "beside", "the", "a"]
TEXTS = [
    f"the {WORDS[i % 4]} {WORDS[4 + i % 2]} {WORDS[8 + i % 2]} {WORDS[10 + i % 2]} the {WORDS[6 + i // 2 % 2]} number {i}"
    for i in range(96)
]
SMALL = {"hidden_size": 16, "heads": 2, "layers": 1, "vocabulary": 200}


def tiny_encoder(dropout=0.0, **fields):
    torch.manual_seed(0)
    config = EncoderConfig.model_validate({**SMALL, "dropout": dropout, **fields})
    return SentenceEncoder(config, train_tokenizer(TEXTS, 200))


def recipe_of(**changes):
    changes.setdefault("fit", {"steps": 4, "batch_size": 16, "device": "cpu"})
    changes.setdefault("warm_start", {"steps": 3, "batch_size": 8})
    return resolve_recipe("esimcse-laptop", {"method": {"encoder": SMALL}, **changes})


def batch_of(encoder, rows):
    data = SentenceData(TEXTS, encoder.tokenizer)
    return {**data.get_batch(rows, 0, 0), "index": torch.tensor(rows), "epoch": 0}


def test_masked_tokens_are_chosen_as_bert_chooses_them():
    encoder = tiny_encoder()
    method = MaskedLM(MaskedLMConfig(rate=0.3), encoder)
    tokenizer = encoder.tokenizer
    batch = batch_of(encoder, list(range(96)))
    ids, mask = batch["input_ids"].repeat(50, 1), batch["attention_mask"].repeat(50, 1)
    changed, predicted = method.corrupt(ids, mask, BatchRandom(0, 0, torch.arange(len(ids))))
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids)) | (mask == 0)
    assert not bool((predicted & special).any())
    assert bool((changed[~predicted] == ids[~predicted]).all())
    assert bool(predicted.any(1).all())
    assert abs(float(predicted.sum() / (~special).sum()) - 0.3) < 0.02
    share_masked = float((changed[predicted] == tokenizer.mask_token_id).float().mean())
    share_kept = float((changed[predicted] == ids[predicted]).float().mean())
    assert abs(share_masked - 0.8) < 0.02
    assert abs(share_kept - 0.1) < 0.02
    some, chosen = method.corrupt(ids[7:9], mask[7:9], BatchRandom(0, 0, torch.arange(7, 9)))
    assert torch.equal(some, changed[7:9])
    assert torch.equal(chosen, predicted[7:9])


def test_the_masked_loss_is_the_likelihood_of_the_tokens_predicted():
    encoder = tiny_encoder().double()
    method = MaskedLM(MaskedLMConfig(), encoder).double()
    batch, progress = batch_of(encoder, [3, 50, 51]), Progress(run_seed=4)
    found = method.training_step(batch, progress).loss
    changed, predicted = method.corrupt(batch["input_ids"], batch["attention_mask"], BatchRandom(4, 0, batch["index"]))
    losses = []
    for row in range(3):
        size = int(batch["attention_mask"][row].sum())
        states = encoder.states(changed[row : row + 1, :size])[0]
        for place in predicted[row].nonzero().flatten().tolist():
            hidden = layer_norm(gelu(method.dense(states[place])), (16,), method.norm.weight, method.norm.bias)
            scores = encoder.embeddings.weight @ hidden + method.bias
            losses.append(cross_entropy(scores, batch["input_ids"][row, place]))
    # scores are taken to float32 before the softmax
    torch.testing.assert_close(found.double(), torch.stack(losses).mean(), rtol=1e-6, atol=1e-6)


def test_a_warm_start_learns_to_predict(tmp_path):
    encoder = tiny_encoder(hidden_size=32)
    before = [p.clone() for p in encoder.parameters()]
    options = WarmStart(steps=150, batch_size=32, lr=5e-3)
    data = SentenceData(TEXTS, encoder.tokenizer)
    result = warm_start(encoder, data, options, tmp_path / "warm", recipe_of().fit)
    losses = [line["loss"] for line in read_jsonl(tmp_path / "warm" / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 1
    assert result.method.encoder is encoder
    assert any(not torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))
    again = tiny_encoder(hidden_size=32)
    warm_start(again, data, options, tmp_path / "warm", recipe_of().fit)  # only loaded
    for ours, theirs in zip(encoder.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    kept = load_encoder(tmp_path / "warm")
    np.testing.assert_array_equal(kept.encode(TEXTS[:3]), encoder.encode(TEXTS[:3]))


def test_a_warm_start_needs_a_mask_token_and_enough_sentences(tmp_path):
    encoder = tiny_encoder()
    data = SentenceData(TEXTS, encoder.tokenizer)
    with pytest.raises(ConfigError, match=r"warm_start.batch_size 200 is larger than the data \(96 sentences\)"):
        warm_start(encoder, data, WarmStart(steps=1, batch_size=200), tmp_path / "warm", recipe_of().fit)
    assert not (tmp_path / "warm").exists()
    with pytest.raises(ConfigError, match="needs a tokenizer with a mask token"):
        MaskedLM(MaskedLMConfig(), SentenceEncoder(EncoderConfig.model_validate(SMALL)))


def test_a_run_leaves_a_folder_that_sentence_transformers_loads(tmp_path):
    from sentence_transformers import SentenceTransformer

    result = pretrain_sentences(recipe_of(), TEXTS, tmp_path / "run")
    encoder = result.method.encoder
    run = tmp_path / "run"
    expected = encoder.encode(TEXTS)
    np.testing.assert_allclose(SentenceTransformer(str(run / "model")).encode(TEXTS), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(load_encoder(run).encode(TEXTS), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(load_encoder(run / "model").encode(TEXTS), expected, rtol=0, atol=1e-6)
    assert not np.allclose(load_encoder(run / "warm-start").encode(TEXTS), expected, atol=1e-4)
    saved = resolve_recipe(run)
    assert saved.method.encoder.vocabulary == len(encoder.tokenizer)
    assert saved.warm_start.steps == 3
    assert "| method | ESimCSE |" in (run / "model" / "README.md").read_text()
    again = pretrain_sentences(recipe_of(), TEXTS, run)
    assert again.resumed_from == again.step == 4
    np.testing.assert_array_equal(again.method.encoder.encode(TEXTS), expected)


def test_runs_are_alike_and_a_run_that_was_cut_off_ends_alike(tmp_path):
    fit = {"steps": 4, "batch_size": 16, "device": "cpu", "checkpoint_every": 2}
    one = pretrain_sentences(recipe_of(fit=fit), TEXTS, tmp_path / "one").method
    checkpoints = CheckpointFolder(tmp_path / "one" / "checkpoints").paths()
    checkpoints[0].unlink()
    for file in sorted((tmp_path / "one" / "model").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (tmp_path / "one" / "model").rmdir()
    unfinished = load_encoder(tmp_path / "one")  # of the checkpoint of step 2
    assert not unfinished.training
    assert unfinished.encode(TEXTS[:2]).shape == (2, 16)
    resumed = pretrain_sentences(recipe_of(fit=fit), TEXTS, tmp_path / "one")
    assert resumed.resumed_from == 2
    other = pretrain_sentences(recipe_of(fit=fit), TEXTS, tmp_path / "other").method
    for method in (resumed.method, other):
        for name, value in one.state_dict().items():
            assert torch.equal(value, method.state_dict()[name]), name


def published(kind, folder):
    """A folder as published ones are, of a BERT or a RoBERTa with its pooler, here with random weights."""
    tokenizer = train_tokenizer(TEXTS, 400, "wordpiece" if kind == "bert" else "bpe", positions=64)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    known = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **sizes}
    torch.manual_seed(5)
    if kind == "bert":
        transformer = BertModel(BertConfig(max_position_embeddings=64, **known))
    else:
        transformer = RobertaModel(RobertaConfig(max_position_embeddings=66, type_vocab_size=1, **known))
    with quiet_loading():
        transformer.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return transformer


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_published_encoder_by_its_folder(tmp_path, kind):
    transformer = published(kind, tmp_path / "published")
    encoder = {"name": str(tmp_path / "published"), "pooling": "cls", "max_length": 16, "dropout": 0.0}
    fit = {"steps": 2, "batch_size": 8, "epochs": None, "lr": 1e-9, "device": "cpu"}
    recipe = resolve_recipe("esimcse", {"method": {"encoder": encoder}, "fit": fit})
    assert recipe.fit.precision == "bf16"
    result = pretrain_sentences(recipe, TEXTS, tmp_path / "run")
    method = result.method
    assert not (tmp_path / "run" / "warm-start").exists()
    assert method.queue.features.dtype == torch.float32
    assert len(method.queue) == 16
    assert {p.dtype for p in method.parameters()} == {torch.float32}
    ids = method.encoder.tokenizer(TEXTS[7], return_tensors="pt")
    with torch.no_grad():
        first = transformer.eval()(**ids).last_hidden_state[0, 0]  # <s> or [CLS] of the checkpoint that it started from
    np.testing.assert_allclose(load_encoder(tmp_path / "run").encode([TEXTS[7]])[0], first, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fit": {"steps": 1, "batch_size": 128}}, r"batch_size 128 is larger than the data \(96 samples\)"),
        ({"method": {"encoder": {"name": "no-such-bert"}}}, "'no-such-bert' is no folder here"),
        ({"augment": {"kind": "stop-word"}}, "needs a tokenizer that knows English stop-words"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(tmp_path, changes, message):
    texts = [f"xq{i} zv{i}" for i in range(96)] if "augment" in changes else TEXTS
    with pytest.raises(ConfigError, match=message):
        pretrain_sentences(recipe_of(**changes), texts, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_second_views_that_the_encoder_could_not_take(tmp_path):
    recipe = recipe_of(method={"encoder": {"positions": 16, "max_length": 16}}, augment={"rate": 0.5})
    with pytest.raises(ConfigError, match="up to 16 tokens may grow to 23 by repetition, more than the 16 that"):
        pretrain_sentences(recipe, [f"{text} {text} {text}" for text in TEXTS], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_without_anything_yet(tmp_path):
    (tmp_path / "recipe.yaml").write_text("system: esimcse\n")
    with pytest.raises(CheckpointError, match="no model and no checkpoint yet"):
        load_encoder(tmp_path)


def test_evaluators_see_the_encoder(tmp_path):
    class Norm:
        name = "norm"

        def __call__(self, method):
            assert not method.encoder.training
            return {"norm": float(np.linalg.norm(method.encoder.encode(TEXTS[:4])))}

    result = pretrain_sentences(recipe_of(), TEXTS, tmp_path / "run", evaluators=[Norm()])
    assert result.metrics["eval/norm"] > 0


def test_every_recipe_is_whole():
    published = {
        "esimcse": ("bert-base-uncased", 3e-5, 0.32, 2.5, None),
        "esimcse-bert-large": ("bert-large-uncased", 1e-5, 0.32, 2.5, 0.1),
        "esimcse-roberta-base": ("roberta-base", 1e-5, 0.30, 2.5, None),
        "esimcse-roberta-large": ("roberta-large", 1e-5, 0.28, 2.0, 0.15),
        "simcse": ("bert-base-uncased", 3e-5, 0.32, 0.0, None),
    }
    for name, (encoder, lr, rate, queue, dropout) in published.items():
        recipe = resolve_recipe(name)
        assert recipe.method.encoder.name == encoder
        assert recipe.method.encoder.dropout == dropout
        assert (recipe.fit.lr, recipe.method.queue_batches) == (lr, queue)
        assert recipe.augment.kind == ("none" if name == "simcse" else "subword")
        if name != "simcse":
            assert recipe.augment.rate == rate
        assert (recipe.fit.batch_size, recipe.fit.optimizer, recipe.fit.schedule) == (64, "adamw", "linear")
        assert (recipe.fit.weight_decay, recipe.fit.clip_norm, recipe.fit.epochs) == (0, 1.0, 1)
        assert (recipe.method.temperature, recipe.method.momentum.momentum) == (0.05, 0.995)
        assert recipe.warm_start.steps == 0
    laptop, simple = resolve_recipe("esimcse-laptop"), resolve_recipe("simcse-laptop")
    assert laptop.method.encoder == simple.method.encoder
    assert (laptop.fit, laptop.warm_start) == (simple.fit, simple.warm_start)
    assert simple.augment.kind == "none"
    assert simple.method.queue_batches == 0
    assert METHODS.names == ["cocosoda", "esimcse", "mlm"]


def test_the_configuration_survives_json():
    recipe = resolve_recipe("esimcse-laptop")
    assert type(recipe).model_validate(json.loads(recipe.model_dump_json())) == recipe
