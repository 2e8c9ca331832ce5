"""A grown model is the same function, every new entry is alive after two updates, and no step of the recipe can be left out."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from mc_core.errors import ConfigError
from mc_core.growth import (
    ArchSpec,
    Block,
    Expansion,
    Residual,
    Stack,
    TowerSpec,
    drawn,
    grow,
    grow_optimizer_state,
    largest,
    stream_norm,
)
from mc_core.momentum import MomentumEncoder

TOKENS, PATCHES, WORDS = 30, 16, 9


class Towers(nn.Module):
    """An image tower and a text tower that share blocks, as small as they can be."""

    def __init__(self, spec: ArchSpec) -> None:
        super().__init__()
        self.spec, d = spec, spec.width
        self.patch = nn.Linear(12, d)
        self.class_token = nn.Parameter(0.1 * torch.randn(1, 1, d))
        self.image_positions = nn.Parameter(0.1 * torch.randn(1, PATCHES + 1, d))
        self.tokens = nn.Embedding(TOKENS, d)
        self.text_positions = nn.Parameter(0.1 * torch.randn(1, WORDS, d))
        streams = {"image": ("image",), "text": ("text",), "shared": ("image", "text")}
        for name, part in spec.parts.items():
            self.add_module(name, Stack(part, d, spec.head_width, streams[name]))
        self.image_norm, self.text_norm = stream_norm(d), stream_norm(d)
        self.image_projection = nn.Linear(d, spec.joint, bias=False)
        self.text_projection = nn.Linear(d, spec.joint, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.register_buffer("seen", torch.tensor(0))

    def residual(self) -> Residual:
        written = ("class_token", "image_positions", "tokens.weight", "text_positions")
        projections = ("image_projection.weight", "text_projection.weight")
        return Residual(
            stacks=("image", "text", "shared"),
            writers={"patch.weight": 0, "patch.bias": 0, **dict.fromkeys(written, -1)},
            readers=dict.fromkeys(projections, 1),
            norms=("image_norm", "text_norm"),
            joint=dict.fromkeys(projections, 0),
        )

    def resized(self, spec: ArchSpec) -> Towers:
        return Towers(spec)

    def images(self, x: Tensor, view: ArchSpec | None = None) -> Tensor:
        parts = {} if view is None else view.parts
        x = torch.cat([self.class_token.expand(len(x), -1, -1), self.patch(x)], 1) + self.image_positions
        x = self.image(x, "image", view=parts.get("image"))
        x = self.shared(x, "image", view=parts.get("shared"))
        return normalize(self.image_projection(self.image_norm(x[:, 0])), dim=1)

    def texts(self, ids: Tensor, mask: Tensor, view: ArchSpec | None = None) -> Tensor:
        parts = {} if view is None else view.parts
        x = self.tokens(ids) + self.text_positions
        x = self.text(x, "text", mask, causal=True, view=parts.get("text"))
        x = self.shared(x, "text", mask, causal=True, view=parts.get("shared"))
        return normalize(self.text_projection(self.text_norm(x[:, -1])), dim=1)

    def loss(self, x: Tensor, ids: Tensor, mask: Tensor, view: ArchSpec | None = None) -> Tensor:
        logits = self.logit_scale.exp() * self.images(x, view) @ self.texts(ids, mask, view).T
        target = torch.arange(len(x))
        return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def spec(width=48, joint=32, image=(1, 2, 96), text=(1, 2, 96), shared=(1, 2, 96)) -> ArchSpec:
    sizes = {"image": image, "text": text, "shared": shared}
    return ArchSpec(width, joint, {name: TowerSpec(*size) for name, size in sizes.items()}, head_width=16)


SMALL = spec()
EXACT = {
    "nothing": SMALL,
    "blocks": spec(image=(3, 2, 96), text=(2, 2, 96), shared=(2, 2, 96)),
    "heads": spec(image=(1, 3, 96), text=(1, 4, 96), shared=(1, 3, 96)),
    "hidden": spec(image=(1, 2, 100), text=(1, 2, 150), shared=(1, 2, 97)),
}
WIDER = {f"width {width}": spec(width) for width in (56, 64, 96)}
JOINT = {f"joint {joint}": spec(joint=joint) for joint in (33, 48, 96)}
ALL = {"all": spec(64, 48, (3, 3, 128), (2, 4, 100), (2, 3, 120))}
MOVES = {**EXACT, **WIDER, **JOINT, **ALL}


def batch(rows: int = 64, seed: int = 0, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, PATCHES, 12, generator=generator, dtype=dtype)
    ids = torch.randint(0, TOKENS, (rows, WORDS), generator=generator)
    mask = torch.ones(rows, WORDS, dtype=torch.bool)
    mask[::2, 5:7] = False
    return x, ids, mask


@torch.no_grad()
def shaken(model: nn.Module, seed: int = 0, size: float = 0.3) -> nn.Module:
    """Gains, shifts and biases away from where they start, as in a trained model."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim:
            scale = size if parameter.ndim == 1 else 0.02
            parameter += scale * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def towers(size: ArchSpec = SMALL, seed: int = 0, dtype=torch.float32) -> Towers:
    torch.manual_seed(seed)
    model = shaken(Towers(size), seed)
    assert isinstance(model, Towers)
    return model.to(dtype)


