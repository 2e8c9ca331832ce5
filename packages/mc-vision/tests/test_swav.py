"""Whole steps of SwAV against loops in float64 that follow the paper, its closed forms, its queue, freezing and views."""

import math

import pytest
import torch
from torch import Tensor

from mc_core.data import TensorData
from mc_core.engine import Fit, Progress, fit
from mc_core.errors import ConfigError, DataError, NonFiniteError
from mc_core.files import read_jsonl
from mc_core.queue import FeatureQueue
from mc_testkit.contract import assert_same_state
from mc_vision.methods.swav.config import SwAVConfig
from mc_vision.methods.swav.model import SwAV
from mc_vision.recipe import ViewOptions, resolve_recipe
from mc_vision.transforms_config import IMAGENET_STD, views_preset

VIT = {"backbone": "moco-vit-tiny-8", "image_size": 16}  # LayerNorm only: rows can be computed apart
RESNET = {"backbone": "resnet10-w16", "image_size": 16}
SMALL = {"encoder": VIT, "projector": "mlp", "dim": 8, "hidden_dim": 16, "prototypes": 5, "freeze_prototypes_steps": 0}
SIZES = (16, 16, 8, 8)


def built(**fields) -> SwAV:
    torch.manual_seed(0)
    method = SwAV(SwAVConfig.model_validate({**SMALL, **fields})).train()
    for name, parameter in method.named_parameters():  # a ViT starts with equal features: make them differ
        if parameter.ndim > 1 and "prototypes" not in name:
            parameter.data.mul_(3)
    return method


def crops(count: int, seed: int = 0, sizes: tuple[int, ...] = SIZES) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"view_{number}": torch.randn(count, 3, size, size, generator=generator)
        for number, size in enumerate(sizes, start=1)
    }


def batch_of(count: int, seed: int = 0, sizes: tuple[int, ...] = SIZES, micro: int = 0) -> dict:
    return {**crops(count, seed, sizes), "index": torch.arange(count), "micro": micro}


def progress(step: int = 0, per_epoch: int = 1) -> Progress:
    return Progress(step, 100, per_epoch, 6)


def sinkhorn_by_loop(scores: list[list[float]], epsilon: float, iterations: int) -> list[list[float]]:
    """The iteration as it is written in the paper's appendix, prototypes first."""
    rows, columns = len(scores), len(scores[0])
    q = [[math.exp(scores[b][k] / epsilon) for b in range(rows)] for k in range(columns)]
    total = sum(map(sum, q))
    q = [[x / total for x in row] for row in q]
    for _ in range(iterations):
        q = [[x / sum(row) / columns for x in row] for row in q]
        sums = [sum(row[b] for row in q) for b in range(rows)]
        q = [[row[b] / sums[b] / rows for b in range(rows)] for row in q]
    return [[row[b] * rows for row in q] for b in range(rows)]


def loss_by_loop(
    z: list[list[list[float]]], prototypes: list[list[float]], queues: list[list[list[float]]], config: SwAVConfig
) -> tuple[float, int]:
    """(L, number of terms ℓ(v, i)) of embeddings z[v][b][d]."""

    def score(row: list[float]) -> list[float]:
        return [sum(x * y for x, y in zip(row, c, strict=True)) for c in prototypes]

    scores = [[score(row) for row in view] for view in z]
    batch, total, terms = len(z[0]), 0.0, 0
    for i in (0, 1):
        everything = [score(row) for row in queues[i]] + scores[i]
        codes = sinkhorn_by_loop(everything, config.epsilon, config.iterations)[-batch:]
        for v in range(len(z)):
            if v == i:
                continue
            for code, row in zip(codes, scores[v], strict=True):
                below = sum(math.exp(s / config.temperature) for s in row)
                log_p = [s / config.temperature - math.log(below) for s in row]
                total -= sum(q * p for q, p in zip(code, log_p, strict=True)) / batch / (len(z) - 1) / 2
            terms += 1
    return total, terms


def embedded(method: SwAV, batch: dict, count: int = 4) -> list[list[list[float]]]:
    """n(head(encoder(x))) of each view by itself."""
    with torch.no_grad():
        views = [method.online(batch[f"view_{i}"]).double() for i in range(1, count + 1)]
    return [(view / view.norm(dim=1, keepdim=True)).tolist() for view in views]


def train_step(method: SwAV, batch: dict, at: Progress) -> Tensor:
    loss = method.training_step(batch, at).loss
    method.after_step(at)
    at.step += 1
    return loss


