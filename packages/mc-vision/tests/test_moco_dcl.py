"""Whole steps of MoCo v1/v2/v3, DCL and DCLW against loops in float64 that follow the papers' algorithms line by line."""

import math

import pytest
import torch

from mc_core.engine import Fit, Progress, fit
from mc_core.errors import ConfigError
from mc_testkit.toys import image_pairs
from mc_vision.methods.dcl.config import DCLConfig, DCLQueueConfig, DCLV3Config
from mc_vision.methods.dcl.model import DCL, DCLV3, DCLQueue
from mc_vision.methods.moco.config import MoCoConfig, MoCoV3Config
from mc_vision.methods.moco.model import MoCo, MoCoV3

ENCODER = {"backbone": "moco-vit-tiny-8", "image_size": 16}
SMALL = {"encoder": ENCODER, "dim": 8}
PROGRESS = Progress(0, 100, 10, 6)


def batch_of(count: int, seed: int = 0, ids: list[int] | None = None) -> dict:
    generator = torch.Generator().manual_seed(seed)
    views = {f"view_{i}": torch.randn(count, 3, 16, 16, generator=generator) for i in (1, 2)}
    return {**views, "index": torch.arange(count), "micro": 0, **({"ids": torch.tensor(ids)} if ids else {})}


def unit_rows(rows: torch.Tensor) -> list[list[float]]:
    return [[float(x) / math.sqrt(sum(float(y) ** 2 for y in row)) for x in row] for row in rows.double()]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def built(kind, config, **fields):
    torch.manual_seed(0)
    method = kind(config(**SMALL, **fields)).train()
    for parameter in method.parameters():  # a ViT starts with equal features for all images: make them differ
        if parameter.ndim > 1:
            parameter.data.mul_(3)
    if hasattr(method, "momentum_encoder"):
        for parameter in method.momentum_encoder.parameters():  # keys that are not the queries' own network's
            parameter.data.add_(0.05 * torch.randn(parameter.shape))
    return method


def test_moco_is_algorithm_1_with_the_queue_before_this_steps_keys():
    method = built(MoCo, MoCoConfig, queue_size=10, temperature=0.2, momentum={"momentum": 0.9})
    for seed in (1, 2):  # two steps fill the queue
        method.training_step(batch_of(6, seed), PROGRESS)
        method.after_step(PROGRESS)
        PROGRESS.step += 1
    batch = batch_of(6, 3)
    queue = unit_rows(method.queue.features.clone())
    with torch.no_grad():
        q = unit_rows(method.online(batch["view_1"]))
        k = unit_rows(method.momentum_encoder(batch["view_2"]))
    expected = 0.0
    for query, key in zip(q, k, strict=True):
        positive = math.exp(dot(query, key) / 0.2)
        expected -= math.log(positive / (positive + sum(math.exp(dot(query, old) / 0.2) for old in queue))) / len(q)
    output = method.training_step(batch, PROGRESS)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    assert len(queue) == 10

    slow = {name: p.clone() for name, p in method.momentum_encoder.module.named_parameters()}
    method.after_step(PROGRESS)
    for name, parameter in method.momentum_encoder.module.named_parameters():
        online = dict(method.online.named_parameters())[name]
        torch.testing.assert_close(parameter, 0.9 * slow[name] + 0.1 * online)
    newest = method.queue.in_order()[0][-6:]
    torch.testing.assert_close(newest.double(), torch.tensor(k, dtype=torch.float64), rtol=1e-4, atol=1e-6)


def test_symmetric_moco_is_the_sum_of_both_directions_and_enqueues_both():
    method = built(MoCo, MoCoConfig, queue_size=24, symmetric=True)
    method.queue.enqueue(torch.nn.functional.normalize(torch.randn(8, 8), dim=1))
    batch = batch_of(6)
    both = method.training_step(batch, PROGRESS).loss
    single = built(MoCo, MoCoConfig, queue_size=24)
    single.load_state_dict(method.state_dict())
    swapped = {**batch, "view_1": batch["view_2"], "view_2": batch["view_1"]}
    halves = [single.training_step(b, PROGRESS).loss.item() for b in (batch, swapped)]
    assert both.item() == pytest.approx(sum(halves), rel=1e-5)
    method.after_step(PROGRESS)
    assert len(method.queue.features) == 8 + 12


def test_the_keys_of_all_micro_batches_of_a_step_enter_the_queue():
    method = built(MoCo, MoCoConfig, queue_size=16)
    for micro in (0, 1):
        method.training_step({**batch_of(3, micro), "micro": micro}, PROGRESS)
    assert len(method.queue.features) == 0  # not before the step is done
    with torch.no_grad():
        keys = [unit_rows(method.momentum_encoder(batch_of(3, micro)["view_2"])) for micro in (0, 1)]
    method.after_step(PROGRESS)
    torch.testing.assert_close(
        method.queue.in_order()[0].double(),
        torch.tensor([*keys[0], *keys[1]], dtype=torch.float64),
        rtol=1e-4,
        atol=1e-6,
    )


