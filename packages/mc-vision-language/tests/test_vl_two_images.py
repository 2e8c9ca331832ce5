"""Two pictures in turn, what a pair of layers shares, and the stage of text assignment."""

import copy
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mc_core.engine.method import Progress
from mc_core.errors import CheckpointError, ConfigError
from mc_core.random import uniform
from mc_vision_language.tasks import load_task_model
from mc_vision_language.tasks.config import AssignmentConfig, TwoImageConfig
from mc_vision_language.tasks.nlvr2 import NLVR2, AssignmentModel, StatementModel, TextAssignment, assign
from mc_vision_language.tasks.starting import doubled, load_doubled
from mc_vision_language.tasks.two_images import paired_keys

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_tasks.py"))))
SENTENCES = ["is it red", "what is it", "a large red three left of"]


def made(seed=0) -> StatementModel:
    torch.manual_seed(seed)
    model = StatementModel(TwoImageConfig(**tiny.encoders()), tiny.tokenizer())
    model.start_from(tiny.pretrained())
    return model.eval()


def pairs_of(fusion):
    return list(zip(fusion.layers[::2], fusion.layers[1::2], strict=True))


def assert_shared(fusion):
    """One tensor for the keys and one for the values of a pair; all else is separate."""
    for first, second in pairs_of(fusion):
        for name, parameter in first.named_parameters():
            other = second.get_parameter(name)
            if name.startswith(("cross_attention.key", "cross_attention.value")):
                assert parameter is other, name
            else:
                assert parameter is not other, name


def test_keys_and_values_of_a_pair_stay_one_tensor(tmp_path):
    model = made()
    assert_shared(model.net.backbone.fusion)
    model.save(tmp_path / "model")
    again = load_task_model(tmp_path)
    assert_shared(again.net.backbone.fusion)
    torch.testing.assert_close(again.state_dict(), model.state_dict())
    again.load_state_dict(made(1).state_dict())
    assert_shared(again.net.backbone.fusion)
    assert_shared(copy.deepcopy(again).net.backbone.fusion)
    method = NLVR2(again.config, None, again)
    assert_shared(method.teacher.module.backbone.fusion)
    method.load_state_dict(NLVR2(again.config, None, made(2)).state_dict())
    assert_shared(method.net.backbone.fusion)
    assert_shared(method.teacher.module.backbone.fusion)


