"""Image encoders: any timm backbone, the vision transformers of MoCo v3, and small ResNets for CPUs.

Legend: B samples, C channels, H × W pixels, N patches, D features.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mc_core.errors import CheckpointError, ConfigError, DataError, closest
from mc_core.export import load_model
from mc_core.files import StrPath, atomic_path
from mc_core.norm import SplitBatchNorm
from mc_vision.encoders_config import EncoderConfig

# families whose position embedding timm can fit to the size of each batch
_ANY_SIZE = {"timm.models.vision_transformer", "timm.models.deit", "timm.models.eva"}


class TimmEncoder(nn.Module):
    """A backbone that maps images to one feature vector each.

    Args:
        config: which backbone; see :class:`~mc_vision.encoders_config.EncoderConfig`.
        load_pretrained: whether to do what ``config.pretrained`` asks for.

    Attributes:
        config: as given.
        backbone: the timm module, without classifier.
        num_features: D.

    Raises:
        ConfigError: no such backbone, options it cannot take, or published weights that cannot be had.
        CheckpointError: a weight file that does not fit.

    >>> encoder = TimmEncoder(EncoderConfig(backbone="resnet10-w16", image_size=32))
    >>> encoder(torch.zeros(2, 3, 32, 32)).shape, encoder.num_features
    (torch.Size([2, 128]), 128)
    """

    def __init__(self, config: EncoderConfig, *, load_pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.backbone = _build(config, load_pretrained=load_pretrained)
        # the width after pooling, which for a few families is not that of the last feature map
        self.num_features = int(getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features)
        self._transformer = hasattr(self.backbone, "patch_embed")

    @classmethod
    def from_config(cls, config: EncoderConfig | Mapping[str, Any]) -> Self:
        """The same architecture with random weights, to be filled from a saved model: nothing is downloaded."""
        return cls(EncoderConfig.model_validate(config), load_pretrained=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, D) pooled features of normalised float images.

        Raises:
            DataError: another number of channels or a size that this backbone does not take.
        """
        self._check(x_BCHW)
        return self.backbone(self._laid_out(x_BCHW))

    def forward_tokens(self, x_BCHW: Tensor) -> Tensor:
        """(B, N, D) features of the patches, in rows from the top left, without class and register tokens.

        Raises:
            ConfigError: the backbone has no patch tokens.
            DataError: as in :meth:`forward`.
        """
        self._check(x_BCHW)
        return self._patches(self.backbone.forward_features(self._laid_out(x_BCHW)))

    def forward_both(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) pooled features as in :meth:`forward` and (B, N, D) patches as in :meth:`forward_tokens`, in one pass.

        Raises:
            ConfigError, DataError: as these do.
        """
        self._check(x_BCHW)
        features = self.backbone.forward_features(self._laid_out(x_BCHW))
        patches_BND = self._patches(features)
        return self.backbone.forward_head(features), patches_BND

    def _patches(self, features: Tensor) -> Tensor:
        if features.ndim != 3:
            raise ConfigError(f"backbone '{self.config.backbone}' has no patch tokens: take a vision transformer")
        return features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]

    def _laid_out(self, x_BCHW: Tensor) -> Tensor:
        """For convolutional networks, channels last: every layer then stays so, which is faster.

        Not with split BatchNorm, which would have to copy back and forth.
        """
        if self._transformer or torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
            return x_BCHW
        if self.training and any(isinstance(m, SplitBatchNorm) and m.splits > 1 for m in self.modules()):
            return x_BCHW
        return x_BCHW.contiguous(memory_format=torch.channels_last)

    def _check(self, x_BCHW: Tensor) -> None:
        name, channels = self.config.backbone, self.config.channels
        if x_BCHW.ndim != 4 or x_BCHW.shape[1] != channels:
            raise DataError(
                f"encoder '{name}' takes images of shape (batch, {channels}, height, width), "
                f"got {tuple(x_BCHW.shape)}; set encoder.channels to what the data has"
            )
        embed = getattr(self.backbone, "patch_embed", None)
        patch = getattr(embed, "patch_size", None)
        if patch is None:
            return
        patch = (patch, patch) if isinstance(patch, int) else patch
        height, width = x_BCHW.shape[2:]
        if height % patch[0] or width % patch[1]:
            raise DataError(f"encoder '{name}' takes multiples of {patch[0]}×{patch[1]} pixels, got {height}×{width}")
        size = None if getattr(self.backbone, "dynamic_img_size", False) else getattr(embed, "img_size", None)
        if size is not None and (height, width) != tuple(size):
            raise DataError(
                f"encoder '{name}' is built for {size[0]}×{size[1]} pixels, got {height}×{width}: "
                "set encoder.image_size to the size of the views"
            )


def load_encoder(folder: StrPath) -> nn.Module:
    """An encoder saved by :func:`mc_core.export.save_model`, in evaluation mode.

    Raises:
        CheckpointError: no such model in the folder, or a damaged one.
    """
    return load_model(folder)


def save_timm_checkpoint(encoder: TimmEncoder, path: StrPath) -> None:
    """Write the backbone's weights as timm reads them.

    For a timm backbone: ``timm.create_model(name, num_classes=0, checkpoint_path=path)``, with ``in_chans=`` and
    ``img_size=`` where they are not the default. With a CIFAR stem, which timm has not::

        model = use_cifar_stem(timm.create_model(name, num_classes=0))
        timm.models.load_checkpoint(model, path)

    The MoCo v3 transformers are ``vit_small_patch16_224`` (with ``num_heads=12``) and ``vit_base_patch16_224`` to timm.

    Args:
        encoder: whose backbone.
        path: a file name that ends in ``.safetensors``.

    Raises:
        ConfigError: another file name, or a place that cannot be written.
    """
    if Path(path).suffix != ".safetensors":
        raise ConfigError(f"{path}: timm tells the format by the file name, which must end in .safetensors")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.backbone.state_dict().items()}
    with atomic_path(path) as draft:
        save_file(
            state,
            draft,
            metadata={"format": "pt", "mc_vision.encoder": encoder.config.model_dump_json(exclude={"pretrained"})},
        )


def use_cifar_stem(backbone: nn.Module, *, name: str = "this model") -> nn.Module:
    """Give a timm ResNet the stem of CIFAR ResNets, in place: a 3×3 convolution of stride 1 and no max-pooling.

    Args:
        backbone: a ``timm.models.ResNet`` (also ResNeXt, SE-ResNet, …).
        name: for the message.

    Returns:
        The same module.

    Raises:
        ConfigError: another family.
    """
    if not isinstance(backbone, timm.models.ResNet):
        raise ConfigError(f"cifar_stem is for ResNets; '{name}' is a {type(backbone).__name__}: leave it at 'auto'")
    resnet: Any = backbone  # timm's annotations know neither a changed stem nor a missing pool
    first = next(module for module in resnet.conv1.modules() if isinstance(module, nn.Conv2d))
    resnet.conv1 = nn.Conv2d(first.in_channels, resnet.bn1.num_features, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    resnet.maxpool = nn.Identity()
    return backbone


def _build(config: EncoderConfig, *, load_pretrained: bool) -> Any:
    name, weights = config.backbone, config.pretrained if load_pretrained else False
    if name in OWN_BACKBONES:
        if weights is True:
            raise ConfigError(f"there are no published weights for '{name}': set pretrained to a .safetensors file")
        backbone = OWN_BACKBONES[name](config)
    elif "/" not in name and timm.is_model(name):
        backbone = _build_timm(config, download=weights is True)
    else:
        raise ConfigError(f"no backbone '{name}': did you mean {closest(name, [*OWN_BACKBONES, *timm.list_models()])}?")
    if isinstance(weights, str):
        _load_weights(backbone, Path(weights))
    return backbone


def _build_timm(config: EncoderConfig, *, download: bool) -> Any:
    name = config.backbone
    options: dict[str, Any] = {"num_classes": 0, "in_chans": config.channels}
    published = timm.get_pretrained_cfg(name)
    if published is not None and published.fixed_input_size:
        options["img_size"] = config.image_size
    family = timm.models.model_entrypoint(name).__module__
    if family in _ANY_SIZE:
        options["dynamic_img_size"] = True
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    if family == "timm.models.resnet":
        options["zero_init_last"] = config.zero_init_residual  # timm's own default is true
    try:
        backbone: Any = timm.create_model(name, pretrained=download, **options)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if download:
            raise ConfigError(
                f"the published weights of '{name}' cannot be had ({reason[:200]}); check the network, "
                "or set pretrained to a .safetensors file"
            ) from error
        raise ConfigError(
            f"backbone '{name}' cannot be built for {config.channels} channels and image_size {config.image_size}: "
            f"{reason[:200]}"
        ) from error
    if config.uses_cifar_stem and (config.cifar_stem is True or isinstance(backbone, timm.models.ResNet)):
        use_cifar_stem(backbone, name=name)
    return backbone


def _load_weights(backbone: nn.Module, path: Path) -> None:
    """Fill the backbone from a file, leaving out the classifier; say in one line what does not fit."""
    if path.suffix != ".safetensors":
        raise ConfigError(f"pretrained '{path}': give a .safetensors file, or true for published weights")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"pretrained '{path}' cannot be read: {error}") from error
    heads = (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    state = {key: value for key, value in state.items() if key.rpartition(".")[0] not in heads}
    own = backbone.state_dict()
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is not part of it" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(state[key].shape)}, not {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CheckpointError(f"pretrained '{path}' does not fit the backbone: {problems[0]}{more}")
    backbone.load_state_dict(state)


def sincos_positions(rows: int, columns: int, dim: int) -> Tensor:
    """The fixed two-dimensional position embedding of MoCo v3: sin x, cos x, sin y, cos y at D/4 frequencies each.

    Args:
        rows: of the grid of patches.
        columns: of the grid.
        dim: D, a multiple of 4.

    Returns:
        (rows·columns, D) float32, row by row.

    Raises:
        ConfigError: D is not a multiple of 4.

    >>> sincos_positions(2, 3, 8)[4].tolist() == [*sincos_positions(1, 3, 8)[1, :4], *sincos_positions(2, 1, 8)[1, 4:]]
    True
    """
    if dim % 4:
        raise ConfigError(f"a two-dimensional position embedding needs a width that is a multiple of 4, got {dim}")
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    angle_x, angle_y = (position.flatten()[:, None] * frequency for position in (x, y))
    return torch.cat([angle_x.sin(), angle_x.cos(), angle_y.sin(), angle_y.cos()], dim=1).float()


@dataclass(frozen=True)
class _VitShape:
    dim: int
    depth: int
    heads: int
    patch: int
    image_size: int


_MOCO_VITS = {
    "moco-vit-tiny-8": _VitShape(dim=96, depth=4, heads=6, patch=8, image_size=32),
    "moco-vit-small-16": _VitShape(dim=384, depth=12, heads=12, patch=16, image_size=224),
    "moco-vit-base-16": _VitShape(dim=768, depth=12, heads=12, patch=16, image_size=224),
}


def moco_v3_vit(
    name: str, *, image_size: int | tuple[int, int] | None = None, channels: int = 3, drop_path: float = 0.0
) -> VisionTransformer:
    """A vision transformer as MoCo v3 trains it (Chen, Xie, He 2021, arXiv:2104.02057, section 4 and appendix A).

    Positions are fixed sines and cosines; the patch projection is random and stays so; linear layers start
    Xavier-uniform, with query, key and value as three matrices; the class token starts near zero and is read out.

    Args:
        name: ``moco-vit-small-16`` (12 heads, where DeiT-S has 6), ``moco-vit-base-16``, or the small
            ``moco-vit-tiny-8``.
        image_size: in pixels, a multiple of the patch; (height, width) or one number. Default: 224, tiny: 32.
        channels: of the images.
        drop_path: stochastic depth of the last block, in [0, 1).

    Raises:
        ConfigError: an unknown name, or a size that patches do not fill.
    """
    if name not in _MOCO_VITS:
        raise ConfigError(f"no MoCo v3 transformer '{name}': did you mean {closest(name, _MOCO_VITS)}?")
    shape = _MOCO_VITS[name]
    size = image_size or shape.image_size
    height, width = (size, size) if isinstance(size, int) else size
    if height % shape.patch or width % shape.patch:
        raise ConfigError(f"'{name}' takes image sizes that are multiples of {shape.patch}, got {height}×{width}")
    vit: Any = VisionTransformer(
        img_size=(height, width),
        patch_size=shape.patch,
        in_chans=channels,
        num_classes=0,
        embed_dim=shape.dim,
        depth=shape.depth,
        num_heads=shape.heads,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
        dynamic_img_size=True,
        drop_path_rate=drop_path,
    )
    with torch.no_grad():
        for path, module in vit.named_modules():
            if isinstance(module, nn.Linear):
                fan_out = module.out_features // 3 if path.endswith("qkv") else module.out_features
                _xavier(module, module.in_features, fan_out)
        _xavier(vit.patch_embed.proj, channels * shape.patch**2, shape.dim)
        nn.init.normal_(vit.cls_token, std=1e-6)
        vit.pos_embed[:, 0] = 0
        vit.pos_embed[:, 1:] = sincos_positions(height // shape.patch, width // shape.patch, shape.dim)
    vit.pos_embed.requires_grad_(False)
    vit.patch_embed.proj.requires_grad_(False)
    return vit


def _xavier(layer: nn.Linear | nn.Conv2d, fan_in: int, fan_out: int) -> None:
    bound = math.sqrt(6 / (fan_in + fan_out))
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class _Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(branch + self.shortcut(x))


class SmallResNet(nn.Module):
    """A ten-layer ResNet for CPUs: a 3×3 stem of stride 2, then four blocks of w, 2w, 4w and 8w channels.

    Args:
        width: w; 16 gives 0.3 million parameters, 32 gives 1.2 million. D = 8w.
        channels: of the images.
        pool: halve the stem's output by max-pooling: for images beyond 32 pixels.
        zero_init_residual: start each block as its shortcut.
    """

    def __init__(self, width: int, channels: int = 3, *, pool: bool = False, zero_init_residual: bool = False) -> None:
        super().__init__()
        self.num_features = 8 * width
        self.conv1 = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if pool else nn.Identity()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        strides = [1, 2, 2, 2]
        self.blocks = nn.Sequential(*map(_Block, widths, widths[1:], strides))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, _Block) and zero_init_residual:
                nn.init.zeros_(module.bn2.weight)

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """(B, D, h, w) feature map."""
        return self.blocks(self.pool(torch.relu(self.bn1(self.conv1(x_BCHW)))))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, D) features, averaged over the map."""
        return self.forward_features(x_BCHW).mean((2, 3))


def _small_resnet(config: EncoderConfig, width: int) -> nn.Module:
    if config.drop_path:
        raise ConfigError(f"'{config.backbone}' has no stochastic depth: leave drop_path at 0")
    return SmallResNet(
        width, config.channels, pool=not config.uses_cifar_stem, zero_init_residual=config.zero_init_residual
    )


def _moco_vit(config: EncoderConfig) -> nn.Module:
    if config.cifar_stem is True:
        raise ConfigError(f"cifar_stem is for ResNets; '{config.backbone}' is a transformer: leave it at 'auto'")
    return moco_v3_vit(
        config.backbone, image_size=config.image_size, channels=config.channels, drop_path=config.drop_path
    )


OWN_BACKBONES: dict[str, Callable[[EncoderConfig], nn.Module]] = {
    "resnet10-w16": functools.partial(_small_resnet, width=16),
    "resnet10-w32": functools.partial(_small_resnet, width=32),
    **dict.fromkeys(_MOCO_VITS, _moco_vit),
}
