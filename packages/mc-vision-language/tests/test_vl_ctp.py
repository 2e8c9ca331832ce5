"""CTP's training step against a literal reading of its equations in float64, and how its state moves from task to task."""

import copy
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from mc_core.continual import Task, TaskData, fit_tasks, task_folder
from mc_core.data import TensorData
from mc_core.engine import Fit
from mc_core.errors import ConfigError
from mc_core.files import load_state
from mc_core.momentum import MomentumEncoder
from mc_core.recipes import load_recipe
from mc_testkit.toys import captioned_images
from mc_vision_language.continual import ContinualConfig, Sequential
from mc_vision_language.methods.ctp import CTP, CTPConfig
from mc_vision_language.methods.ctp.loss import own_columns, topology, without
from mc_vision_language.methods.ctp.model import follow_both

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_ctp.py"))))
ALONE, CASES, TOPOLOGY, B, K = tiny.ALONE, tiny.CASES, tiny.TOPOLOGY, tiny.B, tiny.K
FIRST, SECOND, THIRD = tiny.FIRST, tiny.SECOND, tiny.THIRD
at, batch_of, build, filled, gradients, shake = (
    tiny.at,
    tiny.batch_of,
    tiny.build,
    tiny.filled,
    tiny.gradients,
    tiny.shake,
)


def literal_losses(method, batch, progress):
    """Section 2 of methods/ctp: pair by pair, every pass by itself; which words are hidden is the method's choice."""
    config, student = method.config, method.backbone
    tau, n = config.temperature, len(batch["input_ids"])
    ids, mask = batch["input_ids"], batch["attention_mask"]

    def features(backbone):
        image = [backbone.embed_images(batch["view"][b : b + 1])[0] for b in range(n)]
        text = [backbone.embed_tokens(ids[b : b + 1], mask[b : b + 1])[0] for b in range(n)]
        return image, text

    def same(b, j, image_ids, text_ids):
        if not config.ids:
            return b == j
        return bool(batch["image_ids"][b] == image_ids[j]) or bool(batch["text_ids"][b] == text_ids[j])

    def contrast(rows, candidates, image_ids, text_ids):
        total = 0.0
        for b in range(n):
            log_p = (torch.stack([rows[b] @ key for key in candidates]) / tau).log_softmax(0)
            right = [j for j in range(len(candidates)) if same(b, j, image_ids, text_ids)]
            total -= sum(log_p[j] for j in right) / len(right) / n
        return total

    def masked_logits(backbone, b, row_ids, column):
        states = backbone.text_states(row_ids, mask[b : b + 1])
        keys = backbone.keys(backbone.image_tokens(batch["view"][b : b + 1]))
        return backbone.lm_logits(backbone.fuse(states, mask[b : b + 1], keys))[0, column]

    v, w = features(student)
    own = batch["image_ids"], batch["text_ids"]
    found = {"ita": (contrast(v, w, *own) + contrast(w, v, *own)) / 2}
    compatible = method.compatible.module
    if config.mlm:
        masked = method.masked(batch, progress)
        hard, soft = [], []
        for b, column in zip(masked.rows.tolist(), masked.columns.tolist(), strict=True):
            log_p = masked_logits(student, b, masked.input_ids[b : b + 1], column).log_softmax(0)
            opinion = masked_logits(compatible, b, masked.input_ids[b : b + 1], column).softmax(0)
            hard.append(-log_p[ids[b, column]])
            soft.append(-(opinion * log_p).sum())
        found["mlm"], found["mlm_distil"] = torch.stack(hard).mean(), torch.stack(soft).mean()
    if config.contrast:
        v_c, w_c = (list(rows) for rows in features(compatible))
        queues = method.queues
        image_ids = [*own[0], *(queues["image"].ids if queues else [])]
        text_ids = [*own[1], *(queues["text"].ids if queues else [])]
        texts, images = ([*w_c, *queues["text"].features], [*v_c, *queues["image"].features]) if queues else (w_c, v_c)
        found["cmc"] = (contrast(v, texts, image_ids, text_ids) + contrast(w, images, image_ids, text_ids)) / 2
    if method.old is not None:
        v_r, w_r = features(method.old.module)

        def preserved(before, now, *, kind_alone):
            (rows_r, others_r), (rows, others) = before, now
            total = 0.0
            for b in range(n):
                old, new = (
                    torch.stack(
                        [
                            one @ other / tau if j != b or not (kind_alone and config.mask_own) else torch.tensor(-1e3)
                            for j, other in enumerate(there)
                        ]
                    )
                    for one, there in ((rows_r[b], others_r), (rows[b], others))
                )
                p = old.softmax(0)
                total += (p * (old.log_softmax(0) - new.log_softmax(0))).sum() / n
            return total

        ways = [((v_r, w_r), (v, w)), ((w_r, v_r), (w, v))]
        found["topology_cross"] = sum(preserved(*way, kind_alone=False) for way in ways) / 2
        alone = [((v_r, v_r), (v, v)), ((w_r, w_r), (w, w))]
        found["topology_same"] = sum(preserved(*way, kind_alone=True) for way in alone) / 2
    weights = {"cmc": "contrast", "topology_cross": "cross", "topology_same": "same", "mlm_distil": "distil_mlm"}
    return {
        name: value * getattr(config, weights.get(name, name))
        for name, value in found.items()
        if getattr(config, weights.get(name, name))
    }