@torch.no_grad()
def difference(a: Towers, b: Towers) -> float:
    """The largest of all cosines of images and texts and, in one joint width, of all embeddings."""
    data = batch(dtype=a.patch.weight.dtype)
    both = [torch.cat([model.images(data[0]), model.texts(*data[1:])]) for model in (a, b)]
    width = min(both[0].shape[1], both[1].shape[1])
    cosines = (both[0] @ both[0].T - both[1] @ both[1].T).abs().max()
    rows = (both[0] - both[1]).abs().max() if both[0].shape == both[1].shape else cosines
    assert both[0][:, :width].std() > 0.05
    return max(cosines.item(), rows.item())


@pytest.mark.parametrize("move", MOVES)
def test_every_move_alone_and_all_together_keep_the_function(move):
    model = towers()
    grown = grow(model, MOVES[move], seed=1)
    assert grown.spec == MOVES[move]
    bound = 5e-6
    if move in EXACT:  # where a sum has more terms, all of them 0, its order may change
        bound = 0.0 if move in ("nothing", "blocks") else 1e-6
    assert difference(model, grown) <= bound


def test_a_part_alone_can_grow():
    small = shaken(Stack(TowerSpec(1, 2, 24), 12, 4, ("image", "text")))
    large = grow(small, TowerSpec(3, 3, 40), seed=0)
    x = torch.randn(2, 5, 12)
    with torch.no_grad():
        for stream in ("image", "text"):
            torch.testing.assert_close(large(x, stream), small(x, stream), rtol=0, atol=1e-6)
    assert (len(large), large[2].heads, large[2].hidden, large.spec) == (3, 3, 40, TowerSpec(3, 3, 40))
    with pytest.raises(ConfigError, match="Stack has 1 blocks, the target 0"):
        grow(small, TowerSpec(0, 2, 24), seed=0)


@pytest.mark.parametrize("move", [*WIDER, "joint 48", "all"])
def test_without_rounding_the_function_is_the_same(move):
    model = towers(dtype=torch.float64)
    assert difference(model, grow(model, MOVES[move], seed=1, joint_noise=0.0)) < 1e-14


def test_it_does_not_matter_what_the_fresh_model_has_learned():
    model = towers(dtype=torch.float64)
    fresh = towers(ALL["all"], seed=5, dtype=torch.float64)
    assert difference(model, Expansion(model, fresh, joint_noise=0.0)(model)) < 1e-14


