"""What a run saves: an image encoder and a text encoder that share a space.

Legend: B samples, N of all, S side in pixels, h × w positions, L tokens, D features of an encoder, d width of the space.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.export import load_model, save_model, staging
from mc_core.files import StrPath, sync_folder
from mc_core.modules import Shared, evaluating
from mc_core.tokens import padded, tokenize
from mc_medical.encoders import ImageEncoder, TextEncoder, resized
from mc_medical.encoders_config import ImageTextConfig
from mc_medical.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mc_medical.data.image_config import ImageOptions

_LOG_KAPPA_LIMIT = math.log(100.0)


class DualEncoder(nn.Module):
    """Both encoders and their projections into the shared space: what a teacher is a copy of.

    Args:
        config: of both encoders.
        load_pretrained: load published weights where the configuration asks for them.
    """

    def __init__(self, config: ImageTextConfig, *, load_pretrained: bool = True) -> None:
        super().__init__()
        self.image = ImageEncoder(config.image, load_pretrained=load_pretrained)
        self.text = TextEncoder(config.text, load_pretrained=load_pretrained)
        self.image_projection = nn.Linear(self.image.num_features, config.dim, bias=False)
        self.text_projection = nn.Linear(self.text.num_features, config.dim, bias=False)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, d) unit rows of images (B, 1, S, S) in [0, 1] and of token ids (B, L)."""
        return self.embed_images(pixels), self.embed_tokens(input_ids, attention_mask)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """(B, d) unit rows."""
        return unit(self.image_projection(self.image(pixels)))

    def embed_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, d) unit rows."""
        return unit(self.text_projection(self.text(input_ids, attention_mask)))


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1, in at least float32."""
    return normalize(rows.float() if rows.dtype.itemsize < 4 else rows, dim=1)


