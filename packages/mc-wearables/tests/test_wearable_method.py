"""Participant contrast against loops in float64 that follow its equations line by line, its closed forms and its recipes."""

import itertools
import math

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import normalize

from mc_core.engine import Progress, fit
from mc_core.errors import ConfigError, DataError
from mc_core.losses import koleo
from mc_core.recipes import recipe_names, to_yaml
from mc_wearables.data.pairs import PairData
from mc_wearables.data.segments import Segments
from mc_wearables.encoders import SignalEncoder
from mc_wearables.methods.participant import ParticipantConfig, ParticipantContrast
from mc_wearables.methods.participant.loss import byol_regression, direction_loss, participant_nce
from mc_wearables.recipe import resolve_recipe, system_of

SMALL = {
    "encoder": {"channels": 2, "sampling_rate": 32.0, "seconds": 4.0, "width": 36, "expansion": 2},
    "dim": 8,
    "hidden_dim": 16,
}
VIT = {**SMALL["encoder"], "architecture": "vit", "width": 16, "depth": 1}


def build(**fields) -> ParticipantContrast:
    torch.manual_seed(0)
    return ParticipantContrast(ParticipantConfig.model_validate({**SMALL, **fields})).train()


def batch_of(count: int, ids: list[int] | None = None, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    views = {f"view_{i}": torch.randn(count, 2, 128, generator=generator) for i in (1, 2)}
    return {**views, "index": torch.arange(count), "micro": 0, "ids": torch.tensor(ids or range(count))}


def unit_rows(count: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, dim, dtype=torch.float64, generator=generator), dim=1)


def dot(a, b) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def naive_nce(q, k, ids, tau, within_view, mask_across) -> float:
    rows = range(len(q))
    total = 0.0
    for i in rows:
        positive = dot(q[i], k[i]) / tau
        for own, other, self_view in ((q, k, q), (k, q, k)):  # l1, then l2
            terms = []
            for j in rows:
                if not (mask_across and j != i and ids[i] == ids[j]):
                    terms.append(dot(own[i], other[j]) / tau)
                if within_view and ids[i] != ids[j]:
                    terms.append(dot(own[i], self_view[j]) / tau)
            total += 0.5 * (-positive + math.log(sum(math.exp(t) for t in terms))) / len(q)
    return total


def naive_koleo(z) -> float:
    total = 0.0
    for i, row in enumerate(z):
        others = [j for j in range(len(z)) if j != i]
        nearest = max(others, key=lambda j: dot(row, z[j]))
        distance = math.sqrt(sum((a - b + 1e-8) ** 2 for a, b in zip(row, z[nearest], strict=True)))
        total -= math.log(distance + 1e-8) / len(z)
    return total


