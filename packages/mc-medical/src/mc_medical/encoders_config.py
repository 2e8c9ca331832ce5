"""Which image encoder and which text encoder. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel


class ImageEncoderConfig(StrictModel):
    """An encoder of grey images: one of timm by its name, or a small residual network that knows where it looks.

    >>> ImageEncoderConfig().width, ImageEncoderConfig(name="vit_small_patch16_224").image_size
    (32, 224)
    """

    name: str | None = None
    """A timm name, such as `vit_small_patch16_224` or `convnext_tiny`; default: a small residual network of ours."""
    pretrained: bool | str = False
    """With `name`: start from published weights (downloaded by timm), or from a `.safetensors` or `.pth` file of that model."""
    image_size: int = Field(default=224, ge=16)
    """Side of the images it takes, in pixels."""
    mean: float = Field(default=0.5863, ge=0, le=1)
    """Subtracted from pixels in [0, 1]; the constants are those of MedCLIP's code."""
    std: float = Field(default=0.2795, gt=0)
    """Pixels are divided by it."""
    pooling: Literal["mean", "model"] = "mean"
    """With `name`: mean over the patches of a transformer, or that model's own pooling (a class token, for most)."""
    batch_norm: Literal["refuse", "freeze"] = "refuse"
    """`freeze`: BatchNorm keeps its statistics and weights, and is used as it is; MSD refuses it otherwise."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """With `name`: stochastic depth."""

    width: int = Field(default=32, ge=8, multiple_of=8)
    """Without `name`: channels of the first stage; each further one has twice as many."""
    stages: int = Field(default=3, ge=2, le=5)
    """Without `name`: stages, each of half the side of the one before."""
    depth: int = Field(default=1, ge=1)
    """Without `name`: residual blocks of a stage."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name is None and self.pretrained:
            raise ValueError("pretrained needs the name of a timm model, such as convnext_tiny")
        if self.name is None and self.image_size % 2 ** (self.stages + 1):
            raise ValueError(
                f"image_size {self.image_size} is no multiple of {2 ** (self.stages + 1)}, as {self.stages} stages need it"
            )
        return self


class TextEncoderConfig(StrictModel):
    """An encoder of report text: a transformer whose token states are averaged.

    With ``name`` a published one, by its folder or its name on the Hugging Face hub; without, a small BERT made anew.

    >>> TextEncoderConfig().layers
    4
    """

    name: str | None = None
    """Folder or hub name of a transformer, such as `emilyalsentzer/Bio_ClinicalBERT`; default: a small BERT with random weights."""
    download: bool = False
    """Fetch `name` from the hub when it is no folder and not in the local cache."""
    max_length: int = Field(default=128, ge=8)
    """Tokens of a text, special ones included; what is longer is cut."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout of hidden states and of attention; default: the transformer's own (0.1)."""

    vocabulary: int = Field(default=8_000, ge=64)
    """Without `name`: entries of the tokenizer that is trained on the reports; small corpora give fewer."""
    hidden_size: int = Field(default=256, ge=8)
    """Without `name`: width."""
    layers: int = Field(default=4, ge=1)
    """Without `name`: layers."""
    heads: int = Field(default=4, ge=1)
    """Without `name`: attention heads."""
    architecture: dict[str, Any] | None = None
    """Filled in for a published transformer: its own configuration, so that a saved model needs nothing else."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name is None and self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide into {self.heads} heads")
        return self


class ImageTextConfig(StrictModel):
    """Both encoders and the space they share.

    >>> ImageTextConfig().dim
    512
    """

    image: ImageEncoderConfig = ImageEncoderConfig()
    """The image encoder."""
    text: TextEncoderConfig = TextEncoderConfig()
    """The text encoder."""
    dim: int = Field(default=512, ge=2)
    """Width of the shared space."""
    temperature: float = Field(default=0.07, ge=0.01, le=1)
    """Where the temperature starts; it is learned, between 0.01 and 1."""
