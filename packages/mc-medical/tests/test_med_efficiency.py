"""What a large batch costs: the right things are measured, on the same pairs, and whole steps are made."""

import pytest
import torch

from mc_core.engine import Fit
from mc_core.errors import ConfigError
from mc_medical.augment_config import AugmentConfig
from mc_medical.efficiency import (
    PLAIN,
    SCHEMES,
    TRUE_BATCH,
    Efficiency,
    MadePairs,
    graph_bytes,
    make_method,
    measure_efficiency,
    training_step,
)
from mc_medical.methods.msd import MSDConfig

CONFIG = MSDConfig.model_validate(
    {
        "image": {"image_size": 16, "width": 8, "stages": 2},
        "text": {"hidden_size": 16, "layers": 1, "heads": 2, "max_length": 12, "vocabulary": 64, "dropout": 0.0},
        "dim": 8,
    }
)
VIEWS, FIT = AugmentConfig(size=16), Fit(optimizer="adamw", lr=1e-3, decay_1d=False, clip_norm=1.0)


def data(count=32):
    return MadePairs(count, 18, 12, 64, VIEWS)


def test_autograd_holds_what_is_known():
    """Three exponentials keep three results of 4,000 bytes; a sum keeps nothing; a weight is there anyway."""
    x, weight = torch.zeros(1000, requires_grad=True), torch.ones(1000, requires_grad=True)

    def step():
        (x.exp().exp().exp() * weight).sum().backward()

    assert graph_bytes(step, [x, weight]) == 3 * 4000
    assert graph_bytes(step) == 4 * 4000

    def twice():  # one after the other: no more at once
        step()
        step()

    assert graph_bytes(twice, [x, weight]) == 3 * 4000


def test_what_autograd_holds_depends_on_the_micro_batch_alone():
    found = {}
    for scheme in ("MSD", "GradCache"):
        for count, micro in ((32, 4), (128, 4), (32, 16)):
            method = make_method(CONFIG, scheme).train()
            pairs = data(count)
            pairs.lengths.fill_(12)  # all alike: padding would depend on which texts meet
            pairs.mask.fill_(1)
            step = training_step(method, pairs, micro, FIT)
            found[scheme, count, micro] = graph_bytes(step, list(method.parameters()))
        rows = 2 * 4 * CONFIG.dim * (128 - 32) if scheme == "GradCache" else 0  # gradients at all embeddings
        assert found[scheme, 128, 4] == found[scheme, 32, 4] + rows
        assert found[scheme, 32, 16] > 3 * found[scheme, 32, 4]


def test_each_scheme_makes_a_whole_step_of_all_pairs():
    for scheme in (*SCHEMES, TRUE_BATCH):
        method = make_method(CONFIG, scheme).train()
        before = {name: p.clone() for name, p in method.named_parameters()}
        step = training_step(method, data(), 32 if scheme == TRUE_BATCH else 8, FIT)
        losses = [step() for _ in range(12)]
        assert losses[-1] < losses[0]
        for name, parameter in method.named_parameters():
            assert not parameter.equal(before[name]), f"{scheme}: {name} has not moved"


def test_schemes_start_equal_and_differ_in_what_they_contrast_with():
    first = {scheme: training_step(make_method(CONFIG, scheme), data(), 8, FIT)() for scheme in SCHEMES}
    assert first["GradCache"] != first["GradCache, teacher's targets"]  # the same negatives, softer targets
    assert first["GradCache"] == pytest.approx(first["GradCache, teacher's targets"], rel=0.15)
    assert min(first["MSD"], first["GradCache"]) > first[PLAIN] + 0.5  # 31 negatives, not 7
    true = training_step(make_method(CONFIG, TRUE_BATCH), data(), 32, FIT)()
    assert true == pytest.approx(first["GradCache"], rel=1e-4)


def test_made_pairs_are_sorted_by_length_and_cut():
    batches = data().micro_batches(8)
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches])
    assert torch.equal(lengths, lengths.sort().values)
    for batch in batches:
        assert batch["input_ids"].shape[1] == int(batch["attention_mask"].sum(1).max())
        assert batch["pixels"].dtype == torch.uint8
    assert [batch["micro"] for batch in batches] == [0, 1, 2, 3]


def test_it_is_measured_in_turns():
    told = []
    found = measure_efficiency(
        CONFIG,
        augment=VIEWS,
        fit=FIT,
        stored=18,
        batch=16,
        micro_batches=(4, 8),
        schemes=("MSD", PLAIN, TRUE_BATCH),
        repeats=2,
        told=told.append,
    )
    assert [(one.scheme, one.micro_batch) for one in found] == [
        ("MSD", 4),
        (PLAIN, 4),
        ("MSD", 8),
        (PLAIN, 8),
        (TRUE_BATCH, 16),
    ]
    assert told[:3] == [
        "MSD, micro-batch 4, round 1 of 3",
        f"{PLAIN}, micro-batch 4, round 1 of 3",
        "MSD, micro-batch 4, round 2 of 3",
    ]
    for one in found:
        assert len(one.seconds) == 2
        assert one.batch == 16
        assert one.graph_bytes > 0
        assert one.device_bytes is None
        assert one.ratio == (1.0 if one.scheme == PLAIN else one.ratio)
    assert found[-1].ratio is None
    assert found[-1].graph_bytes > found[2].graph_bytes


def test_figures_follow_from_the_seconds():
    one = Efficiency("MSD", 8, 64, (1.0, 2.0, 3.0, 4.0, 10.0), 1.3, 0, None)
    assert (one.step_seconds, one.spread_seconds) == (3.0, 2.0)
    assert one.pairs_per_second == pytest.approx(64 / 3)
    assert one.epoch_seconds(640) == pytest.approx(30.0)


def test_a_published_text_encoder_is_stood_in_for():
    text = {"name": "emilyalsentzer/Bio_ClinicalBERT", "max_length": 12}
    with torch.device("meta"):
        method = make_method(CONFIG.model_copy(update={"text": type(CONFIG.text)(**text)}), "MSD")
    assert method.config.text.layers == 12
    assert method.model.encoders.text.num_features == 768


def test_what_cannot_be_measured_is_refused():
    options = {"augment": VIEWS, "fit": FIT, "stored": 18}
    with pytest.raises(ConfigError, match="no scheme 'SimCLR'; choose of MSD"):
        measure_efficiency(CONFIG, schemes=("SimCLR",), **options)
    with pytest.raises(ConfigError, match="take 2 to 16 pairs"):
        measure_efficiency(CONFIG, batch=16, micro_batches=(32,), **options)