@pytest.mark.parametrize(("within_view", "mask_across"), list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("ids", [None, [0, 1, 2, 3, 4, 5, 6], [0, 1, 0, 2, 1, 0, 3]])
@pytest.mark.parametrize("tau", [0.04, 1.0])
def test_nce_is_the_double_sum_of_the_equations(within_view, mask_across, ids, tau):
    q, k = unit_rows(7, 5, 1), unit_rows(7, 5, 2)
    made = participant_nce(
        q,
        k,
        temperature=tau,
        ids=None if ids is None else torch.tensor(ids),
        within_view=within_view,
        mask_across=mask_across,
    )
    known = ids if ids is not None else list(range(7))
    assert made.item() == pytest.approx(
        naive_nce(q.tolist(), k.tolist(), known, tau, within_view, mask_across), abs=1e-9
    )


@pytest.mark.parametrize(("weight", "gamma"), [(1.0, 0.1), (0.5, 0.0), (0.0, 2.0)])
def test_a_direction_adds_half_of_both_koleo_terms(weight, gamma):
    q, k = unit_rows(6, 4, 1), unit_rows(6, 4, 2)
    nce = participant_nce(q, k, temperature=0.2)
    made, _ = direction_loss(nce, q, k, contrast_weight=weight, koleo_weight=gamma)
    expected = weight * naive_nce(q.tolist(), k.tolist(), list(range(6)), 0.2, True, True)
    expected += gamma * 0.5 * (naive_koleo(q.tolist()) + naive_koleo(k.tolist()))
    assert made.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("within_view", [True, False])
@pytest.mark.parametrize("mask_across", [True, False])
def test_the_mean_over_processes_is_the_loss_of_the_whole_batch(within_view, mask_across):
    q, k, ids = unit_rows(8, 4, 1), unit_rows(8, 4, 2), torch.tensor([0, 1, 1, 2, 3, 0, 4, 5])
    options = {"temperature": 0.1, "within_view": within_view, "mask_across": mask_across}
    whole = participant_nce(q, k, ids=ids, **options)
    parts = [
        participant_nce(
            q[rows], k[rows], ids=ids[rows], all_query=q, all_key=k, all_ids=ids, offset=rows.start, **options
        )
        for rows in (slice(0, 4), slice(4, 8))
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-12, atol=0)


def test_nce_is_symmetric_and_does_not_care_for_order():
    q, k, ids = unit_rows(9, 4, 1), unit_rows(9, 4, 2), torch.tensor([0, 1, 1, 2, 3, 0, 4, 5, 6])
    value = participant_nce(q, k, temperature=0.1, ids=ids)
    order = torch.randperm(9)
    torch.testing.assert_close(participant_nce(k, q, temperature=0.1, ids=ids), value)
    torch.testing.assert_close(participant_nce(q[order], k[order], temperature=0.1, ids=ids[order]), value)


def test_nce_has_the_gradient_of_finite_differences_in_both_arguments():
    q, k = (unit_rows(4, 3, seed).requires_grad_() for seed in (1, 2))
    ids = torch.tensor([0, 1, 0, 2])
    for within_view, mask_across in itertools.product([True, False], repeat=2):
        options = {"temperature": 0.3, "ids": ids, "within_view": within_view, "mask_across": mask_across}
        assert torch.autograd.gradcheck(lambda a, b, o=options: participant_nce(a, b, **o), (q, k))


def test_closed_forms():
    """A collapsed batch, perfect pairs, random rows, and KoLeo of a collapsed batch at the published sizes."""
    collapsed = normalize(torch.ones(256, 128), dim=1)
    assert participant_nce(collapsed, collapsed, temperature=0.04).item() == pytest.approx(6.2364, abs=1e-3)
    alone = participant_nce(collapsed, collapsed, temperature=0.04, within_view=False)
    assert alone.item() == pytest.approx(math.log(256), abs=1e-3)
    assert koleo(collapsed).item() == pytest.approx(15.91, abs=0.01)
    corners = torch.eye(64)
    assert participant_nce(corners, corners, temperature=0.04).item() == pytest.approx(0, abs=1e-6)
    assert byol_regression(corners, corners).item() == 0
    random = [unit_rows(256, 128, seed).float() for seed in range(12)]
    values = [participant_nce(q, k, temperature=0.04).item() for q, k in itertools.pairwise(random)]
    assert sum(values) / len(values) == pytest.approx(8.59, abs=0.1)  # below log 511 + 1/(2·128·0.04²) = 8.68


def test_half_precision_features_do_not_overflow():
    rows = normalize(torch.randn(8, 16), dim=1)
    half = participant_nce(rows.half(), rows.half(), temperature=0.01)
    assert half.dtype == torch.float32
    assert bool(half.isfinite())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = participant_nce(rows, rows, temperature=0.04)
    assert torch.equal(inside, participant_nce(rows, rows, temperature=0.04))


def test_the_student_feels_half_of_its_koleo_term():
    q, k = unit_rows(6, 4, 1).requires_grad_(), unit_rows(6, 4, 2)
    loss, _ = direction_loss(torch.zeros(()), q, k, koleo_weight=0.1)
    (felt,) = torch.autograd.grad(loss, q)
    (whole,) = torch.autograd.grad(koleo(q), q)
    torch.testing.assert_close(felt, 0.05 * whole)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"query \(4, 3\) and key \(5, 3\) need one shape"):
        participant_nce(torch.zeros(4, 3), torch.zeros(5, 3), temperature=0.1)


@pytest.mark.parametrize("framework", ["momentum", "simclr", "byol"])
@pytest.mark.parametrize("koleo_weight", [0.1, 0.0])
@pytest.mark.parametrize(("where", "within"), [("everywhere", True), ("within-view", True), ("everywhere", False)])
def test_a_step_is_the_loss_of_both_directions(framework, koleo_weight, where, within):
    method = build(
        framework=framework, koleo_weight=koleo_weight, mask_same_participant=where, within_view=within, dropout=0.0
    ).eval()
    for parameter in [] if method.momentum_encoder is None else method.momentum_encoder.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))  # keys that are not the student's
    for module in method.modules():  # fresh statistics fade every signal
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(0.05)
    batch = batch_of(6, ids=[0, 1, 0, 2, 3, 4])
    ids = batch["ids"].tolist()
    with torch.no_grad():
        z = [method.online(batch[f"view_{i}"]).double() for i in (1, 2)]
        q = [normalize(x, dim=1).tolist() for x in z]
        copy = method.online if method.momentum_encoder is None else method.momentum_encoder
        k = [normalize(copy(batch[f"view_{i}"]).double(), dim=1).tolist() for i in (1, 2)]
        p = None
        if method.predictor is not None:
            p = [normalize(method.predictor(x.float()).double(), dim=1).tolist() for x in z]
    expected = 0.0
    for this, other in ((0, 1), (1, 0)):
        spread = 0.5 * (naive_koleo(q[this]) + naive_koleo(k[other]))
        if p is None:
            contrast = naive_nce(q[this], k[other], ids, 0.04, within, where == "everywhere")
        else:
            contrast = sum(2 - 2 * dot(a, b) for a, b in zip(p[this], k[other], strict=True)) / 6
        expected += 0.5 * (contrast + koleo_weight * spread)
    output = method.training_step(batch, Progress())
    assert output.loss.item() == pytest.approx(expected, rel=2e-4)
    assert set(output.metrics) == {"contrast", "koleo", "positive_cosine"}


