"""ALBEF's training step against a literal reading of the paper in float64, and how its state moves."""

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from mc_core.engine.method import Progress
from mc_core.errors import ConfigError
from mc_core.random import uniform
from mc_testkit.toys import captioned_images
from mc_vision_language.methods.albef import ALBEF, ALBEFConfig
from mc_vision_language.methods.albef import model as albef_module

B, K = 8, 20
SMALL = {
    "image": {"image_size": 16, "patch_size": 8, "width": 12, "depth": 1, "heads": 2},
    "text": {
        "vocabulary": 64,
        "hidden_size": 16,
        "text_layers": 1,
        "fusion_layers": 2,
        "heads": 2,
        "dropout": 0.0,
        "cls_id": 1,
        "sep_id": 2,
        "mask_id": 63,
    },
    "dim": 8,
    "temperature": 0.2,
    "momentum": 0.9,
    "queue_size": K,
}


def build(**changes):
    torch.manual_seed(0)
    method = ALBEF(ALBEFConfig.model_validate({**SMALL, **changes})).double()
    with torch.no_grad():  # BERT's small weights would hide what is wrong, and a teacher that equals its student too
        for name, parameter in method.model.named_parameters():
            if name != "log_temperature":
                parameter.add_(0.2 * torch.randn_like(parameter))
        method.sync_teacher()
        for parameter in method.teacher.module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def batch_of(rows, epoch=0):
    rows = torch.as_tensor(rows)
    found = {name: tensor[rows] for name, tensor in captioned_images().tensors.items()}
    return {**found, "view": found["view"].double(), "index": rows, "epoch": epoch, "micro": 0}


def at(step=5, per_epoch=10):
    return Progress(step=step, total_steps=100, steps_per_epoch=per_epoch, batch_size=B, run_seed=7)


def filled(method):
    """With some keys in the queues, of pairs 4 … 9 and 16 … 21."""
    for first in (4, 16):
        rows = range(first, first + 6)
        method.training_step(batch_of(rows), at(0))
        with torch.no_grad():
            method.after_step(at(0))
    return method


def literal_losses(method, batch, progress):
    """Section 3 of the paper, pair by pair, every pass by itself; the draws are those of the method."""
    config, model, alpha = method.config, method.model, method.config.alpha * progress.step / progress.steps_per_epoch
    student, teacher = model.backbone, method.teacher.module
    tau = model.temperature.detach()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    n = len(ids)

    V, T = student.image_tokens(batch["view"]), student.text_states(ids, mask)
    z_v, z_t = student.embed_image_tokens(V), student.embed_text_states(T)
    taught_V, taught_T = teacher.image_tokens(batch["view"]), teacher.text_states(ids, mask)
    taught_v, taught_t = teacher.embed_image_tokens(taught_V), teacher.embed_text_states(taught_T)
    keys = {
        "image": [*taught_v, *(method.queues["image"].features if method.queues else [])],
        "text": [*taught_t, *(method.queues["text"].features if method.queues else [])],
    }
    image_ids = [*batch["image_ids"], *(method.queues["image"].ids if method.queues else [])]
    text_ids = [*batch["text_ids"], *(method.queues["text"].ids if method.queues else [])]

    def same(b, j):
        if not config.ids:
            return b == j
        return bool(image_ids[b] == image_ids[j]) or bool(text_ids[b] == text_ids[j])

    def one_direction(z, taught, candidates):
        total = 0.0
        for b in range(n):
            s = torch.stack([z[b] @ key for key in candidates]) / tau
            soft = (torch.stack([taught[b] @ key for key in candidates]) / tau).softmax(0)
            y = torch.tensor([float(same(b, j)) for j in range(len(candidates))], dtype=torch.float64)
            q = alpha * soft + (1 - alpha) * y / y.sum()
            total -= (q * s.log_softmax(0)).sum() / n
        return total

    itc = (one_direction(z_v, taught_v, keys["text"]) + one_direction(z_t, taught_t, keys["image"])) / 2

    def negatives(z, candidates, stream):
        noise = uniform(progress.run_seed, batch["epoch"], batch["index"], n, stream=stream)
        chosen = []
        for b in range(n):
            scores = [
                float(z[b].detach() @ candidates[j] / tau) * config.hard_negative_strength
                - math.log(max(-math.log(max(float(noise[b, j]), 1e-38)), 1e-38))
                if not same(b, j)
                else -math.inf
                for j in range(n)
            ]
            chosen.append(max(range(n), key=scores.__getitem__))
        return chosen

    def itm(image, text, label):
        fused = student.fuse(T[text : text + 1], mask[text : text + 1], student.keys(V[image : image + 1]))
        return cross_entropy(model.itm_head(fused[:, 0]), torch.tensor([label]))

    images = negatives(z_t, keys["image"], albef_module._IMAGE_NEGATIVES)
    texts = negatives(z_v, keys["text"], albef_module._TEXT_NEGATIVES)
    terms = [itm(b, b, 1) for b in range(n)] + [itm(images[b], b, 0) for b in range(n)]
    terms += [itm(b, texts[b], 0) for b in range(n)]

    masked = method._masked(batch, progress)
    words = []
    for row, column in zip(masked.rows.tolist(), masked.columns.tolist(), strict=True):
        pick = slice(row, row + 1)

        def logits(backbone, tokens, pick=pick, column=column):
            states = backbone.text_states(masked.input_ids[pick], mask[pick])
            return backbone.lm_logits(backbone.fuse(states, mask[pick], backbone.keys(tokens[pick])))[0, column]

        log_p = logits(student, V).log_softmax(0)
        soft = logits(teacher, taught_V).softmax(0)
        words.append((1 - alpha) * -log_p[ids[row, column]] - alpha * (soft * log_p).sum())
    return {"itc": itc, "itm": torch.stack(terms).mean(), "mlm": torch.stack(words).mean()}


