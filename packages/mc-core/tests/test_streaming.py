"""The streamed logsumexp against the dense one: values, gradients, masks, memory, precision, and what it refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mc_core import _streaming
from mc_core._streaming import streamed_logsumexp
from mc_core.errors import RunError


def unit(rows: int, dim: int = 16, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(rows, dim, dtype=dtype, generator=torch.Generator().manual_seed(seed)), dim=1)


def dense(query: Tensor, keys: Tensor, left_out: Tensor | None = None) -> Tensor:
    logits = query @ keys.T
    return (logits if left_out is None else logits.masked_fill(left_out, -torch.inf)).logsumexp(1)


@pytest.fixture(params=["one chunk", "many chunks", "many chunks, recomputed"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ways through the code; the last is taken for keys with a gradient when the weights are too many to keep."""
    if request.param != "one chunk":
        monkeypatch.setattr(_streaming, "_CHUNK_ELEMENTS", {"cpu": 1, "cuda": 1})
        monkeypatch.setattr(_streaming, "_CHUNK_ROWS_MIN", 7)
    if "recomputed" in request.param:
        monkeypatch.setattr(_streaming, "_KEEP_BYTES", 0)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("keys_grad", [False, True])
def test_value_and_gradients_equal_the_dense_form(temperature, keys_grad):
    query, keys = (unit(5) / temperature).requires_grad_(), unit(50, seed=1).requires_grad_(keys_grad)
    weight = torch.linspace(-1, 1, 5, dtype=torch.float64)
    inputs = [query, keys] if keys_grad else [query]
    ours, theirs = streamed_logsumexp(query, keys), dense(query, keys)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for mine, reference in zip(
        torch.autograd.grad(ours @ weight, inputs), torch.autograd.grad(theirs @ weight, inputs), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("chunks")
def test_gradcheck_with_masks_and_a_row_without_keys():
    query, keys = (unit(4, 3) * 2).requires_grad_(), unit(20, 3, seed=1).requires_grad_()
    query_ids, key_ids = torch.tensor([1, 2, 3, 99]), torch.arange(20) % 5
    assert torch.autograd.gradcheck(
        lambda q, k: streamed_logsumexp(q, k, query_ids=query_ids, key_ids=key_ids, diagonal=9), (query, keys)
    )


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("diagonal", [0, 6, 30, 49])
def test_ids_and_the_diagonal_leave_out_exactly_their_entries(diagonal):
    query, keys = unit(5) * 3, unit(50, seed=1)
    query_ids, key_ids = torch.arange(5), torch.arange(50) % 9
    left_out = query_ids[:, None] == key_ids[None, :]
    ours = streamed_logsumexp(query, keys, query_ids=query_ids, key_ids=key_ids)
    torch.testing.assert_close(ours, dense(query, keys, left_out))
    own = torch.arange(5)[:, None] + diagonal == torch.arange(50)[None, :]
    torch.testing.assert_close(streamed_logsumexp(query, keys, diagonal=diagonal), dense(query, keys, own))
    both = streamed_logsumexp(query, keys, query_ids=query_ids, key_ids=key_ids, diagonal=diagonal)
    torch.testing.assert_close(both, dense(query, keys, own | left_out))


@pytest.mark.usefixtures("chunks")
def test_rows_without_keys_give_minus_infinity_and_zero_gradient():
    query, keys = unit(3).requires_grad_(), unit(20, seed=1).requires_grad_()
    ids = torch.zeros(20, dtype=torch.int64)
    result = streamed_logsumexp(query, keys, query_ids=torch.tensor([0, 1, 0]), key_ids=ids)
    assert result.isneginf().tolist() == [True, False, True]
    grad_query, grad_keys = torch.autograd.grad(result, [query, keys], torch.ones(3, dtype=torch.float64))
    assert grad_query[[0, 2]].abs().max() == 0
    assert grad_query[1].abs().max() > 0
    alone = dense(query[1:2], keys)
    torch.testing.assert_close(grad_keys, torch.autograd.grad(alone.sum(), keys)[0])

    nothing = keys[:0]
    result = streamed_logsumexp(query, nothing)
    assert result.isneginf().all()
    assert torch.autograd.grad(result.sum(), query)[0].abs().max() == 0


@pytest.mark.usefixtures("chunks")
def test_a_running_maximum_survives_logits_that_would_overflow():
    query, keys = torch.eye(2) * 200.0, torch.eye(2).repeat(15, 1)
    keys[7] *= 4.0  # the peak, 800, comes after the first chunk: exp(800) is infinite even in float64
    result = streamed_logsumexp(query, keys)
    torch.testing.assert_close(result, dense(query.double(), keys.double()).float())
    assert result[1] == 800.0
    torch.testing.assert_close(streamed_logsumexp(-query, keys), dense(-query.double(), keys.double()).float())


def test_float32_is_within_1e_5_of_float64_over_many_chunks():
    query, keys = (unit(32, 128) / 0.07).requires_grad_(), unit(100_000, 128, seed=1)
    ours = streamed_logsumexp(query.float(), keys.float())
    theirs = dense(query, keys)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=0)
    (mine,), (reference,) = torch.autograd.grad(ours.sum(), query), torch.autograd.grad(theirs.sum(), query)
    assert (mine - reference).norm() / reference.norm() < 1e-5