def test_gradient_reaches_the_student_alone_and_in_simclr_both_views():
    method = build()
    batch = batch_of(6)
    method.training_step(batch, Progress()).loss.backward()
    assert all(p.grad is None for p in method.momentum_encoder.parameters())
    assert all(p.grad is not None for p in method.online.parameters())
    student = {id(p) for p in method.online.parameters()}
    assert {id(p) for group in method.parameter_groups(1e-5) for p in group["params"]} == student
    simclr = build(framework="simclr")
    views = [batch[f"view_{i}"].requires_grad_() for i in (1, 2)]
    simclr.training_step(batch, Progress()).loss.backward()
    assert all(float(view.grad.abs().max()) > 0 for view in views)


@pytest.mark.parametrize("framework", ["momentum", "simclr", "byol"])
def test_the_gradient_at_the_projections_is_that_of_the_loss(framework):
    """Against finite differences: a view that is detached anywhere loses a part of it."""
    method = build(framework=framework, temperature=0.5)
    rows = [unit_rows(5, 4, seed=seed).requires_grad_() for seed in range(4 if framework == "byol" else 2)]
    keys = () if framework == "simclr" else [unit_rows(5, 4, seed=seed) for seed in (8, 9)]
    ids = torch.tensor([0, 1, 0, 2, 3])
    assert torch.autograd.gradcheck(lambda *embedded: method.loss(embedded, keys, ids)[0], rows)


def test_the_copy_averages_parameters_keeps_its_own_statistics_and_its_dropout():
    method = build(dropout=0.5)
    copy = method.momentum_encoder
    assert copy.module.training
    batch = batch_of(6)
    keys = [method.keys(batch)[0] for _ in range(2)]
    assert not torch.equal(*keys)  # dropout
    with torch.no_grad():
        for parameter in method.online.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    gap = copy.drift()
    norm, own = method.encoder.backbone.layers[1], copy.module.encoder.backbone.layers[1]
    statistics = own.running_mean.clone()
    assert not torch.equal(statistics, norm.running_mean)
    progress = Progress(0, 100, 10, 6)
    for _ in range(20):
        method.after_step(progress)
        progress.step += 1
    torch.testing.assert_close(copy.drift(), gap * 0.99**20, rtol=1e-3, atol=0)
    assert torch.equal(own.running_mean, statistics)
    assert int(own.num_batches_tracked) == 4  # two views, twice


def test_the_copy_stands_still_first_and_follows_its_schedule_then():
    method = build(frozen_steps=2, momentum={"momentum": 0.5, "schedule": "cosine"})
    copy = method.momentum_encoder
    with torch.no_grad():
        for parameter in method.online.parameters():
            parameter.add_(1.0)
    progress = Progress(0, 4, 1, 6)
    gaps = [float(copy.drift())]
    for _ in range(4):
        method.after_step(progress)
        progress.step += 1
        gaps.append(float(copy.drift()))
    momenta = [1, 1, *(1 - 0.5 * (math.cos(math.pi * step / 4) + 1) / 2 for step in (2, 3))]
    assert [b / a for a, b in itertools.pairwise(gaps)] == pytest.approx(momenta, rel=1e-4)


def test_both_views_at_once_are_the_same_but_for_batchnorm():
    batch = batch_of(6)
    for encoder, same in ((VIT, True), (SMALL["encoder"], False)):
        losses = [
            build(encoder=encoder, joint_views=joint, dropout=0.0).training_step(batch, Progress()).loss
            for joint in (False, True)
        ]
        assert torch.allclose(*losses, rtol=1e-5) is same


@pytest.mark.parametrize("framework", ["momentum", "byol"])
def test_accumulation_moves_batchnorm_statistics_once_per_pass(framework):
    method = build(framework=framework)
    parts = [{**batch_of(4, seed=i), "micro": i} for i in range(3)]
    progress = Progress(0, 10, 1, 12)
    with torch.no_grad():
        prepared = method.prepare_step(parts, progress)
    for part in parts:
        method.training_step(part, progress, prepared).loss.backward()
    counts = {int(module.num_batches_tracked) for module in method.modules() if isinstance(module, nn.BatchNorm2d)}
    assert counts == {6}  # three micro-batches of two views, student and copy alike


