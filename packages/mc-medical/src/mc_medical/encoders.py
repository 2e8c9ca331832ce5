"""The two encoders: grey images to features, and report text to features.

No layer looks at the rest of the batch: normalisation is by layer or by group, and padding is left out of every mean.

Legend: B samples, S side in pixels, h × w positions of a feature map, L tokens of the longest text, D features.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mc_core.errors import ConfigError, DataError
from mc_core.hub import reaching, transformer_folder
from mc_medical.encoders_config import ImageEncoderConfig, TextEncoderConfig

_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")  # by architecture
_HARMONICS = 3


class ImageEncoder(nn.Module):
    """Pixels in [0, 1] to features, pooled or at each position.

    Args:
        config: which encoder.
        load_pretrained: whether to do what ``config.pretrained`` asks for.

    Attributes:
        num_features: D.

    Raises:
        ConfigError: no such timm model, BatchNorm that is not to be frozen, or weights that cannot be had.

    >>> encoder = ImageEncoder(ImageEncoderConfig(image_size=32, width=8))
    >>> encoder(torch.rand(2, 1, 32, 32)).shape, encoder.positions(torch.rand(2, 1, 32, 32)).shape
    (torch.Size([2, 32]), torch.Size([2, 2, 2, 32]))
    """

    def __init__(self, config: ImageEncoderConfig, *, load_pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        backbone = SmallResNet(config) if config.name is None else _timm_model(config, load_pretrained)
        self.backbone: Any = backbone
        self.num_features = int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, D) features of images (B, 1, S, S) in [0, 1]."""
        return self.pooled(self.features(pixels))

    def features(self, pixels: Tensor) -> Tensor:
        """The backbone's last features, in its own layout."""
        side = self.config.image_size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (1, side, side):
            raise DataError(
                f"images of shape {tuple(pixels.shape)}; this encoder takes (batch, 1, {side}, {side}): "
                "make the views of that size (augment.size and method.image.image_size)"
            )
        x = (pixels - self.config.mean) / self.config.std
        return self.backbone.forward_features(x)

    def pooled(self, features: Tensor) -> Tensor:
        """(B, D) from :meth:`features`."""
        if features.ndim == 3 and self.config.pooling == "mean":
            return self._patches(features).mean(1)
        return self.backbone.forward_head(features, pre_logits=True)

    def positions(self, pixels: Tensor) -> Tensor:
        """(B, h, w, D): features of each position, as pooling it alone would give."""
        features = self.features(pixels)
        if features.ndim == 3:
            patches = self._patches(features)
            h, w = _grid(self.backbone, patches.shape[1])
            return patches.unflatten(1, (h, w))
        last = features.shape[-1] == self._width(features)
        maps = features if last else features.permute(0, 2, 3, 1)
        B, h, w, C = maps.shape
        if isinstance(self.backbone, SmallResNet):
            return self.backbone.norm(maps)
        alone = maps.reshape(-1, 1, 1, C) if last else maps.reshape(-1, C, 1, 1)
        return self.backbone.forward_head(alone, pre_logits=True).reshape(B, h, w, -1)

    def _width(self, features: Tensor) -> int:
        width = int(self.backbone.num_features)
        return width if features.shape[1] != width else -1

    def _patches(self, features: Tensor) -> Tensor:
        return features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]


def _grid(backbone: Any, patches: int) -> tuple[int, int]:
    grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    side = math.isqrt(patches)
    return tuple(grid) if grid is not None else (side, side)