def test_another_model_is_told_apart():
    assert difference(towers(), towers(seed=1)) > 0.1


@torch.no_grad()
def uncentred(model: Towers, grown: Towers) -> None:
    for name, dim in model.residual().writers.items():
        old, new = model.get_parameter(name), grown.get_parameter(name)
        new.narrow(dim % new.ndim, 0, 48).copy_(old)


@torch.no_grad()
def unscaled(model: Towers, grown: Towers) -> None:
    for name, new in grown.named_parameters():
        if "norm" in name and name.endswith("weight"):
            new[:48] = model.get_parameter(name)


def same_epsilon(model: Towers, grown: Towers) -> None:
    for name, module in grown.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = model.get_submodule(name).eps


@pytest.mark.parametrize("width", [56, 64, 96])
@pytest.mark.parametrize(("left_out", "least"), [(uncentred, 0.01), (unscaled, 0.01), (same_epsilon, 1e-8)])
def test_no_step_of_a_growth_in_width_can_be_left_out(width, left_out, least):
    model = towers(dtype=torch.float64)
    grown = grow(model, spec(width), seed=1)
    assert difference(model, grown) < 1e-14
    left_out(model, grown)
    assert difference(model, grown) > least


def test_each_writer_is_centred_blocks_too():
    grown = grow(towers(dtype=torch.float64), spec(64), seed=1)
    for name in ("patch.weight", "image.0.proj.weight", "shared.0.fc2.weight", "shared.0.fc2.bias", "text.0.proj.bias"):
        weight = grown.get_parameter(name)
        assert weight[:48].mean(0).abs().max() < 1e-14, name
        assert not weight[48:].any(), name
    assert grown.tokens.weight[:, :48].mean(1).abs().max() < 1e-14


def new_entries(expansion: Expansion, name: str, parameter: Tensor) -> Tensor:
    """Where a grown tensor has entries that the smaller one had not."""
    old = dict(expansion.old.named_parameters())
    if name not in old:
        return torch.ones_like(parameter, dtype=torch.bool)
    return ~expansion.moment(name, torch.ones_like(old[name])).bool()


def test_new_readers_and_units_are_drawn_and_new_writers_silent():
    model = towers()
    fresh = towers(ALL["all"], seed=5)
    expansion = Expansion(model, fresh)
    grown = expansion(model)
    for name in (
        "image.0.qkv.weight",
        "text.0.fc1.weight",
        "shared.0.qkv.bias",
        "shared.0.fc1.bias",
        "image.2.fc1.weight",
    ):
        parameter = grown.get_parameter(name)
        new = new_entries(expansion, name, parameter)
        assert torch.equal(parameter[new], fresh.get_parameter(name)[new]), name
    for name in ("image.0.proj.weight", "text.0.fc2.weight", "patch.weight", "tokens.weight", "image.2.proj.weight"):
        parameter = grown.get_parameter(name)
        assert not parameter[new_entries(expansion, name, parameter)].any(), name


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_every_new_entry_has_a_gradient_after_two_updates(optimizer):
    model = towers(dtype=torch.float64)
    expansion = Expansion(model, drawn(model, ALL["all"], 1))
    grown = expansion(model)
    steps = optimizer(grown.parameters(), lr=1e-3)
    dead: list[set[str]] = []
    for step in range(3):
        steps.zero_grad()
        grown.loss(*batch(96, seed=step, dtype=torch.float64)).backward()
        dead.append(
            {
                name
                for name, p in grown.named_parameters()
                if p.grad is None or not (p.grad[new_entries(expansion, name, p)] != 0).all()
            }
        )
        steps.step()
    inside = {
        f"{block}.{part}.weight" for block in ("image.1", "image.2", "text.1", "shared.1") for part in ("qkv", "fc1")
    }
    assert inside <= dead[0]  # a new block's gradient starts at what it writes
    assert not {f"{block}.{part}.weight" for block in ("image.2", "text.1") for part in ("proj", "fc2")} & dead[0]
    assert not {"image_projection.weight", "text_projection.weight", "patch.weight", "tokens.weight"} & dead[0]
    key_biases = {
        name for name in dead[2] if name.endswith("qkv.bias")
    }  # a key's bias has none: softmax does not see it
    assert dead[2] - key_biases == set()
    for name in key_biases:
        parameter = grown.get_parameter(name)
        rest = new_entries(expansion, name, parameter)
        rest.unflatten(0, (3, -1))[1] = False
        assert (parameter.grad[rest] != 0).all(), name


