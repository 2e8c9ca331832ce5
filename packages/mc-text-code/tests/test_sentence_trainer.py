"""ESimCSE inside sentence-transformers' trainer: the loss by hand, when things move, what is saved, and that it goes on alike."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from transformers import TrainerCallback

from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.files import load_state
from mc_text_code.augment_config import AugmentConfig
from mc_text_code.encoders import quiet_loading
from mc_text_code.saving import load_encoder
from mc_text_code.trainer import ESimCSECallback, ESimCSECollator, ESimCSELoss
from mc_text_code.trainer.callback import STATE_FILE
from mc_text_code.trainer.loss import token_hashes

# transformers 5.24 renames this while sentence-transformers 6.2 still has the name that all versions of 5 know
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def st():
    place = Path(__file__).with_name("_sentence_transformers.py")
    spec = importlib.util.spec_from_file_location(place.stem, place)
    module = importlib.util.module_from_spec(spec)
    sys.modules[place.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bert(st, tmp_path_factory):
    return st.write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def still_bert(st, tmp_path_factory):
    """Without dropout."""
    return st.write_bert(tmp_path_factory.mktemp("still"), dropout=0.0)


def features(model, texts, augment=None, epoch=0):
    collate = ESimCSECollator.of(model, augment or AugmentConfig(rate=0.5))
    collate.epoch = epoch
    batch = collate([{"sentence": text} for text in texts])
    return [
        {name.removeprefix(view): value for name, value in batch.items() if name.startswith(view)}
        for view in ("anchor_", "positive_")
    ]


def snapshot(loss):
    return {name: value.clone() for name, value in loss.own_state().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


# The loss


@pytest.mark.parametrize("queue_size", [0, 10])
def test_without_queue_repetition_and_head_it_is_multiple_negatives_ranking(st, still_bert, queue_size):
    model = st.open_model(still_bert).train()
    torch.manual_seed(0)
    columns = features(model, st.SENTENCES[:8], AugmentConfig(kind="none"))
    ours = ESimCSELoss(model, temperature=0.07, queue_size=queue_size, head=False, manual=True)
    theirs = MultipleNegativesRankingLoss(model, scale=1 / 0.07)
    assert ours(columns).item() == pytest.approx(theirs(columns, None).item(), abs=1e-6)

    # on the same embeddings, with gradients
    rows = [torch.randn(8, 16, requires_grad=True) for _ in range(2)]
    anchor, positive = (normalize(row, dim=1) for row in rows)
    value = ours._loss(anchor, positive, None, across=False) if not queue_size else None
    if value is not None:
        other = theirs.compute_loss_from_embeddings(rows, None)
        assert value.item() == pytest.approx(other.item(), abs=1e-6)
        for a, b in zip(torch.autograd.grad(value, rows), torch.autograd.grad(other, rows), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_loss_by_hand_with_head_and_queue(st, still_bert):
    model = st.open_model(still_bert).train()
    torch.manual_seed(0)
    loss = ESimCSELoss(model, queue_size=6, temperature=0.1, manual=True)
    rows = {}
    for number in range(3):
        texts = st.SENTENCES[4 * number : 4 * number + 4]
        columns = features(model, texts, epoch=number)
        h, positive = (normalize(loss.head(model(dict(c))["sentence_embedding"]), dim=1) for c in columns)
        queue = list(rows.values())[-6:]
        candidates = torch.cat([positive, torch.stack(queue)] if queue else [positive])
        expected = cross_entropy(h @ candidates.T / 0.1, torch.arange(4))
        value = loss(columns)
        assert value.item() == pytest.approx(expected.item(), abs=1e-5)
        # keys: of the sentences as they are, by the copy, through the head that is trained
        copied = loss.momentum_model.module
        with torch.no_grad():
            keys = normalize(loss.head(copied(dict(columns[0]))["sentence_embedding"]), dim=1)
        rows |= dict(zip(texts, keys, strict=True))
        held, _ = loss.queue.in_order()
        torch.testing.assert_close(held, torch.stack(list(rows.values())[-6:]), rtol=0, atol=1e-6)
        value.backward()  # also after the queue has moved on
        with torch.no_grad():  # the copy is no longer what is trained, nor is the head what it was
            for parameter in [*model.parameters(), *loss.head.parameters()]:
                parameter.add_(0.05 * torch.randn_like(parameter))
        loss.after_step()


def test_one_pass_for_both_views_and_one_for_the_keys(st, bert):
    model = st.open_model(bert).train()
    loss = ESimCSELoss(model, manual=True)
    seen = []
    for name, module in (("online", model), ("copy", loss.momentum_model.module)):
        module.register_forward_hook(
            lambda module, inputs, output, name=name: seen.append(
                (name, len(inputs[0]["input_ids"]), module.training, torch.is_grad_enabled())
            )
        )
    columns = features(model, st.SENTENCES[:4])
    before = [dict(column) for column in columns]
    loss.train()
    loss(columns).backward()
    assert seen == [("online", 8, True, True), ("copy", 4, False, False)]
    assert all(set(a) == set(b) for a, b in zip(before, columns, strict=True))  # nothing written into the batch
    assert all(p.grad is None for p in loss.momentum_model.parameters())
    assert all(p.grad is not None for p in loss.head.parameters())
    assert loss.queue.features.requires_grad is False


def test_the_copy_is_kept_in_float32_and_still(st, bert):
    model = st.open_model(bert).to(torch.bfloat16)
    loss = ESimCSELoss(model, manual=True)
    assert {p.dtype for p in loss.momentum_model.parameters()} == {torch.float32}
    loss.train()
    model.train()
    assert not any(part.training for part in loss.momentum_model.module.modules())
    value = loss(features(model, st.SENTENCES[:4]))
    value.backward()
    assert torch.isfinite(value)
    assert loss.queue.features.dtype == torch.float32
    first = loss.queue.features.clone()
    loss(features(model, st.SENTENCES[:4]))
    assert torch.equal(loss.queue.features[4:8], first)  # no dropout
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(loss(features(model, st.SENTENCES[4:8])))


def test_equal_sentences_are_no_negatives(st, still_bert):
    model = st.open_model(still_bert).train()
    none = AugmentConfig(kind="none")
    a, b, c = st.SENTENCES[:3]
    loss = ESimCSELoss(model, queue_size=4, head=False, manual=True)
    loss(features(model, [b, c], none))
    short, long = (
        features(model, [a, b], none),
        features(model, [a, a, b], none),
    )  # a twice in the batch, b in the queue
    with torch.no_grad():
        value = loss(long)
        h = normalize(model(dict(short[0]))["sentence_embedding"], dim=1)
        k = normalize(model(dict(features(model, [c], none)[0]))["sentence_embedding"], dim=1)
        q = normalize(model(dict(features(model, [b], none)[0]))["sentence_embedding"], dim=1)
    of_a = cross_entropy(h[:1] @ torch.cat([h, q, k]).T / 0.05, torch.tensor([0]))
    of_b = cross_entropy(
        torch.cat([h[1:] @ torch.cat([h[1:], k]).T, *[h[1:] @ h[:1].T] * 2], 1) / 0.05, torch.tensor([0])
    )
    assert value.item() == pytest.approx((2 * of_a + of_b).item() / 3, abs=1e-5)
    counted = ESimCSELoss(model, queue_size=4, head=False, exclude_same=False, manual=True)
    counted(features(model, [b, c], none))
    assert counted(long).item() > value.item()
    assert counted.queue.ids is None


def test_ids_follow_tokens_and_places_not_padding():
    torch.manual_seed(0)
    ids = torch.randint(1, 1000, (500, 12))
    mask = torch.ones_like(ids)
    found = token_hashes(ids, mask)
    assert len(found.unique()) == len(ids.unique(dim=0))
    wide = torch.cat([ids, torch.randint(1, 1000, (500, 5))], 1)
    assert torch.equal(token_hashes(wide, torch.cat([mask, torch.zeros(500, 5)], 1)), found)
    assert not bool((token_hashes(ids.flip(1), mask) == found).any())
    zeros = torch.zeros(1, 3, dtype=torch.int64)  # a token may have the id 0
    assert token_hashes(zeros, torch.ones(1, 3)) != token_hashes(zeros[:, :2], torch.ones(1, 2))


def test_where_the_copy_starts(st, bert):
    model = st.open_model(bert)
    same = ESimCSELoss(model).momentum_model.module
    assert_same(dict(same.named_parameters()), dict(model.named_parameters()))
    random = ESimCSELoss(model, momentum_init="random")
    assert not any(p.requires_grad for p in random.momentum_model.parameters())
    copied, online = dict(random.momentum_model.module.named_parameters()), dict(model.named_parameters())
    weights = [name for name in online if name.endswith("weight") and "pooler" not in name and "LayerNorm" not in name]
    assert weights
    assert not any(torch.equal(copied[name], online[name]) for name in weights)
    before = snapshot(random)
    random.begin(model)
    assert_same(snapshot(random), before)
    # weights that were loaded between the loss and the training are taken over
    late = ESimCSELoss(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    late.begin(model)
    assert_same(dict(late.momentum_model.module.named_parameters()), dict(model.named_parameters()))


def test_bad_settings_and_columns(st, bert):
    model = st.open_model(bert).train()
    for options, message in [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"queue_size": -1}, "queue_size is -1; give 0 for no queue"),
        ({"momentum": 1.5}, "momentum is 1.5"),
        ({"momentum_init": "zeros"}, "choose checkpoint or random"),
    ]:
        with pytest.raises(ConfigError, match=message):
            ESimCSELoss(model, **options)
    with pytest.raises(ConfigError, match="trains a SentenceTransformer, not a Linear"):
        ESimCSELoss(nn.Linear(2, 2))
    columns = features(model, st.SENTENCES[:4])
    with pytest.raises(DataError, match=r"two columns, a sentence and its second view, not 1: .*ESimCSECollator.of"):
        ESimCSELoss(model, manual=True)(columns[:1])
    with pytest.raises(ConfigError, match=r"nothing would move the slow copy: .*ESimCSECallback\(loss\)"):
        ESimCSELoss(model)(columns)
    ESimCSELoss(model, queue_size=0)(columns)  # nothing to move
    ESimCSELoss(model.eval())(columns)


# When things move


class Recorder(TrainerCallback):
    """What the copy and the queue are at each step's end."""

    def __init__(self):
        self.moves, self.rows, self.epochs, self.copies = [], [], [], []
        self.loss = None

    def on_train_begin(self, args, state, control, **kwargs):
        real = self.loss.after_step

        def counted():
            self.moves.append(state.global_step)
            real()

        self.loss.after_step = counted

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.epochs.append(train_dataloader.collate_fn.epoch)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.rows.append(len(self.loss.queue))
        name = "0.model.embeddings.word_embeddings.weight"
        self.copies.append((dict(model.named_parameters())[name].clone(),
                            dict(self.loss.momentum_model.module.named_parameters())[name].clone()))  # fmt: skip


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_copy_moves_once_per_optimizer_step(st, bert, tmp_path, accumulation):
    recorder = Recorder()
    trainer = st.build(
        bert,
        tmp_path,
        loss={"queue_size": 100, "momentum": 0.9},
        callbacks=[recorder],
        max_steps=-1,
        num_train_epochs=2,
        gradient_accumulation_steps=accumulation,
    )
    recorder.loss = trainer.loss
    online = trainer.model.state_dict()["0.model.embeddings.word_embeddings.weight"].clone()
    trainer.train()
    steps = 24 // accumulation
    assert recorder.moves == list(range(steps))
    assert recorder.rows == [min(100, 4 * accumulation * (step + 1)) for step in range(steps)]
    assert recorder.epochs == [0, 1]
    expected = online
    for now, copied in recorder.copies:  # ξ ← 0.9 ξ + 0.1 θ, after the optimizer step
        expected = expected + 0.1 * (now - expected)
        torch.testing.assert_close(copied, expected, rtol=0, atol=1e-6)