def test_low_precision_keeps_sums_in_float32():
    query, keys = (unit(8, 64) / 0.1).requires_grad_(), unit(5000, 64, seed=1)
    reference = dense(query, keys)
    (expected,) = torch.autograd.grad(reference.sum(), query)
    for dtype in (torch.bfloat16, torch.float16):
        result = streamed_logsumexp(query.float(), keys.float(), matmul_dtype=dtype)
        assert result.dtype == torch.float32
        assert (result.double() - reference).abs().max() < 1e-2
        (grad,) = torch.autograd.grad(result.sum(), query)
        assert (grad - expected).norm() / expected.norm() < 2e-2
    learned = keys.float().requires_grad_()
    result = streamed_logsumexp(query.detach().float(), learned, matmul_dtype=torch.bfloat16)
    (grad_keys,) = torch.autograd.grad(result.sum(), learned)
    exact = keys.clone().requires_grad_()
    (expected,) = torch.autograd.grad(dense(query.detach(), exact).sum(), exact)
    assert grad_keys.dtype == torch.float32
    assert (grad_keys - expected).norm() / expected.norm() < 2e-2


def test_a_half_precision_queue_is_read_as_it_is():
    query, keys = unit(4, dtype=torch.float32) * 5, unit(300, seed=1).bfloat16()
    torch.testing.assert_close(streamed_logsumexp(query, keys), dense(query, keys.float()))


@pytest.mark.parametrize("keys_grad", [False, True])
def test_changing_the_keys_before_the_backward_pass_is_refused(keys_grad):
    ring = unit(20)
    query = unit(3, seed=1).requires_grad_()
    keys = ring[:10]
    result = streamed_logsumexp(query, keys.requires_grad_() if keys_grad else keys).sum()
    with torch.no_grad():
        (keys if keys_grad else ring)[2] = 0.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


def test_a_second_derivative_is_refused():
    query = unit(3).requires_grad_()
    with pytest.raises(RunError, match="no second derivative"):
        torch.autograd.grad(streamed_logsumexp(query, unit(5, seed=1)).sum(), query, create_graph=True)


def test_without_gradient_nothing_is_kept():
    query, keys = unit(3).requires_grad_(), unit(5, seed=1)
    with torch.no_grad():
        assert not streamed_logsumexp(query, keys).requires_grad
    assert not streamed_logsumexp(query.detach(), keys).requires_grad
    result = streamed_logsumexp(query.detach(), keys.requires_grad_())
    assert result.requires_grad
    result.sum().backward()
    torch.testing.assert_close(keys.grad, torch.autograd.grad(dense(query.detach(), keys).sum(), keys)[0])


MEMORY = """
import resource, torch
from mc_core._streaming import streamed_logsumexp
torch.set_num_threads(1)
query = torch.nn.functional.normalize(torch.randn(1024, 128), dim=1).mul(5).requires_grad_()
ring = torch.nn.functional.normalize(torch.randn(1024, 128), dim=1).repeat(64, 1)
streamed_logsumexp(query, ring[:2048]).sum().backward()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
streamed_logsumexp(query, ring).sum().backward()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_memory_does_not_grow_with_the_queue():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 16  # MiB; the logits of 1024 queries and 65536 rows would take 256