def test_the_model_given_is_not_changed_and_shares_nothing():
    model = towers()
    before = copy.deepcopy(model.state_dict())
    grown = grow(model, MOVES["blocks"], seed=1)
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.fill_(3.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_mode_precision_buffers_and_what_is_frozen_are_kept():
    model = towers(dtype=torch.bfloat16).eval()
    model.tokens.weight.requires_grad_(False)
    model.seen.fill_(7)
    grown = grow(model, ALL["all"], seed=1)
    assert not grown.training
    assert {p.dtype for p in grown.parameters()} == {torch.bfloat16}
    assert not grown.tokens.weight.requires_grad
    assert grown.patch.weight.requires_grad
    assert grown.seen == 7


def test_draws_are_a_function_of_the_seed_and_leave_torch_alone():
    model = towers()
    torch.manual_seed(5)
    one = grow(model, ALL["all"], seed=1).state_dict()
    after = torch.rand(3)
    torch.manual_seed(6)
    two, other = (grow(model, ALL["all"], seed=seed).state_dict() for seed in (1, 2))
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not torch.equal(one["image.0.qkv.weight"], other["image.0.qkv.weight"])
    assert not torch.equal(one["image.2.fc1.weight"], other["image.2.fc1.weight"])


def test_growth_by_an_intermediate_size_is_the_same_function():
    model = towers(dtype=torch.float64)
    middle = grow(model, spec(56, image=(2, 3, 96)), seed=1)
    direct, stepwise = (grow(one, spec(64, image=(3, 3, 128)), seed=2) for one in (model, middle))
    assert difference(direct, stepwise) < 1e-14
    assert difference(model, stepwise) < 1e-14
    assert direct.image_norm.eps == pytest.approx(stepwise.image_norm.eps, rel=1e-12)


def test_a_model_built_anew_in_the_grown_size_needs_only_the_weights():
    model = towers(dtype=torch.float64)
    grown = grow(model, ALL["all"], seed=1)
    again = Towers(ALL["all"]).double()
    again.load_state_dict(grown.state_dict())
    assert difference(grown, again) < 1e-14


@pytest.mark.parametrize("move", ["all", "blocks"])
def test_the_moving_average_grows_by_the_same_draws(move):
    model = towers()
    encoder = MomentumEncoder(model, 0.9, buffers="copy", evaluation_mode=True)
    expansion = Expansion(model, drawn(model, MOVES[move], 1))
    grown = expansion(model)
    twin = expansion.twin(encoder, grown)
    for name, value in twin.module.state_dict().items():
        assert torch.equal(value, grown.state_dict()[name]), name
    assert twin.online is grown
    assert (twin.momentum, twin.buffer_policy, twin.evaluation_mode) == (0.9, "copy", True)
    assert not any(p.requires_grad for p in twin.parameters())


def test_a_moving_average_that_lags_is_grown_itself_not_copied_anew():
    model = towers()
    encoder = MomentumEncoder(model, 0.9)
    shaken(model, seed=3)
    expansion = Expansion(model, drawn(model, ALL["all"], 1))
    grown = expansion(model)
    twin = expansion.twin(encoder, grown)
    assert difference(twin.module, encoder.module) <= 5e-6
    assert difference(twin.module, grown) > 1e-3
    before = twin.module.image[0].qkv.weight.clone()
    twin.update()
    torch.testing.assert_close(twin.module.image[0].qkv.weight, 0.9 * before + 0.1 * grown.image[0].qkv.weight)
    assert twin.module.image_norm.eps == grown.image_norm.eps


# views


CANDIDATES = {
    "smallest": SMALL,
    "image": spec(image=(2, 3, 100)),
    "shared": spec(shared=(2, 3, 96), text=(1, 3, 140)),
}
SUPER = largest([*CANDIDATES.values(), spec(image=(3, 4, 128), text=(2, 4, 150))])


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_view_of_the_supernet_is_the_extracted_model_trained_or_not(name):
    view = CANDIDATES[name]
    model = towers(dtype=torch.float64)
    supernet = grow(model, SUPER, seed=1)
    data = batch(dtype=torch.float64)
    for shake in (False, True):
        if shake:
            shaken(supernet, seed=4)
        alone = Expansion(towers(view, dtype=torch.float64), supernet).extracted(supernet)
        assert alone.spec == view
        with torch.no_grad():
            assert (supernet.images(data[0], view) - alone.images(data[0])).abs().max() < 1e-13
            assert (supernet.texts(*data[1:], view) - alone.texts(*data[1:])).abs().max() < 1e-13
            same = (supernet.images(data[0], view) - model.images(data[0])).abs().max()
        assert (same < 1e-13) is not shake
    assert not {p.data_ptr() for p in alone.parameters()} & {p.data_ptr() for p in supernet.parameters()}


def test_all_candidates_compute_the_same_at_birth():
    model = towers()
    supernet = grow(model, SUPER, seed=1)
    data = batch()
    with torch.no_grad():
        expected = model.images(data[0])
        for view in (*CANDIDATES.values(), SUPER):
            assert (supernet.images(data[0], view) - expected).abs().max() < 5e-6


def test_training_a_view_leaves_what_is_outside_it_as_it_was():
    supernet = grow(towers(dtype=torch.float64), SUPER, seed=1)
    shaken(supernet, seed=4)
    before = copy.deepcopy(supernet)
    steps = torch.optim.SGD(supernet.parameters(), lr=0.1)
    supernet.loss(*batch(dtype=torch.float64), SMALL).backward()
    steps.step()
    expansion = Expansion(towers(dtype=torch.float64), supernet)
    for name, parameter in supernet.named_parameters():
        outside = new_entries(expansion, name, parameter)
        assert torch.equal(parameter[outside], before.get_parameter(name)[outside]), name
    assert not torch.equal(supernet.image[0].proj.weight, before.image[0].proj.weight)
    assert all(p.grad is None for p in supernet.image[1].parameters())


@pytest.mark.parametrize("move", ["width 56", "joint 48"])
def test_a_width_cannot_be_extracted(move):
    model = towers()
    grown = grow(model, MOVES[move], seed=1)
    with pytest.raises(ConfigError, match="extracted by blocks, heads and hidden units, not by width"):
        Expansion(model, grown).extracted(grown)


def test_only_a_model_of_the_larger_size_can_be_extracted_from():
    model = towers()
    expansion = Expansion(model, Towers(MOVES["heads"]))
    with pytest.raises(ConfigError, match="not of the size this expansion grows to"):
        expansion.extracted(model)


# joint width


def test_embeddings_stored_before_stay_comparable():
    model = towers()
    grown = grow(model, spec(joint=48), seed=1)
    data = batch()
    with torch.no_grad():
        stored = torch.cat([model.images(data[0]), torch.zeros(64, 16)], 1)
        asked = grown.texts(*data[1:])
        expected = model.texts(*data[1:]) @ model.images(data[0]).T
    assert (asked @ stored.T - expected).abs().max() < 5e-6


def test_new_rows_have_the_size_asked_for_relative_to_the_old():
    model = towers()
    for noise in (5e-4, 0.05):
        grown = grow(model, spec(56, 48), seed=1, joint_noise=noise)
        for name in ("image_projection", "text_projection"):
            rows, old = grown.get_submodule(name).weight[32:, :48], model.get_submodule(name).weight
            assert (rows.norm() / old.norm()).item() == pytest.approx(noise, rel=1e-4)
    assert difference(model, grown) > 1e-4  # the size matters: 0.05 is not lossless


def rank(model: Towers) -> int:
    with torch.no_grad():
        rows = torch.cat([model.images(batch(dtype=torch.float64)[0]), model.texts(*batch()[1:])])
    return int(torch.linalg.matrix_rank(rows, rtol=1e-10))


def trained(model: Towers, optimizer, steps: int = 4) -> Towers:
    moving = optimizer(model.parameters())
    for step in range(steps):
        moving.zero_grad()
        model.loss(*batch(seed=step, dtype=torch.float64)).backward()
        moving.step()
    return model


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3)


