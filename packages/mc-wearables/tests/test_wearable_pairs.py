"""Who is paired with whom: against lists made person by person, and what an epoch promises."""

import time
from collections import Counter

import numpy as np
import pytest
import torch

from mc_core.data import StepPlan, finish_on_device, step_loader
from mc_core.errors import ConfigError, DataError
from mc_core.random import BatchRandom, sample_rng
from mc_wearables.augment import make_view
from mc_wearables.augment_config import AugmentConfig
from mc_wearables.data.pairs import PairData
from mc_wearables.data.segments import Segments

HOUR = 3600.0


def make_segments(count: int = 60, people: int = 8, seed: int = 0, **columns) -> Segments:
    """Row i holds i on all samples before the z-score, so that rows can be told apart by ``marks``."""
    rng = np.random.default_rng(seed)
    defaults = {
        "participant": rng.integers(0, people, count),
        "session": rng.integers(0, 3, count),
        "start": 1.7e9 + HOUR * rng.integers(0, 30, count) / 2,
        "quality": np.where(rng.random(count) < 0.2, np.nan, rng.random(count)),
    }
    columns = {**defaults, **columns}
    return Segments.of(
        rng.normal(size=(count, 2, 16)),
        32.0,
        "ppg",
        columns.pop("participant"),
        participant_keys=[f"p{i}" for i in range(people)],
        **columns,
    )


def allowed(segments: Segments, pair: str, min_gap: float, floor: float, least: int) -> set[tuple[int, int]]:
    """All ordered pairs that may be drawn, by two loops."""
    good = [i for i in range(len(segments)) if not segments.quality[i] < floor]
    many = Counter(int(segments.participant[i]) for i in good)
    good = [i for i in good if many[int(segments.participant[i])] >= least]
    if pair == "segment":
        return {(i, i) for i in good}
    return {
        (i, j)
        for i in good
        for j in good
        if i != j
        and segments.participant[i] == segments.participant[j]
        and (pair == "participant" or segments.session[i] == segments.session[j])
        and abs(segments.start[i] - segments.start[j]) >= min_gap * HOUR
    }


def drawn(data: PairData, epochs: int) -> Counter:
    found: Counter = Counter()
    for epoch in range(epochs):
        for a, b in data.get_batch(range(len(data)), epoch, 3)["segments"].tolist():
            found[a, b] += 1
    return found


@pytest.mark.parametrize(
    ("pair", "min_gap", "floor", "least"),
    [
        ("participant", 0.0, 0.0, 2),
        ("participant", 2.0, 0.0, 2),
        ("participant", 0.5, 0.4, 3),
        ("session", 0.0, 0.0, 2),
        ("session", 1.0, 0.2, 2),
        ("segment", 0.0, 0.3, 4),
        ("segment", 0.0, 0.0, 1),
    ],
)
def test_exactly_the_allowed_pairs_are_drawn(pair, min_gap, floor, least):
    segments = make_segments()
    data = PairData(segments, pair=pair, min_gap=min_gap, quality_floor=floor, min_segments=least, augment=None)
    expected = allowed(segments, pair, min_gap, floor, least)
    people = {int(segments.participant[i]) for i, _ in expected}
    assert set(data.people.tolist()) == people
    assert len(data) == len(people)
    assert set(drawn(data, 1500)) == expected


def test_anchors_and_partners_are_equally_likely():
    segments = make_segments(10, people=2, participant=[0] * 4 + [1] * 6, start=None, session=None)
    found = drawn(PairData(segments, augment=None), 6000)
    for people, rows in ((range(4), 12), (range(4, 10), 30)):
        for a in people:
            for b in people:
                if a != b:
                    assert found[a, b] / 6000 == pytest.approx(1 / rows, abs=0.015)


def test_a_gap_of_exactly_the_asked_length_is_enough_also_after_years():
    start = 1.7e9 + np.array([0.0, 2 * HOUR, 2 * HOUR - 0.002, 1e8, 1e8 + 2 * HOUR, 1e8 + 2 * HOUR - 0.002])
    segments = make_segments(6, people=2, participant=[0, 0, 0, 1, 1, 1], start=start)
    found = drawn(PairData(segments, min_gap=2.0, augment=None), 200)
    assert set(found) == {(0, 1), (1, 0), (3, 4), (4, 3)}


def test_an_epoch_has_each_person_once_and_no_batch_has_one_twice():
    data = PairData(make_segments(200, people=30), augment=None)
    plan = StepPlan(len(data), 7, seed=1)
    batches = list(step_loader(data, plan, start=0, stop=2 * plan.steps_per_epoch, workers=0))
    for batch in batches:
        assert len(set(batch["ids"].tolist())) == 7
        first, second = batch["segments"].T
        participant = data.segments.participant
        assert torch.equal(batch["ids"], torch.from_numpy(participant[first.numpy()]))
        assert torch.equal(batch["ids"], torch.from_numpy(participant[second.numpy()]))
        assert not bool((first == second).any())
        assert torch.equal(batch["view_1"], data.segments.rows(first.numpy()))
        assert torch.equal(batch["view_2"], data.segments.rows(second.numpy()))
    epoch = torch.cat([batch["ids"] for batch in batches[: plan.steps_per_epoch]]).tolist()
    assert len(set(epoch)) == len(epoch)


