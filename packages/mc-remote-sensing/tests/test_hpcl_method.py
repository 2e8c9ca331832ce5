"""HPCL-Net trains as it says: what is a key of what, which queue it enters, what each switch does, and λ = 0."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mc_core.data import TensorData
from mc_core.engine import Fit, Progress, fit
from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.files import read_jsonl
from mc_core.queue import FeatureQueue
from mc_core.random import BatchRandom
from mc_remote_sensing.augment import TileAugment
from mc_remote_sensing.augment_config import AugmentConfig
from mc_remote_sensing.hyper_pixels import candidates, hyper_pixels
from mc_remote_sensing.methods.hpcl_net import HPCLNet, HPCLNetConfig
from mc_remote_sensing.methods.scene_contrast import SceneContrast, SceneContrastConfig
from mc_remote_sensing.model import load_segmentation_model
from mc_remote_sensing.pretrained import load_scene_encoders
from mc_testkit.toys import labelled_tiles, scene_pairs

SMALL = {"backbone": "small-w4"}
BANDS = {"names": ("red", "green", "blue"), "mean": (100.0, 100.0, 100.0), "std": (10.0, 10.0, 10.0)}
NETWORK = {
    "image": SMALL,
    "elevation": SMALL,
    "output_stride": 8,
    "width": 8,
    "rates": (1,),
    "dropout": 0.0,
    "reduction": 4,
    "detail_width": 4,
    "decoder_width": 8,
    "decoder_layers": 1,
}


def definition():
    """The literal double loop of the tests of the loss."""
    spec = importlib.util.spec_from_file_location("hpcl_loss_tests", Path(__file__).with_name("test_hpcl_loss.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.by_definition


def build(seed=0, network=None, **changes):
    torch.manual_seed(seed)
    fields = {
        "network": {**NETWORK, **(network or {})},
        "bands": BANDS,
        "dim": 8,
        "queue_size": 200,
        "cells_per_class": 6,
        "background_cells": 3,
        "modality_dropout": 0.0,
        "weight": 0.5,
        "warmup": 0.0,
        "momentum": {"momentum": 0.9},
    }
    return HPCLNet(HPCLNetConfig.model_validate({**fields, **changes}))


def batch_of(rows=range(8), **changes):
    rows = list(rows)
    return {
        **labelled_tiles().get_batch(rows, 0, 0),
        "index": torch.tensor(rows),
        "epoch": 0,
        "micro": 0,
        **changes,
    }


def step(method, batch, progress, lr=0.05):
    """One optimizer step by hand: what was prepared, and its output."""
    optimizer = torch.optim.SGD(method.parameter_groups(0.0), lr=lr)
    prepared = method.prepare_step([batch], progress)
    output = method.training_step(batch, progress, prepared)
    output.loss.backward()
    method.before_optimizer_step(progress)
    optimizer.step()
    with torch.no_grad():
        method.after_step(progress)
    progress.step += 1
    return prepared, output


def progress_of(total=100, batch_size=8):
    return Progress(0, total, 4, batch_size)


@pytest.mark.parametrize("positives", ["class", "self"])
@pytest.mark.parametrize("sampling", ["boundary", "uniform"])
def test_the_loss_is_cross_entropy_and_the_literal_contrast_with_the_queues(positives, sampling):
    method = build(positives=positives, sampling=sampling, queue_size=20, cells_per_class=3)
    progress = progress_of()
    for _ in range(2):
        step(method, batch_of(range(6)), progress)
    batch = batch_of(range(4, 10))
    prepared = method.prepare_step([batch], progress)
    output = method.training_step(batch, progress, prepared)
    logits, embedded = method.online(method._inputs(batch, progress))
    labels = batch["labels"].long()
    two = torch.stack([torch.zeros_like(logits), logits], 1)
    expected_ce = nn.functional.cross_entropy(two, labels, ignore_index=255)
    anchors = method._draw(prepared.micro[0], logits.detach(), embedded)
    doubled = [type(a)(a.query.double(), a.own.double(), a.own_counts, a.valid) for a in anchors]
    expected, _ = definition()(doubled, [type(k)(k.features.double(), k.valid) for k in prepared.keys], 0.1, positives)
    torch.testing.assert_close(output.loss, expected_ce + 0.5 * expected, rtol=1e-5, atol=1e-6, check_dtype=False)
    for of_class in (0, 1):
        queued = method.queue(of_class).features
        assert len(queued) > 0
        assert torch.equal(prepared.keys[of_class].features[-len(queued) :], queued), "every queue row is a key"
        assert prepared.keys[of_class].valid[-len(queued) :].all(), "also those of tiles that are in the batch again"


def coded(method, batch):
    """Let the slow copy say which tile and cell an embedding is of, and of which class."""
    cells = hyper_pixels(batch["labels"], 8)
    tiles, rows, columns = cells.target.shape
    place = torch.arange(rows * columns).expand(tiles, -1)
    tile = torch.arange(tiles)[:, None].expand(-1, rows * columns)
    code = torch.stack([cells.target.flatten(1), tile, place, *[torch.zeros_like(place)] * 5], dim=2).float()
    method.momentum_encoder.forward = lambda inputs, decode: (None, code)
    return cells, code


@pytest.mark.parametrize("sampling", ["boundary", "uniform"])
def test_each_class_has_its_queue_and_only_its_own_cells_enter(sampling):
    """Class 0 is enqueued like class 1, and a key has the class of the cell it lies on."""
    method, batch, progress = build(sampling=sampling), batch_of(range(9)), progress_of()
    cells, _ = coded(method, batch)
    method.prepare_step([batch], progress)
    method.after_step(progress)
    may = candidates(cells, uniform=sampling == "uniform")
    empty = ~(cells.fraction > 0).flatten(1).any(1)
    assert empty.any()
    for of_class in (0, 1):
        rows = method.queue(of_class).features.long()
        assert len(rows) > 0
        assert (rows[:, 0] == of_class).all(), "a key of the other class"
        assert len(rows[:, 1:3].unique(dim=0)) == len(rows), "a cell twice"
        for tile in range(9):
            drawn = rows[rows[:, 1] == tile, 2]
            if empty[tile]:
                assert len(drawn) == (3 if of_class == 0 else 0), "look-alike terrain of an all-background tile"
            else:
                possible = may[tile, of_class].nonzero().squeeze(1)
                assert len(drawn) == min(6, len(possible))
                assert set(drawn.tolist()) <= set(possible.tolist())


def test_the_queue_wraps_round_and_keeps_the_newest_keys():
    """Its size is no multiple of what enters; the pointer moves by as many rows as were written."""
    method, progress = build(queue_size=37), progress_of()
    everything = [[], []]
    for first in (0, 5, 11, 17):
        batch = batch_of(range(first, first + 7))
        _, code = coded(method, batch)
        code += 100 * first
        method.prepare_step([batch], progress)
        for of_class in (0, 1):
            features, valid = method._pending[of_class]
            everything[of_class].append(features[valid])
        method.after_step(progress)
    for of_class in (0, 1):
        arrived = torch.cat(everything[of_class])
        assert len(arrived) > 37
        assert torch.equal(method.queue(of_class).in_order()[0], arrived[-37:])


def test_keys_come_from_second_views_and_anchors_from_first_ones():
    method, progress = build(), progress_of()
    step(method, batch_of(), progress)
    plain = method.prepare_step([batch_of()], progress).micro[0].embedded_BND
    generator = torch.Generator().manual_seed(3)
    for name, matters in (("image", False), ("elevation", False), ("image_2", True), ("elevation_2", True)):
        changed = batch_of()
        changed[name] = changed[name] + torch.randn(changed[name].shape, generator=generator)
        again = method.prepare_step([changed], progress).micro[0].embedded_BND
        assert torch.equal(plain, again) is not matters, name
    alone = {name: value for name, value in batch_of().items() if not name.endswith("_2")}
    first = method.prepare_step([alone], progress).micro[0].embedded_BND
    same = method.prepare_step([{**alone, "image_2": alone["image"], "elevation_2": alone["elevation"]}], progress)
    assert torch.equal(first, same.micro[0].embedded_BND)


def test_the_slow_copy_never_looks_at_the_rest_of_the_batch_and_takes_the_running_statistics():
    method, progress = build(network={"dropout": 0.3}), progress_of()
    step(method, batch_of(), progress)
    method.train()
    assert not any(module.training for module in method.momentum_encoder.module.modules())
    together = method.prepare_step([batch_of(range(4))], progress).micro[0].embedded_BND
    alone = method.prepare_step([batch_of(range(2, 3))], progress).micro[0].embedded_BND
    torch.testing.assert_close(together[2:3], alone, rtol=1e-5, atol=1e-6)
    ours, theirs = (dict(m.named_buffers()) for m in (method.momentum_encoder.module, method.online))
    moved = [name for name in theirs if name.endswith("running_mean")]
    assert moved
    for name in moved:
        assert torch.equal(ours[name], theirs[name])
        assert theirs[name].any(), name


def test_anchors_and_keys_have_unit_length_also_in_half_precision():
    method, progress = build(), progress_of()
    for half in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            prepared, output = step(method, batch_of(), progress)
        for rows in (output.features["query"], prepared.micro[0].embedded_BND.flatten(0, 1)):
            assert rows.dtype == torch.float32
            torch.testing.assert_close(rows.detach().norm(dim=1), torch.ones(len(rows)), rtol=0, atol=1e-5)


def test_the_slow_copy_moves_by_one_minus_m_along_its_ramp():
    method, progress = build(), progress_of()
    for momentum in (1 - 1 / 2, 1 - 1 / 3, 1 - 1 / 4):
        before = [p.clone() for p in method.momentum_encoder.module.parameters()]
        step(method, batch_of(), progress)
        pairs = zip(before, method.momentum_encoder.module.parameters(), method.online.parameters(), strict=True)
        for old, new, online in pairs:
            torch.testing.assert_close(new, momentum * old + (1 - momentum) * online.detach(), rtol=1e-5, atol=1e-7)
            assert new.grad is None
            assert not new.requires_grad
    config = method.config
    assert config.momentum_at(8, 0.0, 8) == 0.9
    assert config.model_copy(update={"momentum_ramp": False}).momentum_at(0, 0.0, 8) == 0.9


def test_without_the_slow_copy_keys_are_the_networks_own():
    method, progress = build(momentum_keys=False), progress_of()
    step(method, batch_of(), progress)
    for ours, theirs in zip(method.momentum_encoder.module.parameters(), method.online.parameters(), strict=True):
        assert torch.equal(ours, theirs.detach())
    micro = method.prepare_step([batch_of()], progress).micro[0]
    with torch.no_grad():
        batch = batch_of()
        inputs = method.segmenter.inputs(batch["image_2"], batch["elevation_2"], batch["image_valid"])
        expected = method.online.eval()(inputs)[1]
    torch.testing.assert_close(micro.embedded_BND, expected)


def test_without_queues_only_the_keys_of_the_step_count():
    method, progress = build(queue_size=0), progress_of()
    for _ in range(2):
        prepared, output = step(method, batch_of(), progress)
        assert len(prepared.keys[0].features) == 8 * 6
        assert output.metrics["contrast"] > 0
    assert not [m for m in method.modules() if isinstance(m, FeatureQueue)]


def test_a_hard_cell_is_one_whose_prediction_is_wrong():
    method, batch, progress = build(cells_per_class=2), batch_of(), progress_of()
    prepared = method.prepare_step([batch], progress)
    cells = prepared.micro[0].cells
    embedded = torch.nn.functional.normalize(torch.randn(8, 16, 8), dim=2)
    sure = torch.where(cells.target, 9.0, -9.0)
    wrong_cell = torch.zeros_like(cells.target)
    for tile in range(8):  # one of the candidates of each class
        for of_class in (0, 1):
            possible = prepared.micro[0].may_B2N[tile, of_class].nonzero().squeeze(1)
            if len(possible):
                wrong_cell[tile].view(-1)[possible[-1]] = True
    logits = torch.where(wrong_cell, -sure, sure).repeat_interleave(8, 1).repeat_interleave(8, 2)
    anchors = method._draw(prepared.micro[0], logits, embedded)
    for of_class in (0, 1):
        for tile in range(8):
            query = anchors[of_class].query.view(8, 2, 8)[tile][anchors[of_class].valid.view(8, 2)[tile]]
            hard = embedded[tile][(wrong_cell[tile] & (cells.target[tile] == bool(of_class))).flatten()]
            for row in hard:
                assert (query == row).all(1).any(), "the hard cell is always among the anchors"


class NothingIsReadBack(TorchDispatchMode):
    """Fails where a value would have to come back from the device, or where a shape depends on values."""

    waits = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "is_nonzero",
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.waits, f"{name} waits for the device"
        if name in ("index", "index_put_"):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "a boolean index waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampling", ["boundary", "uniform"])
def test_a_step_never_waits_for_its_device(sampling):
    """From augmentation to the backward pass; only entering the queues counts rows."""
    method, progress = build(sampling=sampling, modality_dropout=0.5, max_anchors=20), progress_of()
    step(method, batch_of(), progress)
    changer = TileAugment(AugmentConfig(), method.config.bands)
    batch = batch_of()
    random = BatchRandom(0, 0, batch["index"])
    with NothingIsReadBack():
        batch = changer(batch, random)
        prepared = method.prepare_step([batch], progress)
        method.training_step(batch, progress, prepared).loss.backward()


def test_the_weight_of_the_contrast_rises_and_multiplies_it():
    method, progress = build(weight=0.4, warmup=0.5), progress_of(total=20)
    seen = []
    for _ in range(12):
        _, output = step(method, batch_of(), progress)
        metrics = output.metrics
        seen.append(metrics["contrast_weight"])
        expected = metrics["cross_entropy"] + metrics["contrast_weight"] * metrics["contrast"]
        torch.testing.assert_close(output.loss.detach(), expected)
    assert seen == pytest.approx([0.4 * min(1, t / 10) for t in range(12)])


def test_tiles_without_any_label_or_boundary_cost_nothing_and_break_nothing():
    method, progress = build(), progress_of()
    nothing = batch_of()
    nothing["labels"] = torch.full_like(nothing["labels"], 255)
    _, output = step(method, nothing, progress)
    assert output.loss.item() == 0.0
    assert len(method.queue(0)) == len(method.queue(1)) == 0
    background = batch_of()
    background["labels"] = torch.zeros_like(background["labels"])
    _, output = step(method, background, progress)
    assert output.metrics["contrast"] == 0.0
    assert output.metrics["cross_entropy"] > 0
    assert (len(method.queue(0)), len(method.queue(1))) == (8 * 3, 0)
    assert all(torch.isfinite(p).all() for p in method.parameters())


def run(folder, data=labelled_tiles, steps=6, **changes):
    settings = {
        "steps": steps,
        "batch_size": 8,
        "lr": 0.01,
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "clip_norm": 1.0,
        "workers": 0,
        "device": "cpu",
        "log_every": 1,
        **changes.pop("fit", {}),
    }
    return fit(build(network={"dropout": 0.2}, **changes), data(), fit=Fit(**settings), run_dir=folder)


@pytest.mark.parametrize("fields", [{}, {"accumulation": 2}, {"optimizer": "sgd", "precision": "bf16"}])
def test_a_weight_of_zero_is_plain_cross_entropy_to_the_bit(tmp_path, fields):
    """With the whole machinery running: slow copy, sampling, queues; with dropout, modality dropout, decay and clipping."""
    off = run(tmp_path / "off", contrast=False, modality_dropout=0.3, fit=fields)
    zero = run(tmp_path / "zero", weight=0.0, modality_dropout=0.3, fit=fields)
    some = run(tmp_path / "some", weight=0.1, modality_dropout=0.3, fit=fields)
    assert len(zero.method.queue(0)) > 0
    assert len(zero.method.queue(1)) > 0
    plain, same, other = (r.method.online.segmenter.state_dict() for r in (off, zero, some))
    assert plain.keys() == same.keys()
    for name in plain:
        assert torch.equal(plain[name], same[name]), name
    assert any(not torch.equal(plain[name], other[name]) for name in plain)
    fresh = build(network={"dropout": 0.2}).online.projection.state_dict()
    assert all(
        torch.equal(v, fresh[n])
        for n, v in zero.method.online.projection.state_dict().items()
        if "running" not in n and "num" not in n
    ), "the projection is left out of the step, decay and all"
    losses = [[line["loss"] for line in read_jsonl(tmp_path / name / "metrics.jsonl")] for name in ("off", "zero")]
    assert losses[0] == losses[1]


def test_hiding_the_elevation_is_for_anchors_alone():
    method, progress = build(modality_dropout=0.99), progress_of()
    batch, changed = batch_of(), batch_of()
    changed["elevation"] = changed["elevation"] + 1
    seen, again = method._inputs(batch, progress), method._inputs(changed, progress)
    hidden = (seen["elevation"] == 0).flatten(1).all(1)
    assert hidden.float().mean() > 0.7
    assert torch.equal(seen["elevation"][hidden], again["elevation"][hidden])
    assert not torch.equal(method.prepare_step([batch], progress).micro[0].embedded_BND, torch.zeros(1))
    assert (method.eval()._inputs(batch, progress)["elevation"] != 0).any(), "only in training"


@pytest.mark.parametrize("modality", ["image", "elevation", "stacked", "fused"])
@pytest.mark.parametrize("contrast", [True, False])
def test_every_modality_trains_and_its_model_maps_what_it_needs(tmp_path, modality, contrast):
    method = build(network={"modality": modality}, contrast=contrast)
    keep = {"image": ("image", "image_valid"), "elevation": ("elevation",)}.get(
        modality, ("image", "image_valid", "elevation")
    )
    tensors = {name: value for name, value in labelled_tiles().tensors.items() if name in (*keep, "labels")}
    result = fit(
        method,
        TensorData(**tensors),
        fit=Fit(steps=3, batch_size=8, workers=0, device="cpu"),
        run_dir=tmp_path / "run",
    )
    model = load_segmentation_model(tmp_path / "run")
    batch = batch_of(range(2))
    image = batch["image"] if modality != "elevation" else None
    elevation = batch["elevation"] if modality != "image" else None
    method = result.method.eval()
    expected = method.online.segmenter(image, elevation).sigmoid()
    assert torch.equal(model(image, elevation), expected)
    assert model.config.bands.names == ("red", "green", "blue")
    assert model.modality == modality


def test_the_average_is_kept_where_it_is_asked_for(tmp_path):
    result = run(tmp_path / "run", keep="average", contrast=False)
    method = result.method
    kept = load_segmentation_model(tmp_path / "run").network.state_dict()
    average, online = (m.segmenter.state_dict() for m in (method.momentum_encoder.module, method.online))
    assert any(name.startswith("decoder") for name in kept)
    for name, value in kept.items():
        assert torch.equal(value, average[name])
    assert any(not torch.equal(kept[name], online[name]) for name in kept)


def scene_run(folder, **changes):
    fields = {"image": SMALL, "elevation": SMALL, "output_stride": 8, "dim": 8, "queue_size": 24, "bands": BANDS}
    torch.manual_seed(5)
    method = SceneContrast(SceneContrastConfig.model_validate({**fields, **changes}))
    return fit(method, scene_pairs(), fit=Fit(steps=3, batch_size=8, workers=0, device="cpu"), run_dir=folder).method


def test_encoders_trained_on_scenes_are_where_hpcl_net_starts(tmp_path):
    trained = scene_run(tmp_path / "scenes")
    assert load_scene_encoders(tmp_path / "scenes").config.bands.names == ("red", "green", "blue")
    method = build(pretrained_image=str(tmp_path / "scenes"), pretrained_elevation=str(tmp_path / "scenes" / "model"))
    fresh = build()
    for name in ("image", "elevation"):
        ours, theirs = (m.state_dict() for m in (method.segmenter.encoder(name), trained.online[name].encoder))
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key])
    copied = method.momentum_encoder.module.segmenter.state_dict()
    for key, value in method.online.segmenter.state_dict().items():
        assert torch.equal(copied[key], value), "the slow copy starts from the same weights"
        if not key.startswith("encoders"):
            assert torch.equal(value, fresh.online.segmenter.state_dict()[key]), "all else starts as it would"


def test_encoders_that_do_not_fit_are_refused(tmp_path):
    scene_run(tmp_path / "scenes", modality="image")
    folder = str(tmp_path / "scenes")
    with pytest.raises(CheckpointError, match="trained no elevation encoder"):
        build(pretrained_elevation=folder)
    with pytest.raises(ConfigError, match="trained on the bands red, green, blue, the network is for a, b, c"):
        build(pretrained_image=folder, bands={**BANDS, "names": ("a", "b", "c")})
    with pytest.raises(ConfigError, match=r"trained small-w4 .* the network has small-w8"):
        build(pretrained_image=folder, network={"image": {"backbone": "small-w8"}})
    with pytest.raises(CheckpointError, match=r"config\.json|is no folder"):
        build(pretrained_image=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="modality stacked has no encoder of the image alone"):
        build(pretrained_image=folder, network={"modality": "stacked"})
    run(tmp_path / "hpcl", steps=1)
    with pytest.raises(CheckpointError, match="holds a SegmentationModel"):
        build(pretrained_image=str(tmp_path / "hpcl"))


def test_crops_of_one_place_are_never_negatives_of_each_other():
    """A queue full of the queries' own places leaves nothing to tell them from."""
    torch.manual_seed(0)
    fields = {"image": SMALL, "output_stride": 8, "dim": 8, "queue_size": 16, "modality": "image", "bands": BANDS}
    method, progress = SceneContrast(SceneContrastConfig.model_validate(fields)), progress_of()
    batch = {**scene_pairs().get_batch(range(8), 0, 0), "index": torch.arange(8), "epoch": 0, "micro": 0}
    method.training_step(batch, progress)
    method.after_step(progress)
    queue = method.queues["image"]
    assert queue.ids.tolist() == batch["ids"].tolist()
    same = {**batch, "ids": torch.zeros(8, dtype=torch.int64)}
    queue.ring_ids.zero_()
    assert method.training_step(same, progress).loss.item() == pytest.approx(0.0, abs=1e-6)
    queue.ring_ids.fill_(7)
    assert method.training_step(same, progress).loss.item() > 0.5


