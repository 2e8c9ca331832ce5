"""The two encoders: images to tokens, and text to the states of its tokens.

No layer looks at the rest of the batch.

Legend: B samples, S side in pixels, P patches, D features of an image token, L tokens of the longest text, h their features,
V words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from mc_core.errors import ConfigError, DataError, closest
from mc_core.hub import reaching, transformer_folder
from mc_vision_language.encoders_config import ImageEncoderConfig, TextEncoderConfig
from mc_vision_language.fusion import weight_std

_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")


class ImageEncoder(nn.Module):
    """Pixels in [0, 1] to one token for the image and one for each patch.

    Args:
        config: which encoder.
        load_pretrained: whether to do what ``config.pretrained`` asks for.

    Attributes:
        num_features: D.
        grid: rows and columns of patches.

    Raises:
        ConfigError: no such timm model, one without class and patch tokens, or weights that cannot be had.

    >>> encoder = ImageEncoder(ImageEncoderConfig(image_size=32, patch_size=8, width=12, depth=1))
    >>> encoder(torch.rand(2, 3, 32, 32)).shape, encoder.grid
    (torch.Size([2, 17, 12]), (4, 4))
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ImageEncoderConfig, *, load_pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        backbone: Any = _small_transformer(config) if config.name is None else _timm_model(config, load_pretrained)
        self.backbone = backbone
        self.num_features = int(backbone.num_features)
        self.grid: tuple[int, int] = tuple(backbone.patch_embed.grid_size)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(config, name), dtype=torch.float64)[:, None, None]
            self.register_buffer(name, values.to(torch.get_default_dtype()), persistent=False)

    @overload
    def forward(self, pixels: Tensor, *, attention_of: None = ...) -> Tensor: ...
    @overload
    def forward(self, pixels: Tensor, *, attention_of: int) -> tuple[Tensor, Tensor]: ...
    def forward(self, pixels: Tensor, *, attention_of: int | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """(B, 1 + P, D) tokens of images (B, 3, S, S) in [0, 1], the class token first, patches row by row.

        Args:
            pixels: images.
            attention_of: a block, negative ones from the last: return also its attention probabilities (B, H, 1 + P, 1 + P),
                in the graph.

        Raises:
            DataError: images of another size.
        """
        x = self._normalised(pixels)
        if attention_of is None:
            return self._tokens(self.backbone.forward_features(x))
        with _recorded(self.backbone.blocks[attention_of].attn) as probabilities:
            tokens = self._tokens(self.backbone.forward_features(x))
        prefix = self.backbone.num_prefix_tokens
        (found,) = probabilities
        kept = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(prefix, found.shape[-1])]).to(found.device)
        return tokens, found if prefix == 1 else found[:, :, kept][..., kept]

    def class_token(self, pixels: Tensor) -> Tensor:
        """(B, D) the first of what :meth:`forward` gives, of images (B, 3, S, S) in [0, 1].

        The last block's MLP, the larger part of it, then sees that token alone.

        Raises:
            DataError: images of another size.
        """
        from timm.models.vision_transformer import Block, VisionTransformer

        model: Any = self.backbone
        last = model.blocks[-1]
        if len(model.blocks) < 2 or type(model) is not VisionTransformer or type(last) is not Block:
            return self(pixels)[:, 0]
        found: Any = model.forward_intermediates(
            self._normalised(pixels),
            indices=[len(model.blocks) - 2],
            return_prefix_tokens=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        ((patches, prefix),) = found
        x = torch.cat([prefix, patches], dim=1)
        x = x[:, :1] + last.drop_path1(last.ls1(last.attn(last.norm1(x))))[:, :1]
        x = x + last.drop_path2(last.ls2(last.mlp(last.norm2(x))))
        return model.norm(x)[:, 0]

    def _normalised(self, pixels: Tensor) -> Tensor:
        side = self.config.image_size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, side, side):
            raise DataError(
                f"images of shape {tuple(pixels.shape)}; this encoder takes (batch, 3, {side}, {side}): "
                "make the views of that size (augment.size and method.image.image_size)"
            )
        return (pixels - self.mean) / self.std

    def _tokens(self, features: Tensor) -> Tensor:
        prefix = self.backbone.num_prefix_tokens
        return features if prefix == 1 else torch.cat([features[:, :1], features[:, prefix:]], dim=1)


