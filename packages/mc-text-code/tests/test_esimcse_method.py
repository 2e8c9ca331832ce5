"""Whole steps of ESimCSE: against a float64 loop by the paper's equations, and what moves when."""

import copy

import pytest
import torch
from torch.nn.functional import cosine_similarity

from mc_core.accumulation import replay
from mc_core.engine import Fit, Progress, fit
from mc_core.engine.checkpoint import CheckpointFolder
from mc_core.errors import ConfigError
from mc_core.momentum import MomentumEncoder
from mc_testkit.toys import token_pairs
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.encoders_config import EncoderConfig
from mc_text_code.methods import METHODS
from mc_text_code.methods.esimcse.config import ESimCSEConfig
from mc_text_code.methods.esimcse.model import ESimCSE, stacked

TINY = {
    "vocabulary": 64,
    "hidden_size": 16,
    "layers": 2,
    "heads": 2,
    "positions": 32,
    "max_length": 16,
    "dropout": 0.0,
}


def build(encoder=(), seed=0, **fields):
    torch.manual_seed(seed)
    return ESimCSE(ESimCSEConfig.model_validate({**fields, "encoder": {**TINY, **dict(encoder)}}))


def batch_of(rows, data=None):
    data = data or token_pairs()
    return {**data.get_batch(list(rows), 0, 0), "index": torch.tensor(list(rows)), "epoch": 0, "micro": 0}


def step(method, batch, progress, optimizer):
    optimizer.zero_grad()
    output = method.training_step(batch, progress, method.prepare_step([batch], progress))
    output.loss.backward()
    optimizer.step()
    with torch.no_grad():
        method.after_step(progress)
    progress.step += 1
    return output


def each_alone(encoder, ids, mask):
    """(B, D): a sentence at a time, without padding."""
    return torch.cat([encoder(row[None, : int(m.sum())]) for row, m in zip(ids, mask, strict=True)])


@pytest.mark.parametrize("pooling", ["cls", "mean", "first-last"])
def test_four_steps_are_those_of_a_loop_by_the_equations(pooling):
    """θ, ξ and Q of an online model, by hand: one sentence and one candidate at a time, in float64."""
    batch_size, rate, momentum, tau = 8, 0.05, 0.9, 0.2
    method = build({"pooling": pooling}, momentum={"momentum": momentum}, temperature=tau).double()
    by_hand = copy.deepcopy(method.online)
    slow = copy.deepcopy(by_hand.encoder)
    queue, queue_ids = [], []
    progress = Progress(0, 10, 1, batch_size)
    optimizer = torch.optim.SGD(method.parameter_groups(0.0), lr=rate)
    for number in range(4):
        rows = [
            (5 * number + i) % 24 for i in range(batch_size)
        ]  # sentences come back: their own keys are no negatives
        batch = batch_of(rows)
        output = step(method, batch, progress, optimizer)

        anchor = by_hand.head(each_alone(by_hand.encoder, batch["input_ids"], batch["attention_mask"]))
        positive = by_hand.head(
            each_alone(by_hand.encoder, batch["positive_input_ids"], batch["positive_attention_mask"])
        )
        losses = []
        for i in range(batch_size):
            terms = [cosine_similarity(anchor[i], positive[j], dim=0) / tau for j in range(batch_size)]
            terms += [
                cosine_similarity(anchor[i], q, dim=0) / tau
                for q, q_id in zip(queue, queue_ids, strict=True)
                if q_id != rows[i]
            ]
            losses.append(torch.logsumexp(torch.stack(terms), 0) - terms[i])
        loss = torch.stack(losses).mean()
        torch.testing.assert_close(output.loss, loss, rtol=1e-9, atol=1e-9)

        with torch.no_grad():
            keys = by_hand.head(each_alone(slow, batch["input_ids"], batch["attention_mask"]))
        by_hand.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in by_hand.parameters():
                parameter -= rate * parameter.grad
            for ours, theirs in zip(slow.parameters(), by_hand.encoder.parameters(), strict=True):
                ours.copy_(momentum * ours + (1 - momentum) * theirs)
        queue, queue_ids = (queue + list(keys))[-20:], (queue_ids + rows)[-20:]

    features, ids = method.queue.in_order()
    expected = torch.stack(queue)
    torch.testing.assert_close(features, expected / expected.norm(dim=1, keepdim=True), rtol=1e-8, atol=1e-9)
    assert ids.tolist() == queue_ids
    for ours, theirs in zip(method.momentum_encoder.module.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)
    for ours, theirs in zip(method.online.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def test_the_queue_is_first_in_first_out_with_a_size_that_is_no_multiple_of_the_batch():
    method = build()
    progress, optimizer = Progress(0, 10, 1, 64), torch.optim.SGD(method.parameter_groups(0.0), lr=0.01)
    data = token_pairs(count=256)
    arrived = []
    for number in range(4):
        rows = range(64 * number, 64 * number + 64)
        step(method, batch_of(rows, data), progress, optimizer)
        arrived += rows
        features, ids = method.queue.in_order()
        assert method.queue.size == 160
        assert ids.tolist() == arrived[-160:]
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))


