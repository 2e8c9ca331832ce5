"""From pictures to a map of features that keep their place: any backbone of timm, or a small one of our own.

A transformer's tokens become a map without those that are no patches (class, registers); maps with channels last are turned; of
several stages the maps are resized to the finest and concatenated. What a backbone gives is looked at once, with an empty picture,
when it is built: a wrong slice of tokens would never be noticed later.

Legend: B pictures, S side in pixels, C channels, H × W places of a map, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.errors import ConfigError, DataError, closest
from mc_core.modules import evaluating
from mc_vision_language.encoders import ImageEncoder
from mc_vision_language.encoders_config import ImageEncoderConfig, Three
from mc_vision_language.experts.config import ExpertConfig

_HEADS = ("head", "fc_norm", "attn_pool", "fc", "classifier", "norm_head")
"""Parts of a timm model behind the features."""
_SUCH_AS = "resnet50, convnext_tiny, swin_tiny_patch4_window7_224 or vit_base_patch16_224"
_OURS: tuple[Three, Three] = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class TimmGrid(nn.Module):
    """Pixels in [0, 1] to a map of features.

    Args:
        config: which backbone.
        load_pretrained: whether to do what ``config.pretrained`` asks for.

    Attributes:
        num_features: C.
        grid: rows and columns of the map.
        constants: mean and std of the normalisation.

    Raises:
        ConfigError: no such timm model, one whose features have no place, or whose weights cannot be had.

    >>> backbone = TimmGrid(ExpertConfig(kind="detection", image_size=32, width=8, stages=2, levels=2))
    >>> backbone(torch.rand(2, 3, 32, 32)).shape, backbone.grid, backbone.num_features
    (torch.Size([2, 24, 16, 16]), (16, 16), 24)
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ExpertConfig, *, load_pretrained: bool = True) -> None:
        super().__init__()
        self.image_size, self.name = config.image_size, config.backbone or f"our {config.family}"
        self._layouts: list[tuple[str, int]] = []
        if config.backbone is None:
            self.backbone: Any = _small(config)
            constants = _OURS
        else:
            self.backbone = _timm_model(config, load_pretrained)
            constants = _constants(self.backbone)
        self.constants = (config.mean or constants[0], config.std or constants[1])
        for name, values in zip(("mean", "std"), self.constants, strict=True):
            column = torch.tensor(values, dtype=torch.float64)[:, None, None]
            self.register_buffer(name, column.to(torch.get_default_dtype()), persistent=False)
        self.num_features, self.grid = self._look()

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) of pictures (B, 3, S, S) in [0, 1]; of another size, they are resized.

        Raises:
            DataError: no pictures of three channels.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise DataError(
                f"pictures of shape {tuple(pixels.shape)}; an expert takes (batch, 3, height, width) in [0, 1]"
            )
        side = self.image_size
        if tuple(pixels.shape[2:]) != (side, side):
            pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True, align_corners=False)
        maps = [
            _as_map(one, *layout)
            for one, layout in zip(self._features((pixels - self.mean) / self.std), self._layouts, strict=True)
        ]
        if len(maps) == 1:
            return maps[0]
        finest = max((tuple(one.shape[2:]) for one in maps), key=math.prod)
        with torch.autocast(pixels.device.type, enabled=False):
            return torch.cat([_resized(one, finest) for one in maps], 1)

    def _features(self, x: Tensor) -> list[Tensor]:
        if hasattr(self.backbone, "forward_features"):
            found = self.backbone.forward_features(x)
            return [found] if isinstance(found, Tensor) else list(found)
        return list(self.backbone(x))

    @torch.no_grad()
    def _look(self) -> tuple[int, tuple[int, int]]:
        """C and the grid, by a look at an empty picture."""
        side = self.image_size
        with evaluating(self):
            try:
                found = self._features(torch.zeros(1, 3, side, side))
            except (RuntimeError, AssertionError, ValueError) as error:
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise ConfigError(
                    f"backbone '{self.name}' does not take pictures of {side} × {side} ({reason}): take another image_size"
                ) from error
        if isinstance(self.backbone, _SmallConvolutional):
            self._layouts = [("NCHW", 0)] * len(found)
        elif hasattr(self.backbone, "forward_features"):
            if len(found) > 1:
                raise ConfigError(_no_map(self.name, f"{len(found)} sets of features"))
            self._layouts = [self._layout(found[0], int(self.backbone.num_features))]
        else:
            channels = self.backbone.feature_info.channels()
            self._layouts = [self._layout(one, count) for one, count in zip(found, channels, strict=True)]
        maps = [_as_map(one, *layout) for one, layout in zip(found, self._layouts, strict=True)]
        finest = max((tuple(one.shape[2:]) for one in maps), key=math.prod)
        if math.prod(finest) < 4:
            raise ConfigError(
                f"backbone '{self.name}' makes a map of {finest[0]} × {finest[1]} places of pictures of {side} × {side}, which "
                "tells nothing about where: take larger pictures (image_size) or more levels"
            )
        return sum(one.shape[1] for one in maps), (int(finest[0]), int(finest[1]))

    def _layout(self, found: Any, channels: int) -> tuple[str, int]:
        """(layout, tokens that are no patches) of a set of features."""
        if not isinstance(found, Tensor):
            raise ConfigError(_no_map(self.name, f"a {type(found).__name__}"))
        model = self.backbone
        if found.ndim == 3:
            prefix = int(getattr(model, "num_prefix_tokens", 0))
            if _square(found.shape[1] - prefix) is None:
                raise ConfigError(_no_map(self.name, f"{found.shape[1]} tokens, {prefix} of them no patches"))
            return "tokens", prefix
        if found.ndim != 4:
            raise ConfigError(_no_map(self.name, f"features of shape {tuple(found.shape)}"))
        fits = {"NCHW": found.shape[1] == channels, "NHWC": found.shape[3] == channels}
        told = str(getattr(getattr(model, "output_fmt", None), "value", getattr(model, "output_fmt", "NCHW")))
        if fits.get(told):
            return told, 0
        layout = next((name for name, fit in fits.items() if fit), None)
        if layout is None:
            raise ConfigError(
                _no_map(self.name, f"features of shape {tuple(found.shape)}, none of which are the {channels} channels")
            )
        return layout, 0