def test_both_layers_start_from_the_same_fusion_layer():
    model, start = made(), tiny.pretrained()
    for place, layer in enumerate(model.net.backbone.fusion.layers):
        source = start.backbone.fusion.layers[place // 2].state_dict()
        torch.testing.assert_close(layer.state_dict(), source)
    assert len(model.net.backbone.fusion) == 4


def test_the_shared_projection_has_one_gradient_from_both_layers():
    """Untied copies, run literally, give two gradients whose sum it is; an optimizer step then moves one tensor."""
    model = made().train()
    plain = copy.deepcopy(model)
    for _, second in pairs_of(plain.net.backbone.fusion):
        second.cross_attention.key = copy.deepcopy(second.cross_attention.key)
        second.cross_attention.value = copy.deepcopy(second.cross_attention.value)
    ids, mask = model.tokens_of(SENTENCES)
    first, second = tiny.pixels(3), tiny.pixels(3, seed=1)
    model.net(first, second, ids, mask)[0].square().sum().backward()

    net = plain.net
    tokens = net.backbone.image_tokens(first), net.backbone.image_tokens(second)
    states = net.backbone.text_states(ids, mask)
    keys = net.backbone.fusion.keys(*tokens)
    net.head(net.backbone.fuse(states, mask, keys)[:, 0]).square().sum().backward()

    for (a, _), (b, c) in zip(pairs_of(model.net.backbone.fusion), pairs_of(net.backbone.fusion), strict=True):
        for name in ("key", "value"):
            parts = [getattr(layer.cross_attention, name).weight.grad for layer in (b, c)]
            found = getattr(a.cross_attention, name).weight.grad
            torch.testing.assert_close(found, parts[0] + parts[1], rtol=1e-4, atol=1e-6)
            assert all(part.abs().max() > 0 for part in parts)
    torch.optim.AdamW(model.parameters(), lr=0.1).step()
    assert_shared(model.net.backbone.fusion)


@torch.no_grad()
def test_layers_look_at_the_first_and_the_second_picture_in_turn():
    model = made()
    net = model.net
    first, second = tiny.pixels(3), tiny.pixels(3, seed=1)
    tokens = net.backbone.image_tokens(torch.cat([first, second]))
    rows = torch.arange(6)
    ours = paired_keys(net.backbone.fusion, tokens, rows[:3], rows[3:])
    literal = net.backbone.fusion.keys(tokens[:3], tokens[3:])
    for a, b in zip(ours.layers, literal.layers, strict=True):
        torch.testing.assert_close(a, b)
    one_way = model.probabilities(first, second, SENTENCES)
    other_way = model.probabilities(second, first, SENTENCES)
    assert abs(one_way - other_way).max() > 1e-4
    for row in range(3):
        alone = model.probabilities(first[row : row + 1], second[row : row + 1], SENTENCES[row : row + 1])
        assert alone == pytest.approx(one_way[row : row + 1], abs=1e-5)
    assert model.is_true(first, second, SENTENCES) == (one_way > 0.5).tolist()


def test_layers_that_do_not_pair():
    fusion = tiny.pretrained().backbone.fusion
    twice = doubled(fusion)
    twice.layers = twice.layers[:3]
    with pytest.raises(CheckpointError, match="3 layers in pairs cannot start from 2"):
        load_doubled(twice, fusion)


def test_the_teacher_starts_equal_after_weights_were_loaded():
    model = made()
    method = NLVR2(model.config, None, model)
    torch.testing.assert_close(dict(method.teacher.module.state_dict()), dict(method.net.state_dict()))
    method.model.start_from(tiny.pretrained(seed=4))
    assert not torch.equal(
        method.teacher.module.backbone.text.word_embeddings.weight, method.net.backbone.text.word_embeddings.weight
    )
    method.sync_teacher()
    torch.testing.assert_close(dict(method.teacher.module.state_dict()), dict(method.net.state_dict()))


def statement_batch(count=4):
    ids, mask = made().tokens_of([SENTENCES[n % 3] for n in range(count)])
    return {
        "view_1": tiny.pixels(count),
        "view_2": tiny.pixels(count, seed=1),
        "input_ids": ids,
        "attention_mask": mask,
        "label": torch.arange(count) % 2,
        "index": torch.arange(count),
        "epoch": 0,
    }


def test_momentum_distillation_reaches_statements():
    model = made()
    method = NLVR2(model.config, None, model)
    with torch.no_grad():
        for parameter in method.teacher.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    batch = statement_batch()
    inputs = [batch[name] for name in ("view_1", "view_2", "input_ids", "attention_mask")]
    with torch.no_grad():
        student, taught = (net(*inputs)[0].log_softmax(1) for net in (method.net, method.teacher))
    hard = -student.gather(1, batch["label"][:, None]).mean()
    soft = -(taught.exp() * student).sum(1).mean()
    for step, alpha in ((0, 0.0), (5, 0.2), (40, 0.4)):
        output = method.training_step(batch, Progress(step=step, steps_per_epoch=10))
        assert output.metrics["alpha"] == pytest.approx(alpha)
        assert float(output.loss.detach()) == pytest.approx(float((1 - alpha) * hard + alpha * soft), rel=1e-4)


def drawn(count, seed, *, neither=1 / 3, same=None, similarity=None):
    similarity = torch.eye(count) if similarity is None else similarity
    same = torch.eye(count).bool() if same is None else same
    u = uniform(seed, 0, torch.arange(count), 4)
    return assign(similarity, same, u, temperature=0.07, neither=neither)


def test_labels_say_where_the_own_picture_is():
    own = torch.arange(500)
    found = drawn(500, 0)
    for label, place in ((0, found.first), (1, found.second)):
        rows = found.label == label
        assert torch.equal(place[rows], own[rows])
        other = found.second if label == 0 else found.first
        assert not (other[rows] == own[rows]).any()
    neither = found.label == 2
    assert not ((found.first == own) | (found.second == own))[neither].any()
    assert not (found.first == found.second)[neither].any()
    counts = found.label.bincount(minlength=3) / 500
    torch.testing.assert_close(counts, torch.full((3,), 1 / 3), rtol=0, atol=0.07)
    assert found.valid.all()


def test_wrong_pictures_follow_the_softmax_of_their_likeness():
    similarity = torch.tensor([[1.0, 0.1, 0.05, 0.0], [0.1, 1, 0, 0], [0.05, 0, 1, 0], [0.0, 0, 0, 1]])
    counts = torch.zeros(4)
    for seed in range(1500):
        counts[
            drawn(4, seed, neither=0.0, similarity=similarity)[1 - int(drawn(4, seed, neither=0.0).label[0])][0]
        ] += 1
    expected = 1500 * (similarity[0] / 0.07).masked_fill(torch.eye(4)[0].bool(), -torch.inf).softmax(0)
    chi = float(((counts - expected)[1:] ** 2 / expected[1:]).sum())
    assert counts[0] == 0
    assert chi < 13.8  # 0.1 % of the time, with two degrees of freedom


def test_the_same_picture_or_caption_is_never_wrong():
    ids = torch.tensor([0, 0, 1, 1, 2, 2])
    same = ids[:, None] == ids
    for seed in range(100):
        found = drawn(6, seed, same=same, neither=0.5)
        wrong = torch.where(found.label == 0, found.second, found.first)
        assert not same[torch.arange(6), wrong].any()
        both = found.label == 2
        assert not same[found.first, found.second][both].any()


def test_a_batch_without_another_picture_trains_nothing():
    found = drawn(3, 0, same=torch.ones(3, 3).bool())
    assert not found.valid.any()
    two = drawn(2, 0, neither=1.0)
    assert two.valid.all()
    assert (two.label != 2).all()  # two wrong pictures are not to be had


def assignment() -> TextAssignment:
    model = AssignmentModel(AssignmentConfig(**tiny.encoders()), tiny.tokenizer())
    model.start_from(tiny.pretrained())
    return TextAssignment(model.config, None, model)


def caption_batch(count=6):
    ids, mask = made().tokens_of([SENTENCES[n % 3] for n in range(count)])
    numbers = torch.arange(count)
    return {
        "view": tiny.pixels(count),
        "input_ids": ids,
        "attention_mask": mask,
        "image_ids": numbers,
        "text_ids": numbers,
        "index": numbers,
        "epoch": 0,
    }


def test_text_assignment_is_the_cross_entropy_of_where_the_picture_is():
    method, batch = assignment(), caption_batch()
    progress = Progress(run_seed=3)
    output = method.training_step(batch, progress)
    with torch.no_grad():
        tokens = method.model.net.backbone.image_tokens(batch["view"])
        found = method.drawn(tokens, batch, 3)
        logits, _ = method.model.net(
            batch["view"][found.first], batch["view"][found.second], batch["input_ids"], batch["attention_mask"]
        )
        expected = torch.nn.functional.cross_entropy(logits, found.label)
    assert float(output.loss.detach()) == pytest.approx(float(expected), rel=1e-4)
    again = method.drawn(tokens, batch, 3)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    other = method.drawn(tokens, {**batch, "epoch": 1}, 3)
    assert not all(torch.equal(a, b) for a, b in zip(found, other, strict=True))


def test_statements_start_from_text_assignment():
    method = assignment()
    with torch.no_grad():
        for parameter in method.model.net.parameters():
            parameter.add_(0.01)
    model = StatementModel(TwoImageConfig(**tiny.encoders()), tiny.tokenizer())
    model.start_from(method.model)
    torch.testing.assert_close(dict(model.net.backbone.state_dict()), dict(method.model.net.backbone.state_dict()))
    assert_shared(model.net.backbone.fusion)


def test_a_single_pair_is_refused():
    with pytest.raises(ConfigError, match="1 pair per process and micro-batch has no wrong picture"):
        assignment().check(1)


def test_the_same_picture_or_caption_is_never_drawn_as_wrong():
    """Pictures 0 and 1 are the same, captions 2 and 3 say the same; over many epochs everything else is drawn."""
    torch.manual_seed(0)
    method = TextAssignment(AssignmentConfig(**tiny.encoders()), tiny.tokenizer())
    tokens = method.model.net.backbone.image_tokens(tiny.pixels(4))
    batch = {"image_ids": torch.tensor([7, 7, 8, 9]), "text_ids": torch.tensor([1, 2, 3, 3]), "index": torch.arange(4)}
    seen = set()
    for epoch in range(60):
        drawn = method.drawn(tokens, {**batch, "epoch": epoch}, 0)
        assert drawn.valid.all()
        shown = [*enumerate(drawn.first.tolist()), *enumerate(drawn.second.tolist())]
        seen |= {(row, other) for row, other in shown if row != other}
    assert seen == {(0, 2), (0, 3), (1, 2), (1, 3), (2, 0), (2, 1), (3, 0), (3, 1)}


def test_a_caption_that_has_no_wrong_picture_does_not_count():
    """The first pair shares its picture with the second and its words with the third: nothing is wrong beside it."""
    method, batch = assignment(), caption_batch(3)
    batch |= {"image_ids": torch.tensor([7, 7, 8]), "text_ids": torch.tensor([1, 2, 1])}
    net = method.model.net
    loss = float(method.training_step(batch, Progress(run_seed=3)).loss.detach())
    with torch.no_grad():
        tokens = net.backbone.image_tokens(batch["view"])
        drawn = method.drawn(tokens, batch, 3)
        logits, _ = net.judge(tokens, drawn.first, drawn.second, batch["input_ids"], batch["attention_mask"])
    assert drawn.valid.tolist() == [False, True, True]
    each = -logits.log_softmax(1).gather(1, drawn.label[:, None])[:, 0]
    assert loss == pytest.approx(float(each[1:].mean()), abs=1e-5)
    assert abs(loss - float(each.mean())) > 1e-4