@pytest.mark.parametrize("rotated", [False, True])
def test_an_exact_widening_is_dead_for_ever_under_gradient_descent(rotated):
    """Why new rows are not 0, nor both projections one rotation of what they were."""
    model = towers(dtype=torch.float64)
    grown = grow(model, spec(joint=48), seed=1, joint_noise=0.0)
    if rotated:
        basis = torch.linalg.qr(torch.randn(48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
        with torch.no_grad():
            for projection in (grown.image_projection, grown.text_projection):
                projection.weight.copy_(basis @ projection.weight)
    assert difference(model, grown) < 1e-14
    assert rank(grown) == 32
    assert rank(trained(grown, sgd)) == 32


@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_the_noise_of_new_rows_brings_them_to_life(optimizer):
    model = towers(dtype=torch.float64)
    grown = grow(model, spec(joint=48), seed=1)
    before = copy.deepcopy(grown)
    assert rank(trained(grown, optimizer)) == 48
    moved = (grown.image_projection.weight - before.image_projection.weight).abs()
    if optimizer is adam:
        assert moved[32:].mean() > 0.5 * moved[:32].mean()


# optimizer state


def moments(optimizer, model) -> dict[str, dict[str, Tensor]]:
    return {name: optimizer.state[p] for name, p in model.named_parameters() if p in optimizer.state}


@pytest.mark.parametrize("make", [adam, sgd])
def test_with_expanded_moments_training_goes_on_as_if_nothing_had_grown(make):
    model = towers(dtype=torch.float64)
    old = make(model.parameters())
    for step in range(3):
        old.zero_grad()
        model.loss(*batch(seed=step, dtype=torch.float64)).backward()
        old.step()
    expansion = Expansion(model, drawn(model, largest([EXACT["heads"], EXACT["blocks"], EXACT["hidden"]]), 1))
    grown = expansion(model)
    new = make(grown.parameters())
    grow_optimizer_state(old, new, expansion, model, grown, restart=False)
    for one, steps in ((model, old), (grown, new)):
        steps.zero_grad()
        one.loss(*batch(seed=9, dtype=torch.float64)).backward()
        steps.step()
    corner = Expansion(model, grown).extracted(grown)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(corner.get_parameter(name), parameter, rtol=0, atol=1e-12)


def test_restarted_moments_count_as_one_gradient_seen():
    model = towers(dtype=torch.float64)
    old = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98))
    for step in range(3):
        old.zero_grad()
        model.loss(*batch(seed=step, dtype=torch.float64)).backward()
        old.step()
    expansion = Expansion(model, drawn(model, ALL["all"], 1))
    grown = expansion(model)
    new = torch.optim.AdamW(grown.parameters(), lr=1e-3, betas=(0.9, 0.98))
    grow_optimizer_state(old, new, expansion, model, grown)
    ours, theirs = moments(new, grown), moments(old, model)
    assert set(ours) == set(theirs)  # a new block starts without moments
    assert all(expansion.is_new(name) == (name not in ours) for name, _ in grown.named_parameters())
    for name, state in ours.items():
        assert state["step"] == 1
        rule = new_entries(expansion, name, grown.get_parameter(name))
        for key, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.98)):
            assert not state[key][rule].any(), name
            estimate = theirs[name][key] / (1 - beta**3)
            scale = (64 / 48) ** (0.5 if key == "exp_avg" else 1.0) if "norm" in name and "weight" in name else 1.0
            found = state[key][~rule] / (1 - beta)
            torch.testing.assert_close(found, (estimate * scale).flatten(), rtol=1e-12, atol=1e-300)
    before = {name: p.clone() for name, p in grown.named_parameters()}
    grown.loss(*batch(seed=9, dtype=torch.float64)).backward()
    new.step()
    largest_update = max((p - before[name]).abs().max().item() for name, p in grown.named_parameters())
    assert largest_update < 3e-3


