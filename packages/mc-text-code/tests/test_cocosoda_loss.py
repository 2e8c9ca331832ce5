"""The loss of CoCoSoDa against literal loops in float64, its closed forms, masks and gradients."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from mc_core.errors import ConfigError, DataError
from mc_core.losses import info_nce
from mc_text_code.methods.cocosoda.loss import cocosoda_loss, same_thing

B, K, D = 5, 7, 6
INTER = (1, 1, 1, 1, 0, 0)


def unit_rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, D, generator=generator, dtype=torch.float64), dim=1)


@pytest.fixture
def rows():
    names = ("code", "query", "code_key", "query_key")
    made = {name: unit_rows(B, place) for place, name in enumerate(names)}
    queues = ("code_queue", "query_queue", "online_code_queue", "online_query_queue")
    return made | {name: unit_rows(K, 10 + place) for place, name in enumerate(queues)}


def cross_entropy(logits, target):
    most = max(logits)
    return most + math.log(sum(math.exp(value - most) for value in logits)) - logits[target]


def released(rows, *, intra):
    """Multi_Loss_CoCoSoDa, row by row: all rows of all blocks, then one mean."""
    blocks = [
        ("code", "query", "online_query_queue"),
        ("code", "query_key", "query_queue"),
        ("query", "code", "online_code_queue"),
        ("query", "code_key", "code_queue"),
        ("code", "code_key", "code_queue"),
        ("query", "query_key", "query_queue"),
    ][: 6 if intra else 4]
    losses = []
    for anchor, key, queue in blocks:
        for i in range(B):
            cosines = [float(rows[anchor][i] @ rows[key][j]) for j in range(B)]
            cosines += [float(rows[anchor][i] @ rows[queue][n]) for n in range(K)]
            losses.append(cross_entropy([20 * (cosine / 0.07) for cosine in cosines], i))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("intra", [False, True])
def test_released_form_is_the_literal_loop(rows, intra):
    found = cocosoda_loss(
        rows["code"],
        rows["query"],
        (rows["code_key"], rows["query_key"]),
        (rows["code_queue"], rows["query_queue"]),
        online_queues=(rows["online_code_queue"], rows["online_query_queue"]),
        temperature=0.07 / 20,
        weights=(1,) * 6 if intra else INTER,
    )
    assert abs(float(found) - released(rows, intra=intra)) < 1e-9


def literal(rows, temperature, weights, same, queue_same):
    """Our form by its definition: a mean inside each block, then the weighted mean of blocks."""
    blocks = [
        ("code", "query", "query_queue"),
        ("code", "query_key", "query_queue"),
        ("query", "code", "code_queue"),
        ("query", "code_key", "code_queue"),
        ("code", "code_key", "code_queue"),
        ("query", "query_key", "query_queue"),
    ]
    total = 0.0
    for weight, (anchor, key, queue) in zip(weights, blocks, strict=True):
        losses = []
        for i in range(B):
            logits = [float(rows[anchor][i] @ rows[key][i]) / temperature]
            logits += [
                float(rows[anchor][i] @ rows[key][j]) / temperature for j in range(B) if j != i and not same[i][j]
            ]
            logits += [float(rows[anchor][i] @ rows[queue][n]) / temperature for n in range(K) if not queue_same[i][n]]
            losses.append(cross_entropy(logits, 0))
        total += weight * sum(losses) / B
    return total / sum(weights)


@pytest.mark.parametrize("weights", [(1,) * 6, INTER, (0.5, 0, 2, 0, 0, 3), (0, 0, 0, 0, 1, 0)])
def test_ours_is_its_definition_with_masks(rows, weights):
    generator = torch.Generator().manual_seed(3)
    same = torch.rand(B, B, generator=generator) < 0.3
    queue_same = torch.rand(B, K, generator=generator) < 0.3
    found = cocosoda_loss(
        rows["code"],
        rows["query"],
        (rows["code_key"], rows["query_key"]),
        (rows["code_queue"], rows["query_queue"]),
        temperature=0.1,
        weights=weights,
        same=same,
        queue_same=queue_same,
    )
    expected = literal(rows, 0.1, weights, same.tolist(), queue_same.tolist())
    assert abs(float(found) - expected) < 1e-9


def test_one_block_without_queue_is_in_batch_info_nce(rows):
    found = cocosoda_loss(rows["code"], rows["query"], weights=(0, 0, 1, 0, 0, 0))
    expected = info_nce(rows["query"], rows["code"], temperature=0.05, in_batch=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_both_directions_without_queue_are_the_mean_of_two(rows):
    found = cocosoda_loss(rows["code"], rows["query"], weights=(1, 0, 1, 0, 0, 0), temperature=0.2)
    ways = [(rows["code"], rows["query"]), (rows["query"], rows["code"])]
    expected = sum(info_nce(a, k, temperature=0.2, in_batch=True) for a, k in ways) / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("held", [0, 3, 40])
def test_equal_rows_give_the_log_of_how_many_there_are(held):
    rows = normalize(torch.ones(B, D, dtype=torch.float64), dim=1)
    queue = rows[:1].expand(held, D)
    found = cocosoda_loss(rows, rows, (rows, rows), (queue, queue))
    assert abs(float(found) - math.log(B + held)) < 1e-9


def test_no_gradient_reaches_keys_or_queues_but_both_sides_of_the_online_blocks(rows):
    leaves = {name: value.clone().requires_grad_() for name, value in rows.items()}
    cocosoda_loss(
        leaves["code"],
        leaves["query"],
        (leaves["code_key"], leaves["query_key"]),
        (leaves["code_queue"], leaves["query_queue"]),
        online_queues=(leaves["online_code_queue"], leaves["online_query_queue"]),
    ).backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is not None} == {"code", "query"}
    one = rows["code"].clone().requires_grad_()
    cocosoda_loss(rows["query"].detach(), one, weights=(1, 0, 0, 0, 0, 0)).backward()
    assert float(one.grad.norm()) > 0  # the candidates of block 1 are trained, too


def test_gradients(rows):
    code, query = rows["code"].requires_grad_(), rows["query"].requires_grad_()
    same = torch.zeros(B, B, dtype=torch.bool)
    same[1, 3] = True
    queue_same = torch.zeros(B, K, dtype=torch.bool)
    queue_same[0] = True  # an anchor for which the whole queue is left out

    def loss(c, q):
        keys, queues = (rows["code_key"], rows["query_key"]), (rows["code_queue"], rows["query_queue"])
        return cocosoda_loss(c, q, keys, queues, temperature=0.3, same=same, queue_same=queue_same)

    assert torch.autograd.gradcheck(loss, (code, query))


def test_a_planted_duplicate_changes_nothing_once_it_is_left_out(rows):
    """Also where only the question, or only the code, is the anchor's."""
    code_ids, query_ids = torch.arange(B), torch.arange(B) + 100
    held_code, held_query = torch.arange(K) + 1000, torch.arange(K) + 2000
    keys = (rows["code_key"], rows["query_key"])

    def loss(code_queue, query_queue, code_of_queue, query_of_queue):
        mask = same_thing(code_ids, query_ids, code_of_queue, query_of_queue)
        return cocosoda_loss(rows["code"], rows["query"], keys, (code_queue, query_queue), queue_same=mask)

    plain = loss(rows["code_queue"], rows["query_queue"], held_code, held_query)
    for planted_code, planted_query in ((2, 999), (999, 102)):
        with_copy = loss(
            torch.cat([rows["code_queue"], rows["code"][2:3]]),
            torch.cat([rows["query_queue"], rows["query"][2:3]]),
            torch.cat([held_code, torch.tensor([planted_code])]),
            torch.cat([held_query, torch.tensor([planted_query])]),
        )
        # for the other anchors the planted row is a negative like any other
        others = torch.arange(B) != 2
        foreign = loss(
            torch.cat([rows["code_queue"], rows["code"][2:3]]),
            torch.cat([rows["query_queue"], rows["query"][2:3]]),
            torch.cat([held_code, torch.tensor([999])]),
            torch.cat([held_query, torch.tensor([999])]),
        )
        assert float(plain) < float(with_copy) < float(foreign)
        mask = torch.zeros(B, K + 1, dtype=torch.bool)
        mask[~others, K] = True
        expected = cocosoda_loss(
            rows["code"],
            rows["query"],
            keys,
            (
                torch.cat([rows["code_queue"], rows["code"][2:3]]),
                torch.cat([rows["query_queue"], rows["query"][2:3]]),
            ),
            queue_same=mask,
        )
        torch.testing.assert_close(with_copy, expected, rtol=0, atol=0)