def test_the_decoupled_loss_leaves_the_positive_out_of_the_denominator():
    results = {}
    for loss in ("info_nce", "dcl"):
        torch.manual_seed(0)
        fields = {"image": SMALL, "output_stride": 8, "dim": 8, "queue_size": 16, "modality": "image", "bands": BANDS}
        method = SceneContrast(SceneContrastConfig.model_validate({**fields, "loss": loss})).eval()
        progress = progress_of()
        batches = [
            {**scene_pairs().get_batch(rows, 0, 0), "index": torch.tensor(rows), "epoch": 0, "micro": 0}
            for rows in (list(range(8)), list(range(8, 16)))
        ]
        method.training_step(batches[0], progress)
        method.queues["image"].enqueue(*method._pending["image"].take())
        output = method.training_step(batches[1], progress)
        query, key = output.features["query"], output.features["key"]
        negative = (query @ method.queues["image"].features.T / 0.2).logsumexp(1)
        positive = (query * key).sum(1) / 0.2
        below = negative if loss == "dcl" else torch.logaddexp(negative, positive)
        torch.testing.assert_close(output.loss, (below - positive).mean(), rtol=1e-5, atol=1e-5)
        results[loss] = output.loss.item()
    assert results["dcl"] < results["info_nce"]


def test_bad_batches_and_settings_are_named():
    method, progress = build(), progress_of()
    batch = batch_of()
    with pytest.raises(DataError, match="do not fit the tiles"):
        method.training_step({**batch, "labels": batch["labels"][:, :24, :24]}, progress)
    with pytest.raises(DataError, match="multiples of the stride 8"):
        method.training_step({**batch, "image": batch["image"][..., :30], "image_valid": None}, progress)
    with pytest.raises(ValueError, match="modality elevation has nothing else"):
        build(network={"modality": "elevation"}, modality_dropout=0.1)
    torch.manual_seed(0)
    scene = SceneContrast(SceneContrastConfig.model_validate({"image": SMALL, "output_stride": 8, "modality": "image"}))
    with pytest.raises(DataError, match="needs image_1; it has labels"):
        scene.training_step({"labels": batch["labels"]}, progress)


def test_what_looks_at_whole_tiles_or_moves_too_fast_is_warned_of():
    assert any("squeeze" in line for line in build(network={"fusion": "squeeze"}).advice(8, 100))
    fast = partial(build, queue_size=4096, momentum={"momentum": 0.5})
    assert any("looks back" in line for line in fast().advice(8, 100))
    assert build(queue_size=24, momentum={"momentum": 0.999}).advice(8, 100) == []