CHANGES = {
    "as-published": {"ids": False},
    "ids": {},
    "no-queue": {"queue_size": 0},
    "no-mask": {"mask_own": False},
    "no-words": {"mlm": 0.0},
    "no-word-distillation": {"distil_mlm": 0.0},
    "weights": {"contrast": 0.5, "cross": 2.0, "same": 3.0, "mlm": 0.7, "distil_mlm": 0.3},
}


@pytest.mark.parametrize(
    ("task", "changes"),
    [*((FIRST, CHANGES[name]) for name in ("ids", "no-words")), *((SECOND, changes) for changes in CHANGES.values())],
    ids=["first-task", "first-task-no-words", *CHANGES],
)
def test_losses_equal_the_equations_read_literally(task, changes):
    method = build(task, **changes)
    if method.queues:
        filled(method)
    batch, progress = batch_of(range(B)), at()
    batch["text_ids"][5] = batch["text_ids"][4]  # the same thing in other words
    output = method.training_step(batch, progress)
    expected = literal_losses(method, batch, progress)
    assert output.metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert abs(float(output.metrics[name]) - float(value.detach())) < 1e-9, name
    assert float(output.loss.detach()) == pytest.approx(float(sum(expected.values()).detach()), abs=1e-9)


def test_gradient_is_that_of_the_literal_losses():
    method = filled(build(SECOND))
    batch, progress = batch_of(range(B)), at()
    method.training_step(batch, progress).loss.backward()
    ours = {name: gradient.clone() for name, gradient in gradients(method).items()}
    method.zero_grad()
    sum(literal_losses(method, batch, progress).values()).backward()
    expected = gradients(method)
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    assert ours.keys() == expected.keys() == trained
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-9, msg=name)


def test_the_order_of_a_batch_changes_nothing():
    """Which words are hidden is drawn for each sample, so that they turn with it."""
    method = filled(build(SECOND))
    plain = method.training_step(batch_of(range(B)), at())
    turned = method.training_step(batch_of([3, 1, 4, 0, 5, 7, 2, 6]), at())
    assert len(plain.metrics) == 6
    for name, value in plain.metrics.items():
        torch.testing.assert_close(value, turned.metrics[name], rtol=0, atol=1e-11, msg=name)