@contextmanager
def _recorded(attention: Any) -> Iterator[list[Tensor]]:
    """Attention probabilities of one block, computed openly meanwhile."""
    found: list[Tensor] = []
    fused, attention.fused_attn = attention.fused_attn, False
    # what enters the dropout are the probabilities
    handle = attention.attn_drop.register_forward_hook(lambda _, given, made: found.append(given[0]))
    try:
        yield found
    finally:
        handle.remove()
        attention.fused_attn = fused


class _ConvolutionStem(nn.Module):
    """Patches by convolutions of stride 2, with the attributes of timm's PatchEmbed."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        halvings = config.patch_size.bit_length() - 1
        widths = [max(16, config.width >> (halvings - 1 - place)) for place in range(halvings)]
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            norm = nn.GroupNorm(max(1, width // 16), width)
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), norm, nn.GELU()]
            before = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, config.width, 1))
        side = config.image_size // config.patch_size
        self.grid_size, self.num_patches = (side, side), side * side

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, P, D)."""
        return self.layers(x).flatten(2).transpose(1, 2)


def _small_transformer(config: ImageEncoderConfig) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        num_classes=0,
        global_pool="",
        drop_path_rate=config.drop_path,
    )
    for part in model.blocks.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=weight_std(config.width))
    if config.stem == "convolution":
        model.patch_embed = _ConvolutionStem(config)  # type: ignore[assignment]
    return model


def _timm_model(config: ImageEncoderConfig, load_pretrained: bool) -> Any:
    import timm

    assert config.name is not None
    weights = config.pretrained if load_pretrained else False
    given: dict[str, Any] = {"num_classes": 0, "drop_path_rate": config.drop_path, "img_size": config.image_size}
    if isinstance(weights, str):
        if not Path(weights).is_file():
            raise ConfigError(
                f"image.pretrained: {weights} is no file; give a .safetensors or .pth file of {config.name}"
            )
        given["pretrained_cfg_overlay"] = {"file": weights}
    if not timm.is_model(config.name):
        raise ConfigError(
            f"timm has no model '{config.name}'; did you mean {closest(config.name, timm.list_models())}?"
        )
    try:
        try:  # a model that would average its patches keeps its last norm; those with a distillation token refuse to be told
            model = timm.create_model(config.name, pretrained=bool(weights), global_pool="", **given)
        except AssertionError:
            model = timm.create_model(config.name, pretrained=bool(weights), **given)
    except TypeError as error:  # a family that is told no size of images
        raise ConfigError(_no_tokens(config.name)) from error
    except (OSError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"the published weights of '{config.name}' cannot be had ({reason}): give a file of weights in image.pretrained, or "
            "false to start from random ones"
        ) from error
    blocks = getattr(model, "blocks", None)
    if getattr(model, "cls_token", None) is None or not blocks or not hasattr(blocks[0], "attn"):
        raise ConfigError(_no_tokens(config.name))
    return model


def _no_tokens(name: str) -> str:
    return (
        f"image encoder '{name}' gives no class token beside its patch tokens, which cross-attention looks at: take a vision "
        "transformer, such as deit_base_patch16_224 or vit_small_patch16_224"
    )


class PretrainedParts(NamedTuple):
    """What a published transformer brings besides the text encoder.

    Attributes:
        layers: those after the text layers, for the fusion encoder.
        head: its module that predicts words, or None.
    """

    layers: Sequence[Any]
    head: Any