def queues_of(method: SwAV) -> list[FeatureQueue]:
    return [queue for queue in method.queues if isinstance(queue, FeatureQueue)]


@pytest.mark.parametrize("epsilon", [0.05, 0.02])
@pytest.mark.parametrize("queue_size", [0, 12, 10])
@pytest.mark.parametrize("sizes", [SIZES, (16, 16)])
def test_a_step_is_the_papers_sum(epsilon, queue_size, sizes):
    method = built(epsilon=epsilon, queue_size=queue_size, queue_start_epoch=0, temperature=0.2)
    at, queues = progress(), [[], []]
    for seed in (1, 2):  # two steps fill the queue
        for queue, view in zip(queues, embedded(method, batch_of(6, seed)), strict=False):
            queue += view
        train_step(method, batch_of(6, seed), at)
    batch = batch_of(6, 3, sizes)
    used = [queue[-queue_size:] if queue_size else [] for queue in queues]
    prototypes = method.prototypes.weight.detach().double().tolist()
    z = embedded(method, batch, len(sizes))
    expected, terms = loss_by_loop(z, prototypes, used, method.config)
    assert terms == 2 * (len(sizes) - 1)
    assert method.training_step(batch, at).loss.item() == pytest.approx(expected, rel=1e-5)
    without, _ = loss_by_loop(z, prototypes, [[], []], method.config)
    assert (abs(expected - without) > 1e-3) == bool(queue_size)


def test_the_queue_is_used_only_when_full_and_filled_from_its_epoch():
    method, plain = built(queue_size=12, queue_start_epoch=1), built()
    at = progress(per_epoch=2)
    fills, differs = [], []
    for seed in range(6):
        batch = batch_of(6, seed)
        fills.append([len(queue) for queue in queues_of(method)])
        ours, theirs = train_step(method, batch, at), plain.training_step(batch, progress()).loss
        differs.append(not torch.equal(ours, theirs))
    assert fills == [[0, 0], [0, 0], [0, 0], [6, 6], [12, 12], [12, 12]]
    assert differs == [False] * 4 + [True] * 2


def test_each_view_has_its_queue_of_unit_embeddings():
    method, at = built(queue_size=9, queue_start_epoch=0), progress()
    kept = [[], []]
    for seed in (1, 2):
        batch = batch_of(6, seed)
        for rows, view in zip(kept, embedded(method, batch), strict=False):
            rows += view
        train_step(method, batch, at)
    for queue, rows in zip(queues_of(method), kept, strict=True):
        found = queue.in_order()[0]
        torch.testing.assert_close(found, torch.tensor(rows[-9:]), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(9))


def test_no_gradient_through_assignments_or_queue():
    method, at = built(queue_size=6, queue_start_epoch=0), progress()
    train_step(method, batch_of(6, 1), at)
    batch = batch_of(6, 2)
    method.training_step(batch, at).loss.backward()
    found = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    with torch.no_grad():
        codes = method.codes(method.scores(method.embed([batch["view_1"], batch["view_2"]])))
    assert not codes.requires_grad
    scores = method.scores(method.embed([batch[f"view_{i}"] for i in range(1, 5)]))
    log_p = (scores / method.config.temperature).log_softmax(-1)
    terms = [-(codes[i] * log_p[v]).sum(1).mean() for i in (0, 1) for v in range(4) if v != i]
    torch.stack(terms).mean().backward()  # codes are constants here
    for name, gradient in found.items():
        expected = method.get_parameter(name).grad
        assert (gradient - expected).norm() < 1e-3 * expected.norm(), name
    assert not any(queue.features.requires_grad for queue in queues_of(method))


def test_small_crops_are_predicted_from_and_never_assigned():
    method, at, seen = built(), progress(), []
    codes = method.codes
    method.codes = lambda scores: seen.append(codes(scores)) or seen[-1]
    batch = batch_of(6)
    first = method.training_step(batch, at).loss
    changed = method.training_step({**batch, "view_3": -batch["view_3"]}, at).loss
    assert torch.equal(seen[0], seen[1])
    assert seen[0].shape == (2, 6, 5)
    assert not torch.equal(first, changed)