def test_a_moment_is_what_the_gradient_of_the_grown_model_is():
    """Old entries have the gradient they had; gains are divided by what they were multiplied with; writers move up to a mean."""
    model = towers(dtype=torch.float64)
    expansion = Expansion(model, drawn(model, spec(64, image=(2, 3, 120)), 1))
    grown = expansion(model)
    for one in (model, grown):
        one.loss(*batch(dtype=torch.float64)).backward()
    for name, parameter in model.named_parameters():
        found = grown.get_parameter(name).grad
        expected = expansion.moment(name, parameter.grad)
        old = ~new_entries(expansion, name, found)
        axis = {
            **dict.fromkeys((".proj.", "fc2", "patch"), 0),
            **dict.fromkeys(("tokens", "class_token", "positions"), -1),
        }
        dims = [dim for part, dim in axis.items() if part in name]
        if dims:
            found = found.narrow(dims[0] % found.ndim, 0, 48)
            found = found - found.mean(dims[0], keepdim=True)
            expected = expected.narrow(dims[0] % expected.ndim, 0, 48)
            old = old.narrow(dims[0] % old.ndim, 0, 48)
        torch.testing.assert_close(found[old], expected[old], rtol=0, atol=1e-12, msg=name)


def test_optimizers_that_growth_does_not_know_are_refused():
    model = towers()
    model.loss(*batch()).backward()
    old = torch.optim.Adagrad(model.parameters())
    old.step()
    expansion = Expansion(model, drawn(model, EXACT["heads"], 1))
    grown = expansion(model)
    with pytest.raises(ConfigError, match="keeps sum, which growth does not know; it knows Adam, AdamW and SGD"):
        grow_optimizer_state(old, torch.optim.Adagrad(grown.parameters()), expansion, model, grown)
    with pytest.raises(ConfigError, match="holds a parameter that is not the smaller model's"):
        grow_optimizer_state(sgd(towers().parameters()), sgd(grown.parameters()), expansion, model, grown)