class TestCompatibleMomentum:
    @pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 1.0])
    @pytest.mark.parametrize("interpolation", [0.0, 0.3, 0.5, 1.0])
    def test_it_is_the_three_way_update_and_old_model_plus_moving_average(self, momentum, interpolation):
        """θ_c(n) = α θ_old + (1 − α) u(n), with u the plain moving average of θ started at θ_old, for a student that wanders."""
        method = build(FIRST)
        old = method.frozen_copy()
        method.compatible.synchronise()
        start = [p.detach().clone() for p in method.backbone.parameters()]
        literal, average = [p.clone() for p in start], [p.clone() for p in start]
        for _ in range(7):
            with torch.no_grad():
                shake(method.backbone.parameters())
            follow_both(method.compatible, old, momentum, interpolation)
            for i, online in enumerate(method.backbone.parameters()):
                goal = interpolation * start[i] + (1 - interpolation) * online.detach()
                literal[i] = momentum * literal[i] + (1 - momentum) * goal
                average[i] = momentum * average[i] + (1 - momentum) * online.detach()
        for ours, one, before, u in zip(method.compatible.parameters(), literal, start, average, strict=True):
            torch.testing.assert_close(ours, one, rtol=0, atol=1e-12)
            torch.testing.assert_close(ours, interpolation * before + (1 - interpolation) * u, rtol=0, atol=1e-12)

    def test_with_a_constant_student_the_distance_to_the_midpoint_shrinks_by_the_momentum(self):
        method = build(SECOND)
        middle = [(a + b) / 2 for a, b in zip(method.old.parameters(), method.backbone.parameters(), strict=True)]
        for _ in range(4):
            before = [p.clone() for p in method.compatible.parameters()]
            with torch.no_grad():
                method.after_step(at())
            for was, now, goal in zip(before, method.compatible.parameters(), middle, strict=True):
                torch.testing.assert_close(now - goal, 0.9 * (was - goal), rtol=0, atol=1e-12)

    def test_one_way_it_is_the_plain_moving_average_to_the_bit(self):
        method = build(SECOND, interpolation=0.0)
        plain = MomentumEncoder(method.backbone, 0.9)
        plain.module.load_state_dict(method.compatible.module.state_dict())
        for _ in range(3):
            with torch.no_grad():
                shake(method.backbone.parameters())
                method.after_step(at())
            plain.update()
        for ours, theirs in zip(method.compatible.parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours, theirs)

    def test_the_first_task_has_its_own_momentum_and_no_old_model(self):
        method = build(FIRST)
        before = copy.deepcopy(method.compatible.module)
        with torch.no_grad():
            method.after_step(at())
        assert method.old is None
        pairs = zip(before.parameters(), method.compatible.parameters(), method.backbone.parameters(), strict=True)
        for was, now, online in pairs:
            torch.testing.assert_close(now, 0.995 * was + 0.005 * online, rtol=0, atol=1e-12)

    def test_the_sequence_is_that_of_an_update_before_each_forward_pass(self):
        """As in the official code: θ_c ← … in the forward pass of step n, with θ_n; ours moves at the end of step n − 1."""
        method = build(SECOND)
        method.start_task(THIRD)
        old = [p.detach().clone() for p in method.backbone.parameters()]
        literal = [p.clone() for p in old]
        for step in range(4):
            for i, online in enumerate(method.backbone.parameters()):
                literal[i] = 0.9 * literal[i] + 0.1 * (0.5 * old[i] + 0.5 * online.detach())
            for ours, one in zip(method.compatible.parameters(), literal, strict=True):
                torch.testing.assert_close(ours, one, rtol=0, atol=1e-12)
            with torch.no_grad():
                shake(method.backbone.parameters())  # the optimizer
                method.after_step(at(step))

    def test_what_is_equal_in_all_three_stays_to_the_bit(self):
        method = build(SECOND)
        method.start_task(THIRD)
        with torch.no_grad():
            method.after_step(at())
        for ours, online in zip(method.compatible.parameters(), method.backbone.parameters(), strict=True):
            assert torch.equal(ours, online)

    def test_it_starts_each_task_at_the_old_model_or_goes_on(self):
        for restart in (True, False):
            method = build(SECOND, restart=restart)
            before = [p.clone() for p in method.compatible.parameters()]
            with torch.no_grad():
                method.start_task(THIRD)
            expected = method.backbone.parameters() if restart else before
            for ours, theirs in zip(method.compatible.parameters(), expected, strict=True):
                assert torch.equal(ours, theirs)