def _no_map(name: str, what: str) -> str:
    return f"backbone '{name}' gives {what}, not a map of features over the picture: take one such as {_SUCH_AS}"


def _square(count: int) -> tuple[int, int] | None:
    side = math.isqrt(max(count, 0))
    return (side, side) if side and side * side == count else None


def _as_map(found: Tensor, layout: str, prefix: int) -> Tensor:
    """(B, C, H, W)."""
    if layout == "tokens":
        kept = found[:, prefix:]
        grid = _square(kept.shape[1])
        assert grid is not None, f"{kept.shape[1]} tokens are no square map"
        return kept.transpose(1, 2).unflatten(2, grid)
    return found if layout == "NCHW" else found.permute(0, 3, 1, 2)


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(x.shape[2:]) == tuple(size):
        return x.float()
    return F.interpolate(x.float(), tuple(size), mode="bilinear", align_corners=False)


def _timm_model(config: ExpertConfig, load_pretrained: bool) -> Any:
    import timm

    name = config.backbone
    assert name is not None
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model '{name}'; did you mean {closest(name, timm.list_models())}?")
    weights = config.pretrained if load_pretrained else False
    given: dict[str, Any] = {"pretrained": bool(weights), "drop_path_rate": config.drop_path}
    if isinstance(weights, str):
        if not Path(weights).is_file():
            raise ConfigError(f"pretrained: {weights} is no file; give a .safetensors or .pth file of {name}")
        given["pretrained_cfg_overlay"] = {"file": weights}
    if config.levels > 1:
        given |= {"features_only": True, "out_indices": tuple(range(-config.levels, 0))}
    else:
        given |= {"num_classes": 0}
    model = _created(name, config, given)
    if config.levels == 1:
        for part in _HEADS:  # behind the features: they would wait for a gradient that never comes
            behind = getattr(model, part, None)
            if isinstance(behind, nn.Module):
                behind.requires_grad_(False)
    return model