@pytest.mark.parametrize(
    "changes",
    [{}, {"ids": False}, {"alpha": 0.0}, {"queue_size": 0}, {"hard_negative_strength": 0.3}],
    ids=["paper", "no-ids", "no-distillation", "no-queue", "softer-negatives"],
)
def test_losses_equal_the_paper_read_literally(changes):
    method = build(**changes)
    if method.queues:
        filled(method)
    batch, progress = batch_of(range(B)), at()
    batch["text_ids"][5] = batch["text_ids"][4]  # the same thing in other words
    output = method.training_step(batch, progress)
    expected = literal_losses(method, batch, progress)
    for name, value in expected.items():
        assert abs(float(output.metrics[name]) - float(value.detach())) < 1e-9, name
    assert float(output.loss.detach()) == pytest.approx(float(sum(expected.values()).detach()), abs=1e-9)


def test_gradient_is_that_of_the_literal_losses():
    method = filled(build())
    batch, progress = batch_of(range(B)), at()
    trained = [p for p in method.model.parameters() if p.requires_grad]
    method.training_step(batch, progress).loss.backward()
    ours = [p.grad.clone() for p in trained]
    assert all(p.grad is None for p in method.teacher.parameters())
    for p in trained:
        p.grad = None
    sum(literal_losses(method, batch, progress).values()).backward()
    for (name, p), gradient in zip(method.model.named_parameters(), ours, strict=True):
        if name != "log_temperature":  # a constant in the literal reading
            torch.testing.assert_close(gradient, p.grad, rtol=0, atol=1e-9, msg=name)