class ImageTextModel(nn.Module):
    """Radiographs and reports as unit vectors of one space.

    Args:
        config: of both encoders.
        tokenizer: of the text encoder; without one only token ids can be embedded. Default: that of ``config.text.name``.
        load_pretrained: load published weights where the configuration asks for them.

    Attributes:
        config: as given, with what the encoders filled in.
        encoders: :class:`DualEncoder`.
        logit_scale: log κ, learned; cosines are multiplied by κ = 1/τ.

    >>> from mc_medical.encoders_config import ImageEncoderConfig, TextEncoderConfig
    >>> image = ImageEncoderConfig(image_size=32, width=8)
    >>> text = TextEncoderConfig(hidden_size=16, heads=2, layers=1, vocabulary=64)
    >>> model = ImageTextModel(ImageTextConfig(image=image, text=text, dim=8)).eval()
    >>> model.encode_image(np.zeros((2, 40, 40), dtype=np.uint8)).shape, round(model.kappa, 1)
    ((2, 8), 14.3)
    """

    def __init__(
        self,
        config: ImageTextConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        *,
        load_pretrained: bool = True,
    ) -> None:
        super().__init__()
        if tokenizer is None and config.text.name is not None and load_pretrained:
            tokenizer = load_tokenizer(config.text.name, download=config.text.download)
        if tokenizer is not None and config.text.name is None:
            text = config.text.model_copy(update={"vocabulary": max(len(tokenizer), 64)})
            config = config.model_copy(update={"text": text})
        self._tokenizer = Shared(tokenizer)
        self.encoders = DualEncoder(config, load_pretrained=load_pretrained)
        self.config = config.model_copy(update={"text": self.encoders.text.config})
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    @classmethod
    def from_config(cls, config: ImageTextConfig | Mapping[str, Any]) -> Self:
        """The same architecture with random weights, to be filled from a saved model: nothing is downloaded."""
        return cls(ImageTextConfig.model_validate(config), load_pretrained=False)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """Of the text encoder, or None."""
        return self._tokenizer.value

    @property
    def kappa(self) -> float:
        """κ = 1/τ."""
        return math.exp(float(self.logit_scale.detach()))

    @property
    def image_size(self) -> int:
        """Side of the images that the encoder takes, in pixels."""
        return self.config.image.image_size

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep κ between 1 and 100."""
        self.logit_scale.clamp_(0.0, _LOG_KAPPA_LIMIT)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, d) unit rows of images and of texts."""
        return self.encoders(pixels, input_ids, attention_mask)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """(B, d) unit rows of images (B, 1, S, S) in [0, 1]; see :meth:`prepare`."""
        return self.encoders.embed_images(pixels)

    def embed_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, d) unit rows of token ids (B, L) with their mask."""
        return self.encoders.embed_tokens(input_ids, attention_mask)

    def image_features(self, pixels: Tensor) -> Tensor:
        """(B, D) features before the projection, which probes and few-shot heads take."""
        return self.encoders.image(pixels)

    def patch_embeddings(self, pixels: Tensor) -> Tensor:
        """(B, h, w, d) unit vectors of each position, projected as if it were the whole image."""
        places = self.encoders.image_projection(self.encoders.image.positions(pixels))
        return normalize(places.float(), dim=-1)

    def prepare(self, pixels: Tensor | np.ndarray) -> Tensor:
        """(B, 1, S, S) in [0, 1], the whole field of view, of squares of any side.

        Args:
            pixels: (B, H, H) or (B, 1, H, H), uint8, or floats in [0, 1].

        Raises:
            DataError: another shape.
        """
        x = torch.as_tensor(pixels)
        x = x[:, None] if x.ndim == 3 else x
        if x.ndim != 4 or x.shape[1] != 1 or x.shape[2] != x.shape[3]:
            raise DataError(f"images of shape {tuple(x.shape)}; give squares of one channel: (count, side, side)")
        x = x.to(self.logit_scale.device)
        x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        return resized(x, self.image_size)

    def encode_image(
        self,
        images: Sequence[StrPath] | Sequence[np.ndarray] | np.ndarray | Tensor,
        *,
        batch_size: int = 32,
        options: ImageOptions | None = None,
    ) -> np.ndarray:
        """(N, d) float32 unit rows, in evaluation mode; each row depends on its image alone.

        Args:
            images: paths of DICOM, PNG or JPEG files; or arrays (H, W) of grey values in [0, 1] or uint8, of any size; or squares
                (N, H, H) in one array.
            batch_size: images encoded together.
            options: how files are read.

        Raises:
            BadSampleError: a file that is no radiograph.
        """
        rows = [
            self._images(images[first : first + batch_size], options) for first in range(0, len(images), batch_size)
        ]
        return np.concatenate(rows) if rows else np.zeros((0, self.config.dim), dtype=np.float32)

    @torch.inference_mode()
    def _images(self, images: Any, options: ImageOptions | None) -> np.ndarray:
        if not isinstance(images, (np.ndarray, Tensor)):
            images = np.stack([_square(image, options) for image in images])
        with evaluating(self):
            return self.embed_images(self.prepare(images)).float().cpu().numpy()

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """(N, d) float32 unit rows, in evaluation mode; each row depends on its text alone.

        Args:
            texts: N of them; what is longer than the encoder takes is cut.
            batch_size: texts encoded together, in the order of their length.

        Raises:
            ConfigError: one text instead of a list, or a model without tokenizer.
        """
        if isinstance(texts, str):
            raise ConfigError("encode_text takes a list of texts, not one text: put it into brackets")
        if self.tokenizer is None:
            raise ConfigError("this model has no tokenizer: give ImageTextModel one, or load the model from its run")
        tokens = tokenize(self.tokenizer, texts, self.config.text.max_length)
        order = np.argsort(-tokens.lengths, kind="stable")
        embeddings = np.empty((len(texts), self.config.dim), dtype=np.float32)
        device = self.logit_scale.device
        with evaluating(self):
            for first in range(0, len(order), batch_size):
                rows = order[first : first + batch_size]
                places, lengths = tokens.places(rows)
                ids, mask = padded(tokens.ids[places], lengths, self.encoders.text.pad_id)
                embeddings[rows] = self.embed_tokens(ids.to(device), mask.to(device)).float().cpu().numpy()
        return embeddings

    def save(self, folder: StrPath, *, card: Mapping[str, Any] | str | None = None) -> Path:
        """Save as a folder that :func:`load_image_text_model` reads: configuration, weights, tokenizer, model card.

        Raises:
            ConfigError: the folder cannot be written. RunError: the disk is full.
        """
        folder = Path(folder)
        if folder.exists():
            self._save_tokenizer(folder)
            return save_model(self, folder, card=card)
        with staging(folder) as stage:
            save_model(self, stage / "model", card=card)
            self._save_tokenizer(stage / "model")
            (stage / "model").rename(folder)
            sync_folder(folder.parent)
        return folder

    def _save_tokenizer(self, folder: Path) -> None:
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
            (folder / "chat_template.jinja").unlink(missing_ok=True)


def load_image_text_model(place: StrPath, *, device: str | torch.device = "cpu") -> ImageTextModel:
    """A saved model, in evaluation mode.

    Args:
        place: its folder, or the folder of the run that made it.
        device: to put it on.

    Raises:
        CheckpointError: no such model, or a damaged one.
    """
    folder = Path(place)
    folder = folder / "model" if (folder / "model" / "config.json").is_file() else folder
    model = load_model(folder, device=device)
    if not isinstance(model, ImageTextModel):
        raise CheckpointError(f"{folder} holds a {type(model).__name__}, not a model of images and text")
    if (folder / "tokenizer.json").is_file():
        model._tokenizer = Shared(load_tokenizer(folder))
    return model


def _square(image: Any, options: ImageOptions | None) -> np.ndarray:
    """(side, side) uint8, padded with black, as training stores it."""
    from mc_medical.data.image_config import ImageOptions
    from mc_medical.data.radiograph import read_radiograph, square

    options = options or ImageOptions()
    if isinstance(image, (str, os.PathLike)):
        return square(read_radiograph(image, options).pixels, options.size)
    pixels = np.asarray(image)
    return square(pixels.astype(np.float32) / (255 if pixels.dtype == np.uint8 else 1), options.size)