class TestTopology:
    def test_nothing_to_preserve_in_the_first_step_of_a_task(self):
        """With dropout, which the copies never have, the student in eval mode: L_x = L_s = 0 and so is their gradient."""
        method = build(SECOND, text={"dropout": 0.4}, **TOPOLOGY)
        with torch.no_grad():
            method.start_task(THIRD)
        method.eval()
        step = method.step_of(batch_of(range(B)), at())
        losses = method.extra_losses(step)
        assert losses.keys() == {"topology_cross", "topology_same"}
        sum(losses.values()).backward()
        assert all(abs(float(one.detach())) < 1e-12 for one in losses.values())
        assert max(float(g.abs().max()) for g in gradients(method).values()) < 1e-12

    def test_the_copies_have_no_dropout_while_the_student_has(self):
        method = build(SECOND, text={"dropout": 0.4}).train()
        batch = batch_of(range(B))
        ids, mask = batch["input_ids"], batch["attention_mask"]
        for copied in (method.old, method.compatible):
            assert torch.equal(*(copied.module.embed_tokens(ids, mask) for _ in range(2)))
        assert not torch.equal(*(method.backbone.embed_tokens(ids, mask) for _ in range(2)))

    def test_word_distillation_is_the_opinions_entropy_where_all_agree(self):
        method = build(SECOND)
        with torch.no_grad():
            method.start_task(THIRD)
        step = method.step_of(batch_of(range(B)), at())
        p = step.word_log_p.exp()
        entropy = -(p * step.word_log_p).sum(1).mean()
        assert float(method.extra_losses(step)["mlm_distil"].detach()) == pytest.approx(
            float(entropy.detach()), abs=1e-12
        )

    def test_turning_all_features_of_the_student_changes_nothing(self):
        """Angles are kept, not positions: what tells it from the distillation of features."""
        method = build(SECOND, **TOPOLOGY)
        before = method.training_step(batch_of(range(B)), at()).metrics
        turn = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
        with torch.no_grad():
            for projection in (method.backbone.image_projection, method.backbone.text_projection):
                projection.weight.copy_(turn @ projection.weight)
                projection.bias.copy_(turn @ projection.bias)
        after = method.training_step(batch_of(range(B)), at()).metrics
        assert float(before["topology_cross"]) > 1e-3
        assert float(before["topology_same"]) > 1e-3
        for name, value in before.items():
            torch.testing.assert_close(value, after[name], rtol=0, atol=1e-11, msg=name)
        with torch.no_grad():  # turning one kind alone is another matter
            method.backbone.image_projection.weight.copy_(turn @ method.backbone.image_projection.weight)
            method.backbone.image_projection.bias.copy_(turn @ method.backbone.image_projection.bias)
        once = method.training_step(batch_of(range(B)), at()).metrics
        torch.testing.assert_close(before["topology_same"], once["topology_same"], rtol=0, atol=1e-11)
        assert abs(float(before["topology_cross"] - once["topology_cross"])) > 1e-4

    def test_it_is_never_negative_and_zero_for_equals_alone(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(50):
            old, new = torch.randn(2, 6, 9, dtype=torch.float64, generator=generator).unbind()
            assert float(topology(old, new)) > 0
            assert abs(float(topology(old, old + 3.0))) < 1e-14  # a constant is no topology

    def test_leaving_a_column_out_is_removing_it(self):
        rows = normalize(torch.randn(3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=2)
        old, new = (one @ one.T / 0.07 for one in rows[:2])
        own = own_columns(6, 6, 0)
        masked = topology(without(old, own), without(new, own))
        removed = topology(*(one[~own].view(6, 5) for one in (old, new)))
        official = topology(*(one.masked_fill(own, -1000 / 0.07) for one in (old, new)))
        assert float(masked) == pytest.approx(float(removed), abs=1e-12)
        assert float(masked) == pytest.approx(float(official), abs=1e-12)
        assert float(topology(old, new)) < 0.5 * float(masked)  # the own column hides the others

    def test_leaving_all_columns_out_says_nothing(self):
        nothing = torch.ones(2, 2, dtype=torch.bool)
        logits = torch.randn(2, 2, requires_grad=True)
        loss = topology(without(torch.randn(2, 2), nothing), without(logits, nothing))
        loss.backward()
        assert float(loss.detach()) == 0
        assert not logits.grad.any()

    def test_it_keeps_the_gradient_on_both_sides_of_the_student_and_none_of_the_old(self):
        method = build(SECOND, **TOPOLOGY, same=0.0)
        v, w = (normalize(torch.randn(B, 8, dtype=torch.float64), dim=1).requires_grad_() for _ in range(2))
        old_v, old_w = (normalize(torch.randn(B, 8, dtype=torch.float64), dim=1).requires_grad_() for _ in range(2))
        of_images, old_of_images = v @ w.T / 0.2, old_v @ old_w.T / 0.2
        loss = topology(old_of_images, of_images) + topology(old_of_images.T, of_images.T)
        loss.backward()
        assert old_v.grad is None
        assert old_w.grad is None
        assert float(v.grad.norm()) > 1e-3
        assert float(w.grad.norm()) > 1e-3
        method.training_step(batch_of(range(B)), at()).loss.backward()
        assert all(p.grad is None for p in method.old.parameters())


class TestState:
    def run(self, method, steps=3):
        optimizer = torch.optim.SGD(method.parameter_groups(0.0), lr=0.1)
        for step in range(steps):
            method.training_step(batch_of(range(B), epoch=step), at(step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                method.after_step(at(step))

    def test_the_old_model_never_changes_within_a_task(self):
        method = build(SECOND)
        before = [p.clone() for p in method.old.parameters()]
        self.run(method)
        assert all(torch.equal(a, b) for a, b in zip(before, method.old.parameters(), strict=True))
        with torch.no_grad():
            method.start_task(THIRD)
        for ours, theirs in zip(method.old.parameters(), method.backbone.parameters(), strict=True):
            assert torch.equal(ours, theirs)

    def test_copies_and_queues_take_no_gradient_and_are_no_ones_to_train(self):
        method = filled(build(SECOND))
        method.training_step(batch_of(range(B)), at()).loss.backward()
        held = [*method.old.parameters(), *method.compatible.parameters(), *method.queues.buffers()]
        assert held
        assert all(one.grad is None and not one.requires_grad for one in held)
        trained = {id(p) for group in method.parameter_groups(0.1) for p in group["params"]}
        assert trained == {id(p) for p in method.backbone.parameters()}

    def test_the_queue_outlives_the_task_and_has_no_keys_of_its_own_batch(self):
        method = build(FIRST)
        assert len(method.queues["text"]) == 0
        taught = method.compatible(*(batch_of(range(B))[n] for n in ("view", "input_ids", "attention_mask")))
        method.training_step(batch_of(range(B)), at(0))
        assert len(method.queues["text"]) == 0
        with torch.no_grad():
            method.after_step(at(0))
        assert torch.equal(method.queues["text"].features, taught.text)
        assert torch.equal(method.queues["image"].features, taught.image)
        assert torch.equal(method.queues["image"].ids, batch_of(range(B))["image_ids"])
        assert torch.equal(method.queues["text"].ids, batch_of(range(B))["text_ids"])
        with torch.no_grad():
            method.start_task(SECOND)
        assert torch.equal(method.queues["text"].features, taught.text)
        self.run(method)
        assert len(method.queues["text"]) == K

    def test_the_temperature_stays(self):
        method = build(SECOND)
        before = float(method.model.temperature.detach())
        self.run(method)
        assert float(method.model.temperature.detach()) == before == pytest.approx(0.2)

    def test_a_state_of_a_later_task_goes_into_a_fresh_method_and_on_to_the_same_bits(self):
        method = build(SECOND)
        self.run(method)
        fresh = build(FIRST)
        with torch.no_grad():
            fresh.start_task(SECOND)
        fresh.load_state_dict(method.state_dict())
        self.run(method)
        self.run(fresh)
        for name, value in method.state_dict().items():
            assert torch.equal(value, fresh.state_dict()[name]), name


class TestSwitches:
    @pytest.mark.parametrize(
        ("row", "parts"),
        [
            ("seqf", set()),
            ("cmc", {"cmc"}),
            ("cmc-one-way", {"cmc"}),
            ("tp-cross", {"topology_cross"}),
            ("tp", {"topology_cross", "topology_same"}),
            ("tp-no-mask", {"topology_cross", "topology_same"}),
            ("ctp", {"cmc", "topology_cross", "topology_same"}),
        ],
    )
    def test_each_row_of_the_ablation_has_its_parts_and_no_copy_it_does_not_need(self, row, parts):
        method = build(SECOND, **ALONE[row], mlm=0.0)
        assert method.training_step(batch_of(range(B)), at()).metrics.keys() == {"ita", *parts}
        assert (method.old is None) == (row in ("seqf", "cmc-one-way"))
        assert bool(method.queues) == ("cmc" in parts)

    @pytest.mark.parametrize("part", ["contrast", "cross", "same", "distil_mlm"])
    def test_each_part_can_be_left_out_or_weighted(self, part):
        name = {"contrast": "cmc", "cross": "topology_cross", "same": "topology_same", "distil_mlm": "mlm_distil"}[part]
        whole = build(SECOND).training_step(batch_of(range(B)), at())
        off = build(SECOND, **{part: 0.0}).training_step(batch_of(range(B)), at())
        half = build(SECOND, **{part: 0.5}).training_step(batch_of(range(B)), at())
        assert off.metrics.keys() == whole.metrics.keys() - {name}
        assert float((whole.loss - off.loss).detach()) == pytest.approx(float(whole.metrics[name]), abs=1e-9)
        assert float((whole.loss - half.loss).detach()) == pytest.approx(float(whole.metrics[name]) / 2, abs=1e-9)

    @pytest.mark.parametrize("task", [FIRST, SECOND], ids=["first", "later"])
    @pytest.mark.parametrize("plain", ["plain_first", "plain_later"])
    def test_a_plain_task_is_sequential_fine_tuning(self, plain, task):
        method = build(task, **{plain: True})
        is_plain = (plain == "plain_first") == task.first
        parts = method.training_step(batch_of(range(B)), at()).metrics.keys()
        assert (parts == {"ita", "mlm"}) == is_plain
        before = [p.clone() for p in method.compatible.parameters()]
        with torch.no_grad():
            method.after_step(at())
        moved = not all(torch.equal(a, b) for a, b in zip(before, method.compatible.parameters(), strict=True))
        assert moved == (not is_plain)
        assert len(method.queues["text"]) == (0 if is_plain else B)

    def test_sequential_fine_tuning_is_ctp_with_all_off(self):
        off = build(SECOND, **ALONE["seqf"], distil_mlm=0.0)
        plain = Sequential(
            ContinualConfig.model_validate({n: getattr(off.config, n) for n in ContinualConfig.model_fields}),
            None,
            off.model,
        )
        batch = batch_of(range(B))
        ours, theirs = off.training_step(batch, at()), plain.training_step(batch, at())
        assert torch.equal(ours.loss, theirs.loss)
        assert ours.metrics.keys() == theirs.metrics.keys()

    def test_ids_matter_where_a_thing_is_there_twice(self):
        batch = batch_of([0, 1, 2, 3, 4, 5, 6, 7])  # 0 and 1 show the same, 2 and 3 say the same
        with_ids, without_ids = (build(SECOND, ids=ids).training_step(batch, at()).metrics for ids in (True, False))
        for name in ("ita", "cmc"):
            assert abs(float(with_ids[name] - without_ids[name])) > 1e-4
        for name in ("topology_cross", "topology_same", "mlm", "mlm_distil"):
            assert float(with_ids[name]) == float(without_ids[name])

    @pytest.mark.parametrize("changes", [{}, {"mlm": 0.0}, {"distil_mlm": 0.0}, ALONE["seqf"], TOPOLOGY], ids=range(5))
    @pytest.mark.parametrize("task", [FIRST, SECOND], ids=["first", "later"])
    def test_what_is_not_trained_asks_for_no_gradient(self, task, changes):
        """Several processes would wait for it."""
        method = build(task, **changes)
        method.training_step(batch_of(range(B)), at()).loss.backward()
        for name, parameter in method.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name


class TestClosedForms:
    def test_chance(self):
        """ln G + 1/(2 d τ²) for random unit rows."""
        count, dim, tau = 512, 256, 0.07
        rows = normalize(
            torch.randn(2, count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=2
        )
        method = build(SECOND, temperature=tau, ids=False, mlm=0.0)
        logits = method.logits(rows[0], rows[1])
        found = (cross_entropy(logits, torch.arange(count)) + cross_entropy(logits.T, torch.arange(count))) / 2
        assert float(found) == pytest.approx(math.log(count) + 1 / (2 * dim * tau**2), abs=0.05)

    def test_words_at_random(self):
        method = build(FIRST)
        with torch.no_grad():
            for parameter in method.backbone.lm_head.parameters():
                parameter.zero_()
        found = method.training_step(batch_of(range(B)), at()).metrics
        assert float(found["mlm"]) == pytest.approx(math.log(64), abs=1e-12)

    def test_a_batch_always_has_a_masked_word(self):
        method = build(SECOND, mask_rate=1e-6)
        found = method.training_step(batch_of(range(B)), at())
        assert torch.isfinite(found.loss)
        assert float(found.metrics["mlm"]) > 0


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two gloo processes found, each with its half of the batch."""
    folder = tmp_path_factory.mktemp("ctp")
    script = Path(__file__).with_name("_tiny_ctp.py")
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(script), str(number), "2", str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    told = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(told)
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


class TestTwoProcesses:
    @pytest.mark.parametrize("case", CASES)
    def test_the_gradient_is_that_of_one_process_with_the_joint_batch(self, processes, case):
        task, changes = CASES[case]
        method = build(task, **changes)
        output = method.training_step(batch_of(range(B)), at())
        output.loss.backward()
        for name, value in output.metrics.items():
            mean = (processes[0][case]["metrics"][name] + processes[1][case]["metrics"][name]) / 2
            torch.testing.assert_close(mean, value, rtol=0, atol=1e-12, msg=name)
        expected = gradients(method)
        for found in processes:
            assert found[case]["gradients"].keys() == expected.keys()
            for name, gradient in expected.items():
                torch.testing.assert_close(found[case]["gradients"][name], gradient, rtol=0, atol=1e-12, msg=name)

    def test_queues_and_compatible_models_are_the_same_on_both(self, processes):
        one, other = processes
        for kind in ("image", "text"):
            assert len(one["queues"][kind][0]) == 2 * B
            for ours, theirs in zip(one["queues"][kind], other["queues"][kind], strict=True):
                assert torch.equal(ours, theirs)
        assert torch.equal(one["queues"]["image"][1][:B], batch_of(range(B))["image_ids"])
        for name, value in one["compatible"].items():
            assert torch.equal(value, other["compatible"][name])


def tiny_tasks():
    whole = captioned_images(count=48).tensors
    parts = {"day": range(24), "night": range(24, 48)}
    return [TaskData(name, TensorData(**{n: t[list(r)] for n, t in whole.items()})) for name, r in parts.items()]


class TestTasks:
    fit = Fit(steps=4, batch_size=8, optimizer="adamw", lr=1e-3, workers=0, device="cpu", checkpoint_every=1)

    def made(self, cls=CTP):
        return build(FIRST, cls=cls).float()

    def test_killed_anywhere_it_goes_on_to_the_same_bits(self, tmp_path):
        whole = fit_tasks(self.made(), tiny_tasks(), fit=self.fit, run_dir=tmp_path / "whole").method

        class Killed(Exception):
            pass

        class Stops(CTP):
            left = -1

            def after_step(self, progress):
                super().after_step(progress)
                self.left -= 1
                if not self.left:
                    raise Killed

        place = tmp_path / "broken"
        for steps in (2, 5):  # in the middle of task 1, then of task 2
            method = self.made(Stops)
            type(method).__name__ = "CTP"
            method.left = steps
            with pytest.raises(Killed):
                fit_tasks(method, tiny_tasks(), fit=self.fit, run_dir=place)
        resumed = fit_tasks(self.made(), tiny_tasks(), fit=self.fit, run_dir=place).method
        assert whole.state_dict().keys() == resumed.state_dict().keys()
        assert any(name.startswith("old.") for name in whole.state_dict())
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name
        ends = [
            load_state(task_folder(run, Task(1, "night")) / "end.safetensors") for run in (tmp_path / "whole", place)
        ]
        assert ends[0].keys() == ends[1].keys() == {"method", "held", "seconds"}  # the third of which is the clock's
        assert ends[0]["method"].keys() == ends[1]["method"].keys() == whole.state_dict().keys()
        for name, value in whole.state_dict().items():
            assert all(torch.equal(value, end["method"][name]) for end in ends), name

    def test_bad_input(self):
        with pytest.raises(ConfigError, match="1 pair per process and micro-batch has no other"):
            build().check(1)
        with pytest.raises(ValueError, match="matching: this method trains no matching"):
            CTPConfig(matching=True)


def test_recipes_have_the_published_figures():
    recipe = load_recipe("mc_vision_language", "ctp")
    method, fit = recipe["method"], recipe["fit"]
    assert (method["momentum_first"], method["momentum"], method["interpolation"]) == (0.995, 0.9, 0.5)
    assert (method["queue_size"], method["temperature"], method["mask_rate"], method["dim"]) == (1024, 0.07, 0.15, 256)
    assert (fit["epochs"], fit["batch_size"], fit["lr"], fit["weight_decay"]) == (5, 512, 1e-4, 0.05)
    assert fit["lr"] * fit["decay_to"] == pytest.approx(1e-6)
    assert fit["decay_1d"]
    assert "warmup_epochs" not in fit
    assert (method["text"]["max_length"], method["text"]["add_sep"]) == (30, True)