def test_views_stay_in_order_and_one_size_passes_once():
    method, passes = built(), []
    method.encoder.register_forward_hook(lambda module, args, out: passes.append(tuple(args[0].shape)))
    batch = batch_of(6)
    views = [batch[f"view_{i}"] for i in range(1, 5)]
    with torch.no_grad():
        z = method.embed(views)
        assert passes == [(12, 3, 16, 16), (12, 3, 8, 8)]
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        torch.testing.assert_close(method.embed([view[order] for view in views]), z[:, order])
        for view, rows in zip(views, z, strict=True):
            torch.testing.assert_close(method.embed([view])[0], rows)


def test_a_head_with_batch_norm_sees_all_views_at_once():
    method = built(encoder=RESNET, projector="mlp-bn")
    batch = batch_of(6)
    seen = []
    method.online.get_submodule("projector").register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    method.training_step(batch, progress())
    assert seen == [24]
    first, _, _, last = method.online.get_submodule("projector")
    assert first.bias is not None
    assert last.bias is not None


# Closed forms


def test_equal_features_give_uniform_codes_and_equal_scores_a_stationary_point_at_ln_k():
    method = built(prototypes=7)
    row = torch.nn.functional.normalize(torch.randn(8), dim=0)
    scores = method.scores(row.expand(2, 6, 8))
    torch.testing.assert_close(method.codes(scores), torch.full((2, 6, 7), 1 / 7))
    with torch.no_grad():
        method.prototypes.weight.copy_(row.expand(7, 8))
    method.embed = lambda views: row.expand(len(views), 6, 8)
    taken = {}
    inner = method.scores

    def watched(z):
        taken["scores"] = inner(z)
        taken["scores"].retain_grad()
        return taken["scores"]

    method.scores = watched
    output = method.training_step(batch_of(6), progress())
    assert output.loss.item() == pytest.approx(math.log(7), rel=1e-6)
    assert float(output.metrics["loss_share"]) == pytest.approx(1, rel=1e-6)
    assert float(output.metrics["code_entropy_share"]) == pytest.approx(1, rel=1e-6)
    output.loss.backward()
    assert taken["scores"].grad.abs().max() < 1e-7


def test_the_loss_is_at_least_the_entropy_of_the_codes():
    method = built(epsilon=0.3)
    for seed in range(4):
        metrics = method.training_step(batch_of(6, seed), progress()).metrics
        assert 0 < float(metrics["code_entropy_share"]) <= float(metrics["loss_share"])


def test_scores_are_float32_under_autocast():
    method, batch = built(), batch_of(6)
    views = [batch["view_1"], batch["view_2"]]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        z = method.embed(views)
        scores = method.scores(z)
    assert z.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(scores, z @ method.prototypes.weight.detach().T)


# Accumulation


@pytest.mark.parametrize("queue_size", [0, 8])
def test_assignments_under_accumulation_are_those_of_the_whole_batch(queue_size):
    method = built(queue_size=queue_size, queue_start_epoch=0)
    at = progress()
    whole = batch_of(8, 1)
    if queue_size:
        train_step(method, batch_of(8, 5), at)
    parts = [
        {name: x[3 * micro : 3 + 5 * micro] if isinstance(x, Tensor) else micro for name, x in whole.items()}
        for micro in (0, 1)
    ]
    assert [len(part["view_1"]) for part in parts] == [3, 5]
    with torch.no_grad():
        assert method.prepare_step([whole], at) is None
        together = method.codes(method.scores(method.embed([whole["view_1"], whole["view_2"]])))
        prepared = method.prepare_step(parts, at)
        apart = torch.cat([method.prepare_step([p, p], at)[0] for p in parts], dim=1)
    assert prepared is not None
    torch.testing.assert_close(torch.cat(prepared, dim=1), together)
    assert (apart - together).abs().max() > 1e-3
    expected = method.training_step(whole, at).loss
    losses = [method.training_step(part, at, prepared).loss * len(part["view_1"]) / 8 for part in parts]
    torch.testing.assert_close(sum(losses), expected)


def test_the_first_pass_sees_what_the_second_sees():
    """With BatchNorm in the head, whose statistics are over all views, and dropped paths drawn alike."""
    method = built(encoder={"backbone": "resnet18", "image_size": 16, "drop_path": 0.3}, projector="mlp-bn")
    parts = [batch_of(4, seed, micro=seed) for seed in (0, 1)]
    found = []
    embed = method.embed
    method.embed = lambda views: found.append(embed(views)) or found[-1]
    statistics = {n: b.clone() for n, b in method.named_buffers()}
    with torch.no_grad():
        prepared = method.prepare_step(parts, progress())
    assert all(torch.equal(b, statistics[n]) for n, b in method.named_buffers())
    for part in parts:
        method.training_step(part, progress(), prepared)
    for first, second in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(first, second.detach(), rtol=0, atol=0)


