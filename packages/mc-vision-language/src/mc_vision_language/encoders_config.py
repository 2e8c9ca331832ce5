"""Which image encoder, which text encoder and which fusion layers. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel
from mc_vision_language.data.options import CaptionOptions

Three = tuple[float, float, float]


class ImageEncoderConfig(StrictModel):
    """A vision transformer: one of timm by its name, or a small one of ours.

    >>> ImageEncoderConfig().patches, ImageEncoderConfig(image_size=256, patch_size=16).patches
    (64, 256)
    """

    name: str | None = None
    """A timm name, such as `deit_base_patch16_224`; default: a small transformer with random weights."""
    pretrained: bool | str = False
    """With `name`: start from published weights (downloaded by timm), or from a `.safetensors` or `.pth` file of that model."""
    image_size: int = Field(default=64, ge=16)
    """Side of the images it takes, in pixels."""
    mean: Three = (0.48145466, 0.4578275, 0.40821073)
    """Subtracted from pixels in [0, 1]; the constants are CLIP's, as ALBEF takes them."""
    std: Three = (0.26862954, 0.26130258, 0.27577711)
    """Pixels are divided by it."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth."""

    patch_size: int = Field(default=8, ge=2)
    """Without `name`: side of a patch, in pixels."""
    width: int = Field(default=192, ge=8)
    """Without `name`: features of a token."""
    depth: int = Field(default=6, ge=1)
    """Without `name`: layers."""
    heads: int = Field(default=3, ge=1)
    """Without `name`: attention heads."""
    stem: Literal["patch", "convolution"] = "patch"
    """Without `name`: how a patch becomes a token. `convolution`: by convolutions of stride 2, which learn from fewer images."""

    @property
    def patches(self) -> int:
        """Patches of an image, without `name`."""
        return (self.image_size // self.patch_size) ** 2

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be above 0")
        if self.name is not None:
            return self
        if self.pretrained:
            raise ValueError("pretrained needs the name of a timm model, such as deit_base_patch16_224")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} does not divide into patches of {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
        if self.stem == "convolution" and self.patch_size & (self.patch_size - 1):
            raise ValueError(
                f"stem: convolution halves the image again and again: patch_size {self.patch_size} is no power of 2"
            )
        return self


class TextEncoderConfig(StrictModel):
    """A BERT-style transformer in two halves: the first reads text alone, the second fuses it with the image.

    With ``name`` a published one, by its folder or its name on the Hugging Face hub; without, a small BERT made anew. The ids of
    special tokens are filled in from the tokenizer.

    >>> TextEncoderConfig().text_layers, TextEncoderConfig().fusion_layers
    (6, 6)
    """

    name: str | None = None
    """Folder or hub name of a BERT, such as `google-bert/bert-base-uncased`; default: a small one with random weights."""
    download: bool = False
    """Fetch `name` from the hub when it is no folder and not in the local cache."""
    text_layers: int = Field(default=6, ge=1)
    """Layers that read text alone."""
    fusion_layers: int = Field(default=6, ge=1)
    """Layers that also look at the image; of a published transformer those that follow the text layers."""
    max_length: int = Field(default=25, ge=4)
    """Tokens of a text, special ones included; what is longer is cut."""
    add_sep: bool = False
    """End each text with [SEP]; ALBEF does not."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout of hidden states and of attention; default: the transformer's own (0.1)."""

    vocabulary: int = Field(default=8_000, ge=8)
    """Without `name`: entries of the tokenizer that is trained on the captions; small corpora give fewer."""
    hidden_size: int = Field(default=256, ge=8)
    """Without `name`: features of a token."""
    heads: int = Field(default=4, ge=1)
    """Without `name`: attention heads."""
    positions: int = Field(default=64, ge=4)
    """Without `name`: the longest text that there are positions for."""

    pad_id: int = Field(default=0, ge=0)
    """Id of [PAD], filled in."""
    cls_id: int = Field(default=2, ge=0)
    """Id of [CLS], filled in."""
    sep_id: int = Field(default=3, ge=0)
    """Id of [SEP], filled in."""
    mask_id: int = Field(default=4, ge=0)
    """Id of [MASK], filled in."""
    architecture: dict[str, Any] | None = None
    """Filled in for a published transformer: its own configuration, so that a saved model needs nothing else."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name is None and self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide into {self.heads} heads")
        if self.name is None and self.max_length > self.positions:
            raise ValueError(
                f"max_length {self.max_length} is more than the {self.positions} positions of the text encoder"
            )
        return self


class VisionLanguageConfig(StrictModel):
    """Both encoders and the space they share.

    >>> VisionLanguageConfig().dim
    256
    """

    image: ImageEncoderConfig = ImageEncoderConfig()
    """The image encoder."""
    text: TextEncoderConfig = TextEncoderConfig()
    """The text encoder and the fusion layers."""
    dim: int = Field(default=256, ge=2)
    """Width of the shared space."""
    captions: CaptionOptions = CaptionOptions()
    """What of a caption, or of a query, is kept."""
    temperature: float = Field(default=0.07, ge=0.001, le=0.5)
    """Where the temperature starts; it is learned, between 0.001 and 0.5."""
    matching: bool = True
    """Whether the head that tells a match is trained, so that candidates can be ranked again by it."""