@pytest.mark.parametrize(("batch_size", "batches", "size"), [(8, 2.5, 20), (16, 1.0, 16), (4, 8, 32), (64, 2.5, 160)])
def test_the_queue_takes_its_size_from_the_batch_of_the_run(batch_size, batches, size):
    method = build(queue_batches=batches)
    step(method, batch_of(range(4)), Progress(0, 10, 1, batch_size), torch.optim.SGD(method.parameters(), lr=0.0))
    assert method.queue.size == size
    other = build(queue_batches=batches)
    other.load_state_dict(method.state_dict())
    assert other.queue.size == size
    assert torch.equal(other.queue.in_order()[1], method.queue.in_order()[1])


def test_simcse_has_neither_copy_nor_queue():
    method = build(queue_batches=0)
    assert method.momentum_encoder is None
    assert method.queue is None
    assert not any(isinstance(module, MomentumEncoder) for module in method.modules())
    batch = batch_of(range(8))
    loss = method.training_step(batch, Progress(0, 1, 1, 8)).loss
    anchor, positive = method.embed(batch)
    torch.testing.assert_close(
        loss, torch.nn.functional.cross_entropy(anchor @ positive.T / 0.05, torch.arange(8)), rtol=1e-5, atol=1e-6
    )


def test_the_copy_follows_in_closed_form_and_the_optimizer_never_holds_it():
    """With θ standing still: ξ_t = θ + λ^t (ξ_0 − θ)."""
    method = build(momentum={"momentum": 0.9}, momentum_init="random")
    copied = method.momentum_encoder.module
    start = [p.clone() for p in copied.parameters()]
    for number in range(5):
        method.after_step(Progress(number, 10, 1, 8))
    for first, now, online in zip(start, copied.parameters(), method.encoder.parameters(), strict=True):
        torch.testing.assert_close(now, online + 0.9**5 * (first - online), rtol=1e-5, atol=1e-6)
    held = {id(p) for group in method.parameter_groups(0.0) for p in group["params"]}
    assert not held & {id(p) for p in copied.parameters()}
    assert held == {id(p) for p in method.online.parameters()}
    assert all(p.dtype == torch.float32 for p in method.to(torch.bfloat16).momentum_encoder.module.parameters())


def test_where_the_copy_starts():
    method = build()
    for ours, theirs in zip(method.momentum_encoder.module.parameters(), method.encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    fresh = build(momentum_init="random")
    pairs = zip(fresh.momentum_encoder.module.named_parameters(), fresh.encoder.parameters(), strict=True)
    assert any(not torch.equal(ours, theirs) for (_, ours), theirs in pairs)
    for ours, theirs in zip(fresh.encoder.parameters(), method.encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs), "only the copy starts elsewhere"


def test_keys_are_of_the_sentence_as_it_is_without_dropout_and_by_the_online_head():
    method = build({"dropout": 0.5}).train()
    batch = batch_of(range(6))
    assert not method.momentum_encoder.module.training
    assert torch.equal(method.keys(batch), method.keys(batch))
    alone = method.momentum_encoder.module.eval()(batch["input_ids"], batch["attention_mask"])
    expected = method.head(alone)
    torch.testing.assert_close(method.keys(batch), expected / expected.norm(dim=1, keepdim=True))
    changed = {**batch, "positive_input_ids": batch["positive_input_ids"].flip(0)}
    assert torch.equal(method.keys(batch), method.keys(changed))
    with torch.no_grad():
        method.head[0].weight.mul_(-1)
    assert not torch.allclose(method.keys(batch), expected / expected.norm(dim=1, keepdim=True))


def test_both_views_have_dropout_masks_of_their_own():
    method = build({"dropout": 0.3}).train()
    batch = batch_of(range(6))
    same = {**batch, "positive_input_ids": batch["input_ids"], "positive_attention_mask": batch["attention_mask"]}
    anchor, positive = method.embed(same)
    assert bool(((anchor - positive).norm(dim=1) > 1e-3).all())
    anchor, positive = method.eval().embed(same)
    torch.testing.assert_close(anchor, positive)


def test_evaluation_leaves_queue_and_copy_as_they_are():
    method = build({"dropout": 0.1})
    progress, optimizer = Progress(0, 10, 1, 8), torch.optim.SGD(method.parameter_groups(0.0), lr=0.1)
    batch = batch_of(range(8))
    step(method, batch, progress, optimizer)
    before = copy.deepcopy(method.state_dict())
    method.eval()
    with torch.no_grad():
        first, again = method.encode(batch), method.encode(batch)
    assert torch.equal(first, again)
    after = method.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.testing.assert_close(first, method.encoder(batch["input_ids"], batch["attention_mask"]))


def test_gradient_checkpointing_changes_nothing():
    plain, saving = build(), build()
    network = saving.encoder.transformer
    enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    for method in (plain, saving):
        progress, optimizer = Progress(0, 10, 1, 8), torch.optim.SGD(method.parameter_groups(0.0), lr=0.1)
        for number in range(3):
            step(method.train(), batch_of(range(8 * number, 8 * number + 8)), progress, optimizer)
    left, right = plain.state_dict(), saving.state_dict()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=1e-6)