def test_gradient_reaches_every_weight():
    method = build()
    method.training_step(batch_of(range(B)), at()).loss.backward()
    without = [n for n, p in method.model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # a bias shared by all keys of an attention changes no softmax
    assert [name for name in without if "key.bias" not in name] == []


def test_the_order_of_a_batch_changes_nothing(monkeypatch):
    """With the same negatives and masks for each pair."""
    method = filled(build())

    def by_sample(seed, epoch, index, draws, *, stream=0):
        if stream == albef_module._MASKING:
            return uniform(seed, epoch, index, draws, stream=stream)
        whole = uniform(seed, epoch, torch.arange(B), B, stream=stream)
        return whole[index][:, index]

    monkeypatch.setattr(albef_module, "uniform", by_sample)
    plain = method.training_step(batch_of(range(B)), at())
    turned = method.training_step(batch_of([3, 1, 4, 0, 5, 7, 2, 6]), at())
    for name in ("itc", "itm", "mlm"):
        torch.testing.assert_close(plain.metrics[name], turned.metrics[name], rtol=0, atol=1e-12)


def test_the_head_for_words_sees_masked_places_alone_and_loses_nothing():
    method = build()
    batch = batch_of(range(B))
    masked = method._masked(batch, at())
    keys = method.backbone.keys(method.backbone.image_tokens(batch["view"]))
    encoded = method.backbone(batch["view"], batch["input_ids"], batch["attention_mask"], masked.input_ids)
    few = method._words(method.backbone, encoded, masked, batch["attention_mask"], keys)
    states = method.backbone.text_states(masked.input_ids, batch["attention_mask"])
    full = method.backbone.lm_logits(method.backbone.fuse(states, batch["attention_mask"], keys))
    torch.testing.assert_close(few, full[masked.rows, masked.columns], rtol=0, atol=1e-12)
    assert few.shape == (len(masked.words), 64)


def test_alpha_rises_in_the_first_epoch():
    method = build()
    found = [float(method.training_step(batch_of(range(B)), at(step)).metrics["alpha"]) for step in (0, 5, 10, 25)]
    assert found == pytest.approx([0.0, 0.2, 0.4, 0.4])
    assert ALBEFConfig(alpha_ramp_epochs=0).alpha_at(0.0) == 0.4


class TestState:
    def test_a_queue_has_no_rows_before_it_is_filled_and_none_of_its_own_batch(self):
        method = build()
        assert len(method.queues["text"]) == len(method.queues["image"]) == 0
        first = method.training_step(batch_of(range(B)), at(0))
        assert len(method.queues["text"]) == 0
        with torch.no_grad():
            method.after_step(at(0))
        assert len(method.queues["text"]) == B
        assert torch.equal(method.queues["text"].features, first.features["key"].to(torch.float64))
        batch = batch_of(range(B))
        assert torch.equal(method.queues["image"].ids, batch["image_ids"])
        assert torch.equal(method.queues["text"].ids, batch["text_ids"])
        norms = method.queues["image"].features.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(B, dtype=torch.float64))

    def test_the_teacher_moves_after_the_step_by_its_momentum(self):
        method = build()
        before = copy.deepcopy(method.teacher.module)
        method.training_step(batch_of(range(B)), at())
        assert all(torch.equal(a, b) for a, b in zip(before.parameters(), method.teacher.parameters(), strict=True))
        with torch.no_grad():
            method.after_step(at())
        pairs = zip(before.parameters(), method.teacher.parameters(), method.backbone.parameters(), strict=True)
        for old, new, online in pairs:
            torch.testing.assert_close(new, 0.9 * old + 0.1 * online)

    def test_with_a_constant_student_it_closes_in_geometrically(self):
        """θ′_n = θ + mⁿ (θ′_0 − θ)."""
        method = build()
        first = [p.clone() for p in method.teacher.parameters()]
        for _ in range(5):
            method.teacher.update()
        for old, new, online in zip(first, method.teacher.parameters(), method.backbone.parameters(), strict=True):
            torch.testing.assert_close(new, online + 0.9**5 * (old - online))

    def test_sync_teacher_copies_all(self):
        method = build()
        method.sync_teacher()
        for ours, theirs in zip(method.teacher.parameters(), method.backbone.parameters(), strict=True):
            assert torch.equal(ours, theirs)

    def test_the_teacher_follows_all_but_matching_and_temperature(self):
        method = build()
        names = {name for name, _ in method.model.named_parameters()}
        followed = {f"backbone.{name}" for name, _ in method.teacher.module.named_parameters()}
        assert names - followed == {"log_temperature", "itm_head.weight", "itm_head.bias"}
        assert not any(p.requires_grad for p in method.teacher.parameters())

    @pytest.mark.parametrize("start", [5.0, -20.0])
    def test_the_temperature_is_kept_within_its_bounds(self, start):
        method = build()
        with torch.no_grad():
            method.model.log_temperature.fill_(start)
            method.training_step(batch_of(range(B)), at())
            method.after_step(at())
        assert float(method.model.temperature.detach()) == pytest.approx(0.5 if start > 0 else 0.001)

    def test_training_survives_the_lowest_temperature(self):
        method = build(temperature=0.001)
        output = method.training_step(batch_of(range(B)), at())
        output.loss.backward()
        assert torch.isfinite(output.loss)
        assert all(torch.isfinite(p.grad).all() for p in method.model.parameters() if p.grad is not None)

    @pytest.mark.parametrize("official", [False, True])
    def test_the_teachers_dropout(self, official):
        text = {**SMALL["text"], "dropout": 0.5}
        method = build(text=text, teacher_train_mode=official).train()
        batch = batch_of(range(B))
        first, second = (method._taught(batch).text for _ in range(2))
        assert torch.equal(first, second) is not official


