"""The answer decoder: its likelihoods, its ranking, its free answers, and what the teacher is told."""

import copy
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mc_core.engine.method import Progress
from mc_core.errors import CheckpointError, ConfigError
from mc_vision_language.tasks.config import VQAConfig
from mc_vision_language.tasks.vqa import VQA, VQAModel

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_tasks.py"))))
encoders, pixels, pretrained, tokenizer = tiny.encoders, tiny.pixels, tiny.pretrained, tiny.tokenizer

ANSWERS = ("yes", "no", "red", "blue", "dark red", "red red", "dark blue")
QUESTIONS = ["is it red", "what is it", "what is it a large red three"]


def made(seed=0, **fields) -> VQAModel:
    model = VQAModel(VQAConfig(**encoders(), **fields), tokenizer(), ANSWERS)
    model.start_from(pretrained(seed))
    with torch.no_grad():  # words that differ, as after training
        model.net.decoder.embeddings.word_embeddings.weight.mul_(20)
    return model.eval()


def brute_force(model, keys, answer, row) -> float:
    """Σ_t log p(w_t | w_0 … w_{t−1}), one prefix after the other, one question alone."""
    tokens = model.answer_tokens([answer])
    ids = tokens.ids[:, : int(tokens.mask.sum())]
    total = 0.0
    for place in range(1, ids.shape[1]):
        states = model.net.decoder(ids[:, :place], torch.ones_like(ids[:, :place]), keys.take(torch.tensor([row])))
        total += float(model.net.decoder.words(states[:, -1]).log_softmax(1)[0, ids[0, place]])
    return total