def _timm_model(config: ImageEncoderConfig, load_pretrained: bool) -> Any:
    import timm  # seconds, which a model without it need not wait for
    from timm.layers import freeze_batch_norm_2d

    assert config.name is not None
    weights = config.pretrained if load_pretrained else False
    given: dict[str, Any] = {"in_chans": 1, "num_classes": 0, "drop_path_rate": config.drop_path}
    if isinstance(weights, str):
        if not Path(weights).is_file():
            raise ConfigError(
                f"image.pretrained: {weights} is no file; give a .safetensors or .pth file of {config.name}"
            )
        given["pretrained_cfg_overlay"] = {"file": weights}
    if not timm.is_model(config.name):
        close = (
            ", ".join(timm.list_models(f"*{config.name.split('_')[0]}*")[:3]) or "convnext_tiny, vit_small_patch16_224"
        )
        raise ConfigError(f"timm has no model '{config.name}'; did you mean {close}?")
    try:
        try:  # only some families must be told the size
            model = timm.create_model(config.name, pretrained=bool(weights), img_size=config.image_size, **given)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            model = timm.create_model(config.name, pretrained=bool(weights), **given)
    except TypeError as error:
        raise ConfigError(f"'{config.name}' cannot be built: {error}; is image.drop_path 0?") from error
    except (OSError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"the published weights of '{config.name}' cannot be had ({reason}): give a file of weights in image.pretrained, or "
            "false to start from random ones"
        ) from error
    norms = sum(isinstance(part, _BatchNorm) for part in model.modules())
    if norms and config.batch_norm == "refuse":
        raise ConfigError(batch_norm_message(config.name, norms))
    return freeze_batch_norm_2d(model) if norms else model


def batch_norm_message(name: str, layers: int) -> str:
    """Why BatchNorm is refused, and what to do."""
    return (
        f"image encoder '{name}' has {layers} BatchNorm layers, whose statistics differ between the pass that makes the keys and "
        "the micro-batches that are trained, so that the gradient would no longer be that of the large batch: take an encoder "
        "with LayerNorm (convnext_tiny, vit_small_patch16_224), or set image.batch_norm to freeze"
    )


class SmallResNet(nn.Module):
    """A small residual network for CPUs, which is told where each position lies.

    Left and right look alike, and pooling over positions forgets where something was. So coordinates are added to the image, and
    the last features are scaled and shifted by functions of their position before they are pooled. The sum of mean and maximum
    is: of a small finding in one place a mean alone keeps little.

    Shapes: (B, 1, S, S) → map (B, D, h, w) → (B, D), with h = w = S / 2^(stages + 1), D = width · 2^(stages − 1).
    """

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        widths = [config.width * 2**stage for stage in range(config.stages)]
        self.num_features = widths[-1]
        self.stem = nn.Conv2d(3, widths[0] // 2, 3, stride=2, padding=1)
        layers: list[nn.Module] = []
        before = widths[0] // 2
        for width in widths:
            layers.append(nn.Sequential(_norm(before), nn.GELU(), nn.Conv2d(before, width, 3, stride=2, padding=1)))
            layers += [_Block(width) for _ in range(config.depth)]
            before = width
        self.layers = nn.Sequential(*layers)
        self.place = nn.Linear(4 * _HARMONICS, 2 * before)
        self.norm = nn.LayerNorm(before)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, D, h, w)."""
        B, _, H, W = x.shape
        y, x_at = _coordinates(H, x), _coordinates(W, x)
        where = torch.stack([y[:, None].expand(H, W), x_at.expand(H, W)]).expand(B, 2, H, W)
        features = self.layers(self.stem(torch.cat([x, where], dim=1)))
        scale, shift = self.place(_waves(*features.shape[2:], like=features)).permute(2, 0, 1).chunk(2)
        return features * (1 + scale) + shift

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        """(B, D): mean and maximum over positions, normalised."""
        return self.norm(features.mean((2, 3)) + features.amax((2, 3)))


def _coordinates(count: int, like: Tensor) -> Tensor:
    return torch.linspace(-1, 1, count, device=like.device, dtype=like.dtype)


def _waves(height: int, width: int, like: Tensor) -> Tensor:
    """(h, w, 4·harmonics) sines and cosines of the position along both axes."""
    y, x = torch.meshgrid(_coordinates(height, like), _coordinates(width, like), indexing="ij")
    angles = torch.stack([axis * (math.pi / 2 * n) for axis in (y, x) for n in range(1, _HARMONICS + 1)], dim=-1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // 8), channels)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _norm(width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            _norm(width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class TextEncoder(nn.Module):
    """Token ids to features: the mean of a transformer's last states over tokens that are no padding.

    Args:
        config: which transformer.
        load_pretrained: load the weights of ``config.name``; else only its architecture, where the configuration holds it.

    Attributes:
        config: as given, with the architecture of a published transformer.
        num_features: D.

    Raises:
        ConfigError: a transformer that is not here, or that takes fewer tokens than ``max_length``.

    >>> encoder = TextEncoder(TextEncoderConfig(hidden_size=16, heads=2, layers=1, vocabulary=64))
    >>> encoder(torch.tensor([[2, 9, 3, 0]]), torch.tensor([[1, 1, 1, 0]])).shape
    torch.Size([1, 16])
    """

    def __init__(self, config: TextEncoderConfig, *, load_pretrained: bool = True) -> None:
        super().__init__()
        self.transformer = build_transformer(config, load_pretrained=load_pretrained)
        described: Any = self.transformer.config
        if config.name is not None:
            config = config.model_copy(update={"architecture": described.to_dict()})
        self.config = config
        self.num_features = int(described.hidden_size)
        self.pad_id = int(described.pad_token_id or 0)
        limit = int(getattr(described, "max_position_embeddings", 0) or config.max_length)
        if config.max_length > limit:
            raise ConfigError(
                f"text.max_length {config.max_length} is more than the {limit} tokens that {config.name} takes"
            )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, D) from (B, L) ids and mask, 1 for tokens and 0 for padding."""
        states_BLD = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask_BL1 = attention_mask[:, :, None].to(states_BLD.dtype)
        return (states_BLD * mask_BL1).sum(1) / mask_BL1.sum(1).clamp_min(1)


