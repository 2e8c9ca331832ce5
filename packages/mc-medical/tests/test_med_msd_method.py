"""MSD as a method: the gradient of N pairs from micro-batches of any size, memory that does not grow, and what is refused."""

import gc
import math

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from mc_core.data import finish_on_device
from mc_core.engine import Fit, Progress, fit
from mc_core.engine.streaming import StreamedBatches
from mc_core.errors import ConfigError
from mc_core.files import read_jsonl
from mc_medical.methods.msd import MSD, MSDConfig
from mc_medical.methods.msd.model import StepKeys
from mc_medical.model import ImageTextModel, load_image_text_model
from mc_medical.recipe import resolve_recipe
from mc_testkit.toys import image_text_pairs

N = 56
IMAGE = {"image_size": 16, "width": 8, "stages": 2}
TEXT = {"vocabulary": 64, "hidden_size": 16, "layers": 1, "heads": 2, "max_length": 16, "dropout": 0.0}
TINY = {"image": IMAGE, "text": TEXT, "dim": 8, "temperature": 0.2, "alpha_ramp_epochs": 0.0}
PASSES = ("ema", "grad_cache", "grad_cache+ema_targets")


def make(**changes):
    torch.manual_seed(0)
    method = MSD(MSDConfig.model_validate({**TINY, **changes})).double()
    if method.teacher is not None:  # a teacher that is not the student
        with torch.no_grad():
            for parameter in method.teacher.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return method


def micro_batches(size, count=N, seed=0):
    tensors = image_text_pairs(count, seed=seed).tensors
    batches = []
    for micro, start in enumerate(range(0, count, size)):
        part = {name: value[start : start + size] for name, value in tensors.items()}
        batches.append({n: v.double() if v.is_floating_point() else v for n, v in part.items()} | {"micro": micro})
    return batches


def gradients(method, batches):
    """What one optimizer step would get, as the engine adds it up, and the loss it would log."""
    method.zero_grad()
    progress = Progress(step=3, total_steps=10)
    with torch.no_grad():
        prepared = method.prepare_step(batches, progress)
    total = 0.0
    for batch in batches:
        output = method.training_step(batch, progress, prepared)
        (output.loss / len(batches)).backward()
        total += output.loss.item() / len(batches)
    return total, {name: p.grad.clone() for name, p in method.model.named_parameters() if p.requires_grad}


def largest_difference(left, right):
    return max((left[name] - right[name]).abs().max().item() for name in left)


@pytest.mark.parametrize("keys", PASSES)
def test_micro_batches_of_any_size_give_the_gradient_of_all(keys):
    method = make(keys=keys)
    whole_loss, whole = gradients(method, micro_batches(N))
    assert max(grad.abs().max() for grad in whole.values()) > 1e-3
    for size in (1, 7, 8, 9):  # the last does not divide
        loss, parts = gradients(method, micro_batches(size))
        assert largest_difference(parts, whole) < 1e-10
        assert loss == pytest.approx(whole_loss, abs=1e-10)


def test_plain_accumulation_fails_that_test():
    method = make(keys="batch")
    whole_loss, whole = gradients(method, micro_batches(N))
    loss, parts = gradients(method, micro_batches(8))
    assert largest_difference(parts, whole) > 1e-3
    assert loss < whole_loss - 0.5  # fewer negatives: about log(N/b) less


def test_grad_cache_has_the_gradient_of_the_true_large_batch():
    """Of the whole batch in one graph, temperature included, though each micro-batch was in the graph alone."""
    cached, true = make(keys="grad_cache"), make(keys="batch")
    true.load_state_dict(cached.state_dict())
    loss, parts = gradients(cached, micro_batches(8))
    whole_loss, whole = gradients(true, micro_batches(N))
    assert loss == pytest.approx(whole_loss, abs=1e-10)
    assert largest_difference(parts, whole) < 1e-10
    assert whole["logit_scale"].abs() > 1e-3


