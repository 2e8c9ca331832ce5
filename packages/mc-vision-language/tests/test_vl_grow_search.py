"""Slices of data, the growth space, and the search: views of one model measured as stand-alone models are."""

from __future__ import annotations

import runpy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mc_core.engine.method import Progress
from mc_core.errors import ConfigError, DataError
from mc_core.growth import Expansion, candidates, drawn, grow, largest
from mc_vision_language.data.pair_data import PairData
from mc_vision_language.growing.search import GrowthSearch, candidate_losses, held_out_batches, search_flops
from mc_vision_language.growing.slices import Slices, arriving, sliced
from mc_vision_language.growing.space import growth_budget, growth_space, tokens_of
from mc_vision_language.methods.growclip.loss import pair_loss, same_pairs
from mc_vision_language.methods.growclip.model import GrowCLIPModel

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_grow.py"))))


@pytest.fixture(scope="module")
def supernet():
    towers = tiny.towers()
    space = candidates(towers.spec, pairs=5, seed=1)
    made = grow(towers, largest(list(space.values())), seed=3)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return towers, space, made


@pytest.mark.parametrize("ids", [True, False])
@torch.no_grad()
def test_candidates_are_measured_as_models_that_stand_alone(supernet, ids):
    towers, space, made = supernet
    batches = [tiny.batch(5, seed) for seed in (0, 1)]
    found = candidate_losses(made.train(), [spec.parts for spec in space.values()], batches, ids=ids)
    assert found.shape == (len(space), 2)
    assert made.training
    for row, spec in zip(found, space.values(), strict=True):
        alone: Any = Expansion(drawn(towers, spec, 0), drawn(towers, made.spec, 0)).extracted(made)
        for loss, batch in zip(row.tolist(), batches, strict=True):
            image = alone.embed_images(batch["view"])
            text = alone.embed_tokens(batch["input_ids"], batch["attention_mask"])
            same = same_pairs(batch["image_ids"], batch["text_ids"]) if ids else None
            assert loss == pytest.approx(float(pair_loss(image, text, alone.logit_scale, same)), abs=2e-6)
    assert len(set(found[:, 0].tolist())) > len(space) // 2


def test_what_candidates_have_in_common_is_computed_once(supernet, monkeypatch):
    _, space, made = supernet
    calls: Counter[tuple] = Counter()
    cost = 0
    part = type(made).part

    def counted(self, name, x, stream, mask, views):
        nonlocal cost
        key = (name, stream, views[stream], views["shared"] if name == "shared" else None)
        calls[key] += 1
        cost += views[name].flops(made.spec.width, made.spec.head_width, x.shape[1])
        return part(self, name, x, stream, mask, views)

    monkeypatch.setattr(type(made), "part", counted)
    candidate_losses(made, [spec.parts for spec in space.values()], [tiny.batch(5)])
    assert set(calls.values()) == {1}
    assert cost == search_flops(space, tokens_of(made.config, text=6))
    assert sum(calls.values()) < 4 * len(space)


def searching(steps: int, *, names: int = 3, **growth) -> GrowthSearch:
    model = tiny.model(growth={"evaluations": 2, **growth})
    every = candidates(model.towers.spec, pairs=0)
    space = {name: every[name] for name in list(every)[:names]}
    grown = grow(model.towers, largest(list(space.values())), seed=1)
    made = GrowCLIPModel(model.config, model.tokenizer, towers=grown)
    return GrowthSearch(made, space, [tiny.batch(5, 7), tiny.batch(5, 8)], steps=steps)


def test_each_update_trains_one_candidate_and_each_fourth_the_smallest():
    search = searching(8, smallest_every=4)
    drawn_400 = search.drawn(11, 400)
    assert all(place == 0 for place in drawn_400[::4])
    others = Counter(place for step, place in enumerate(drawn_400) if step % 4)
    assert all(70 <= others[place] <= 130 for place in range(3))
    assert search.drawn(12, 400) != drawn_400
    for step in range(8):
        progress = Progress(step, 8, run_seed=11)
        assert search.views(progress) == search.candidates[drawn_400[step]]
    batch = tiny.batch()
    step = next(step for step in range(40) if drawn_400[step] == 0)
    search.zero_grad()
    search.training_step(batch, Progress(step, 400, run_seed=11)).loss.backward()
    # a parameter that this candidate lacks has a gradient of 0, not none: processes exchange it
    blocks: Any = search.towers.blocks["image"]
    grown = [parameter for block in list(blocks)[1:] for parameter in block.parameters()]
    assert grown
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in grown)
    assert blocks[0].qkv.weight.grad.any()


def test_candidates_are_measured_evenly_by_the_average_and_the_losses_are_state():
    assert searching(1000).average.momentum == 0.9
    search = searching(6)
    assert search.average.momentum == pytest.approx(1 / 6)  # a memory of a fifth of the search
    assert not search.losses.any()
    with torch.no_grad():
        for step in range(6):
            for parameter in search.towers.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            search.after_step(Progress(step, 6))
            measured = [bool((one > 0).all()) for one in search.losses.unbind(1)]
            assert measured == [step >= 2, step >= 5]
    expected = candidate_losses(search.averaged, search.candidates, search.held_out)
    assert torch.equal(search.losses[:, 1], expected)
    assert not torch.allclose(expected, candidate_losses(search.towers, search.candidates, search.held_out), atol=1e-4)
    again = searching(6)
    again.load_state_dict(search.state_dict())
    assert torch.equal(again.losses, search.losses)
    search.save(Path("nowhere"), {})
    assert not Path("nowhere").exists()


