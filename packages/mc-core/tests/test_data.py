"""The order of samples is arithmetic, the same for any number of workers and processes, and bad samples are replaced."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mc_core.data import (
    BadSampleError,
    StepPlan,
    TensorData,
    default_workers,
    finish_on_device,
    in_order,
    stack_samples,
    step_loader,
    to_device,
)
from mc_core.errors import ConfigError, DataError
from mc_core.random import BatchRandom


class Draws:
    """Each sample is its index and two random numbers; the indices in ``bad`` cannot be read."""

    def __init__(self, length: int = 20, bad: tuple[int, ...] = ()) -> None:
        self.length, self.bad = length, bad

    def __len__(self) -> int:
        return self.length

    def get(self, index, rng):
        if index in self.bad:
            raise BadSampleError(f"{index}.png", "not an image")
        return {"x": torch.tensor([float(index), *rng.random(2)]), "name": f"{index}.png", "label": index % 3}


@given(
    length=st.integers(8, 60),
    share=st.integers(1, 3),
    world=st.sampled_from([1, 2, 4]),
    accumulation=st.sampled_from([1, 2]),
    step=st.integers(0, 30),
)
def test_processes_and_micro_batches_join_to_the_global_batch(length, share, world, accumulation, step):
    batch = min(share * world * accumulation, length // (world * accumulation) * world * accumulation)
    if batch == 0:
        return
    whole = StepPlan(length, batch, seed=3).micro_batches(step)[0]
    parts = [
        np.concatenate(StepPlan(length, batch, 3, rank, world, accumulation).micro_batches(step))
        for rank in range(world)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_an_epoch_visits_each_sample_at_most_once_and_differs_from_the_next():
    plan = StepPlan(22, 5, seed=0)
    epochs = [np.concatenate([plan.micro_batches(4 * e + s)[0] for s in range(4)]) for e in range(3)]
    for order in epochs:
        assert len(set(order.tolist())) == 20
    assert not np.array_equal(epochs[0], epochs[1])
    assert set(np.concatenate(epochs).tolist()) == set(range(22)), "each epoch drops other samples"


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(
        ConfigError, match=r"batch_size 256 is larger than the data \(100 samples\): set fit.batch_size"
    ):
        StepPlan(100, 256, seed=0)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(
        ConfigError, match="batch_size 10 does not divide into 2 processes × 4 micro-batches: take a multiple of 8"
    ):
        StepPlan(100, 10, seed=0, world_size=2, accumulation=4)


def _collect(data, plan, start, stop, workers):
    return [batch["x"] for batch in step_loader(data, plan, start=start, stop=stop, workers=workers)]


def test_workers_and_starting_point_change_nothing():
    plan = StepPlan(20, 4, seed=1)
    alone = _collect(Draws(), plan, 0, 8, 0)
    assert torch.equal(torch.stack(alone), torch.stack(_collect(Draws(), plan, 0, 8, 2)))
    assert torch.equal(torch.stack(alone[3:]), torch.stack(_collect(Draws(), plan, 3, 8, 1)))


def test_randomness_is_of_seed_epoch_and_sample():
    plan = StepPlan(20, 20, seed=1)
    epochs = [x[x[:, 0].argsort()] for x in _collect(Draws(), plan, 0, 2, 0)]
    assert not torch.equal(epochs[0][:, 1:], epochs[1][:, 1:]), "another epoch, other draws"
    half = StepPlan(20, 4, seed=1)
    parts = torch.cat(_collect(Draws(), half, 0, 5, 0))
    assert torch.equal(parts[parts[:, 0].argsort()], epochs[0]), "another batch size, the same draws"
    other = _collect(Draws(), StepPlan(20, 20, seed=2), 0, 1, 0)[0]
    assert not torch.equal(other[other[:, 0].argsort()][:, 1:], epochs[0][:, 1:]), "another seed, other draws"


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_replaced_and_named(workers):
    plan = StepPlan(20, 5, seed=0)
    data = Draws(bad=(3, 11))
    batches = list(step_loader(data, plan, start=0, stop=4, workers=workers))
    seen = torch.cat([batch["index"] for batch in batches])
    assert not {3, 11} & set(seen.tolist())
    assert len(seen) == 20
    bad = sorted(record for batch in batches for record in batch.get("bad", []))
    assert {(index, name, reason) for index, name, reason in bad} == {
        (3, "3.png", "not an image"),
        (11, "11.png", "not an image"),
    }
    for batch in batches:
        assert torch.equal(batch["x"][:, 0].long(), batch["index"]), "index names the sample that is there"


def test_data_that_is_all_bad_ends_in_an_error():
    batch = next(iter(step_loader(Draws(bad=tuple(range(20))), StepPlan(20, 4, 0), start=0, stop=1, workers=0)))
    assert isinstance(batch["error"], DataError)
    assert "20 unreadable samples in a row" in str(batch["error"])


@pytest.mark.parametrize("workers", [0, 2])
def test_in_order_leaves_bad_samples_out(workers):
    batches = list(in_order(Draws(10, bad=(0, 1, 2, 7)), batch_size=3, workers=workers))
    assert [batch["index"].tolist() for batch in batches] == [[], [3, 4, 5], [6, 8], [9]]
    assert [index for batch in batches for index, *_ in batch.get("bad", [])] == [0, 1, 2, 7]
    assert batches[2]["label"].tolist() == [0, 2]
    later = list(in_order(Draws(10), batch_size=3, workers=0, start=6))
    assert torch.cat([batch["index"] for batch in later]).tolist() == [6, 7, 8, 9]


def test_whole_batches_from_memory():
    data = TensorData(x=torch.arange(12.0).reshape(6, 2))
    batch = next(iter(step_loader(data, StepPlan(6, 3, 0), start=1, stop=2, workers=0)))
    assert torch.equal(batch["x"], data.tensors["x"][batch["index"]])
    assert default_workers(data) == 0
    assert default_workers(Draws()) >= 1
    with pytest.raises(DataError, match=r"same number of rows, got \{'a': 2, 'b': 3\}"):
        TensorData(a=torch.zeros(2), b=torch.zeros(3))


def test_stacking_by_type():
    batch = stack_samples(
        [
            {"a": torch.ones(2), "b": np.zeros(3), "c": True, "d": "x"},
            {"a": torch.zeros(2), "b": np.ones(3), "c": False, "d": "y"},
        ]
    )
    assert batch["a"].shape == (2, 2)
    assert batch["b"].dtype == torch.float64
    assert batch["c"].tolist() == [True, False]
    assert batch["d"] == ["x", "y"]


def test_device_work_sees_seed_epoch_and_index():
    class WithTransform(TensorData):
        def device_transform(self, batch, random: BatchRandom):
            return {**batch, "x": batch["x"] + random.uniform(1)}

    data = WithTransform(x=torch.zeros(8, 1))
    batches = [
        to_device(batch, torch.device("cpu"))
        for batch in step_loader(data, StepPlan(8, 8, 0), start=0, stop=2, workers=0)
    ]
    views = [finish_on_device(data, batch, seed=5) for batch in batches]
    ordered = [view["x"][view["index"].argsort()] for view in views]
    assert not torch.equal(ordered[0], ordered[1])
    expected = BatchRandom(5, 0, torch.arange(8)).uniform(1)
    assert torch.equal(ordered[0], expected)


def test_bad_sample_errors_travel_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(BadSampleError("a.png", "truncated")))
    assert (error.name, error.reason, str(error)) == ("a.png", "truncated", "a.png: truncated")


class Backwards(Draws):
    """Draws, epochs in the reverse of their shuffled order."""

    def arrange(self, permutation, *, epoch, batch_size, seed):
        self.asked = (epoch, batch_size, seed)
        return permutation[::-1].copy()


def test_a_data_set_may_arrange_an_epoch_and_starts_anywhere_in_it():
    data = Backwards(20)
    plan = StepPlan(20, 6, seed=3, world_size=2, rank=1)
    batches = list(step_loader(data, plan, start=0, stop=7, workers=0))
    assert data.asked == (2, 6, 3)
    for step, batch in enumerate(batches):
        epoch, place = divmod(step, 3)
        order = plan.permutation(epoch)[::-1]
        assert batch["index"].tolist() == order[place * 6 + 3 : place * 6 + 6].tolist()
    later = list(step_loader(data, plan, start=4, stop=7, workers=2))
    assert [b["index"].tolist() for b in later] == [b["index"].tolist() for b in batches[4:]]