# what cannot be


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (spec(40), r"smaller than the model: .* is .*48.* in the model, .*40.* in the target; a model can only grow"),
        (spec(joint=16), "smaller than the model: image_projection.weight"),
        (spec(image=(0, 2, 96)), "smaller than the model: image has 1 blocks, the target 0"),
        (spec(text=(1, 1, 96)), r"smaller than the model: text.0.qkv.weight is \(96, 48\)"),
        (spec(shared=(1, 2, 90)), "smaller than the model: shared.0.fc1.weight"),
    ],
)
def test_a_smaller_target_is_refused(target, told):
    with pytest.raises(ConfigError, match=told):
        grow(towers(), target, seed=0)


class Other(nn.Module):
    """A model whose stream ends as a test wants it."""

    def __init__(self, width: int, norm=stream_norm, blocks: nn.Module | None = None, extra: int = 0) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.blocks = nn.ModuleList([Block(width, 2, 4, 8)]) if blocks is None else blocks
        self.norm = norm(width)
        self.head = nn.Linear(width, 5)
        self.extra = nn.ParameterList([nn.Parameter(torch.zeros(3))] * extra)

    def residual(self) -> Residual:
        return described()


def described(**changes) -> Residual:
    table = {
        "stacks": ("blocks",),
        "writers": {"embed.weight": 0, "embed.bias": 0},
        "readers": {"head.weight": 1},
        "norms": ("norm",),
    }
    return Residual(**{**table, **changes})