def build_transformer(config: TextEncoderConfig, *, load_pretrained: bool = True) -> nn.Module:
    """The transformer that ``config`` names with its weights, or a new one with random weights.

    Raises:
        ConfigError: it cannot be reached; the message says which folder to give.
    """
    from transformers import AutoConfig, AutoModel, BertConfig

    if config.name is None:
        described: Any = BertConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.hidden_size,
            max_position_embeddings=max(config.max_length, 64),
            pad_token_id=0,
        )
        return AutoModel.from_config(_with_dropout(described, config.dropout), **without_pooler(described))
    if config.architecture is not None and not load_pretrained:
        kind = config.architecture["model_type"]
        described = AutoConfig.for_model(**{**config.architecture, "model_type": kind})
        return AutoModel.from_config(described, **without_pooler(described))
    place = str(transformer_folder(config.name))
    with quiet_loading(), reaching(config.name, download=config.download, option="--method.text.download"):
        described = AutoConfig.from_pretrained(place, local_files_only=not config.download)
        _with_dropout(described, config.dropout)
        transformer, found = AutoModel.from_pretrained(
            place,
            config=described,
            local_files_only=not config.download,
            dtype=torch.float32,
            output_loading_info=True,
            **without_pooler(described),
        )
    missing = sorted(name for name in found["missing_keys"] if "pooler" not in name)
    if missing:
        raise ConfigError(
            f"text encoder '{config.name}': its weights lack {len(missing)} tensors, such as {missing[0]}; is the folder "
            "complete?"
        )
    return transformer


def without_pooler(described: Any) -> dict[str, bool]:
    """The argument that leaves out the pooler of BERT and its like, where there is one."""
    from transformers import MODEL_MAPPING

    known = type(described) in MODEL_MAPPING
    parameters = inspect.signature(MODEL_MAPPING[type(described)].__init__).parameters if known else {}
    return {"add_pooling_layer": False} if "add_pooling_layer" in parameters else {}


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bar for a second's work, no report of the pooler that is left out on purpose."""
    from transformers.utils import logging as told

    level, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity_error()
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(level)
        if bars:
            told.enable_progress_bar()


def _with_dropout(described: Any, dropout: float | None) -> Any:
    for name in _DROPOUT if dropout is not None else ():
        if hasattr(described, name):
            setattr(described, name, dropout)
    return described


def resized(pixels: Tensor, side: int) -> Tensor:
    """(B, 1, side, side) of (B, 1, H, W): the whole field of view, averaged where it gets smaller."""
    if tuple(pixels.shape[2:]) == (side, side):
        return pixels
    return F.interpolate(pixels, (side, side), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