def test_what_is_kept():
    method = build().eval()
    batch = {"signal": torch.randn(3, 2, 128)}
    with torch.no_grad():
        assert torch.equal(method.encode(batch), method.encoder(batch["signal"]))
        assert method.encode(batch).shape == (3, 36)
    assert method.export_module() is method.encoder
    assert isinstance(method.encoders()["teacher"], SignalEncoder)
    assert method.encoders()["teacher"] is not method.encoder
    assert build(framework="simclr").encoders() == {}


def test_the_published_head_has_its_parameters():
    method = ParticipantContrast(ParticipantConfig())
    assert sum(p.numel() for p in method.online.projector.parameters()) == 394_368
    assert [type(layer).__name__ for layer in method.online.projector] == ["Linear", "ReLU", "Dropout", "Linear"]
    with torch.no_grad():
        features = method.encoder(torch.randn(2, 4, 3840))
        assert (features.shape, method.online.projector(features).shape) == ((2, 256), (2, 128))


def test_a_lone_pair_and_nothing_to_train_on_are_refused():
    with pytest.raises(ConfigError, match="1 pair per process and micro-batch: there is nothing to contrast it with"):
        build().check(1)
    with pytest.raises(ValidationError, match="contrast_weight and koleo_weight are both 0"):
        ParticipantConfig(contrast_weight=0, koleo_weight=0)
    assert "head_norm" in build(framework="byol").advice(64, 1000)[0]


def test_recipes_resolve_and_read_back():
    assert recipe_names("mc_wearables") == ["ahms-ecg", "ahms-ecg-laptop", "ahms-ppg", "ahms-ppg-laptop"]
    for name in recipe_names("mc_wearables"):
        recipe = resolve_recipe(name)
        assert system_of(name) == recipe.system == "participant"
        assert type(recipe).model_validate(yaml.safe_load(to_yaml(recipe))) == recipe
    ppg, ecg = resolve_recipe("ahms-ppg"), resolve_recipe("ahms-ecg")
    assert (ppg.method, ppg.augment.cut_p) == (ParticipantConfig(), 0.4)
    assert (ecg.method.encoder.channels, ecg.method.encoder.expansion, ecg.method.encoder.samples) == (1, 6, 3840)
    assert ecg.augment.model_dump() == type(ecg.augment).of_signal("ecg").model_dump()
    assert (ppg.fit.optimizer, ppg.fit.lr, ppg.fit.weight_decay, ppg.fit.batch_size) == ("adam", 1e-3, 1e-5, 256)


def test_a_recipe_is_changed_by_options_and_checked():
    recipe = resolve_recipe("ahms-ppg", {"fit": {"epochs": 3}, "pairs": {"pair": "segment"}})
    assert (recipe.fit.epochs, recipe.fit.steps, recipe.pairs.pair) == (3, None, "segment")
    with pytest.raises(ConfigError, match=r"unknown field method.temprature; did you mean temperature\?"):
        resolve_recipe("ahms-ppg", {"method": {"temprature": 1}})
    with pytest.raises(ConfigError, match="no recipe named 'ahms-pgp': did you mean ahms-ppg"):
        resolve_recipe("ahms-pgp")


def waves() -> np.ndarray:
    """(160, 1, 128): forty rates, four times each with another phase."""
    rng = np.random.default_rng(0)
    time = np.arange(128) / 32
    rate = np.repeat(np.linspace(0.8, 4.0, 40), 4)[:, None, None]
    return np.sin(2 * np.pi * (rate * time + rng.random((160, 1, 1)))) + 0.1 * rng.normal(size=(160, 1, 128))


def test_a_run_from_a_laptop_recipe_learns_people(tmp_path):
    """Waves of a rate of one's own: after a few steps the two halves of a person are closer than they were."""
    segments = Segments.of(waves(), 32.0, "ppg", [i // 4 for i in range(160)])
    changes = {"method": {"encoder": {"channels": 1, "seconds": 4}, "momentum": {"momentum": 0.9}}}
    recipe = resolve_recipe("ahms-ppg-laptop", {**changes, "fit": {"steps": 60, "batch_size": 32, "device": "cpu"}})
    torch.manual_seed(0)
    method = ParticipantContrast(recipe.method)
    data = PairData(segments, **recipe.pairs.model_dump(), augment=recipe.augment)
    result = fit(method, data, fit=recipe.fit, run_dir=tmp_path / "run")
    assert result.metrics["contrast"] < math.log(63) - 0.5
    assert fit(method, data, fit=recipe.fit, run_dir=tmp_path / "run").resumed_from == 60