def test_moco_leaves_queue_entries_with_the_querys_id_out():
    method = built(MoCo, MoCoConfig, queue_size=6, exclude_same_id=True)
    first = batch_of(6, 1, ids=[0, 1, 2, 3, 4, 5])
    method.training_step(first, PROGRESS)
    method.after_step(PROGRESS)
    batch = batch_of(2, 2, ids=[3, 9])
    with torch.no_grad():
        q, k = unit_rows(method.online(batch["view_1"])), unit_rows(method.momentum_encoder(batch["view_2"]))
    queue, ids = method.queue.in_order()
    assert ids is not None
    expected = 0.0
    for query, key, own in zip(q, k, (3, 9), strict=True):
        others = [row for row, other in zip(unit_rows(queue), ids.tolist(), strict=True) if other != own]
        assert len(others) == (5 if own == 3 else 6)
        positive = math.exp(dot(query, key) / 0.2)
        expected -= math.log(positive / (positive + sum(math.exp(dot(query, row) / 0.2) for row in others))) / 2
    assert method.training_step(batch, PROGRESS).loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["moco-v3", "dcl-v3"])
def test_v3_is_the_symmetric_loss_over_the_other_keys_of_the_batch(kind):
    pair = (MoCoV3, MoCoV3Config) if kind == "moco-v3" else (DCLV3, DCLV3Config)
    method = built(*pair, hidden_dim=16, temperature=0.3).eval()  # BatchNorm fixed, so that rows can be computed apart
    batch = batch_of(5)
    with torch.no_grad():
        q = [unit_rows(method.predictor(method.online(batch[f"view_{i}"]))) for i in (1, 2)]
        k = [unit_rows(method.momentum_encoder(batch[f"view_{i}"])) for i in (1, 2)]
    expected = 0.0
    for queries, keys in ((q[0], k[1]), (q[1], k[0])):
        for i, query in enumerate(queries):
            positive = math.exp(dot(query, keys[i]) / 0.3)
            others = sum(math.exp(dot(query, keys[j]) / 0.3) for j in range(5) if j != i)
            below = others if kind == "dcl-v3" else positive + others
            expected -= 2 * 0.3 * math.log(positive / below) / 5
    assert method.training_step(batch, PROGRESS).loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ["dcl", "dclw", "info_nce"])
def test_dcl_is_the_papers_double_sum(loss):
    method = built(DCL, DCLConfig, hidden_dim=16, loss=loss, temperature=0.3, sigma=0.7).eval()
    batch = batch_of(4)
    with torch.no_grad():
        z = [unit_rows(method.online(batch[f"view_{i}"])) for i in (1, 2)]
    similarity = [dot(a, b) for a, b in zip(*z, strict=True)]
    mean = sum(math.exp(s / 0.7) for s in similarity) / 4
    expected = 0.0
    for k in (0, 1):
        for i in range(4):
            others = sum(math.exp(dot(z[k][i], z[v][j]) / 0.3) for v in (0, 1) for j in range(4) if j != i)
            weight = 2 - math.exp(similarity[i] / 0.7) / mean if loss == "dclw" else 1.0
            below = others + (math.exp(similarity[i] / 0.3) if loss == "info_nce" else 0.0)
            expected += (-weight * similarity[i] / 0.3 + math.log(below)) / 8
    assert method.training_step(batch, PROGRESS).loss.item() == pytest.approx(expected, rel=1e-5)


def test_dcl_takes_gradient_through_both_views():
    method = built(DCL, DCLConfig, hidden_dim=16).eval()
    batch = batch_of(4)
    for name in ("view_1", "view_2"):
        batch[name].requires_grad_()
    method.training_step(batch, PROGRESS).loss.backward()
    assert all(float(batch[name].grad.abs().max()) > 0 for name in ("view_1", "view_2"))


def test_dcl_queue_drops_the_positive_from_the_denominator():
    method = built(DCLQueue, DCLQueueConfig, queue_size=7, temperature=0.3)
    method.queue.enqueue(torch.nn.functional.normalize(torch.randn(7, 8), dim=1))
    batch, queue = batch_of(5), unit_rows(method.queue.features.clone())
    with torch.no_grad():
        q, k = unit_rows(method.online(batch["view_1"])), unit_rows(method.momentum_encoder(batch["view_2"]))
    expected = sum(
        -dot(a, b) / 0.3 + math.log(sum(math.exp(dot(a, old) / 0.3) for old in queue))
        for a, b in zip(q, k, strict=True)
    )
    assert method.training_step(batch, PROGRESS).loss.item() == pytest.approx(expected / 5, rel=1e-5)


def test_splits_that_do_not_fit_the_batch_are_refused_before_anything_is_written(tmp_path):
    method = MoCo(MoCoConfig(encoder={"backbone": "resnet10-w16", "image_size": 16}, queue_size=16, split_bn=3))
    with pytest.raises(ConfigError, match=r"split_bn 3 cannot split 8 images.*multiple of 6"):
        fit(method, image_pairs(), fit=Fit(steps=1, batch_size=8, workers=0), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
