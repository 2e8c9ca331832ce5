"""The queue is a deque of rows: any batch size, exact order, nothing that was not enqueued, and its state survives."""

from __future__ import annotations

import copy
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mc_core.errors import ConfigError, DataError
from mc_core.queue import FeatureQueue, PendingKeys


def rows(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None].float()


def numbered(first: int, count: int, dim: int) -> torch.Tensor:
    return (torch.arange(first, first + count)[:, None] * 10 + torch.arange(dim)).float()


@given(st.integers(1, 9), st.lists(st.integers(0, 25), max_size=12))
def test_it_behaves_as_a_deque(size, batches):
    queue, reference = FeatureQueue(size, 2, with_ids=True), deque(maxlen=size)
    count = 0
    for batch in batches:
        queue.enqueue(numbered(count, batch, 2), torch.arange(count, count + batch))
        reference.extend(range(count, count + batch))
        count += batch
        features, ids = queue.in_order()
        assert ids.tolist() == list(reference)
        assert torch.equal(features[:, 0], ids.float() * 10)
        assert len(queue) == len(queue.features) == len(queue.ids) == len(reference)
        assert queue.full is (len(reference) == size)
        assert torch.equal(queue.features[:, 1], queue.ids.float() * 10 + 1)
        # row n of all that ever came stands at n mod size, however the rows were batched
        assert all(queue.ring_ids[n % size] == n for n in reference)
        assert queue.cursor.tolist()[:2] == [count % size, len(reference)]
        assert (queue.oldest_age == 0.0) is (count == 0)


def test_features_are_a_view_of_what_was_enqueued_only():
    queue = FeatureQueue(4, 1)
    assert queue.features.shape == (0, 1)
    assert queue.ids is None
    assert bool(queue)  # empty, but there
    queue.enqueue(rows(1, 2, 3))
    assert queue.features.data_ptr() == queue.ring.data_ptr()
    assert queue.features.is_contiguous()
    assert queue.features.flatten().tolist() == [1, 2, 3]
    queue.enqueue(rows(4, 5))
    assert queue.features.flatten().tolist() == [5, 2, 3, 4]
    assert queue.in_order()[0].flatten().tolist() == [2, 3, 4, 5]
    assert queue.in_order()[0].data_ptr() != queue.ring.data_ptr()
    queue.clear()
    assert (len(queue), queue.full, queue.oldest_age, queue.cursor.tolist()) == (0, False, 0.0, [0, 0, 0])
    queue.enqueue(rows(9))
    assert queue.features.flatten().tolist() == [9]


@given(st.integers(1, 9), st.lists(st.lists(st.booleans(), max_size=12), max_size=8))
def test_only_the_rows_that_are_kept_enter(size, batches):
    queue, reference = FeatureQueue(size, 2, with_ids=True), deque(maxlen=size)
    for number, keep in enumerate(batches):
        first = 100 * number
        ids = torch.arange(first, first + len(keep))
        queue.enqueue(numbered(first, len(keep), 2), ids, keep=torch.tensor(keep, dtype=torch.bool))
        reference.extend(i for i, kept in zip(ids.tolist(), keep, strict=True) if kept)
        features, found = queue.in_order()
        assert found.tolist() == list(reference)
        assert torch.equal(features[:, 0], found.float() * 10)


def test_what_to_keep_is_said_row_by_row():
    queue = FeatureQueue(4, 1)
    with pytest.raises(DataError, match=r"keep is torch.bool of shape \(3,\); 2 rows need"):
        queue.enqueue(rows(1, 2), keep=torch.ones(3, dtype=torch.bool))
    with pytest.raises(DataError, match="keep is torch.int64"):
        queue.enqueue(rows(1, 2), keep=torch.tensor([0, 1]))
    assert len(queue) == 0