def test_a_run_cut_off_goes_on_with_the_next_loss_bit_for_bit(tmp_path):
    """With dropout, a queue that is not yet full, and a copy that has moved."""
    settings = Fit(steps=6, batch_size=16, lr=0.02, checkpoint_every=3, keep_checkpoints=9, log_every=1, device="cpu")

    def losses_of(method, folder, **changes):
        seen = []
        inner = method.training_step

        def watched(*arguments):
            output = inner(*arguments)
            seen.append(float(output.loss.detach()))
            return output

        method.training_step = watched
        fit(method, token_pairs(), fit=settings.model_copy(update=changes), run_dir=folder)
        return seen

    whole = losses_of(build({"dropout": 0.1}), tmp_path / "run")
    for path in CheckpointFolder(tmp_path / "run" / "checkpoints").paths()[:1]:
        path.unlink()  # the last; the one of step 3 stays
    resumed = losses_of(build({"dropout": 0.1}, seed=7), tmp_path / "run")
    assert resumed == whole[3:]


def test_a_queue_of_another_size_is_another_run(tmp_path):
    settings = Fit(steps=2, batch_size=8, lr=0.02, device="cpu")
    fit(build(), token_pairs(), fit=settings, run_dir=tmp_path)
    with pytest.raises(Exception, match=r"method\.queue_batches: 2\.5 → 4\.0"):
        fit(build(queue_batches=4), token_pairs(), fit=settings, run_dir=tmp_path)
    with pytest.raises(Exception, match=r"method\.encoder\.pooling: 'cls' → 'mean'"):
        fit(build({"pooling": "mean"}), token_pairs(), fit=settings, run_dir=tmp_path)
    with pytest.raises(Exception, match=r"method\.encoder\.hidden_size: 16 → 32"):
        fit(build({"hidden_size": 32}), token_pairs(), fit=settings, run_dir=tmp_path)


def test_both_views_are_padded_alike_with_the_padding_token():
    batch = batch_of(range(5))
    batch["input_ids"], batch["attention_mask"] = batch["input_ids"][:, :9], batch["attention_mask"][:, :9]
    ids, mask = stacked(batch, pad_id=7)
    assert ids.shape == mask.shape == (10, 13)
    assert bool((ids[:5, 9:] == 7).all())
    assert bool((mask[:5, 9:] == 0).all())
    assert torch.equal(ids[5:], batch["positive_input_ids"])


def test_a_lone_sentence_and_bad_momentum_are_said():
    with pytest.raises(ConfigError, match="1 sentence per process"):
        build().check(1)
    advice = build(momentum={"momentum": 0.5}, queue_batches=8).advice(8, 100)
    assert any("momentum 0.5" in line for line in advice)
    assert any("its own negatives" in line for line in build(exclude_same=False, queue_batches=8).advice(8, 64))
    assert build().advice(64, 100_000) == []


def test_the_method_is_found_by_name_and_takes_an_encoder():
    encoder = SentenceEncoder(EncoderConfig.model_validate(TINY))
    config = METHODS.config_class("esimcse").model_validate({"encoder": TINY})
    method = METHODS.method_class("esimcse")(config, encoder=encoder)
    assert method.encoder is encoder is method.export_module()


def test_two_micro_batches_have_the_gradient_of_the_whole_batch_also_with_dropout():
    """Both passes over a micro-batch draw the same masks, or the gradients would belong to other embeddings."""
    method = build({"dropout": 0.3}).train()
    progress = Progress(step=5, total_steps=10, batch_size=8, seed=3)
    step(method, batch_of(range(8)), progress, torch.optim.SGD(method.parameters(), lr=0.0))
    parts = [{**batch_of(rows), "micro": micro} for micro, rows in enumerate((range(4, 8), range(8, 12)))]

    method.zero_grad()
    embedded = []
    for part in parts:
        with replay(progress, part):
            embedded.append(method.embed(part))
    anchor, positive = (torch.cat(views) for views in zip(*embedded, strict=True))
    expected, _ = method.loss(anchor, positive, torch.arange(4, 12))
    expected.backward()
    gradients = [p.grad.clone() for p in method.online.parameters()]

    method.zero_grad()
    with torch.no_grad():
        prepared = method.prepare_step(parts, progress)
    for part in parts:
        torch.manual_seed(99)
        loss = method.training_step(part, progress, prepared).loss
        torch.testing.assert_close(loss, expected)
        (loss / 2).backward()
    for ours, theirs in zip((p.grad for p in method.online.parameters()), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    method.after_step(progress)
    assert method.queue.in_order()[1].tolist()[-8:] == list(range(4, 12))
