"""Maps of features: every layout of timm, our own small ones, and what cannot be a map."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mc_core.errors import ConfigError, DataError
from mc_vision_language.experts import backbone as module
from mc_vision_language.experts.backbone import TimmGrid
from mc_vision_language.experts.config import ExpertConfig

# name, side, levels, channels, side of the grid: tokens with a class token, channels first, channels last, several stages
TIMM = [
    ("test_vit", 64, 1, 64, 4),
    ("test_vit", 64, 3, 3 * 64, 4),
    ("test_resnet", 64, 1, 96, 2),
    ("test_resnet", 64, 3, 48 + 96 + 192, 8),
    ("test_convnext", 64, 1, 64, 2),
    ("test_convnext", 64, 2, 48 + 64, 4),
    ("test_mambaout", 64, 1, 64, 2),
    ("swin_tiny_patch4_window7_224", 64, 2, 384 + 768, 4),
]


def config(**given) -> ExpertConfig:
    return ExpertConfig(**{"kind": "detection", "image_size": 32, "width": 8, **given})


def bright_corner(side: int) -> torch.Tensor:
    """Two pictures: a bright square at the top right, and nothing."""
    x = torch.zeros(2, 3, side, side)
    x[0, :, : side // 4, -side // 4 :] = 1.0
    return x


@torch.no_grad()
def changed(backbone: TimmGrid, side: int) -> torch.Tensor:
    """(H, W) how much each place of the map changes when the top right corner of the picture does."""
    found = backbone.eval()(bright_corner(side))
    return (found[0] - found[1]).square().sum(0)


@pytest.mark.parametrize(
    ("family", "levels"), [("resnet", 1), ("resnet", 2), ("convnext", 1), ("convnext", 3), ("vit", 1)]
)
def test_our_own_maps_keep_their_place(family, levels):
    torch.manual_seed(0)
    given = config(family=family, levels=levels, stages=3, stem=4 if family == "vit" else 2)
    backbone = TimmGrid(given)
    found = backbone(torch.rand(2, 3, 32, 32))
    assert found.shape == (2, backbone.num_features, *backbone.grid)
    assert backbone.grid == (given.grid_size, given.grid_size)
    assert backbone.num_features == (8 if family == "vit" else {1: 32, 2: 48, 3: 56}[levels])
    change = changed(backbone, 32)
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert row < backbone.grid[0] / 2 <= column


@pytest.mark.parametrize(("name", "side", "levels", "channels", "grid"), TIMM, ids=[f"{t[0]}-{t[2]}" for t in TIMM])
def test_maps_of_timm_keep_their_place(name, side, levels, channels, grid):
    torch.manual_seed(0)
    backbone = TimmGrid(config(backbone=name, image_size=side, levels=levels))
    assert (backbone.num_features, backbone.grid) == (channels, (grid, grid))
    found = backbone(torch.rand(2, 3, side, side))
    assert found.shape == (2, channels, grid, grid)
    found.square().sum().backward()
    waiting = [
        name for name, parameter in backbone.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert not waiting  # several processes would wait for them
    if "vit" not in name:  # attention looks everywhere at once
        change = changed(backbone, side)
        assert change[: grid // 2, grid // 2 :].mean() > change[grid // 2 :, : grid // 2].mean()


def test_tokens_that_are_no_patches_are_dropped(monkeypatch):
    """A model whose patch tokens say where they are, behind a class token and two registers that say 99."""

    class Counting(nn.Module):
        num_features, num_prefix_tokens = 1, 3

        def forward_features(self, x):
            prefix = torch.full((len(x), 3, 1), 99.0)
            return torch.cat([prefix, torch.arange(12.0 if self.odd else 16.0).view(1, -1, 1).expand(len(x), -1, 1)], 1)

        odd = False

    model = Counting()
    monkeypatch.setattr(module, "_timm_model", lambda *_: model)
    backbone = TimmGrid(config(backbone="counting"))
    assert backbone(torch.rand(2, 3, 32, 32))[1, 0].tolist() == torch.arange(16.0).view(4, 4).tolist()
    model.odd = True
    with pytest.raises(ConfigError, match=r"'counting' gives 15 tokens, 3 of them no patches, not a map"):
        TimmGrid(config(backbone="counting"))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (lambda x: [torch.zeros(1, 4, 8), torch.zeros(1, 4, 8)], "2 sets of features"),
        (lambda x: torch.zeros(1, 8), r"features of shape \(1, 8\)"),
        (lambda x: torch.zeros(1, 5, 4, 4), r"shape \(1, 5, 4, 4\), none of which are the 8 channels"),
        (lambda x: torch.zeros(1, 8, 1, 1), r"a map of 1 × 1 places of pictures of 32 × 32"),
        (lambda x: x @ torch.zeros(7, 7), r"does not take pictures of 32 × 32 \("),
    ],
    ids=["two", "vector", "channels", "one place", "size"],
)
def test_what_is_no_map_is_said_by_name(monkeypatch, features, message):
    model = nn.Module()
    model.num_features, model.forward_features = 8, features
    monkeypatch.setattr(module, "_timm_model", lambda *_: model)
    with pytest.raises(ConfigError, match=message) as error:
        TimmGrid(config(backbone="strange"))
    assert "'strange'" in str(error.value)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_map_as_wide_as_high_as_deep_is_told_by_its_format(monkeypatch, layout):
    found = torch.rand(1, 4, 4, 4)
    model = nn.Module()
    model.num_features, model.forward_features = 4, lambda x: found
    model.output_fmt = SimpleNamespace(value=layout)
    monkeypatch.setattr(module, "_timm_model", lambda *_: model)
    wanted = found if layout == "NCHW" else found.permute(0, 3, 1, 2)
    assert torch.equal(TimmGrid(config(backbone="cube"))(torch.rand(1, 3, 32, 32)), wanted)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backbone": "resnet5"}, r"timm has no model 'resnet5'; did you mean resnet50"),
        ({"backbone": "test_resnet", "pretrained": "nowhere.pth"}, "pretrained: nowhere.pth is no file"),
        ({"backbone": "crossvit_9_240", "image_size": 240}, r"'crossvit_9_240' gives 2 sets of features"),
        ({"backbone": "crossvit_9_240", "image_size": 64}, r"'crossvit_9_240' does not take pictures of 64"),
        ({"backbone": "levit_128s", "image_size": 64}, r"'levit_128s' makes a map of 1 × 1"),
        ({"backbone": "levit_128s", "image_size": 64, "levels": 4}, "'levit_128s' gives no maps of 4 levels"),
    ],
    ids=["unknown", "weights", "two", "size", "place", "levels"],
)
def test_backbones_that_cannot_be_had(given, message):
    with pytest.raises(ConfigError, match=message):
        TimmGrid(config(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stem": 3}, "stem 3 is no power of 2"),
        ({"stages": 2, "levels": 3}, "levels 3 are more than the 2 stages"),
        ({"family": "vit", "stem": 5}, "does not divide into patches of 5"),
        ({"family": "vit", "stem": 4, "width": 10}, "does not divide into 4 heads"),
        ({"family": "vit", "stem": 4, "levels": 2}, "our transformer has one level"),
        ({"stages": 5, "stem": 2}, "leaves a map of one place"),
        ({"pretrained": True}, "pretrained needs the name of a timm model"),
        ({"std": (1.0, 0.0, 1.0)}, "must be above 0"),
        ({"kind": "depth"}, "kind"),
    ],
    ids=["stem", "levels", "patches", "heads", "one level", "place", "weights", "std", "kind"],
)
def test_settings_that_cannot_work(given, message):
    with pytest.raises(ValueError, match=message):
        config(**given)


def test_levels_are_resized_to_the_finest_and_joined():
    torch.manual_seed(0)
    backbone = TimmGrid(config(levels=3, stages=3)).eval()
    x = torch.rand(1, 3, 32, 32)
    fine, middle, coarse = backbone.backbone.forward_features((x - backbone.mean) / backbone.std)
    wanted = [fine] + [
        nn.functional.interpolate(one, fine.shape[2:], mode="bilinear", align_corners=False) for one in (middle, coarse)
    ]
    torch.testing.assert_close(backbone(x), torch.cat(wanted, 1))


def test_pixels_are_normalised_and_resized():
    backbone = TimmGrid(config(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))).eval()
    seen = []
    backbone.backbone.register_forward_pre_hook(lambda *_: None)
    inner = backbone.backbone.forward_features
    backbone.backbone.forward_features = lambda x: (seen.append(x), inner(x))[1]
    backbone(torch.full((1, 3, 32, 32), 0.6))
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([1.0, 1.6, 0.15]))
    backbone(torch.rand(1, 3, 48, 40))
    assert seen[1].shape == (1, 3, 32, 32)
    with pytest.raises(DataError, match=r"pictures of shape \(1, 1, 32, 32\)"):
        backbone(torch.rand(1, 1, 32, 32))


def test_constants_are_those_of_the_timm_model():
    assert TimmGrid(config(backbone="test_efficientnet", image_size=64)).constants[0] == (0.485, 0.456, 0.406)
    assert TimmGrid(config()).constants == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