# Freezing


def data(count: int = 24) -> TensorData:
    return TensorData(**crops(count), image=torch.randn(count, 3, 16, 16))


def settings(**changes) -> Fit:
    base = {"steps": 6, "batch_size": 8, "lr": 0.05, "workers": 0, "log_every": 1, "device": "cpu", "weight_decay": 0.1}
    return Fit.model_validate({**base, **changes})


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adam", "adamw"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_prototypes_stay_for_their_steps_and_then_move(optimizer, accumulation, tmp_path):
    start = built().prototypes.weight.detach().clone()
    for steps, moves in ((3, False), (4, True)):
        method = built(freeze_prototypes_steps=3)
        fields = {"steps": steps, "optimizer": optimizer, "accumulation": accumulation, "schedule": "constant"}
        encoder = [p.detach().clone() for p in method.encoder.parameters()]
        fit(method, data(), fit=settings(**fields, lr=0.01), run_dir=tmp_path / str(steps))
        now = method.prototypes.weight.detach()
        assert torch.equal(now, start) != moves
        torch.testing.assert_close(now.norm(dim=1), torch.ones(5))
        assert any(not torch.equal(a, b) for a, b in zip(encoder, method.encoder.parameters(), strict=True))


@pytest.mark.parametrize("cut", [2, 4])
def test_a_run_cut_while_frozen_or_after_goes_on_to_the_same_bits(cut, tmp_path):
    class Cut(Exception):
        pass

    config = {"freeze_prototypes_steps": 3, "queue_size": 16, "queue_start_epoch": 1}
    whole = fit(built(**config), data(), fit=settings(checkpoint_every=1), run_dir=tmp_path / "whole")
    method = built(**config)
    after_step = method.after_step

    def stop(at: Progress) -> None:
        if at.step == cut:
            raise Cut
        after_step(at)

    method.after_step = stop
    with pytest.raises(Cut):
        fit(method, data(), fit=settings(checkpoint_every=1), run_dir=tmp_path / "cut")
    torch.manual_seed(9)
    other = SwAV(method.config)
    resumed = fit(other, data(), fit=settings(checkpoint_every=1), run_dir=tmp_path / "cut")
    assert resumed.resumed_from == cut
    assert_same_state(whole.method, resumed.method)
    assert all(queue.full for queue in queues_of(other))


# What goes wrong