def test_momentum_keys_lack_the_gradient_of_the_keys():
    """The same loss where teacher and student are equal, but another gradient: keys are constants."""
    two_sided, one_sided = make(keys="grad_cache"), make(keys="ema", alpha=0.0)
    one_sided.model.load_state_dict(two_sided.model.state_dict())
    one_sided.teacher.synchronise()
    batches = micro_batches(8)
    for batch in batches:
        batch["view_2"] = batch["view_1"]
    loss_two, two = gradients(two_sided, batches)
    loss_one, one = gradients(one_sided, batches)
    assert loss_one == pytest.approx(loss_two, abs=1e-10)
    a, b = (torch.cat([grad.flatten() for grad in found.values()]) for found in (two, one))
    assert 0.2 < torch.cosine_similarity(a, b, dim=0).item() < 0.98


def test_dropout_is_drawn_alike_in_both_passes():
    method = make(keys="grad_cache", text={**TEXT, "dropout": 0.3}).train()
    batches = micro_batches(8)
    with torch.no_grad():
        prepared = method.prepare_step(batches, Progress(step=3))
    from mc_core.accumulation import replay

    for batch in batches:
        with replay(Progress(step=3), batch):
            image, text = method.embed(batch)
        torch.testing.assert_close(image, prepared.own.part(0, batch["micro"]), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(text, prepared.own.part(1, batch["micro"]), rtol=1e-12, atol=1e-13)


def test_the_teacher_drops_nothing():
    """Its keys are those of evaluation, also while the student trains with dropout."""
    method = make(text={**TEXT, "dropout": 0.5}).train()
    first, second = (method.prepare_step(micro_batches(8), Progress(step=3)) for _ in range(2))
    assert torch.equal(first.keys[1], second.keys[1])
    method.eval()
    torch.testing.assert_close(method.prepare_step(micro_batches(8), Progress(step=3)).keys[1], first.keys[1])


@pytest.mark.parametrize("keys", PASSES)
def test_keys_and_targets_are_constants(keys):
    method = make(keys=keys)
    prepared = method.prepare_step(micro_batches(8), Progress(step=3))  # also outside of no_grad
    assert isinstance(prepared, StepKeys)
    assert not any(value.requires_grad for value in (*prepared.keys, *prepared.own.values))
    targets = method._targets(prepared, slice(0, 8))
    assert not targets.image.requires_grad
    assert targets.image.shape == (8, N)
    torch.testing.assert_close(targets.text.sum(1), torch.ones(8).double())


def test_the_same_study_and_the_same_text_share_the_target():
    method = make(alpha=0.0)
    prepared = method.prepare_step(micro_batches(8), Progress())
    targets = method._targets(prepared, slice(0, N)).image
    assert targets[0, 0] == targets[0, 1] == 0.5  # one study
    assert targets[2, 2] == targets[2, 3] == 0.5  # one text
    assert targets[4, 4] == 1.0
    assert torch.equal(targets > 0, (targets > 0).T)


def test_order_of_pairs_does_not_matter():
    method = make()
    tensors = {n: v.double() if v.is_floating_point() else v for n, v in image_text_pairs(N).tensors.items()}
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    loss, straight = gradients(method, [{**tensors, "micro": 0}])
    other, mixed = gradients(method, [{**{n: v[order] for n, v in tensors.items()}, "micro": 0}])
    assert other == pytest.approx(loss, abs=1e-12)
    assert largest_difference(mixed, straight) < 1e-12


def test_padding_changes_no_gradient():
    method = make()
    short = micro_batches(8)
    for batch in short:
        longest = int(batch["attention_mask"].sum(1).max())
        for name in ("input_ids", "attention_mask"):
            batch[name] = batch[name][:, :longest]
    _, cut = gradients(method, short)
    _, padded = gradients(method, micro_batches(8))
    assert largest_difference(cut, padded) < 1e-12


def test_the_queue_adds_earlier_keys_with_their_ids():
    method = make(keys="ema", alpha=0.0, queue_size=10)
    progress = Progress(step=0)
    first = micro_batches(8, seed=5)
    for batch in first:
        batch["study_ids"] = batch["study_ids"] + 500
        batch["text_ids"] = batch["text_ids"] + 500
    first[-1]["text_ids"][-1] = micro_batches(8)[0]["text_ids"][4]  # something that the next step says too
    prepared = method.prepare_step(first, progress)
    assert len(prepared.keys[0]) == N
    for batch in first:
        method.training_step(batch, progress, prepared)
    method.after_step(progress)
    assert [len(queue) for queue in method.queues.values()] == [10, 10]

    prepared = method.prepare_step(micro_batches(8), Progress(step=1))
    assert len(prepared.keys[0]) == N + 10
    targets = method._targets(prepared, slice(0, N)).image
    assert (targets[:, N:] > 0).nonzero().tolist() == [[4, int((targets[4, N:] > 0).nonzero())]]
    newest = method.queues["text"].in_order()[0][-1]
    position = int((targets[4, N:] > 0).nonzero())
    torch.testing.assert_close(prepared.keys[1][N + position].float(), newest.float())


def test_the_teacher_moves_once_a_step_by_a_horizon_in_pairs():
    config = MSDConfig(horizon=100_000, horizon_share=1.0)
    assert config.momentum_at(10_000, 100_000, 1024) == pytest.approx(math.exp(-1024 / 100_000))
    assert config.momentum_at(10_000, 100_000, 256) == pytest.approx(0.9974, abs=1e-4)
    assert config.momentum_at(0, 100_000, 1024) == 0.5  # its ramp
    assert config.momentum_at(2, 100_000, 1024) == 0.75
    short = MSDConfig(horizon=1e9, horizon_share=0.05)
    assert 1 / (1 - short.momentum_at(150, 200, 128)) == pytest.approx(10.5, abs=0.1)  # 5 % of 200 steps


def test_after_step_clamps_the_temperature_and_moves_the_teacher():
    method = make(horizon=100.0, horizon_share=1.0)
    with torch.no_grad():
        method.model.logit_scale.fill_(7.0)
        before = method.teacher.module.image_projection.weight.clone()
        method.model.encoders.image_projection.weight.add_(1.0)
    online = method.model.encoders.image_projection.weight.detach().clone()
    method.after_step(Progress(step=50, total_steps=100, batch_size=100))
    assert method.model.kappa == pytest.approx(100.0)
    m = math.exp(-1)
    torch.testing.assert_close(method.teacher.module.image_projection.weight, m * before + (1 - m) * online)
    assert "logit_scale" not in dict(method.teacher.named_parameters())


def test_alpha_rises_over_its_epochs():
    method = make(alpha_ramp_epochs=2.0)
    for step, alpha in ((0, 0.0), (5, 0.1), (20, 0.4), (100, 0.4)):
        prepared = method.prepare_step(micro_batches(28), Progress(step=step, steps_per_epoch=10))
        assert prepared.alpha == pytest.approx(alpha)


def _peak_saved_bytes(method, count, size):
    """The most bytes that autograd holds at once in one step of ``count`` pairs."""
    batches = micro_batches(size, count)
    live, peak = 0, 0

    class Held:
        def __init__(self, tensor):
            nonlocal live, peak
            self.tensor = tensor
            live += tensor.untyped_storage().nbytes() if tensor.grad_fn is not None else 0
            peak = max(peak, live)

        def __del__(self):
            nonlocal live
            live -= self.tensor.untyped_storage().nbytes() if self.tensor.grad_fn is not None else 0

    with saved_tensors_hooks(Held, lambda held: held.tensor):
        gradients(method, batches)
    gc.collect()
    return peak


@pytest.mark.parametrize("keys", PASSES)
def test_what_autograd_holds_does_not_grow_with_the_batch(keys):
    """Not even by the (b, N) logits."""
    method = make(keys=keys)
    few, many = (_peak_saved_bytes(method, count, 8) for count in (56, 448))
    assert few > 100_000
    assert many < 1.01 * few
    true = make(keys="batch")
    assert _peak_saved_bytes(true, 448, 448) > 5 * many


def test_each_micro_batch_is_moved_when_it_is_needed_and_let_go():
    import weakref

    alive = []

    class Watched(dict):
        pass

    def finish(batch):
        made = Watched(batch)
        alive.append(weakref.ref(made))
        assert sum(ref() is not None for ref in alive) <= 5  # four of seven pairs at once, and what was just used
        return made

    method = make()
    raw = micro_batches(7, 280)
    streamed = StreamedBatches(raw, finish, method.needs, "prepare")
    prepared = method.prepare_step(streamed, Progress())
    assert len(alive) == 40
    assert len(prepared.own) == 280


@pytest.mark.parametrize(
    ("keys", "prepare", "train"),
    [
        ("ema", ("view_2",), ("view_1",)),
        ("grad_cache", ("view_1",), ("view_1",)),
        ("grad_cache+ema_targets", ("view_1", "view_2"), ("view_1",)),
    ],
)
def test_only_the_views_that_are_needed_are_read(keys, prepare, train):
    method = make(keys=keys)
    batches = micro_batches(28)

    def only(names):
        return [{k: v for k, v in batch.items() if not k.startswith("view") or k in names} for batch in batches]

    assert (method.needs("prepare"), method.needs("train")) == (prepare, train)
    prepared = method.prepare_step(only(prepare), Progress())
    for batch in only(train):
        method.training_step(batch, Progress(), prepared)


def test_plain_accumulation_looks_at_no_micro_batch_beforehand():
    class Untouched(list):
        def __getitem__(self, index):
            raise AssertionError("asked for")

        __iter__ = __getitem__

    assert make(keys="batch").prepare_step(Untouched(), Progress()) is None


def test_a_run_leaves_a_model_that_loads(tmp_path):
    torch.manual_seed(0)
    method = MSD(MSDConfig.model_validate(TINY))
    settings = Fit(steps=4, batch_size=16, accumulation=4, lr=0.05, workers=0, log_every=1, device="cpu")
    result = fit(method, image_text_pairs(), fit=settings, run_dir=tmp_path / "run")
    lines = list(read_jsonl(tmp_path / "run" / "metrics.jsonl"))
    assert {"divergence", "temperature", "alpha"} <= lines[-1].keys()
    assert lines[-1]["loss"] > lines[-1]["divergence"] > 0
    model = load_image_text_model(tmp_path / "run")
    assert isinstance(model, ImageTextModel)
    batch = finish_on_device(image_text_pairs(), {"epoch": 0, "index": torch.arange(4), **micro_batches(4)[0]}, 0)
    pixels = batch["view_1"].float()
    with torch.no_grad():
        torch.testing.assert_close(model.embed_images(pixels), result.method.eval().encode({"view_1": pixels}))
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "Not a medical device" in card
    assert "pham2026msd" in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.95}, "learns nothing"),
        ({"keys": "grad_cache", "alpha": 0.4}, "needs a teacher"),
        ({"keys": "grad_cache", "queue_size": 8}, "needs keys: ema"),
        ({"keys": "batch", "intra_modal": 1.0}, "needs keys: ema"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        resolve_recipe("msd-laptop", {"method": changes})


def test_batch_norm_is_refused_unless_frozen(tmp_path):
    image = {"name": "resnet18", "image_size": 32}
    with pytest.raises(ConfigError, match=r"'resnet18' has \d+ BatchNorm layers.*set image.batch_norm to freeze"):
        make(image=image)
    torch.manual_seed(0)
    frozen = MSD(MSDConfig.model_validate({**TINY, "image": {**image, "batch_norm": "freeze"}}))
    frozen.check(8)
    pixels = torch.rand(4, 1, 32, 32)
    frozen.train()
    with torch.no_grad():
        torch.testing.assert_close(frozen.model.embed_images(pixels)[:2], frozen.model.embed_images(pixels[:2]))

    brought = make()
    brought.model.encoders.image.backbone.norm = nn.BatchNorm1d(16)
    with pytest.raises(ConfigError, match="BatchNorm"):
        fit(brought, image_text_pairs(), fit=Fit(steps=1, batch_size=8, device="cpu"), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_single_pairs_have_nothing_to_be_contrasted_with():
    with pytest.raises(ConfigError, match="keys: ema"):
        make(keys="batch").check(1)
    make().check(1)


def test_a_queue_as_long_as_the_data_is_warned_of():
    assert "meet themselves again" in make(queue_size=100).advice(32, 120)[0]
    assert make(queue_size=20).advice(32, 120) == []