def test_pairs_are_a_function_of_seed_epoch_and_person():
    data = PairData(make_segments(200, people=30), augment=None)
    whole = data.get_batch(range(20), 2, 5)["segments"]
    assert torch.equal(whole[[4, 9]], data.get_batch([4, 9], 2, 5)["segments"])
    assert not torch.equal(whole, data.get_batch(range(20), 3, 5)["segments"])
    assert not torch.equal(whole, data.get_batch(range(20), 2, 6)["segments"])


def test_views_are_changed_on_the_device_each_with_its_own_number():
    config = AugmentConfig(noise_p=1.0)
    data = PairData(make_segments(80), augment=config)
    plan = StepPlan(len(data), 4, seed=2)
    batch = next(iter(step_loader(data, plan, start=0, stop=1, workers=0)))
    plain = {name: value.clone() for name, value in batch.items() if isinstance(value, torch.Tensor)}
    made = finish_on_device(data, batch, seed=2)
    for number in (1, 2):
        random = BatchRandom(2, 0, plain["index"])
        assert torch.equal(made[f"view_{number}"], make_view(plain[f"view_{number}"], random, number, config))
        assert torch.equal(batch[f"view_{number}"], plain[f"view_{number}"])
    assert PairData(make_segments(80), augment=None).device_transform is None


def test_one_sample_is_a_pair_too():
    data = PairData(make_segments(80), augment=None)
    sample = data.get(3, sample_rng(0, 0, 3))
    assert sample["view_1"].shape == (2, 16)
    a, b = sample["segments"].tolist()
    assert (a, b) in allowed(data.segments, "participant", 0, 0, 2)
    assert int(sample["ids"]) == data.people[3] == data.segments.participant[a]


def test_the_description_tells_pairings_apart():
    segments = make_segments(80)
    plain = PairData(segments, augment=None).describe()
    assert plain == PairData(make_segments(80), augment=None).describe()
    for other in (
        PairData(segments, augment=AugmentConfig()),
        PairData(segments, pair="session", augment=None),
        PairData(segments, min_gap=1.0, augment=None),
        PairData(segments, quality_floor=0.5, augment=None),
        PairData(make_segments(80, seed=1), augment=None),
    ):
        assert other.describe() != plain


def test_choosing_is_fast_however_many_segments_a_person_has():
    """No loop over people or segments: 20,000 pairs out of 2 million segments in a fraction of a second."""
    people, each = 20_000, 100
    segments = Segments(
        signals=np.zeros((people * each, 1, 1), dtype=np.float16),
        sampling_rate=1.0,
        kind="ecg",
        participant=np.tile(np.arange(people), each),
        participant_keys=tuple(map(str, range(people))),
        session=np.arange(people * each),
        start=np.arange(people * each, dtype=np.float64),
        device=np.zeros(people * each, dtype=np.int64),
        devices=("d",),
        quality=np.full(people * each, np.nan, dtype=np.float32),
    )
    data = PairData(segments, augment=None)
    started = time.process_time()
    batch = data.get_batch(range(people), 0, 0)
    assert time.process_time() - started < 0.5
    assert len(batch["ids"]) == people


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pair": "person"}, "pair 'person': choose one of participant, session, segment"),
        ({"min_gap": -1.0}, "min_gap -1.0 hours"),
        ({"min_gap": float("nan")}, "min_gap nan hours"),
        ({"quality_floor": 1.5}, "quality_floor 1.5"),
        ({"min_segments": 0}, "min_segments 0"),
        ({"pair": "segment", "min_gap": 1.0}, "a pair of one segment with itself has no gap"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        PairData(make_segments(), **fields)


def test_data_without_pairs_is_refused_with_the_reason():
    single = make_segments(8, people=8, participant=range(8))
    with pytest.raises(DataError, match="0 of 8 participants have 2 or more segments and a pair; at least 2"):
        PairData(single)
    with pytest.raises(DataError, match=r"0 of 8 participants .* and a pair in one session"):
        PairData(make_segments(session=np.arange(60)), pair="session")
    with pytest.raises(DataError, match=r"0 of 8 participants .* and a pair, 1000 hours apart"):
        PairData(make_segments(), min_gap=1000.0)
    with pytest.raises(DataError, match=r"of quality 1 or more and a pair"):
        PairData(make_segments(quality=np.full(60, 0.5)), quality_floor=1.0)
    start = np.full(60, 1.7e9)
    start[::7] = np.nan
    with pytest.raises(DataError, match="min_gap 2 hours needs the time of every segment; 9 of 60 have none"):
        PairData(make_segments(start=start), min_gap=2.0)