def test_rows_of_other_processes_and_the_offset(rows):
    """The mean over processes of the shares is the loss of the undivided batch."""
    keys, queues = (rows["code_key"], rows["query_key"]), (rows["code_queue"], rows["query_queue"])
    same = torch.zeros(B, B, dtype=torch.bool)
    same[0, 4] = same[4, 0] = True
    whole = cocosoda_loss(rows["code"], rows["query"], keys, queues, same=same)
    parts = [
        cocosoda_loss(
            rows["code"][one],
            rows["query"][one],
            keys,
            queues,
            online=(rows["code"], rows["query"]),
            same=same[one],
            offset=one.start,
        )
        * (one.stop - one.start)
        for one in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(sum(parts) / B, whole, rtol=0, atol=1e-12)


def test_half_precision_rows_are_added_up_in_float32(rows):
    half = {name: value.to(torch.bfloat16) for name, value in rows.items()}
    found = cocosoda_loss(half["code"], half["query"], (half["code_key"], half["query_key"]))
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"weights": (0,) * 6}, ConfigError, "one of them above 0"),
        ({"weights": (1,) * 5}, ConfigError, "give six"),
        ({"temperature": 0.0}, ConfigError, "temperature 0"),
        ({"keys": None}, DataError, "blocks 2, 4, 5 and 6"),
        ({"query": torch.zeros(B, D + 1)}, DataError, "query of shape"),
        ({"queues": (torch.zeros(3, D), torch.zeros(3, 2))}, DataError, "queues of shape"),
    ],
)
def test_bad_arguments(rows, change, error, said):
    given = {"query": rows["query"], "keys": (rows["code_key"], rows["query_key"])} | change
    with pytest.raises(error, match=said):
        cocosoda_loss(rows["code"], **given)