def test_the_oldest_age_is_counted_in_enqueues():
    queue = FeatureQueue(64, 1)
    for step in range(1, 20):
        queue.enqueue(torch.zeros(4, 1))
        assert queue.oldest_age == min(step, 16)
    queue.enqueue(torch.zeros(256, 1))
    assert queue.oldest_age == 0.25  # it holds a quarter of one enqueue


def test_rows_are_cast_and_take_no_gradient():
    queue = FeatureQueue(4, 2, dtype=torch.bfloat16)
    queue.enqueue(torch.full((2, 2), 1.0, dtype=torch.float64, requires_grad=True))
    assert (queue.features.dtype, queue.features.requires_grad) == (torch.bfloat16, False)
    wide = FeatureQueue(4, 2)
    wide.enqueue(torch.ones(2, 2, dtype=torch.float16))
    assert wide.features.tolist() == [[1, 1], [1, 1]]


def test_enqueueing_before_backward_is_refused_and_after_it_is_exact():
    queue = FeatureQueue(4, 3)
    queue.enqueue(torch.randn(4, 3))
    query = torch.randn(2, 3, requires_grad=True)
    (query @ queue.features.T).square().sum().backward()
    queue.enqueue(torch.randn(2, 3))
    loss = (query @ queue.features.T).square().sum()
    queue.enqueue(torch.randn(2, 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("inside_parent", [False, True])
def test_its_state_comes_back_and_goes_on(assign, inside_parent):
    saved, loaded = FeatureQueue(5, 2, with_ids=True), FeatureQueue(5, 2, with_ids=True)
    for first in (0, 3):
        saved.enqueue(numbered(first, 3, 2), torch.arange(first, first + 3))
    loaded.enqueue(numbered(90, 1, 2), torch.tensor([90]))
    source, target = (nn.ModuleDict({"queue": q}) if inside_parent else q for q in (saved, loaded))
    target.load_state_dict(copy.deepcopy(source.state_dict()), assign=assign)
    assert (len(loaded), loaded.oldest_age) == (len(saved), saved.oldest_age)
    for queue in (saved, loaded):
        queue.enqueue(numbered(6, 2, 2), torch.tensor([6, 7]))
    assert loaded.ids.tolist() == saved.ids.tolist()
    assert loaded.in_order()[1].tolist() == [3, 4, 5, 6, 7]
    assert torch.equal(loaded.features, saved.features)


def test_a_copy_is_independent():
    queue = FeatureQueue(3, 1)
    queue.enqueue(rows(1, 2))
    twin = copy.deepcopy(queue)
    twin.enqueue(rows(3, 4))
    assert queue.features.flatten().tolist() == [1, 2]
    assert twin.in_order()[0].flatten().tolist() == [2, 3, 4]


def test_casting_a_parent_leaves_ids_and_cursor():
    queue = FeatureQueue(3, 1, with_ids=True)
    large = 2**53 + 1  # no float holds it
    queue.enqueue(rows(1, 2), torch.tensor([large, 1]))
    for cast in (nn.Module.half, nn.Module.double, lambda module: module.to(torch.bfloat16)):
        cast(nn.Sequential(queue))
        assert queue.ids.tolist() == [large, 1]
        queue.enqueue(rows(3, 4, 5), torch.tensor([2, large, 1]))
        assert queue.in_order()[1].tolist() == [2, large, 1]
        queue.clear()
        queue.enqueue(rows(1, 2), torch.tensor([large, 1]))


def test_state_that_does_not_fit_is_refused_and_changes_nothing():
    queue = FeatureQueue(3, 1)
    queue.enqueue(rows(1, 2))
    other = FeatureQueue(4, 1)
    other.enqueue(rows(7, 8, 9))
    with pytest.raises(RuntimeError, match=r"size mismatch for ring.*\[4, 1\].*\[3, 1\]"):
        queue.load_state_dict(other.state_dict())
    assert queue.features.flatten().tolist() == [1, 2]
    assert queue.cursor.tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match=r"Missing key.*ring_ids"):
        FeatureQueue(3, 1, with_ids=True).load_state_dict(queue.state_dict())
    impossible = queue.state_dict() | {"cursor": torch.tensor([1, 2, 2])}
    with pytest.raises(RuntimeError, match="pointer 1 and 2 rows, impossible for size 3"):
        queue.load_state_dict(impossible)
    assert len(queue) == 0


@pytest.mark.parametrize(
    ("with_ids", "features", "ids", "error", "message"),
    [
        (False, torch.ones(2, 5), None, DataError, r"shape \(2, 5\); .* shape \(any, 3\)"),
        (False, torch.ones(3), None, DataError, r"shape \(3,\)"),
        (False, torch.ones(2, 3, dtype=torch.int64), None, DataError, "torch.int64 of shape"),
        (False, torch.ones(2, 3), torch.arange(2), ConfigError, "2 ids given to a queue that keeps none"),
        (True, torch.ones(2, 3), None, ConfigError, "none came with 2 rows"),
        (True, torch.ones(2, 3), torch.arange(3), DataError, r"shape \(3,\); 2 rows need torch.int64 of shape \(2,\)"),
        (True, torch.ones(2, 3), torch.ones(2), DataError, "ids are torch.float32"),
    ],
)
def test_bad_rows_are_named_and_leave_the_queue_as_it_was(with_ids, features, ids, error, message):
    queue = FeatureQueue(4, 3, with_ids=with_ids)
    with pytest.raises(error, match=message):
        queue.enqueue(features, ids)
    assert len(queue) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 4), "0 rows of width 4"), ((4, 0), "4 rows of width 0"), ((4, 4, torch.int64), "dtype is torch.int64")],
)
def test_a_queue_that_cannot_be(arguments, message):
    size, dim, *dtype = arguments
    with pytest.raises(ConfigError, match=message):
        FeatureQueue(size, dim, **({"dtype": dtype[0]} if dtype else {}))