class TestSwitches:
    def test_a_batch_of_equal_pairs_has_no_negatives_and_says_nothing(self):
        """All the same picture: only the matching pairs are left in L_itm."""
        method = build()
        batch = batch_of([0, 1, 0, 1])
        batch["image_ids"] = torch.zeros(4, dtype=torch.int64)
        found = method.training_step(batch, at())
        keys = method.backbone.keys(method.backbone.image_tokens(batch["view"]))
        states = method.backbone.text_states(batch["input_ids"], batch["attention_mask"])
        logits = method.model.itm_head(method.backbone.fuse(states, batch["attention_mask"], keys)[:, 0])
        expected = cross_entropy(logits, torch.ones(4, dtype=torch.long))
        assert float(found.metrics["itm"]) == pytest.approx(float(expected.detach()), abs=1e-9)

    @pytest.mark.parametrize("part", ["itc", "itm", "mlm"])
    def test_each_part_can_be_left_out_or_weighted(self, part):
        whole = build().training_step(batch_of(range(B)), at())
        without = build(**{part: 0.0}).training_step(batch_of(range(B)), at())
        half = build(**{part: 0.5}).training_step(batch_of(range(B)), at())
        assert part not in without.metrics
        assert float((whole.loss - without.loss).detach()) == pytest.approx(float(whole.metrics[part]), abs=1e-9)
        assert float((whole.loss - half.loss).detach()) == pytest.approx(float(whole.metrics[part]) / 2, abs=1e-9)

    @pytest.mark.parametrize(("part", "switch"), [("itc", "distil_itc"), ("mlm", "distil_mlm")])
    def test_each_distillation_can_be_left_out(self, part, switch):
        plain = build(alpha=0.0).training_step(batch_of(range(B)), at())
        found = build(**{switch: False}).training_step(batch_of(range(B)), at())
        other = "mlm" if part == "itc" else "itc"
        assert float(found.metrics[part]) == pytest.approx(float(plain.metrics[part]), abs=1e-12)
        assert abs(float(found.metrics[other]) - float(plain.metrics[other])) > 1e-4

    @pytest.mark.parametrize("off", [("itc",), ("itm",), ("mlm",), ("itm", "mlm"), ("itc", "mlm")])
    def test_what_is_not_trained_asks_for_no_gradient(self, off):
        """Several processes would wait for it."""
        method = build(**dict.fromkeys(off, 0.0))
        method.training_step(batch_of(range(B)), at()).loss.backward()
        for name, parameter in method.model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name

    def test_negatives_depend_on_seed_epoch_and_sample_alone(self):
        method = build()
        batch = batch_of(range(B))
        first, again = method.training_step(batch, at()), method.training_step(batch, at())
        assert torch.equal(first.loss, again.loss)
        other = method.training_step(batch_of(range(B), epoch=1), at())
        assert float(other.metrics["itm"]) != float(first.metrics["itm"])
        assert float(other.metrics["mlm"]) != float(first.metrics["mlm"])
        assert float(other.metrics["itc"]) == float(first.metrics["itc"])

    def test_decay_spares_vectors_positions_class_token_and_temperature(self):
        method = build()
        groups = method.parameter_groups(0.02, decay_1d=False)
        assert groups[1]["weight_decay"] == 0
        spared = {id(p) for p in groups[1]["params"]}
        for name, parameter in method.model.named_parameters():
            free = parameter.ndim < 2 or name.endswith(("pos_embed", "cls_token", "position_embeddings.weight"))
            assert (id(parameter) in spared) == free, name
        assert sum(len(group["params"]) for group in groups) == len(list(method.model.parameters()))


class TestBadInput:
    def test_a_batch_of_one(self):
        with pytest.raises(ConfigError, match="1 pair per process and micro-batch has no other to be told from"):
            build().check(1)
        build().check(2)
        build(itm=0.0).check(1)  # a queue is enough for the contrast

    def test_nothing_to_train(self):
        with pytest.raises(ValueError, match="itc, itm and mlm are all 0"):
            ALBEFConfig(itc=0, itm=0, mlm=0)

    def test_advice(self):
        assert build(momentum=0.99).advice(batch_size=B, data_size=1000) == []
        assert build(ids=False, momentum=0.99).advice(B, 1000) == []
        (line,) = build(ids=False, momentum=0.99).advice(B, 20)
        assert "as long as the data (20 pairs)" in line
        (line,) = build(queue_size=200).advice(B, 1000)
        assert "the oldest of 200 keys are 25 steps old, more than the 10" in line
