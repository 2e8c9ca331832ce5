"""Astrea's way from maps to tokens: the grid, adapters, mixes behind one interface, the random shortcut, pooling."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import normalize

from mc_core.engine.config import Fit
from mc_core.errors import ConfigError, DataError
from mc_core.random import uniform
from mc_vision_language.methods.astrea.adapters import Adapters, as_map, grid_tokens, on_grid, to_grid
from mc_vision_language.methods.astrea.config import AstreaConfig, StageConfig
from mc_vision_language.methods.astrea.fusion import Draws, Pooling, draw, shortcut, weighted, with_shortcut
from mc_vision_language.methods.astrea.model import AstreaFusion

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_astrea.py"))))
KINDS = ("classification", "captioning", "detection", "segmentation")


def test_resampling_interpolates_between_places_and_averages_when_it_shrinks():
    one = torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]], dtype=torch.float64)
    assert to_grid(one, 4)[0, 0, 0].tolist() == [0.0, 1.0, 3.0, 4.0]
    assert to_grid(one, 2) is one
    assert to_grid(one.half(), 2).dtype == torch.float32
    fine = torch.zeros(1, 1, 8, 8)
    fine[0, 0, 0, 0] = 16.0  # plain interpolation to 2 × 2 looks at places 1, 2, 5 and 6 alone
    assert float(to_grid(fine, 2)[0, 0, 0, 0]) > 0
    torch.testing.assert_close(to_grid(torch.full((1, 2, 8, 6), 3.0), 3), torch.full((1, 2, 3, 3), 3.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert to_grid(torch.randn(1, 2, 5, 5), 3).dtype == torch.float32


def test_places_keep_their_order():
    one = torch.arange(6.0).view(1, 6, 1)
    assert as_map(one, 2, 3)[0, 0].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert torch.equal(grid_tokens(as_map(one, 2, 3)), one)
    with pytest.raises(DataError, match=r"no map of 2 × 2 places.*so that 4 are left"):
        as_map(torch.zeros(1, 5, 3), 2, 2)


def test_wrong_maps_are_named():
    maps = tiny.maps()
    with pytest.raises(
        DataError, match="no map of the detection expert among classification, captioning, segmentation"
    ):
        on_grid({kind: one for kind, one in maps.items() if kind != "detection"}, tiny.FEATURES, 2)
    with pytest.raises(DataError, match=r"captioning expert has shape \(3, 4, 2, 2\); it must be \(batch, 5,"):
        on_grid({**maps, "captioning": maps["captioning"][:, :4]}, tiny.FEATURES, 2)
    with pytest.raises(DataError, match="detection expert is of 2 samples, others of 3"):
        on_grid({**maps, "detection": maps["detection"][:2]}, tiny.FEATURES, 2)


def test_adapters_are_those_of_their_definition():
    torch.manual_seed(0)
    adapters = tiny.stirred(Adapters(tiny.FEATURES, grid=2, width=8).double())
    maps = tiny.maps()
    found = adapters(maps)
    assert found.shape == (3, 4, 4, 8)
    for k, kind in enumerate(KINDS):
        a = adapters.by_kind[kind]
        for n in range(4):
            x = to_grid(maps[kind], 2)[1, :, n // 2, n % 2]
            x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * a.norm.weight + a.norm.bias
            x = a.hidden.weight @ x + a.hidden.bias
            x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
            wanted = a.out.weight @ x + a.out.bias + a.tag + adapters.positions[n]
            torch.testing.assert_close(found[1, n, k], wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(adapters.one(kind, maps), found[:, :, k], rtol=0, atol=1e-12)


def test_at_the_start_the_fusion_is_the_mean_of_the_experts():
    made = tiny.fusion(stir=False, router={"floor": 0.0})
    maps = tiny.maps()
    mixed = made.block.mix(on_grid(maps, tiny.FEATURES, 2), made.adapters, None, None)
    assert torch.equal(mixed.routing.weights.unique(), torch.tensor([0.25], dtype=torch.float64))
    torch.testing.assert_close(mixed.tokens, made.adapters(maps).mean(2), rtol=0, atol=1e-15)


@pytest.mark.parametrize("per", ["token", "image"])
def test_routed_tokens_are_those_of_their_definition(per):
    made, maps = tiny.fusion(router={"per": per}), tiny.maps()
    found = made.tokens(maps)
    each = made.adapters(maps)
    channels = torch.cat([grid_tokens(to_grid(maps[kind], 2)) for kind in KINDS], dim=2)
    weights = made.router(channels).weights
    assert torch.equal(weights, found.weights)
    z = torch.stack(
        [
            torch.stack(
                [
                    sum((weights[b, n, k] if per == "token" else weights[b, k]) * each[b, n, k] for k in range(4))
                    for n in range(4)
                ]
            )
            for b in range(3)
        ]
    )
    torch.testing.assert_close(found.tokens, z + made.block.mlp(made.block.norm(z)), rtol=0, atol=1e-12)


def test_baselines_have_the_same_interface():
    maps = tiny.maps()
    uniform_, routed = tiny.fusion(fusion="uniform"), tiny.fusion(stir=False, router={"floor": 0.0})
    single = tiny.fusion(fusion="single", single="detection")
    concat = tiny.fusion(fusion="concat")
    for made in (uniform_, routed, single, concat):
        assert made.tokens(maps).tokens.shape == (3, 4, 8)
        assert made.embed(maps).shape == (3, 8)
    assert torch.equal(uniform_.tokens(maps).weights, torch.full((3, 4), 0.25, dtype=torch.float64))
    shared = {name: value for name, value in uniform_.state_dict().items() if "router" not in name}
    routed.load_state_dict(shared, strict=False)
    torch.testing.assert_close(uniform_.tokens(maps).tokens, routed.tokens(maps).tokens, rtol=0, atol=1e-12)
    assert single.config.kinds == ("detection",)
    z = single.adapters.one("detection", maps)
    torch.testing.assert_close(
        single.tokens(maps).tokens, z + single.block.mlp(single.block.norm(z)), rtol=0, atol=1e-12
    )
    assert single.router is uniform_.router is concat.router is None


def test_concat_is_one_mlp_over_all_channels():
    made, maps = tiny.fusion(fusion="concat"), tiny.maps()
    found = made.tokens(maps)
    assert found.weights is None
    assert made.adapters is None
    mix = made.block.mix
    x = mix.norm(torch.cat([grid_tokens(to_grid(maps[kind], 2)) for kind in KINDS], dim=2))
    z = mix.out(torch.nn.functional.gelu(mix.hidden(x))) + mix.positions
    torch.testing.assert_close(found.tokens, z + made.block.mlp(made.block.norm(z)), rtol=0, atol=1e-12)
    with pytest.raises(ConfigError, match="concat has no adapters"):
        made.embed_expert("detection", maps)


@pytest.mark.parametrize("fusion", ["routed", "uniform", "concat"])
def test_what_an_absent_expert_sees_does_not_reach_the_tokens(fusion):
    made, maps = tiny.fusion(fusion=fusion), tiny.maps()
    present = torch.ones(3, 4, dtype=torch.bool)
    present[:, 2] = False
    draws = Draws(torch.zeros(3), torch.zeros(3, dtype=torch.int64), present)
    other = dict(maps)
    if fusion == "routed":  # the router still reads it
        with torch.no_grad():
            made.router.gate.weight[:, 11:14] = 0
            made.router.norm.weight.fill_(0)
    other["detection"] = maps["detection"] + 9.0 * torch.randn_like(maps["detection"])
    found = made.tokens(maps, draws=draws)
    torch.testing.assert_close(made.tokens(other, draws=draws).tokens, found.tokens, rtol=0, atol=1e-12)
    assert not torch.allclose(made.tokens(maps).tokens, found.tokens, atol=1e-3)
    if found.weights is not None:
        torch.testing.assert_close(found.weights.sum(-1), torch.ones_like(found.weights[..., 0]), rtol=0, atol=1e-12)


def test_removing_an_expert_that_weighs_nothing_changes_nothing():
    made, maps = tiny.fusion(router={"floor": 0.0, "top_k": 3}), tiny.maps()
    with torch.no_grad():
        made.router.gate.weight[1] = 0
        made.router.gate.bias[1] = -1e3
    found = made.tokens(maps)
    assert not found.weights[..., 1].any()
    present = torch.tensor([[True, False, True, True]]).expand(3, -1)
    without = made.tokens(maps, draws=Draws(torch.ones(3), torch.zeros(3, dtype=torch.int64), present))
    torch.testing.assert_close(without.tokens, found.tokens, rtol=0, atol=1e-12)


def test_the_shortcut_has_its_expectation_and_variance():
    count, q = 20_000, 0.3
    config = tiny.config(residual={"probability": q})
    draws = draw(uniform(3, 0, torch.arange(count), 4).double(), config)
    y, r = 0.4, torch.tensor([[1.5]], dtype=torch.float64)
    found = with_shortcut(
        torch.full((count, 1, 1), y, dtype=torch.float64), r.expand(count, 1, 1), draws.gain
    ).flatten()
    spread = 1.5 * math.sqrt((1 - q) / q)
    assert abs(float(found.mean()) - (y + 1.5)) < 3 * spread / math.sqrt(count)
    assert float(found.var()) / 1.5**2 == pytest.approx((1 - q) / q, rel=0.05)
    assert sorted(set(found.tolist())) == pytest.approx([y, y + 1.5 / q])


def test_the_shortcut_of_one_expert_has_the_mean_of_all_as_its_expectation():
    count = 20_000
    config = tiny.config(residual={"probability": 1.0, "source": "expert"})
    draws = draw(uniform(5, 0, torch.arange(count), 4).double(), config)
    shares = torch.bincount(draws.expert, minlength=4) / count
    assert float((shares - 0.25).abs().max()) < 3 * math.sqrt(0.25 * 0.75 / count)
    each = torch.randn(6, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    chosen = torch.tensor([0, 3, 1, 2, 2, 0])
    for row, k in enumerate(chosen.tolist()):
        assert torch.equal(shortcut(each, chosen)[row], each[row, :, k])
    assert torch.equal(shortcut(each, None), each.detach().mean(2))
    assert not shortcut(each, chosen).requires_grad
    assert not shortcut(each, None).requires_grad


def test_dropout_of_experts_leaves_all_but_one():
    count = 8_000
    noise = uniform(7, 0, torch.arange(count), 4)
    present = draw(noise, tiny.config(expert_dropout=0.2)).present
    missing = (~present).sum(1)
    assert set(missing.tolist()) == {0, 1}
    assert abs(float(missing.float().mean()) - 0.2) < 3 * math.sqrt(0.2 * 0.8 / count)
    shares = (~present).float().sum(0) / missing.sum()
    assert float((shares - 0.25).abs().max()) < 0.05
    assert draw(noise, tiny.config()).present is None
    assert draw(noise, tiny.config(expert_dropout=0.2, fusion="single", single="detection")).present is None


def reference(made: AstreaFusion, maps) -> torch.Tensor:
    torch.manual_seed(9)
    return Adapters(tiny.FEATURES, 2, 8).double()(maps).mean(2)


@pytest.mark.parametrize("source", ["pre", "ema", "expert"])
def test_evaluation_adds_the_expectation_and_training_what_was_drawn(source):
    made, plain, maps = tiny.fusion(residual={"probability": 0.5, "source": source}), tiny.fusion(), tiny.maps()
    plain.load_state_dict(made.state_dict())
    y = plain.tokens(maps).tokens
    given = None if source == "expert" else reference(made, maps)
    r = made.adapters(maps).mean(2) if given is None else given
    found = made.tokens(maps, residual=given).tokens
    torch.testing.assert_close(found, y + r, rtol=0, atol=1e-12)
    assert torch.equal(made.tokens(maps, residual=given).tokens, found)  # nothing is drawn
    draws = Draws(torch.tensor([2.0, 0.0, 2.0]).double(), torch.tensor([1, 0, 3]), None)
    if given is None:
        r = made.adapters(maps)[torch.arange(3), :, draws.expert]
    torch.testing.assert_close(
        made.tokens(maps, residual=given, draws=draws).tokens, y + draws.gain[:, None, None] * r, rtol=0, atol=1e-12
    )


def test_no_gradient_flows_through_the_shortcut():
    made, maps = tiny.fusion(residual={"probability": 1.0}), tiny.maps()
    given = reference(made, maps)
    assert given.requires_grad
    (at_given,) = torch.autograd.grad(made.tokens(maps, residual=given).tokens.sum(), given, allow_unused=True)
    assert at_given is None


def test_without_probability_there_is_no_shortcut_and_with_it_one_is_needed():
    made, maps = tiny.fusion(), tiny.maps()
    assert torch.equal(made.tokens(maps, residual=reference(made, maps)).tokens, made.tokens(maps).tokens)
    with pytest.raises(DataError, match=r"residual.source pre adds tokens of another set"):
        tiny.fusion(residual={"probability": 0.5}).tokens(maps)


def test_pooling_is_attention_of_learned_queries():
    torch.manual_seed(0)
    pooling = tiny.stirred(Pooling(8, 5, queries=3, heads=2).double())
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    found = pooling(x)
    keys, values = pooling.key_value(pooling.norm(x)).chunk(2, dim=-1)
    for b in range(2):
        parts = []
        for query in pooling.queries:
            heads = []
            for head in range(2):
                part = slice(4 * head, 4 * head + 4)
                attention = (keys[b, :, part] @ query[part] / 2.0).softmax(0)
                heads.append(attention @ values[b, :, part])
            parts.append(torch.cat(heads))
        wanted = pooling.projection.weight @ torch.cat(parts) + pooling.projection.bias
        torch.testing.assert_close(found[b], wanted, rtol=0, atol=1e-12)


def test_embeddings_are_unit_rows_pooled_with_their_positions():
    made, maps = tiny.fusion(), tiny.maps()
    found = made.embed(maps)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    pooled = made.pooling(made.tokens(maps).tokens + made.adapters.positions)
    torch.testing.assert_close(found, normalize(pooled, dim=1), rtol=0, atol=1e-12)
    one = made.embed_expert("detection", maps)
    z = made.adapters(maps)[:, :, 2]
    torch.testing.assert_close(one, normalize(made.pooling(z + made.adapters.positions), dim=1), rtol=0, atol=1e-12)


def test_a_text_is_its_mean_state_without_padding():
    made = tiny.fusion().eval()
    ids, mask = torch.tensor([[1, 9, 30, 2, 0], [1, 8, 2, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    found = made.embed_text(ids, mask)
    for row, length in ((0, 4), (1, 3)):
        states = made.text(ids[row : row + 1, :length], mask[row : row + 1, :length])
        wanted = normalize(made.text_projection(states.mean(1)), dim=1)
        torch.testing.assert_close(found[row : row + 1], wanted, rtol=0, atol=1e-12)


def test_weighting_is_a_sum_over_experts():
    each, weights = torch.randn(2, 3, 4, 5).double(), torch.rand(2, 3, 4).double()
    torch.testing.assert_close(weighted(each, weights), (weights[..., None] * each).sum(2), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        weighted(each, weights[:, 0]), (weights[:, :1, :, None] * each).sum(2), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"fusion": "single"}, "name an expert in single exactly for fusion: single"),
        ({"single": "detection"}, "name an expert in single exactly for fusion: single"),
        ({"experts": [{"kind": "detection"}] * 2}, "each kind once"),
        ({"experts": [], "expert_features": {}}, "give one at least"),
        (
            {"experts": [{"kind": "detection"}], "fusion": "single", "single": "captioning", "expert_features": {}},
            "there is no",
        ),
        ({"router": {"floor": 0.25}}, "4 experts leave room for less than 0.25"),
        ({"router": {"top_k": 5}}, "top_k 5 is more than the 4 experts"),
        ({"balance": {"kind": "bias"}}, r"set router\.top_k"),
        ({"width": 9}, "width 9 does not divide into 2 pool_heads"),
        ({"fusion": "concat", "prealign": {"mode": "parallel"}}, r"set prealign\.mode none"),
        ({"fusion": "concat", "residual": {"probability": 0.5}}, r"set residual\.probability 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong, said):
    with pytest.raises(ValidationError, match=said):
        tiny.config(**wrong)


def test_an_expert_without_channels_is_named():
    with pytest.raises(ConfigError, match="expert_features lacks classification, captioning"):
        AstreaFusion(tiny.config(expert_features={}))


def test_a_configuration_of_some_experts():
    found = tiny.config().only(("segmentation", "classification"))
    assert found.kinds == ("classification", "segmentation")
    assert found.expert_features == {"classification": 6, "segmentation": 4}
    assert [one.kind for one in found.experts] == ["classification", "segmentation"]


def test_balance_counts_for_hard_selection_and_tokens_alone():
    assert AstreaConfig().balance_weight == 0.01
    assert tiny.config(router={"per": "image"}).balance_weight == 0.0
    assert tiny.config(router={"per": "image", "top_k": 2}).balance_weight == 0.01
    assert tiny.config(balance={"kind": "bias"}, router={"top_k": 2}).balance_weight == 0.0
    assert tiny.config(fusion="uniform").balance_weight == 0.0


def test_a_stage_changes_what_it_says_of_the_training():
    base = Fit(epochs=3, lr=0.1, batch_size=64)
    assert StageConfig().fit(base) == base
    changed = StageConfig(steps=5, lr=0.2).fit(base)
    assert (changed.epochs, changed.steps, changed.lr, changed.batch_size) == (None, 5, 0.2, 64)
    with pytest.raises(ValidationError, match=r"give epochs \(1\) or steps \(2\), not both"):
        StageConfig(epochs=1, steps=2)