def test_evaluation_moves_nothing(st, bert, tmp_path):
    states, evaluated = [], []

    class AroundEvaluation(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            states.append(snapshot(self.loss))

        def on_evaluate(self, args, state, control, **kwargs):
            assert_same(snapshot(self.loss), states[-1])
            evaluated.append(state.global_step)

    around = AroundEvaluation()
    held_out = Dataset.from_dict({"sentence": st.SENTENCES[::3]})
    trainer = st.build(
        bert,
        tmp_path,
        callbacks=[around],
        eval_dataset=held_out,
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=5,
    )
    around.loss = trainer.loss
    trainer.train()
    assert evaluated == [2, 4]
    before = snapshot(trainer.loss)
    first, second = (trainer.evaluate()["eval_loss"] for _ in range(2))
    assert first == second
    assert_same(snapshot(trainer.loss), before)
    assert trainer.loss.training  # the trap: it is the model alone that was switched


class Wrapper(nn.Module):
    """As DistributedDataParallel: its own flag does not follow when the model inside is switched."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def test_the_trainer_wraps_the_model_and_leaves_the_copy(st, bert, tmp_path):
    trainer = st.build(bert, tmp_path)
    loss = trainer.loss
    copied = loss.momentum_model.module
    wrapped = Wrapper(trainer.model)
    assert trainer.override_model_in_loss(loss, wrapped) is loss
    assert loss.model is wrapped
    assert loss.momentum_model.module is copied
    assert loss.online is loss.momentum_model.online is trainer.model
    columns = features(trainer.model, st.SENTENCES[:4])
    loss.begin(trainer.model)
    trainer.model.eval()
    assert wrapped.training
    loss(columns)
    assert len(loss.queue) == 0
    trainer.model.train()
    loss(columns).backward()
    assert len(loss.queue) == 4
    assert all(name.startswith(("head.", "momentum_model.", "queue.")) for name in loss.own_state())


def test_a_new_model_is_followed(st, bert):
    """``model_init`` gives the trainer another model than the loss was made with."""
    loss = ESimCSELoss(st.open_model(bert).train(), manual=True)
    loss(features(loss.online, st.SENTENCES[:4]))
    fresh = st.open_model(bert)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.mul_(1.1)
    loss.model = fresh
    loss.begin(fresh)
    assert loss.momentum_model.online is loss.online is fresh
    assert_same(dict(loss.momentum_model.module.named_parameters()), dict(fresh.named_parameters()))
    assert len(loss.queue) == 0


def test_gradient_checkpointing_changes_nothing(st, still_bert, tmp_path):
    plain = st.build(still_bert, tmp_path / "plain")
    plain.train()
    saving = st.build(still_bert, tmp_path / "saving", gradient_checkpointing=True)
    saving.train()
    np.testing.assert_allclose(st.losses(saving), st.losses(plain), rtol=1e-5)
    assert len(saving.loss.queue) == 10
    for name, value in plain.loss.own_state().items():
        torch.testing.assert_close(saving.loss.own_state()[name], value, rtol=1e-4, atol=1e-6)


# What is saved


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        (5, {}),
        (12, {}),  # at an epoch's end
        (4, {"gradient_accumulation_steps": 2}),
        (5, {"eval_strategy": "steps", "eval_steps": 2}),
    ],
)
def test_a_resumed_training_is_the_same_training(st, bert, tmp_path, steps, options):
    evaluated = {"eval_dataset": Dataset.from_dict({"sentence": st.SENTENCES[:8]})} if "eval_steps" in options else {}
    options = {"save_strategy": "steps", "save_steps": steps, "max_steps": steps + 3, **options, **evaluated}
    whole = st.build(bert, tmp_path / "run", **options)
    whole.train()
    checkpoint = tmp_path / "run" / f"checkpoint-{steps}"
    resumed = st.build(bert, tmp_path / "run", **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert len(st.losses(whole)) == steps + 3
    assert st.losses(resumed)[-3:] == st.losses(whole)[-3:]
    assert_same(snapshot(resumed.loss), snapshot(whole.loss))
    assert_same(resumed.model.state_dict(), whole.model.state_dict())


def test_a_checkpoint_holds_what_the_trainer_drops(st, bert, tmp_path):
    trainer = st.build(bert, tmp_path, save_strategy="steps", save_steps=2, save_total_limit=1)
    trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    saved = load_state(tmp_path / "checkpoint-4" / STATE_FILE)
    assert_same(saved["state"], snapshot(trainer.loss))
    assert saved["step"] == 4
    assert not list(tmp_path.rglob("*.part"))
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "checkpoint-4").rename(elsewhere)
    for problem, how in [("has no esimcse.safetensors", {}), (None, {"resume_from": elsewhere})]:
        again = st.build(bert, tmp_path, max_steps=5)
        again.remove_callback(ESimCSECallback)
        again.add_callback(ESimCSECallback(again.loss, **how))
        if problem:
            with pytest.raises(CheckpointError, match=problem):
                again.train(resume_from_checkpoint=str(elsewhere))
        else:
            again.train(resume_from_checkpoint=str(elsewhere))
            assert len(again.loss.queue) == 10


def test_a_state_of_another_training_is_refused(st, bert, tmp_path):
    for name in ("one", "two"):
        st.build(bert, tmp_path / name, save_strategy="steps", save_steps=2, seed=5 if name == "one" else 6).train()
    again = st.build(bert, tmp_path / "two", max_steps=6)  # its own checkpoint-2 is of another run
    head = again.loss.head[0].weight.clone()
    with pytest.raises(CheckpointError, match="saved beside another model"):
        again.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-2"))
    assert torch.equal(again.loss.head[0].weight, head)
    assert len(again.loss.queue) == 0
    other = st.build(bert, tmp_path / "one", loss={"queue_size": 12, "momentum": 0.9}, max_steps=6)
    with pytest.raises(CheckpointError, match="queue_size: 10 then, 12 now; momentum: 0.995 then, 0.9 now"):
        other.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-2"))


def test_the_best_model_comes_back_with_its_head_copy_and_queue(st, bert, tmp_path):
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    class Scripted(EmbeddingSimilarityEvaluator):
        def __call__(self, model, output_path=None, epoch=-1, steps=-1):
            return {"mine_spearman_cosine": {2: 0.1, 4: 0.9, 6: 0.2}[steps]}

    evaluator = Scripted(st.SENTENCES[:3], st.SENTENCES[3:6], [0.0, 0.5, 1.0], name="mine")
    trainer = st.build(
        bert,
        tmp_path,
        evaluator=evaluator,
        max_steps=6,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_mine_spearman_cosine",
        greater_is_better=True,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert_same(snapshot(trainer.loss), load_state(tmp_path / "checkpoint-4" / STATE_FILE)["state"])
    with quiet_loading():
        best = SentenceTransformer(str(tmp_path / "checkpoint-4"), device="cpu")
    np.testing.assert_array_equal(trainer.model.encode(st.SENTENCES), best.encode(st.SENTENCES))


def test_what_the_trainer_saves_is_a_plain_model(st, bert, tmp_path):
    trainer = st.build(bert, tmp_path / "run")
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    with quiet_loading():
        plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert [type(part).__name__ for part in plain] == ["Transformer", "Pooling"]
    expected = trainer.model.encode(st.SENTENCES)
    np.testing.assert_allclose(plain.encode(st.SENTENCES), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(load_encoder(tmp_path / "model").encode(st.SENTENCES), expected, rtol=0, atol=1e-5)
    assert not list((tmp_path / "model").rglob(STATE_FILE))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "ESimCSELoss" in card
    assert "wu2021esimcse" in card
    assert '"queue_size": 10' in card


def test_training_moves_the_model_and_the_head(st, bert, tmp_path):
    trainer = st.build(bert, tmp_path, max_steps=60, learning_rate=3e-3, logging_steps=60)
    before = {name: value.clone() for name, value in trainer.loss.named_parameters()}
    columns = features(trainer.model.eval(), st.SENTENCES)
    fresh = ESimCSELoss(trainer.model, queue_size=0, head=False)
    with torch.no_grad():
        first = fresh(columns).item()
    trainer.train()
    trainer.model.eval()
    with torch.no_grad():
        assert fresh(columns).item() < first
    moved = {name for name, value in trainer.loss.named_parameters() if not torch.equal(value, before[name])}
    assert {"head.0.weight", "head.0.bias", "model.0.model.embeddings.word_embeddings.weight"} <= moved
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in trainer.loss.momentum_model.parameters()}


def test_a_whole_model_is_asked_for(st, bert, tmp_path):
    trainer = st.build(bert, tmp_path)
    trainer.args.deepspeed = "some.json"
    with pytest.raises(ConfigError, match="not FSDP or DeepSpeed"):
        ESimCSECallback(trainer.loss).on_train_begin(trainer.args, trainer.state, trainer.control)


# Two processes

_TWO = """
import json, os, sys
from pathlib import Path
import torch
import _sentence_transformers as st

folder, out = map(Path, sys.argv[1:])
rank = int(os.environ["RANK"])
model = st.open_model(folder)
torch.manual_seed(100 + rank)  # heads that differ, as they do where nobody seeds
trainer = st.build(
    folder, out, model=model, head_seed=100 + rank, per_device_train_batch_size=4, max_steps=5, save_strategy="steps",
    save_steps=5, ddp_backend="gloo", optim="sgd", learning_rate=0.05, max_grad_norm=1e9,
)
trainer.train()
if rank == 0:
    torch.save({"own": trainer.loss.own_state(), "model": trainer.model.state_dict()}, out / "state.pt")
torch.save(trainer.loss.head[0].weight.detach(), out / f"head-{rank}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
os._exit(0)  # gloo's threads may drop a tensor while the interpreter goes, and abort it (pytorch/pytorch#179291)
"""


@pytest.mark.slow
def test_two_processes_train_as_one(st, still_bert, tmp_path):
    out = tmp_path / "two"
    out.mkdir()
    script = tmp_path / "two.py"
    script.write_text(_TWO)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(script, still_bert, out),
        ],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "OMP_NUM_THREADS": "1",
        },
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    two = torch.load(out / "state.pt", weights_only=True)
    heads = [torch.load(out / f"head-{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(*heads)
    one = st.build(
        still_bert,
        tmp_path / "one",
        head_seed=100,
        per_device_train_batch_size=8,
        max_steps=5,
        optim="sgd",
        learning_rate=0.05,
        max_grad_norm=1e9,
    )
    one.train()
    for kind, state in (("own", one.loss.own_state()), ("model", one.model.state_dict())):
        for name, value in state.items():
            torch.testing.assert_close(two[kind][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_the_example_of_the_readme(st, bert, tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = [block.partition("```")[0] for block in text.split("```python\n")[1:] if "ESimCSELoss" in block]
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(st.SENTENCES) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    code = code.replace('"bert-base-uncased"', repr(str(bert)))
    code = code.replace("num_train_epochs=1", "max_steps=2, use_cpu=True, report_to='none'")
    names = {}
    with quiet_loading():
        exec(compile(code, "README.md", "exec"), names)
        saved = SentenceTransformer(str(tmp_path / "my-encoder"), device="cpu")
    assert saved.encode(["a boat"]).shape == (1, 16)
    assert len(names["loss"].queue) > 0
    json.dumps(names["loss"].get_config_dict())
