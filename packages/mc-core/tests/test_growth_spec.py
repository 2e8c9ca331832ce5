"""Sizes of models: their order, what may be grown to, and what a pass costs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mc_core.errors import ConfigError
from mc_core.growth import ArchSpec, Stack, TowerSpec, candidates, heads_of, largest, moves

PARTS = {"image": TowerSpec(1, 2, 64), "text": TowerSpec(2, 3, 48), "shared": TowerSpec(1, 2, 64)}
SPEC = ArchSpec(width=32, joint=16, parts=PARTS, head_width=8)


def test_the_order_is_componentwise():
    assert SPEC <= SPEC
    for name, spec in moves(SPEC).items():
        assert spec >= SPEC, name
        assert not spec <= SPEC, name
    a, b = SPEC.with_part("image", blocks=2), SPEC.with_part("text", heads=4)
    assert not a <= b
    assert not b <= a
    assert a <= largest([a, b])
    assert b <= largest([a, b])
    assert not ArchSpec(33, 16, PARTS, 8) <= SPEC
    assert not ArchSpec(32, 16, PARTS, 4) <= SPEC


def test_a_smaller_target_is_refused_with_every_size_that_shrinks():
    target = ArchSpec(32, 12, {**PARTS, "image": TowerSpec(1, 1, 32)}, 8)
    with pytest.raises(
        ConfigError, match="joint 16 > 12, image.heads 2 > 1, image.hidden 64 > 32; a model can only grow"
    ):
        SPEC.require_growth_to(target)
    with pytest.raises(ConfigError, match="part text is in one of them only"):
        SPEC.require_growth_to(ArchSpec(32, 16, {"image": PARTS["image"], "shared": PARTS["shared"]}, 8))
    SPEC.require_growth_to(SPEC.with_part("text", blocks=3))


def test_the_largest_is_the_maximum_of_each_size():
    found = largest([ArchSpec(8, 4, {"a": TowerSpec(1, 5, 7)}), ArchSpec(6, 9, {"a": TowerSpec(3, 2, 8)})])
    assert found == ArchSpec(8, 9, {"a": TowerSpec(3, 5, 8)})
    with pytest.raises(ConfigError, match="other parts or head widths"):
        largest([SPEC, ArchSpec(8, 9, {"a": TowerSpec(3, 5, 8)}, 8)])
    with pytest.raises(ConfigError, match="no architectures"):
        largest([])


def test_moves_are_one_dimension_of_one_part_each():
    found = moves(SPEC)
    assert len(found) == 9
    assert found["image.blocks"].parts == {**PARTS, "image": TowerSpec(3, 2, 64)}
    assert found["text.heads"].parts == {**PARTS, "text": TowerSpec(2, 5, 48)}  # 3 + ⌈1.5⌉
    assert found["shared.hidden"].parts == {**PARTS, "shared": TowerSpec(1, 2, 96)}
    assert set(moves(SPEC, heads=0, hidden=0)) == {"image.blocks", "text.blocks", "shared.blocks"}


def test_candidates_are_the_current_one_single_moves_and_pairs_drawn_by_the_seed():
    found = candidates(SPEC, seed=3)
    assert len(found) == 1 + 9 + 14
    assert found["current"] == SPEC
    assert len({json.dumps(spec.to_dict()) for spec in found.values()}) == 24
    pairs = [name for name in found if " + " in name]
    for name in pairs:
        first, second = name.split(" + ")
        assert found[name] == largest([found[first], found[second]])
    assert list(candidates(SPEC, seed=3)) == list(found)
    assert list(candidates(SPEC, seed=4)) != list(found)
    assert len(candidates(SPEC, pairs=100)) == 1 + 9 + 36


@pytest.mark.parametrize("tower", [TowerSpec(1, 2, 24), TowerSpec(3, 5, 7)])
def test_costs_are_what_torch_counts(tower):
    stack, x = Stack(tower, 12, 4), torch.zeros(1, 9, 12)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        stack(x)
    assert tower.flops(width=12, head_width=4, tokens=9) == counter.get_total_flops()


def test_a_shared_part_counts_for_each_stream():
    alone = SPEC.parts["shared"].flops(32, 8, 10) + SPEC.parts["shared"].flops(32, 8, 5)
    image = SPEC.parts["image"].flops(32, 8, 10)
    assert SPEC.flops({"image": [10], "shared": [10, 5]}) == image + alone


def test_a_size_survives_json():
    again = ArchSpec.from_dict(json.loads(json.dumps(SPEC.to_dict())))
    assert again == SPEC
    assert hash(again) == hash(SPEC)


def test_sizes_below_their_least_are_refused():
    with pytest.raises(ConfigError, match="heads is 0"):
        TowerSpec(1, 0, 4)
    with pytest.raises(ConfigError, match="blocks is -1"):
        TowerSpec(-1, 1, 4)
    with pytest.raises(ConfigError, match="width is 0"):
        ArchSpec(0, 4, PARTS)
    with pytest.raises(ConfigError, match="without parts"):
        ArchSpec(8, 4, {})
    with pytest.raises(ConfigError, match="no part 'sound'; this architecture has image, text, shared"):
        SPEC.with_part("sound", blocks=1)


def test_a_width_must_divide_by_the_head_width_where_both_are_tied():
    assert heads_of(64, 16) == 4
    with pytest.raises(ConfigError, match="width 56 does not divide by the head width 16; take 48 or 64"):
        heads_of(56, 16)
    with pytest.raises(ConfigError, match="width 8 does not divide by the head width 16; take 16 or 32"):
        heads_of(8, 16)


def test_sizes_and_selection_import_no_torch():
    code = (
        "import sys; from mc_core.growth import ArchSpec, select_growth, candidates; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
