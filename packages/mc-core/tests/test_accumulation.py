"""Two passes over micro-batches give the gradient of the whole batch's loss."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from mc_core.accumulation import CachedGradients, cache_gradients, encode_step, first_pass, replay
from mc_core.engine import Progress
from mc_core.losses import decoupled_info_nce


def _embed(net, a, b):
    return normalize(net(a), dim=1), normalize(net(b), dim=1)


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_is_that_of_the_whole_batch(parts, dropout):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 4)).double()
    a, b = torch.randn(12, 5).double(), torch.randn(12, 5).double()
    progress = Progress(step=4, seed=9)
    batches = [
        {"a": x, "b": y, "micro": i} for i, (x, y) in enumerate(zip(a.chunk(parts), b.chunk(parts), strict=True))
    ]

    def loss(za, zb):
        return decoupled_info_nce(za, zb, temperature=0.3), {"rows": float(len(za))}

    embeddings = []
    for batch in batches:
        with first_pass(net), replay(progress, batch):
            embeddings.append(_embed(net, batch["a"], batch["b"]))
    assert not embeddings[0][0].requires_grad
    cached = cache_gradients(embeddings, loss)
    assert cached.metrics == {"rows": 12.0}
    for batch in batches:
        with replay(progress, batch):
            z = _embed(net, batch["a"], batch["b"])
        value = cached.surrogate(batch["micro"], z)
        assert value.item() == pytest.approx(cached.loss.item(), rel=1e-12)
        (value / parts).backward()
    two_pass = [p.grad.clone() for p in net.parameters()]

    net.zero_grad()
    drawn = []
    for batch in batches:  # the reference keeps all activations, with the same dropout masks
        with replay(progress, batch):
            drawn.append(_embed(net, batch["a"], batch["b"]))
    loss(torch.cat([z for z, _ in drawn]), torch.cat([z for _, z in drawn]))[0].backward()
    for got, parameter in zip(two_pass, net.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-9, atol=1e-12)


def test_plain_accumulation_is_not_that_gradient():
    """Why two passes are needed: micro-batches on their own see fewer negatives."""
    torch.manual_seed(0)
    z = normalize(torch.randn(8, 4), dim=1).requires_grad_()
    other = normalize(torch.randn(8, 4), dim=1)
    (whole,) = torch.autograd.grad(decoupled_info_nce(z, other), z)
    parts = sum(decoupled_info_nce(x, y) for x, y in zip(z.chunk(2), other.chunk(2), strict=True)) / 2
    (split,) = torch.autograd.grad(parts, z)
    assert (whole - split).abs().max() > 0.01


def test_the_first_pass_leaves_batch_statistics_alone():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with first_pass(net):
        net(torch.randn(16, 3))
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    net(torch.randn(16, 3))
    assert not torch.equal(net[1].running_mean, before["1.running_mean"])


def test_what_is_shared_is_pulled_once():
    """A learned temperature belongs to no micro-batch: over all of them it gets its gradient one time."""
    scale = torch.tensor(2.0, requires_grad=True)
    z = torch.ones(2, 1, requires_grad=True)
    cached = CachedGradients(torch.tensor(5.0), [(torch.full((1, 1), 3.0),)] * 2, shared=(torch.tensor(0.7),))
    for micro in range(2):
        value = cached.surrogate(micro, (z[micro : micro + 1],), (scale,))
        assert value.item() == 5.0
        (value / 2).backward()
    assert z.grad.flatten().tolist() == [3.0, 3.0]
    assert scale.grad.item() == pytest.approx(0.7)


def test_the_rows_of_a_step_are_constants_in_the_order_of_its_micro_batches():
    net = nn.Linear(2, 3)
    x = torch.randn(7, 2)
    asked = []

    class Parts(list):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    rows = encode_step(Parts([{"x": part} for part in x.split(3)]), lambda batch: (net(batch["x"]), batch["x"][:, 0]))
    assert asked == [0, 1, 2]
    assert len(rows) == 7
    assert not rows.values[0].requires_grad
    torch.testing.assert_close(rows.values[0], net(x).detach())
    assert torch.equal(rows.part(1, 2), x[6:, 0])
    assert [rows.rows(i) for i in range(3)] == [slice(0, 3), slice(3, 6), slice(6, 7)]


@pytest.mark.parametrize(("rows", "calls"), [(1, [3, 3, 1]), (6, [6, 1]), (100, [7])])
def test_small_micro_batches_are_encoded_together_with_the_same_result(rows, calls):
    x, ids = torch.randn(7, 2), torch.randint(1, 9, (7, 5))
    batches = [
        {"x": x[start : start + 3], "ids": ids[start : start + 3, : 3 + start // 3], "micro": micro}
        for micro, start in enumerate(range(0, 7, 3))
    ]
    seen = []

    def encode(batch):
        seen.append(len(batch["x"]))
        return batch["x"] * 2, batch["ids"].sum(1)

    found = encode_step(batches, encode, rows=rows)
    assert seen == calls
    assert found.starts == (0, 3, 6, 7)
    assert torch.equal(found.values[0], x * 2)
    assert found.values[1].tolist() == [int(ids[i, : 3 + i // 3].sum()) for i in range(7)]