def test_the_space_keeps_to_budget_and_limits():
    config = tiny.config(growth={"pairs": 6, "image": {"heads": 1}})
    spec, tokens = config.arch(), tokens_of(config, text=5)
    assert tokens == {"image": [5], "text": [5], "shared": [5, 5]}
    cost = spec.flops(tokens)
    everything = growth_space(spec, config.growth, tokens, 100 * cost)
    assert next(iter(everything)) == "current"
    assert {f"{part}.{size}" for part in ("image", "text", "shared") for size in ("blocks", "heads", "hidden")} - set(
        everything
    ) == {"image.heads"}
    assert all(one.parts["image"].heads == 1 for one in everything.values())
    assert any("+" in name for name in everything)
    some = growth_space(spec, config.growth, tokens, 1.5 * cost)
    assert 1 < len(some) < len(everything)
    assert all(one.flops(tokens) <= 1.5 * cost for one in some.values())
    assert list(growth_space(spec, config.growth, tokens, 0.5 * cost)) == ["current"]
    growth = tiny.config(growth={"budget": 1.5, "beta": 0.5}).growth
    assert growth_budget(10.0, growth, 900, 100) == pytest.approx(45.0)


def test_slices_arrive_whole_and_each_step_has_what_arrived_before():
    pairs = tiny.pairs(48, 16, 8)
    doubled = pairs.take(np.concatenate([np.arange(72), [3, 3]]))
    slices = sliced(doubled, 4, seed=5)
    sizes = [len(slices.train(step)) for step in range(4)]
    assert sizes[-1] == 50
    assert all(11 <= after - before <= 15 for before, after in zip([0, *sizes], sizes, strict=False))
    for step in range(3):
        now, later = (set(slices.train(one).image_ids.tolist()) for one in (step, step + 1))
        assert now < later
        held = set(slices.held_out(step).image_ids.tolist())
        assert held <= set(slices.held_out(step + 1).image_ids.tolist())
        assert not held & now
    same = np.flatnonzero(doubled.image_ids == doubled.image_ids[3])
    assert len(set(slices.slice_of[same].tolist())) == 1
    assert np.array_equal(sliced(doubled, 4, seed=5).slice_of, slices.slice_of)
    assert not np.array_equal(sliced(doubled, 4, seed=6).slice_of, slices.slice_of)
    shares = sliced(tiny.pairs(100, 20, 8), [0.04, 0.06, 0.2, 0.7])
    assert [len(shares.train(step)) for step in range(4)] == [4, 10, 30, 100]
    assert [one["name"] for one in shares.describe()] == ["slice-1", "slice-2", "slice-3", "slice-4"]


def test_sources_arrive_in_their_order():
    slices = arriving([tiny.pairs(20, 6, 3), tiny.pairs(30, 8, 3, seed=1)], ["first", "second"])
    assert [len(slices.train(step)) for step in range(2)] == [20, 50]
    assert [len(slices.held_out(step)) for step in range(2)] == [6, 14]
    assert [one["images"] for one in slices.describe()] == [29, 41]


def test_slices_that_cannot_be_used_are_said():
    pairs = tiny.pairs(8, 2, 2)
    for shares, said in ((0, "0 slices: give 1 or more"), ([0.5, 0.6], "sum to 1"), ([1.5, -0.5], "above 0")):
        with pytest.raises(ConfigError, match=said):
            sliced(pairs, shares)
    with pytest.raises(DataError, match=r"slice 5 \('slice-5'\) holds no picture to train on"):
        sliced(pairs, 9)
    with pytest.raises(DataError, match="no picture in the split 'validation' up to slice 1.*--split.shares"):
        sliced(tiny.pairs(8, 0, 2), 2).held_out(0)
    with pytest.raises(DataError, match="12 pictures and 3 slices"):
        Slices(pairs, np.zeros(3, dtype=np.int64), ("a",))
    with pytest.raises(DataError, match="give one source for each slice"):
        arriving([], [])


def test_held_out_batches_stay_the_same_and_have_one_size():
    data = PairData(tiny.pairs(4, 17, 2).part("validation"), tiny.tokenizer(), augment=None, size=16, max_length=12)
    first, again = (held_out_batches(data, 8, 3, seed=2) for _ in range(2))
    assert [len(batch["view"]) for batch in first] == [5, 5, 5]
    assert all(torch.equal(a["view"], b["view"]) for a, b in zip(first, again, strict=True))
    seen = np.concatenate([batch["index"].numpy() for batch in first])
    assert len(set(seen.tolist())) == 15
    assert [len(batch["view"]) for batch in held_out_batches(data, 4, 3)] == [4, 4, 4]
    with pytest.raises(ConfigError, match="17 pairs held out for 9 batches"):
        held_out_batches(data, 8, 9)