def test_pending_keys_are_those_of_one_step_in_order():
    pending = PendingKeys()
    assert pending.take() is None
    left = torch.full((2, 3), 9.0, requires_grad=True)
    pending.add(1, left, torch.tensor([9, 9]))  # its step never ended: the run was interrupted, or the loss not finite
    first, second = torch.zeros(2, 3), torch.ones(1, 3)
    pending.add(2, first, torch.tensor([4, 5]))
    pending.add(2, second, torch.tensor([6]))
    keys, ids = pending.take()
    assert torch.equal(keys, torch.cat([first, second]))
    assert ids.tolist() == [4, 5, 6]
    assert pending.take() is None
    pending.add(2, left)
    assert not pending.take()[0].requires_grad
    pending.add(3, torch.zeros(2, 4, 3))  # of two views: rows of each follow each other
    pending.add(3, torch.ones(2, 1, 3))
    assert pending.take()[0].sum(-1).tolist() == [[0, 0, 0, 0, 3]] * 2


@pytest.mark.parametrize("rows", [0, 2, 3, 5, 8])
@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_a_resized_queue_keeps_the_newest_and_goes_on_as_a_deque(size, rows):
    queue, expected = FeatureQueue(5, 1, with_ids=True), deque(range(rows), maxlen=5)
    for number in range(rows):
        queue.enqueue(torch.tensor([[float(number)]]), torch.tensor([number]))
    queue.resize(size)
    expected = deque(expected, maxlen=size)
    for number in range(rows, rows + 7):
        features, ids = queue.in_order()
        assert ids.tolist() == features.flatten().tolist() == list(expected)
        assert queue.full == (len(expected) == size)
        queue.enqueue(torch.tensor([[float(number)]]), torch.tensor([number]))
        expected.append(number)
    other = FeatureQueue(size, 1, with_ids=True)
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.in_order()[0], queue.in_order()[0])
    with pytest.raises(ConfigError, match="0 rows"):
        queue.resize(0)
