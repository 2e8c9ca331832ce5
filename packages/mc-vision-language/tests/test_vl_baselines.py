"""The baselines on a sequence of tasks: each against a literal reading of its equation in float64, with its constants."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from mc_core.continual import Task, TaskData, fit_tasks, task_folder
from mc_core.continual.passes import one_pass
from mc_core.data import TensorData
from mc_core.engine import Fit, Progress
from mc_core.errors import InterruptedRunError
from mc_testkit.toys import captioned_images
from mc_vision_language.continual import BASELINES, Sequential
from mc_vision_language.continual.distilled import CosineProjection, turned
from mc_vision_language.continual.loss import divergence
from mc_vision_language.continual.table import TABLE
from mc_vision_language.model import load_vision_language_model

B = 8
FIRST, SECOND, THIRD = Task(0, "one"), Task(1, "two"), Task(2, "three")
SMALL = {
    "image": {"image_size": 16, "patch_size": 8, "width": 12, "depth": 1, "heads": 2},
    "text": {
        "vocabulary": 64,
        "hidden_size": 16,
        "text_layers": 1,
        "fusion_layers": 1,
        "heads": 2,
        "dropout": 0.0,
        "cls_id": 1,
        "sep_id": 2,
        "mask_id": 63,
    },
    "dim": 8,
    "temperature": 0.2,
}
OURS = [name for name in BASELINES if not name.startswith("ctp")]
WITH_PENALTY = ["ewc", "mas", "si", "rwalk", "afec"]
FIT = Fit(batch_size=B, steps=4, lr=1e-2, seed=3, workers=0, stop_on_collapse=False)


class Doubles(TensorData):
    def get_batch(self, indices, epoch, seed):
        found = super().get_batch(indices, epoch, seed)
        return {**found, "view": found["view"].double()}


def data(first: int = 0, count: int = 24) -> Doubles:
    return Doubles(**{name: one[first : first + count] for name, one in captioned_images().tensors.items()})


def batch_of(first: int = 0) -> dict:
    rows = torch.arange(first, first + B)
    found = {name: tensor[rows] for name, tensor in captioned_images().tensors.items()}
    return {**found, "view": found["view"].double(), "index": rows, "epoch": 0, "micro": 0}


def at(step: int = 0, per_epoch: int = 3) -> Progress:
    return Progress(step=step, total_steps=100, steps_per_epoch=per_epoch, batch_size=B, run_seed=7)


def build(name: str, double: bool = True, **changes) -> Sequential:
    torch.manual_seed(0)
    method = TABLE.method_class(name)(TABLE.config_class(name).model_validate({**SMALL, **changes}))
    if double:
        method.double()
    with torch.no_grad():
        shake(method.backbone.parameters(), 0.2)
        if name == "lucir":
            method.after_step(at())
        if name in WITH_PENALTY:
            method.anchor.move()
        method.start_task(FIRST)
    return method


@torch.no_grad()
def shake(parameters, by: float = 0.05) -> None:
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.add_(by * torch.randn_like(parameter))


def step_once(method, batch, progress, rate: float = 0.05) -> None:
    """As the engine does it, with plain gradient descent."""
    parameters = [p for group in method.parameter_groups(0.0) for p in group["params"]]
    method.training_step(batch, progress).loss.backward()
    with torch.no_grad():
        method.before_optimizer_step(progress)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad)
                parameter.grad = None
        method.after_step(progress)


def base_loss(method, batch, progress):
    step = method.step_of(batch, progress)
    return sum(method.base_losses(step).values())


def trained(method) -> dict[str, nn.Parameter]:
    return {name: p for name, p in method.backbone.named_parameters() if p.requires_grad}


def gradients(loss, parameters):
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), found, strict=True)}


def mean_power(method, loss_of, given, power: int):
    """Mean over batches of |gradient|^power, parameter by parameter."""
    total = {name: torch.zeros_like(p) for name, p in trained(method).items()}
    count = 0
    for batch, progress in one_pass(given, FIT, torch.device("cpu")):
        for name, gradient in gradients(loss_of(batch, progress), trained(method)).items():
            total[name] += gradient.abs() ** power
        count += 1
    return {name: one / count for name, one in total.items()}


def fisher(method, given):
    return mean_power(method, lambda batch, progress: base_loss(method, batch, progress), given, 2)


def weighed(method, importance, start):
    return sum((importance[n] * (p - start[n]) ** 2).sum() for n, p in trained(method).items())


def detached(method):
    return {name: p.detach().clone() for name, p in trained(method).items()}


def penalty(method, name: str = "penalty"):
    return method.extra_losses(method.step_of(batch_of(), at()))[name]


def close(found, expected):
    expected = expected.item() if isinstance(expected, torch.Tensor) else expected
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", OURS)
def test_the_first_task_is_plain_fine_tuning(name):
    method = build(name)
    assert method.extra_losses(method.step_of(batch_of(), at())) == {}
    if name != "lucir":
        close(method.training_step(batch_of(), at()).loss, build("sequential").training_step(batch_of(), at()).loss)


@pytest.mark.parametrize("name", ["sequential", "joint", "er", "mof", "kmeans"])
def test_replay_and_joint_training_add_no_loss(name):
    method = build(name)
    method.start_task(SECOND)
    assert type(method) is Sequential
    assert set(method.training_step(batch_of(), at()).metrics) == {"ita", "mlm"}


def test_ewc_by_definition():
    method = build("ewc")
    step_once(method, batch_of(), at())
    one = fisher(method, data())
    method.end_task(FIRST, data(), FIT)
    start = detached(method)
    method.start_task(SECOND)
    shake(method.backbone.parameters())
    close(penalty(method), 5000 * weighed(method, one, start) / 2)
    two = fisher(method, data(24))
    method.end_task(SECOND, data(24), FIT)
    start = detached(method)
    method.start_task(THIRD)
    shake(method.backbone.parameters())
    close(penalty(method), 5000 * weighed(method, {n: (one[n] + two[n]) / 2 for n in one}, start) / 2)


def test_mas_by_definition():
    method = build("mas")
    backbone = method.backbone

    def lengths(batch, _):
        tokens, states = (
            backbone.image_tokens(batch["view"]),
            backbone.text_states(batch["input_ids"], batch["attention_mask"]),
        )
        image, text = backbone.image_projection(tokens[:, 0]), backbone.text_projection(states[:, 0])
        fused = backbone.fuse(states, batch["attention_mask"], backbone.keys(tokens))[:, 0]
        return sum(sum(row.square().sum().sqrt() for row in rows) / B for rows in (image, text, fused))

    one = mean_power(method, lengths, data(), 1)
    method.end_task(FIRST, data(), FIT)
    start = detached(method)
    method.start_task(SECOND)
    shake(backbone.parameters())
    close(penalty(method), weighed(method, one, start) / 2)
    two = mean_power(method, lengths, data(24), 1)
    method.end_task(SECOND, data(24), FIT)
    found = method.anchor.importance
    expected = torch.cat([((one[n] + two[n]) / 2).reshape(-1) for n in one])
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def literal_path(method, steps):
    """w of a few steps: the gradient of L_ita + L_mlm alone times the change, parameter by parameter."""
    path = {name: torch.zeros_like(p) for name, p in trained(method).items()}
    for number in range(steps):
        batch, progress = batch_of(8 * number), at(number)
        unregularised = gradients(base_loss(method, batch, progress), trained(method))
        before = detached(method)
        step_once(method, batch, progress)
        for name, p in trained(method).items():
            path[name] -= unregularised[name] * (p.detach() - before[name])
    return path


def test_si_by_definition():
    method = build("si", penalty=3.0)
    start = detached(method)
    total = {name: torch.zeros_like(p) for name, p in start.items()}
    for task, later in ((FIRST, SECOND), (SECOND, THIRD)):
        path = literal_path(method, 3)
        for name, p in trained(method).items():
            total[name] += path[name] / ((p.detach() - start[name]) ** 2 + 0.1)
        method.end_task(task, data(), FIT)
        start = detached(method)
        method.start_task(later)
        shake(method.backbone.parameters())
        close(penalty(method), 3 * weighed(method, total, start))
        with torch.no_grad():  # the next path starts where this task ended
            for name, p in trained(method).items():
                p.copy_(start[name])
    assert not method.path.any()


def test_si_has_no_negative_importance_where_every_step_went_down():
    """Plain gradient descent moves each weight against its gradient, so that each brought the loss down."""
    method = build("si")
    literal_path(method, 3)
    method.end_task(FIRST, data(), FIT)
    assert (method.anchor.importance >= 0).all()
    assert method.anchor.importance.any()


def test_rwalk_by_definition():
    method = build("rwalk")
    start = detached(method)
    score = mean = {name: torch.zeros_like(p) for name, p in start.items()}
    for task, later in ((FIRST, SECOND), (SECOND, THIRD)):
        path = literal_path(method, 2)
        if task is SECOND:  # make some negative, which are cut
            method.path.neg_()
            path = {name: -one for name, one in path.items()}
        own = fisher(method, data())
        a = task.index / (task.index + 1)
        mean = {n: a * mean[n] + (1 - a) * own[n] for n in own}
        moved = {n: p.detach() - start[n] for n, p in trained(method).items()}
        new = {n: (path[n] / (mean[n] * moved[n] ** 2 + 0.1)).clamp_min(0) for n in path}
        score = {n: (score[n] + new[n]) / 2 for n in new}
        method.end_task(task, data(), FIT)
        start = detached(method)
        method.start_task(later)
        shake(method.backbone.parameters())
        close(penalty(method), 1000 * weighed(method, {n: score[n] + mean[n] for n in mean}, start))
        with torch.no_grad():
            for name, p in trained(method).items():
                p.copy_(start[name])


def in_second_task(name: str, **changes):
    method = build(name, **changes)
    method.end_task(FIRST, data(), FIT)
    with torch.no_grad():
        method.start_task(SECOND)
    return method


def test_afec_has_a_free_model_that_learns_as_sequential_fine_tuning_does():
    method = in_second_task("afec")
    alone = build("sequential")
    alone.backbone.load_state_dict(method.backbone.state_dict())
    for number in range(5):
        step_once(method, batch_of(8 * number), at(number))
        step_once(alone, batch_of(8 * number), at(number))
    for free, own in zip(method.free.parameters(), alone.backbone.parameters(), strict=True):
        torch.testing.assert_close(free, own, atol=1e-9, rtol=1e-9)


def test_afec_by_definition():
    method = in_second_task("afec", penalty=0.0)
    squares, held = [], []
    free = {name: p for name, p in method.free.named_parameters() if p.requires_grad}
    for number in range(3):  # an epoch
        batch, progress = batch_of(8 * number), at(number)
        assert penalty(method, "forward_penalty").item() == 0
        step = method.step_of(batch, progress)
        squares.append({n: g.square() for n, g in gradients(method.free_loss(step), free).items()})
        step_once(method, batch, progress)
    held = {n: p.detach().clone() for n, p in free.items()}
    mean = {n: sum(one[n] for one in squares) / 3 for n in held}
    step_once(method, batch_of(24), at(3))  # in the next epoch the snapshot stays
    expected = sum((mean[n] * (p - held[n]) ** 2).sum() for n, p in trained(method).items())
    close(penalty(method, "forward_penalty"), expected / 2)
    assert torch.equal(method.free_point, torch.cat([held[n].reshape(-1) for n in held]))


def test_afec_includes_ewc_and_keeps_both_models_apart():
    method, ewc = in_second_task("afec"), in_second_task("ewc")
    with torch.no_grad():
        for one, other in zip(method.backbone.parameters(), ewc.backbone.parameters(), strict=True):
            one.add_(0.01)
            other.add_(0.01)
    close(penalty(method), penalty(ewc))
    step = method.step_of(batch_of(), at())
    free = method.extra_losses(step)["free"]
    assert all(not g.any() for g in gradients(free, trained(method)).values())
    others = {n: p for n, p in method.free.named_parameters() if p.requires_grad}
    rest = sum(loss for name, loss in method.extra_losses(step).items() if name != "free")
    assert all(not g.any() for g in gradients(rest + base_loss(method, batch_of(), at()), others).values())


def test_afec_trains_its_free_model_from_the_second_task_on():
    method = build("afec")
    held = {id(p) for group in method.parameter_groups(0.0) for p in group["params"]}
    assert not any(id(p) in held for p in method.free.parameters())
    method.end_task(FIRST, data(), FIT)
    shake(method.free.parameters())
    method.start_task(SECOND)
    held = {id(p) for group in method.parameter_groups(0.0) for p in group["params"]}
    assert sum(id(p) in held for p in method.free.parameters()) == len(trained(method))
    assert all(torch.equal(a, b) for a, b in zip(method.free.parameters(), method.backbone.parameters(), strict=True))


def literal_kl(before, now, tau):
    total = 0.0
    for old, new in zip(before, now, strict=True):
        p, q = (old / tau).softmax(0), (new / tau).softmax(0)
        total += sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    return total / len(before)


def old_and_new(name: str, **changes):
    method = build(name, **changes)
    with torch.no_grad():
        method.start_task(SECOND)
        shake(method.backbone.parameters(), 0.1)
    return method, method.old.module


def words_kept(method, old, batch):
    masked = method.masked(batch, at())
    mask, total = batch["attention_mask"], 0.0
    logits = []
    for one in (old, method.backbone):
        keys = one.keys(one.image_tokens(batch["view"]))
        fused = one.fuse(one.text_states(masked.input_ids, mask), mask, keys)
        logits.append(one.lm_logits(fused[masked.rows, masked.columns]))
    for said, now in zip(*logits, strict=True):
        total -= (said.softmax(0) * now.log_softmax(0)).sum().item()
    return total / len(masked.rows)


def test_lwf_by_definition():
    method, old = old_and_new("lwf")
    batch = batch_of()
    found = method.extra_losses(method.step_of(batch, at()))
    raw = []
    for one in (old, method.backbone):
        tokens = one.image_tokens(batch["view"])
        states = one.text_states(batch["input_ids"], batch["attention_mask"])
        raw.append((one.image_projection(tokens[:, 0]), one.text_projection(states[:, 0])))
    expected = (literal_kl(raw[0][0], raw[1][0], 0.2) + literal_kl(raw[0][1], raw[1][1], 0.2)) / 2
    close(found["feature_distil"], expected)
    close(found["mlm_distil"], words_kept(method, old, batch))
    assert set(found) == {"feature_distil", "mlm_distil"}


def test_lwf_by_similarity():
    method, old = old_and_new("lwf", feature=0.0, similarity=2.0, distil_mlm=0.0)
    batch = batch_of()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    before = old.embed_images(batch["view"]), old.embed_tokens(ids, mask)
    now = method.backbone.embed_images(batch["view"]), method.backbone.embed_tokens(ids, mask)
    expected = literal_kl(before[0] @ before[1].T, now[0] @ now[1].T, 0.2)
    expected += literal_kl(before[1] @ before[0].T, now[1] @ now[0].T, 0.2)
    found = method.extra_losses(method.step_of(batch, at()))
    assert set(found) == {"similarity_distil"}
    close(found["similarity_distil"], expected)  # half of both, times 2


@pytest.mark.parametrize("name", ["lwf", "icarl"])
def test_nothing_is_distilled_before_a_weight_has_moved(name):
    method = build(name, similarity=1.0)
    with torch.no_grad():
        method.start_task(SECOND)
    for what in ("feature_distil", "similarity_distil"):
        found = method.extra_losses(method.step_of(batch_of(), at()))
        assert found[what].item() == pytest.approx(0, abs=1e-12)
        assert all(g.abs().max() < 1e-9 for g in gradients(found[what], trained(method)).values())


def test_lucir_by_definition():
    method, old = old_and_new("lucir", direction=1.5)
    batch = batch_of()
    found = method.extra_losses(method.step_of(batch, at()))

    def one_minus(states, before, count):
        cosines = []
        for b in range(B):
            for t in range(states.shape[1]):
                if count is None or count[b, t]:
                    x, y = states[b, t], before[b, t]
                    cosines.append((x @ y / x.norm() / y.norm()).item())
        return 1 - sum(cosines) / len(cosines)

    ids, mask = batch["input_ids"], batch["attention_mask"]
    images = [one.image_tokens(batch["view"]) for one in (method.backbone, old)]
    texts = [one.text_states(ids, mask) for one in (method.backbone, old)]
    expected = (one_minus(*images, None) + one_minus(*texts, mask)) / 2
    assert found["direction"].item() == pytest.approx(1.5 * expected, rel=1e-9)
    close(found["mlm_distil"], words_kept(method, old, batch))


def test_lucir_along_the_tokens_is_another_thing():
    x, y = (torch.randn(2, 3, 4, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    expected = 1 - torch.cosine_similarity(normalize(x, dim=-1), normalize(y, dim=-1)).mean()  # dim 1 by default
    close(turned(x, y, mask, 1), expected)
    assert turned(x, y, mask, -1).item() != pytest.approx(expected.item(), abs=1e-3)


def test_lucir_projections_only_turn():
    layer = CosineProjection(5, 3).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    expected = torch.stack([torch.stack([row @ w / row.norm() / w.norm() for w in layer.weight]) for row in x])
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(3, 1).double() + 0.5)
    torch.testing.assert_close(layer(7 * x), expected)
    layer.settle()
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(layer(x), expected)


def test_lucir_saves_a_model_with_the_same_features(tmp_path):
    method = build("lucir", double=False)
    batch = batch_of()
    batch["view"] = batch["view"].float()
    for number in range(2):
        step_once(method, batch, at(number))
    method.save(tmp_path / "model", {})
    saved = load_vision_language_model(tmp_path / "model").backbone
    own = method.backbone
    torch.testing.assert_close(saved.embed_images(batch["view"]), own.embed_images(batch["view"]))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    torch.testing.assert_close(saved.embed_tokens(ids, mask), own.embed_tokens(ids, mask))


def test_divergence_is_one_of_distributions():
    a, b = (torch.randn(3, 5, dtype=torch.float64) for _ in range(2))
    expected = torch.nn.functional.kl_div(b.log_softmax(1), a.softmax(1), reduction="batchmean")
    close(divergence(a, b), expected)
    close(divergence(a + 1, b - 4), expected)
    assert divergence(a, b.requires_grad_()).requires_grad
    assert not divergence(a.requires_grad_(), b.detach()).requires_grad
    assert cross_entropy(b, a.softmax(1)) > expected


@pytest.mark.parametrize("name", OURS)
def test_old_models_and_importances_take_no_gradient(name):
    method = build(name)
    method.end_task(FIRST, data(), FIT)
    with torch.no_grad():
        method.start_task(SECOND)
    shake(method.backbone.parameters())
    method.training_step(batch_of(), at()).loss.backward()
    if getattr(method, "old", None) is not None:
        assert all(p.grad is None and not p.requires_grad for p in method.old.parameters())
    assert all(p.grad is not None for p in trained(method).values())


class Stopped(TensorData):
    """Interrupts the run when a step asks for its batch."""

    at = None

    def get_batch(self, indices, epoch, seed):
        if Stopped.at is not None:
            Stopped.at -= 1
            if Stopped.at < 0:
                raise InterruptedRunError("stopped")
        return super().get_batch(indices, epoch, seed)


@pytest.mark.parametrize("name", ["afec", "lucir", "lwf", "rwalk", "si"])
def test_resumes_in_the_middle_of_a_task_to_the_same_bits(name, tmp_path):
    fit = FIT.model_copy(update={"checkpoint_every": 1, "steps": 4})
    each = [{n: one[k : k + 24] for n, one in captioned_images().tensors.items()} for k in (0, 24)]

    def run(folder, cls):
        method = build(name, double=False)
        return fit_tasks(method, [TaskData(f"t{k}", cls(**one)) for k, one in enumerate(each)], fit=fit, run_dir=folder)

    whole = run(tmp_path / "whole", TensorData).method.state_dict()
    # before the third step of task 2; the pass of end_task over task 1 asks for 3 batches too, where there is one
    Stopped.at = 6 + (3 if name in ("afec", "rwalk") else 0)
    with pytest.raises(InterruptedRunError):
        run(tmp_path / "stopped", Stopped)
    Stopped.at = None
    assert (task_folder(tmp_path / "stopped", Task(0, "t0")) / "end.safetensors").is_file()
    again = run(tmp_path / "stopped", Stopped).method.state_dict()
    assert whole.keys() == again.keys()
    for key in whole:
        assert torch.equal(whole[key], again[key]), key


def test_a_copy_of_a_method_has_a_penalty_of_its_own():
    method = in_second_task("ewc")
    twin = copy.deepcopy(method)
    shake(twin.backbone.parameters())
    assert penalty(method).item() == 0
    assert penalty(twin).item() > 0
