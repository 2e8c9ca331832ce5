"""The language model against a literal loop, over families, and what padding, batches and a cache must not change."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForCausalLM,
    T5Config,
    ViTConfig,
)

from mc_core.errors import ConfigError, DataError
from mc_vision_language import language, language_config, language_text
from mc_vision_language.evaluation import caption_scores
from mc_vision_language.language import LanguageModel
from mc_vision_language.language_config import LanguageConfig

FAMILIES = ("llama", "gpt2", "bert")
SEEN, WORDS, WIDTH = 3, 24, 16


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def build(family: str, **more: Any) -> LanguageModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "heads": 2, "layers": 2, "vocabulary": WORDS, "positions": 40}
    given: dict[str, Any] = {"family": family, "question_length": 8, "answer_length": 8, **sizes, **more}
    config = LanguageConfig(**given)
    model = LanguageModel(config).eval()
    with torch.no_grad():  # as large as after training, so that attention is not even
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield build(request.param)
    torch.set_default_dtype(before)


def rows(lengths=(5, 3, 7), seed=1):
    """Visual tokens, ids padded on the right, their mask."""
    generator = torch.Generator().manual_seed(seed)
    prefix = torch.randn(len(lengths), SEEN, WIDTH, generator=generator)
    ids = torch.randint(5, WORDS, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return prefix, ids * mask, mask


def literal(model, prefix, words):
    """(L, V) log p of each word of one row and of what follows, each from a pass over what precedes it alone."""
    found = []
    for place in range(len(words) + 1):
        given = torch.cat([prefix, model.embed(words[:place])])[None]
        mask = torch.ones(1, given.shape[1], dtype=torch.long)
        inner = model.transformer(inputs_embeds=given, attention_mask=mask, use_cache=False)
        found.append(inner.logits[0, -1].log_softmax(0))
    return torch.stack(found)


@torch.no_grad()
def test_the_loss_is_the_mean_over_target_tokens_of_a_literal_loop(model):
    prefix, ids, mask = rows()
    targets = (torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.6).long()
    targets[:, 0] = 1  # also the first word, which only the picture precedes
    each = []
    for row in range(len(ids)):
        words = ids[row, : int(mask[row].sum())]
        found = literal(model, prefix[row], words)
        each += [-found[t, word] for t, word in enumerate(words.tolist()) if targets[row, t]]
    expected = torch.stack(each).mean()
    assert model.loss(prefix, ids, mask, targets).item() == pytest.approx(expected.item(), abs=1e-10)


def test_padding_changes_neither_loss_nor_gradients_and_is_never_counted(model):
    prefix, ids, mask = rows()
    found = []
    for more, targets in ((0, mask), (4, None)):
        wide = torch.cat([ids, torch.randint(5, WORDS, (3, more))], 1)
        shown = torch.cat([mask, mask.new_zeros(3, more)], 1)
        wide = torch.where(shown.bool(), wide, torch.randint(5, WORDS, wide.shape))
        seen = prefix.clone().requires_grad_()
        loss = model.loss(seen, wide, shown, torch.ones_like(shown) if targets is None else targets)
        (gradient,) = torch.autograd.grad(loss, seen)
        found.append((loss.item(), gradient))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-10)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-10, rtol=0)
    assert found[0][1].abs().max() > 0


def test_a_loss_without_targets_is_zero_and_has_a_graph(model):
    prefix, ids, mask = rows()
    seen = prefix.requires_grad_()
    loss = model.loss(seen, ids, mask, torch.zeros_like(mask))
    loss.backward()
    assert loss.item() == 0


@torch.no_grad()
def test_a_word_depends_on_the_picture_and_on_earlier_words_alone(model):
    prefix, ids, mask = rows((6, 6))
    before = model.logits(prefix, ids, mask)
    later = ids.clone()
    later[:, 3] = (later[:, 3] + 1) % WORDS
    after = model.logits(prefix, later, mask)
    torch.testing.assert_close(after[:, :4], before[:, :4], atol=1e-11, rtol=0)
    assert (after[:, 4:] - before[:, 4:]).abs().amax((1, 2)).min() > 1e-4
    seen = prefix.clone()
    seen[:, 0, 0] += 3.0  # not all features alike: that a layer norm takes away
    assert (model.logits(seen, ids, mask) - before).abs().amax(2).min() > 1e-6


@torch.no_grad()
def test_logits_are_those_of_the_transformer_on_the_same_embeddings(model):
    _, ids, _ = rows((7, 7))
    mask = torch.ones_like(ids)
    expected = model.transformer(input_ids=ids, attention_mask=mask).logits[:, :-1]
    torch.testing.assert_close(model.logits(model.embed(ids[:, :1]), ids[:, 1:], mask[:, 1:]), expected)


def test_generation_is_the_literal_greedy_loop_for_ragged_prompts_with_and_without_a_cache(model):
    prefix, ids, mask = rows((5, 0, 3, 7))
    made = model.generate(prefix, ids, mask, 6)
    assert torch.equal(made, model.generate(prefix, ids, mask, 6, cached=False))
    end = model.config.end_id
    for row in range(len(ids)):
        words = ids[row, : int(mask[row].sum())]
        expected: list[int] = []
        with torch.no_grad():
            while len(expected) < 6 and end not in expected:
                given = torch.cat([words, torch.tensor(expected, dtype=torch.long)])
                expected.append(int(literal(model, prefix[row], given)[-1].argmax()))
        wanted = (expected + [end] * 6)[: made.shape[1]]
        assert made[row].tolist() == wanted
        alone = model.generate(prefix[row : row + 1], words[None], torch.ones_like(words)[None], 6)[0].tolist()
        assert (alone + [end] * 6)[: made.shape[1]] == wanted


def test_generation_stops_when_all_rows_have_ended(model):
    prefix, ids, mask = rows()
    free = model.generate(prefix, ids, mask, 8)
    first = int(free[0, 0])
    config = model.config
    try:
        model.config = config.model_copy(update={"end_id": first})
        made = model.generate(prefix, ids, mask, 8)
        assert (made[0] == first).all()
        assert made.shape[1] <= free.shape[1]
        alone = model.generate(prefix[:1], ids[:1], mask[:1], 8)
        assert alone.tolist() == [[first]]
    finally:
        model.config = config


def test_generating_keeps_modes_and_takes_no_dropout():
    model = build("bert", dropout=0.5).train()
    prefix, ids, mask = rows()
    first, second = (model.generate(prefix, ids, mask, 4) for _ in range(2))
    assert torch.equal(first, second)
    assert all(part.training for part in model.modules())
    assert model.loss(prefix, ids, mask, mask) != model.loss(prefix, ids, mask, mask)


@torch.no_grad()
def test_answers_are_scored_by_the_sum_of_their_log_probabilities(model, monkeypatch):
    prefix, ids, mask = rows((4, 2, 5))
    _, answers, answer_mask = rows((1, 3, 2, 4, 3), seed=4)
    expected = torch.zeros(3, 5)
    for row in range(3):
        words = ids[row, : int(mask[row].sum())]
        for place in range(5):
            answer = answers[place, : int(answer_mask[place].sum())]
            found = literal(model, prefix[row], torch.cat([words, answer]))
            expected[row, place] = sum(found[len(words) + t, word] for t, word in enumerate(answer.tolist()))
    torch.testing.assert_close(
        model.score_answers(prefix, ids, mask, answers, answer_mask), expected, atol=1e-9, rtol=0
    )
    monkeypatch.setattr("mc_vision_language.language._ROWS", 6)  # two answers at a time
    torch.testing.assert_close(
        model.score_answers(prefix, ids, mask, answers, answer_mask), expected, atol=1e-9, rtol=0
    )
    single = model.score_answers(prefix, ids, mask, answers[:, :1], answer_mask[:, :1])
    assert single.shape == (3, 5)
    assert (single > expected - 1e-9).all()


def test_what_does_not_fit_the_context_is_one_line(model):
    prefix = torch.zeros(2, SEEN, WIDTH)
    ids = torch.full((2, 38), 7)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    with pytest.raises(DataError, match=r"text 1 of the batch has 38 tokens, with 3 visual tokens .* context of 40"):
        model.loss(prefix, ids, mask, mask)
    with pytest.raises(DataError, match="text 1 of the batch has 37 tokens"):
        model.generate(prefix, ids[:, :37], mask[:, :37], 2)
    mask[1, 5:] = 0
    with pytest.raises(DataError, match="cut columns that are all padding"):
        model.loss(prefix, ids, mask, mask)
    full = torch.ones(2, 34, dtype=torch.long)
    with pytest.raises(DataError, match="text 0 of the batch has 34 tokens, with 3 visual tokens and 4 of an answer"):
        model.score_answers(prefix, full * 7, full, full[:, :5] * 7, full[:, :5])
    with pytest.raises(DataError, match=r"0 answers to rank"):
        model.score_answers(prefix, full * 7, full, full[:0], full[:0])
    with pytest.raises(DataError, match=r"takes \(batch, tokens, 16\)"):
        model.logits(torch.zeros(2, SEEN, 8), ids[:, :2], mask[:, :2])
    with pytest.raises(DataError, match="at least one token"):
        model.logits(torch.zeros(2, 0, WIDTH), ids[:, :2], mask[:, :2])


def test_a_row_that_fills_the_context_ends_there_and_the_others_go_on(model, monkeypatch):
    prefix, ids, mask = rows((35, 2))
    end, inner = model.config.end_id, model._run

    def never_ending(*given, **more):
        logits, cache = inner(*given, **more)
        logits[..., end] = -torch.inf
        return logits, cache

    monkeypatch.setattr(model, "_run", never_ending)
    for cached in (True, False):
        made = model.generate(prefix, ids, mask, 30, cached=cached)
        assert made.shape == (2, 30)
        assert (made[0, :2] != end).all()  # 3 + 35 + 2 = 40
        assert (made[0, 2:] == end).all()
        assert (made[1] != end).all()


def saved(transformer, folder):
    transformer.save_pretrained(folder)
    return folder


def test_published_models_are_loaded_from_a_folder_and_rebuilt_without_it(tmp_path):
    torch.manual_seed(0)
    small = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_embd=WIDTH, n_layer=1, n_head=2, n_positions=32)).eval()
    bert = BertForMaskedLM(BertConfig(vocab_size=WORDS, **small)).eval()
    roberta = RobertaForCausalLM(
        RobertaConfig(vocab_size=WORDS, max_position_embeddings=34, is_decoder=True, pad_token_id=1, **small)
    ).eval()
    _, ids, _ = rows((6, 6))
    mask = torch.ones_like(ids)
    for name, original in (("gpt2", gpt2), ("bert", bert), ("roberta", roberta)):
        folder = saved(original, tmp_path / name)
        model = LanguageModel(LanguageConfig(name=str(folder))).eval().double()
        made = model.logits(model.embed(ids[:, :1]), ids[:, 1:], mask[:, 1:])
        if name != "bert":
            torch.testing.assert_close(made, original(input_ids=ids).logits[:, :-1], atol=1e-5, rtol=1e-5)
        else:  # made to look both ways: here from left to right
            changed = ids.clone()
            changed[:, -1] = (changed[:, -1] + 1) % WORDS
            again = model.logits(model.embed(changed[:, :1]), changed[:, 1:], mask[:, 1:])
            torch.testing.assert_close(made, again, atol=1e-10, rtol=0)
            assert original(input_ids=ids).logits[:, 0].sub(original(input_ids=changed).logits[:, 0]).abs().max() > 1e-6
        rebuilt = LanguageModel(model.config, load_pretrained=False).double().eval()
        rebuilt.load_state_dict(model.state_dict())
        torch.testing.assert_close(rebuilt.logits(model.embed(ids[:, :1]), ids[:, 1:], mask[:, 1:]), made)
        assert rebuilt.context == {"gpt2": 32, "bert": 512, "roberta": 32}[name]


def test_models_that_predict_no_words_or_are_not_there_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no folder here, nor in the local cache"):
        LanguageModel(LanguageConfig(name="nobody/nothing"))
    for config in (T5Config(vocab_size=WORDS), ViTConfig()):
        folder = tmp_path / config.model_type
        config.save_pretrained(folder)
        with pytest.raises(ConfigError, match=f"is a {config.model_type}, which predicts no next word"):
            LanguageModel(LanguageConfig(name=str(folder)))
    half = saved(GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)), tmp_path / "half")
    content = GPT2Config(vocab_size=8, n_embd=8, n_layer=2, n_head=1)
    content.save_pretrained(half)
    with pytest.raises(ConfigError, match=r"its weights lack \d+ tensors, such as transformer.h.1"):
        LanguageModel(LanguageConfig(name=str(half)))


def test_dropout_is_the_one_asked_for():
    for family, names in (("llama", ["attention_dropout"]), ("gpt2", ["resid_pdrop", "embd_pdrop", "attn_pdrop"])):
        described = build(family, dropout=0.25).transformer.config
        assert [getattr(described, name) for name in names] == [0.25] * len(names)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"hidden_size": 30, "heads": 4}, "does not divide into 4 heads"),
        ({"hidden_size": 12, "heads": 4}, "need an even width"),
        ({"positions": 16}, "do not fit into 16 positions"),
    ],
    ids=["heads", "rotary", "positions"],
)
def test_settings_that_cannot_work_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        LanguageConfig(**given)


@pytest.mark.parametrize(
    "module", [language, language_config, language_text, caption_scores], ids=lambda one: one.__name__
)
def test_examples(module):
    torch.set_default_dtype(torch.float32)
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