@torch.no_grad()
def test_rank_score_is_the_likelihood_of_the_whole_answer():
    model = made()
    keys = model.question_keys(pixels(3), QUESTIONS)
    ranking = model.net.rank(keys, model.answer_tokens(ANSWERS), len(ANSWERS))
    for row in range(3):
        expected = torch.tensor([brute_force(model, keys, answer, row) for answer in ANSWERS])
        order = expected.argsort(descending=True)
        assert ranking.rows[row].tolist() == order.tolist()
        torch.testing.assert_close(ranking.scores[row], expected[order], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_double_count_adds_the_first_token_once_more():
    model = made()
    keys = model.question_keys(pixels(3), QUESTIONS)
    tokens = model.answer_tokens(ANSWERS)
    start = torch.full((3, 1), model.config.text.cls_id)
    first = model.net.decoder.words(model.net.decoder(start, torch.ones_like(start), keys)[:, 0]).log_softmax(1)
    single, double = (model.net.rank(keys, tokens, len(ANSWERS), double_count=flag) for flag in (False, True))
    for row in range(3):
        by_answer = dict(zip(single.rows[row].tolist(), single.scores[row].tolist(), strict=True))
        for place, score in zip(double.rows[row].tolist(), double.scores[row].tolist(), strict=True):
            assert score == pytest.approx(by_answer[place] + float(first[row, tokens.ids[place, 1]]), abs=1e-4)


@torch.no_grad()
def test_only_answers_with_a_probable_first_token_are_scored():
    model = made()
    keys = model.question_keys(pixels(3), QUESTIONS)
    tokens = model.answer_tokens(ANSWERS)
    start = torch.full((3, 1), model.config.text.cls_id)
    first = model.net.decoder.words(model.net.decoder(start, torch.ones_like(start), keys)[:, 0]).log_softmax(1)
    whole, cut = (model.net.rank(keys, tokens, most) for most in (len(ANSWERS), 3))
    for row in range(3):
        probable = first[row, tokens.ids[:, 1]]
        assert probable[cut.rows[row]].min() >= probable.sort(descending=True).values[2]
        by_answer = dict(zip(whole.rows[row].tolist(), whole.scores[row].tolist(), strict=True))
        assert cut.scores[row].tolist() == pytest.approx(
            [by_answer[place] for place in cut.rows[row].tolist()], abs=1e-4
        )


@torch.no_grad()
def test_padding_of_other_questions_changes_nothing():
    model = made()
    together = model.scored(pixels(3), QUESTIONS, top=2)
    for row in range(3):
        alone = model.scored(pixels(3)[row : row + 1], QUESTIONS[row : row + 1], top=2)[0]
        assert [answer for answer, _ in alone] == [answer for answer, _ in together[row]]
        assert [score for _, score in alone] == pytest.approx([score for _, score in together[row]], abs=1e-4)


@torch.no_grad()
def test_a_word_does_not_see_what_follows():
    model = made()
    keys = model.question_keys(pixels(1), QUESTIONS[:1])
    ids = torch.tensor([[2, 9, 11, 12]])
    other = torch.tensor([[2, 9, 11, 7]])
    a, b = (model.net.decoder(one, torch.ones_like(one), keys) for one in (ids, other))
    torch.testing.assert_close(a[:, :3], b[:, :3])
    assert not torch.allclose(a[:, 3], b[:, 3])


@torch.no_grad()
def test_the_decoder_looks_at_the_question_and_through_it_at_the_picture():
    model = made()
    base = model.scored(pixels(1), QUESTIONS[:1], top=7)[0]
    other_picture = model.scored(pixels(1, seed=5), QUESTIONS[:1], top=7)[0]
    other_question = model.scored(pixels(1), QUESTIONS[1:2], top=7)[0]
    assert base != other_picture
    assert base != other_question


@torch.no_grad()
def test_free_answers_stop():
    model = made()
    end, head = model.config.text.sep_id, model.net.decoder.head
    keys = model.question_keys(pixels(3), QUESTIONS)
    ids = model.net.generate(keys, start=2, end=end, length=10)
    assert ids.shape[0] == 3
    assert ids.shape[1] <= 9
    for row in ids.tolist():
        assert all(word == end for word in row[row.index(end) :]) if end in row else len(row) == 9
    greedy = [2]
    for place in range(ids.shape[1]):
        prefix = torch.tensor([greedy])
        logits = model.net.decoder.words(
            model.net.decoder(prefix, torch.ones_like(prefix), keys.take(torch.tensor([0])))[:, -1]
        )
        if ids[0, place] == end and end in greedy:
            break
        assert int(logits.argmax()) == int(ids[0, place])
        greedy.append(int(ids[0, place]))
    head.bias[end] = 100.0
    assert model.net.generate(keys, start=2, end=end, length=10).tolist() == [[end]] * 3
    assert model.generate(pixels(3), QUESTIONS) == ["", "", ""]


def test_what_has_ended_stays_ended(monkeypatch):
    model = made()
    end = model.config.text.sep_id
    words = iter([[7, end], [8, 9], [end, 9], [9, 9]])

    def scripted(states):
        logits = torch.zeros(2, 64)
        logits[torch.arange(2), torch.tensor(next(words))] = 1.0
        return logits

    monkeypatch.setattr(model.net.decoder, "words", scripted)
    keys = model.question_keys(pixels(2), QUESTIONS[:2])
    assert model.net.generate(keys, start=2, end=end, length=10).tolist() == [[7, 8, end], [end, end, end]]


@torch.no_grad()
def test_another_list_of_answers_may_be_given_at_any_time():
    model = made()
    first = model.answer(pixels(2), QUESTIONS[:2], top=7)
    assert model.answer(pixels(2), QUESTIONS[:2], answers=["red"]) == [["red"], ["red"]]
    assert model.answer(pixels(2), QUESTIONS[:2], answers=["blue", "no"], top=5)[0] in (["blue", "no"], ["no", "blue"])
    assert model.answer(pixels(2), QUESTIONS[:2], top=7) == first


def test_the_decoder_starts_from_the_fusion_layers_and_the_head_for_words():
    start = pretrained()
    model = VQAModel(VQAConfig(**encoders(), decoder_layers=1), tokenizer())
    model.start_from(start)
    decoder, last = model.net.decoder, start.backbone.fusion.layers[-1].state_dict()
    for name, tensor in decoder.layers.layers[0].state_dict().items():
        assert torch.equal(tensor, last[name]), name  # image tokens are as wide as text states here
    assert torch.equal(decoder.head.dense.weight, start.backbone.lm_head.dense.weight)
    assert torch.equal(decoder.embeddings.word_embeddings.weight, start.backbone.text.word_embeddings.weight)
    assert decoder.embeddings.word_embeddings.weight is not model.net.backbone.text.word_embeddings.weight


def test_more_decoder_layers_than_fusion_layers():
    with pytest.raises(ConfigError, match="decoder_layers 3 is more than the 2 fusion layers"):
        VQAModel(VQAConfig(**encoders(), decoder_layers=3), tokenizer())


def test_more_ranked_than_there_are_answers():
    model = made(rank=9)
    with pytest.raises(ConfigError, match="rank 9 is more than the list of 7 answers"):
        model.answer(pixels(1), QUESTIONS[:1])
    assert made().ranked(7) == 7
    assert made().ranked(500) == 128
    with pytest.raises(ConfigError, match="no list of answers"):
        made().answer(pixels(1), QUESTIONS[:1], answers=[])


def test_a_pretrained_model_of_another_width_is_refused():
    other = pretrained(hidden_size=32)
    with pytest.raises(CheckpointError, match="does not fit this task's settings"):
        VQAModel(VQAConfig(**encoders()), tokenizer()).start_from(other)


def batch(count=4, seed=0):
    model = made()
    answers = model.answer_tokens(["yes", "dark red", "no", "blue", "red"])
    ids, mask = model.tokens_of([QUESTIONS[n % 3] for n in range(count)], 25)
    return {
        "view": pixels(count, seed),
        "input_ids": ids,
        "attention_mask": mask,
        "answer_ids": answers.ids,
        "answer_mask": answers.mask,
        "answer_of": torch.tensor([0, 0, 1, 2, 3]),
        "answer_weights": torch.tensor([0.7, 0.3, 1.0, 0.5, 1.0]),
        "index": torch.arange(count),
        "epoch": 0,
    }


def test_the_loss_is_the_sum_over_answers_of_weighted_likelihoods():
    method = VQA(VQAConfig(**encoders(), alpha=0.0), model=made(alpha=0.0))
    given = batch()
    loss = method.training_step(given, Progress(steps_per_epoch=1)).loss.detach()
    with torch.no_grad():
        states = method.net.question_states(given["view"], given["input_ids"], given["attention_mask"])
        keys = method.net.decoder.keys(states, given["attention_mask"])
        each = [
            brute_force(method.model, keys, answer, row)
            for answer, row in zip(["yes", "dark red", "no", "blue", "red"], [0, 0, 1, 2, 3], strict=True)
        ]
    expected = -sum(w * one for w, one in zip(given["answer_weights"].tolist(), each, strict=True)) / 4
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert method.teacher is None


def test_momentum_distillation_reaches_the_decoder():
    """α is handed on: with a teacher that differs the loss is that of the equation, and moves with α."""
    method = VQA(VQAConfig(**encoders(), alpha=0.4), model=made())
    with torch.no_grad():
        for parameter in method.teacher.module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    given = batch()
    early, late = (method.training_step(given, Progress(step=step, steps_per_epoch=10)) for step in (0, 20))
    assert (early.metrics["alpha"], late.metrics["alpha"]) == (0.0, 0.4)
    inputs = (given["view"], given["input_ids"], given["attention_mask"])
    from mc_vision_language.tasks.answering import AnswerTokens

    answers = AnswerTokens(given["answer_ids"], given["answer_mask"])
    with torch.no_grad():
        student, taught = (
            net(*inputs, answers, given["answer_of"])[0].log_softmax(1) for net in (method.net, method.teacher)
        )
    follows = answers.mask[:, 1:].bool()
    targets = answers.ids[:, 1:][follows]
    hard = -student.gather(1, targets[:, None])[:, 0]
    soft = -(taught.exp() * student).sum(1)
    weight = given["answer_weights"][:, None].expand_as(follows)[follows]
    assert float(late.loss.detach()) == pytest.approx(float((weight * (0.6 * hard + 0.4 * soft)).sum() / 4), rel=1e-4)
    assert float(early.loss.detach()) == pytest.approx(float((weight * hard).sum() / 4), rel=1e-4)


def test_the_teacher_moves_once_after_the_step_and_can_be_synchronised():
    method = VQA(VQAConfig(**encoders(), momentum=0.9), model=made(momentum=0.9))
    before = copy.deepcopy(method.teacher.module.state_dict())
    with torch.no_grad():
        method.net.decoder.head.bias.add_(1.0)
    method.training_step(batch(), Progress(step=5, steps_per_epoch=1))
    assert torch.equal(method.teacher.module.decoder.head.bias, before["decoder.head.bias"])
    method.after_step(Progress())
    moved = method.teacher.module.decoder.head.bias - before["decoder.head.bias"]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1))
    method.sync_teacher()
    assert torch.equal(method.teacher.module.decoder.head.bias, method.net.decoder.head.bias)
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())


def test_saved_and_loaded_it_answers_the_same(tmp_path):
    from mc_vision_language.tasks import load_task_model

    model = made()
    model.save(tmp_path / "model")
    again = load_task_model(tmp_path)
    assert again.answers == ANSWERS
    assert again.scored(pixels(3), QUESTIONS, top=7) == model.scored(pixels(3), QUESTIONS, top=7)