class TextEncoder(nn.Module):
    """Token ids to states: the embeddings and first layers of a BERT-style transformer.

    Args:
        config: which transformer.
        load_pretrained: load the weights of ``config.name``; else only its architecture, where the configuration holds it.

    Attributes:
        config: as given, with the architecture of a published transformer.
        num_features: h.
        described: configuration of the transformer as it was published, with all its layers.
        pretrained: what it brings for the other parts, once; None with random weights.

    Raises:
        ConfigError: a transformer that is not here, is not built like BERT, has too few layers, or takes fewer tokens than
            ``max_length``.

    >>> encoder = TextEncoder(TextEncoderConfig(hidden_size=16, heads=2, text_layers=1, vocabulary=64))
    >>> encoder(torch.tensor([[2, 9, 3, 0]]), torch.tensor([[1, 1, 1, 0]])).shape
    torch.Size([1, 4, 16])
    """

    def __init__(self, config: TextEncoderConfig, *, load_pretrained: bool = True) -> None:
        super().__init__()
        transformer, head, described = _transformer(config, load_pretrained)
        layers = getattr(getattr(transformer, "encoder", None), "layer", None)
        wanted = config.text_layers + config.fusion_layers
        if layers is None or not hasattr(transformer, "embeddings") or not hasattr(layers[0], "intermediate"):
            raise ConfigError(
                f"text encoder '{config.name}' is not built like BERT (embeddings, encoder.layer): take a BERT or a RoBERTa"
            )
        if config.name is not None and described["num_hidden_layers"] < wanted:
            raise ConfigError(
                f"text encoder '{config.name}' has {described['num_hidden_layers']} layers, fewer than text_layers "
                f"{config.text_layers} and fusion_layers {config.fusion_layers} together"
            )
        self.pretrained = None
        if config.name is not None and load_pretrained:
            self.pretrained = PretrainedParts(list(layers[config.text_layers : wanted]), head)
        transformer.encoder.layer = nn.ModuleList(layers[: config.text_layers])
        transformer.config.num_hidden_layers = config.text_layers
        self.transformer = transformer
        self.described: dict[str, Any] = described
        if config.name is not None:
            config = config.model_copy(update={"architecture": described})
        self.config = config
        self.num_features = int(described["hidden_size"])
        limit = int(described["max_position_embeddings"])
        if config.max_length > limit:
            raise ConfigError(
                f"text.max_length {config.max_length} is more than the {limit} tokens that {config.name} takes"
            )

    @property
    def word_embeddings(self) -> nn.Embedding:
        """(V, h): also the decoder that predicts words."""
        return self.transformer.embeddings.word_embeddings

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, L, h): words and positions before the first layer."""
        return self.transformer.embeddings(input_ids=input_ids)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L, h) states of ids (B, L) with their mask, 1 for tokens and 0 for padding."""
        return self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _transformer(config: TextEncoderConfig, load_pretrained: bool) -> tuple[Any, Any, dict[str, Any]]:
    """The transformer without pooler, its head for words if there is one, and its configuration."""
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, BertConfig

    if config.name is None:
        own = BertConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.hidden_size,
            max_position_embeddings=config.positions,
            pad_token_id=config.pad_id,
            initializer_range=weight_std(config.hidden_size),
        )
        return AutoModel.from_config(_with_dropout(own, config.dropout), add_pooling_layer=False), None, own.to_dict()
    if config.architecture is not None and not load_pretrained:
        described: Any = AutoConfig.for_model(**config.architecture)
        shown = described.to_dict()
        described.num_hidden_layers = config.text_layers
        return AutoModel.from_config(_with_dropout(described, config.dropout), add_pooling_layer=False), None, shown
    place = str(transformer_folder(config.name))
    with quiet_loading(), reaching(config.name, download=config.download, option="--method.text.download"):
        described = AutoConfig.from_pretrained(place, local_files_only=not config.download)
        _with_dropout(described, config.dropout)
        shown = described.to_dict()
        model, found = AutoModelForMaskedLM.from_pretrained(
            place,
            config=described,
            local_files_only=not config.download,
            dtype=torch.float32,
            output_loading_info=True,
        )
    base: Any = model.base_model
    prefix = f"{model.base_model_prefix}."
    missing = sorted(name for name in found["missing_keys"] if name.startswith(prefix))
    if missing:
        raise ConfigError(
            f"text encoder '{config.name}': its weights lack {len(missing)} tensors, such as {missing[0]}; is the folder complete?"
        )
    complete = len(found["missing_keys"]) == 0
    head = getattr(model, "cls", None) or getattr(model, "lm_head", None)
    return base, head if complete else None, shown


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bar for a second's work, no report of parts that are left out on purpose."""
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