def test_bad_settings_and_batches_are_named(tmp_path):
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        SwAVConfig(prototypes=1)
    with pytest.raises(ValueError, match="greater than 0"):
        SwAVConfig(epsilon=0)
    with pytest.raises(DataError, match=r"batches hold 1 \(view_1.*at least two.*--views.preset swav"):
        built().training_step(batch_of(4, sizes=(16,)), progress())
    with pytest.raises(ConfigError, match=r"queue_size 6 is shorter than a batch of 8.*--method.queue-size 120"):
        fit(built(queue_size=6), data(), fit=settings(), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_advice():
    assert built(prototypes=8).advice(8, 100) == []
    (text,) = built(prototypes=100).advice(8, 100)
    assert "100 prototypes share 8 samples" in text
    assert "take about 4" in text
    assert built(prototypes=100, queue_size=92).advice(8, 100) == []
    (text,) = built(queue_size=100).advice(8, 100)
    assert "as long as the data (100 images)" in text
    for name in ("swav", "swav-256"):
        recipe = resolve_recipe(name)
        assert SwAV.advice(_only(recipe.method), recipe.fit.batch_size, 1_281_167) == []


def _only(config: SwAVConfig) -> SwAV:
    """A method of which nothing but its configuration is looked at."""
    method = object.__new__(SwAV)
    object.__setattr__(method, "config", config)
    return method


def test_a_nan_is_reported_by_the_engine(tmp_path):
    broken = crops(24)
    broken["view_2"][:] = float("nan")
    with pytest.raises(NonFiniteError, match="the loss is nan at step 0"):
        fit(built(), TensorData(**broken), fit=settings(), run_dir=tmp_path / "run")


# Recipes and views


def test_recipes_are_the_published_ones():
    large, small = resolve_recipe("swav"), resolve_recipe("swav-256")
    assert large.method == SwAVConfig(encoder=large.method.encoder)  # the defaults
    assert (large.fit.batch_size, large.fit.lr, large.fit.warmup_epochs, large.fit.weight_decay) == (
        4096,
        4.8,
        10,
        1e-6,
    )
    assert (small.fit.batch_size, small.fit.lr, small.fit.warmup_epochs) == (256, 0.6, 0)
    assert (small.method.queue_size, small.method.queue_start_epoch) == (15 * 256, 15)
    assert small.method.freeze_prototypes_steps == 1_281_167 // 256 + 1
    assert large.fit.optimizer == small.fit.optimizer == "lars"
    assert large.views.views() == small.views.views() == views_preset("swav")


def test_multi_crop_views():
    full, *others = views_preset("swav").views
    assert others[0] == full
    assert [view.size for view in others[1:]] == [96] * 6
    assert (full.size, full.crop_scale) == (224, (0.14, 1.0))
    assert {view.crop_scale for view in others[1:]} == {(0.05, 0.14)}
    for view in (full, *others):
        assert (view.jitter, view.jitter_p, view.grayscale_p) == ((0.8, 0.8, 0.8, 0.2), 0.8, 0.2)
        assert (view.blur_p, view.blur_sigma, view.std) == (0.5, (0.1, 2.0), IMAGENET_STD)
    assert [(view.size, view.crop_scale) for view in views_preset("swav-2").views] == [(224, (0.08, 1.0))] * 2
    tiny = views_preset("swav-small").views
    assert [view.size for view in tiny] == [32, 32, 16, 16, 16, 16]
    assert {view.flip_p for view in tiny} == {0.0}  # a mirrored digit is another


@pytest.mark.parametrize(
    ("name", "size", "small"),
    [
        *[("swav", 224, 96), ("swav", 160, 64), ("swav", 128, 48), ("swav", 192, 80), ("swav", 448, 192)],
        *[("swav-small", 32, 16), ("swav-small", 64, 32), ("swav-small", 16, 8), ("swav-small", 25, 12)],
    ],
)
def test_small_crops_follow_the_size_in_steps_that_patches_fit(name, size, small):
    views = views_preset(name, size).views
    assert [view.size for view in views[:2]] == [size] * 2
    assert {view.size for view in views[2:]} == {small}


def test_view_options_leave_small_crops_their_scale():
    changed = ViewOptions(preset="swav", size=64, crop_scale=(0.3, 1.0), blur_p=0.0, small_crops=3).views()
    assert [view.size for view in changed.views] == [64, 64, 24, 24, 24]
    assert [view.crop_scale for view in changed.views] == [(0.3, 1.0)] * 2 + [(0.05, 0.14)] * 3
    assert {view.blur_p for view in changed.views} == {0.0}
    assert changed.small == changed.views[2:]
    assert len(ViewOptions(preset="swav", small_crops=0).views().views) == 2
    assert len(ViewOptions(preset="swav").views().views) == 8
    assert ViewOptions(preset="moco-v2", small_crops=0).views() == views_preset("moco-v2")
    with pytest.raises(ConfigError, match=r"small_crops 2: the views 'moco-v2' have no small crops"):
        ViewOptions(preset="moco-v2", small_crops=2).views()


def test_the_figures_that_show_a_stuck_run_are_logged(tmp_path):
    fit(built(), data(), fit=settings(steps=2), run_dir=tmp_path / "run")
    line = read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]
    assert line["loss_share"] == pytest.approx(line["loss"] / math.log(5), rel=1e-5)
    assert 0 < line["code_entropy_share"] <= 1
    assert 0 < line["usage_share"] <= 1 + 1e-6


def test_unbalanced_targets_are_the_softmax_and_may_all_be_one_prototype():
    scores = torch.zeros(2, 4, 5)
    scores[..., 2] = 0.9  # every sample is nearest to one prototype
    plain, balanced = built(balanced=False), built()
    expected = (scores / 0.05).softmax(-1)
    torch.testing.assert_close(plain.codes(scores), expected)
    assert int(plain.codes(scores).argmax(-1).unique().numel()) == 1
    torch.testing.assert_close(balanced.codes(scores), torch.full_like(scores, 0.2))
    used = [float(m.training_step(batch_of(6), progress()).metrics["usage_share"]) for m in (plain, balanced)]
    assert used[1] == pytest.approx(1, abs=0.02)
    assert used[0] < used[1]