def test_a_parameter_that_nobody_described_is_named():
    with pytest.raises(
        ConfigError, match=r"embed.weight grows from \(8, 3\) to \(12, 3\) along axis 0, but nothing says"
    ):
        Expansion(Other(8), Other(12), described(writers={"embed.bias": 0}))
    with pytest.raises(ConfigError, match=r"head.weight grows from \(5, 8\) to \(5, 12\) along axis 1"):
        Expansion(Other(8), Other(12), described(readers={}))


def test_a_name_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="Residual names embed.wait, but Other has no such parameter"):
        Expansion(Other(8), Other(12), described(writers={"embed.wait": 0}))


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.BatchNorm1d, nn.Identity])
def test_another_norm_is_named_with_what_can_be_handled(norm):
    with pytest.raises(ConfigError, match=rf"norm is a {norm.__name__}, which the expansion cannot handle.*LayerNorm"):
        Expansion(Other(8, norm), Other(12, norm))


def test_a_norm_without_gains_cannot_grow_in_width():
    def bare(width):
        return nn.LayerNorm(width, elementwise_affine=False)

    with pytest.raises(ConfigError, match="norm is a LayerNorm without gains"):
        Expansion(Other(8, bare), Other(12, bare))
    Expansion(Other(8, bare), Other(8, bare))


def test_a_stream_without_a_norm_is_refused():
    small, large = (nn.Sequential(nn.Linear(3, d), nn.Linear(d, 2)) for d in (8, 12))
    table = Residual(writers={"0.weight": 0, "0.bias": 0}, readers={"1.weight": 1})
    with pytest.raises(ConfigError, match="grows to 12 channels is read, but no LayerNorm over it grows"):
        Expansion(small, large, table)


def test_an_unknown_block_is_named_with_what_can_be_handled():
    def layers():
        return nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16)])

    with pytest.raises(
        ConfigError, match=r"blocks.0 \(TransformerEncoderLayer\) cannot be handled .*mc_core.growth.Block"
    ):
        Expansion(Other(8, blocks=layers()), Other(8, blocks=layers()))


def test_what_is_in_one_model_only_is_named():
    with pytest.raises(ConfigError, match="extra.0 is in the larger model only"):
        Expansion(Other(8), Other(8, extra=1))
    with pytest.raises(ConfigError, match="extra.0 is in the smaller model only"):
        Expansion(Other(8, extra=1), Other(8))


def test_a_module_of_another_size_is_refused():
    expansion = Expansion(Other(8), Other(12))
    with pytest.raises(ConfigError, match=r"is \(10, 3\), but \(8, 3\) in the model this expansion starts from"):
        expansion(Other(10))


def test_what_does_not_describe_itself_is_refused():
    with pytest.raises(ConfigError, match=r"Linear says neither .*residual\(\).*resized\(spec\)"):
        grow(nn.Linear(2, 2), 3, seed=0)
    with pytest.raises(ConfigError, match=r"Linear has no residual\(\)"):
        Expansion(nn.Linear(2, 2), nn.Linear(2, 2))


@pytest.mark.parametrize("noise", [-1e-4, 0.2])
def test_noise_out_of_range_is_refused(noise):
    with pytest.raises(ConfigError, match="joint_noise is"):
        grow(towers(), spec(joint=48), seed=0, joint_noise=noise)