def _created(name: str, config: ExpertConfig, given: dict[str, Any]) -> Any:
    """A timm model; what a family is not told, such as the size of its pictures, it is not told."""
    import timm

    optional: list[dict[str, Any]] = [
        {"img_size": config.image_size, "global_pool": ""},
        {"img_size": config.image_size},
        {},
    ]
    if config.levels > 1:
        optional = [{"img_size": config.image_size}, {}]
    for place, extra in enumerate(optional):
        try:
            return timm.create_model(name, **given, **extra)
        except (TypeError, AssertionError) as error:
            if place + 1 < len(optional):
                continue
            raise ConfigError(_refused(name, config, error)) from error
        except (OSError, RuntimeError, ValueError, IndexError, AttributeError) as error:
            raise ConfigError(_refused(name, config, error)) from error
    raise AssertionError("a model or an error")


def _refused(name: str, config: ExpertConfig, error: Exception) -> str:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if config.levels > 1:
        return f"backbone '{name}' gives no maps of {config.levels} levels ({reason}): take levels 1, or one such as {_SUCH_AS}"
    if config.pretrained:
        return (
            f"the published weights of '{name}' cannot be had ({reason}): give a file of weights in pretrained, or false to start "
            "from random ones"
        )
    return f"backbone '{name}' cannot be built ({reason}): take one such as {_SUCH_AS}"


def _constants(model: Any) -> tuple[Three, Three]:
    described = getattr(model, "pretrained_cfg", None) or {}
    mean, std = (
        tuple(map(float, described.get(name, ours))) for name, ours in zip(("mean", "std"), _OURS, strict=True)
    )
    if len(mean) != 3 or len(std) != 3:
        return _OURS
    return mean, std


def _small(config: ExpertConfig) -> nn.Module:
    if config.family != "vit":
        return _SmallConvolutional(config)
    described = ImageEncoderConfig(
        image_size=config.image_size,
        patch_size=config.stem,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        drop_path=config.drop_path,
        stem="convolution" if config.stem & (config.stem - 1) == 0 else "patch",
    )
    return ImageEncoder(described).backbone


class _SmallConvolutional(nn.Module):
    """Stages of residual blocks; gives the maps of the last ``levels`` of them."""

    def __init__(self, config: ExpertConfig) -> None:
        super().__init__()
        block = _ResidualBlock if config.family == "resnet" else _ConvNextBlock
        widths = [config.width << place for place in range(config.stages)]
        self.stem = _stem(config.stem, config.width)
        self.stages = nn.ModuleList()
        before = config.width
        for place, width in enumerate(widths):
            down = [] if place == 0 else [nn.Conv2d(before, width, 2, stride=2), _norm(width)]
            self.stages.append(nn.Sequential(*down, *(block(width) for _ in range(config.depth))))
            before = width
        self.levels = config.levels
        self.num_features = widths[-1]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Maps (B, C, H, W) of the last levels, the finest first."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[-self.levels :]


def _norm(width: int) -> nn.Module:
    return nn.BatchNorm2d(width)


def _stem(stride: int, width: int) -> nn.Module:
    """Convolutions of stride 2, as many as it takes, and one of stride 1 where it takes none."""
    layers: list[nn.Module] = []
    before = 3
    for _ in range(max(stride.bit_length() - 1, 1)):
        layers += [nn.Conv2d(before, width, 3, stride=min(stride, 2), padding=1, bias=False), _norm(width), nn.GELU()]
        before = width
    return nn.Sequential(*layers)


class _ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions around which x goes straight on (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            _norm(width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            _norm(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.body(x))


class _ConvNextBlock(nn.Module):
    """A 5 × 5 convolution of each channel and a small network at each place, around which x goes straight on (after Liu et al.
    2022, arXiv:2201.03545; with batch norm)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 5, padding=2, groups=width),
            _norm(width),
            nn.Conv2d(width, 3 * width, 1),
            nn.GELU(),
            nn.Conv2d(3 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
