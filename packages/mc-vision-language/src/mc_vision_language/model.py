"""What a run saves: encoders, fusion layers, the head that tells whether image and text match, and the temperature.

Legend: B samples, N of all, S side in pixels, P patches, D features of an image token, L tokens of a text, h their features, d
width of the shared space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from mc_core.errors import ConfigError, DataError
from mc_core.files import StrPath
from mc_core.modules import evaluating
from mc_core.tokens import padded
from mc_vision_language.backbone import Backbone
from mc_vision_language.encoders_config import VisionLanguageConfig
from mc_vision_language.fusion import ImageKeys
from mc_vision_language.model_base import PictureTextModel, load_saved, with_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEMPERATURES = (0.001, 0.5)
"""Between which the temperature is kept, as in the official pretraining."""


class VisionLanguageModel(PictureTextModel):
    """Images and texts as unit vectors of one space, and a score of how well one describes the other.

    Args:
        config: of both encoders.
        tokenizer: of the text encoder; without one only token ids can be used. Default: that of ``config.text.name``.
        load_pretrained: load published weights where the configuration asks for them.

    Attributes:
        config: as given, with what tokenizer and encoders filled in.
        backbone: :class:`~mc_vision_language.backbone.Backbone`.
        itm_head: linear, h → 2; class 1 is a match. It says nothing where ``config.matching`` is false.
        log_temperature: log τ, learned; the official code learns τ itself, which a large rate soon drives to its bound.

    Raises:
        ConfigError: encoders that cannot be had, or a tokenizer that does not fit the text encoder.

    >>> from mc_vision_language.encoders_config import ImageEncoderConfig, TextEncoderConfig
    >>> image = ImageEncoderConfig(image_size=16, patch_size=8, width=12, depth=1)
    >>> text = TextEncoderConfig(hidden_size=16, heads=2, text_layers=1, fusion_layers=1, vocabulary=64)
    >>> model = VisionLanguageModel(VisionLanguageConfig(image=image, text=text, dim=8)).eval()
    >>> model.encode_image(np.zeros((2, 3, 40, 40), dtype=np.uint8)).shape
    (2, 8)
    >>> tokens = model.backbone.image_tokens(torch.rand(2, 3, 16, 16))
    >>> model.match(tokens, torch.tensor([[2, 9], [2, 7]]), torch.ones(2, 2, dtype=torch.int64)).shape
    torch.Size([2])
    """

    def __init__(
        self,
        config: VisionLanguageConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        *,
        load_pretrained: bool = True,
    ) -> None:
        super().__init__()
        if tokenizer is None and config.text.name is not None and load_pretrained:
            from mc_vision_language.tokenizers import load_tokenizer

            tokenizer = load_tokenizer(config.text.name, download=config.text.download)
        if tokenizer is not None:
            config = with_tokenizer(config, tokenizer)
        self.backbone = Backbone(config, load_pretrained=load_pretrained)
        self.config = config.model_copy(update={"text": self.backbone.text.config})
        self.take_tokenizer(tokenizer)
        self.itm_head = nn.Linear(self.backbone.text.num_features, 2)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))

    @classmethod
    def from_config(cls, config: VisionLanguageConfig | Mapping[str, Any]) -> Self:
        """The same architecture with random weights, to be filled from a saved model: nothing is downloaded."""
        return cls(VisionLanguageConfig.model_validate(config), load_pretrained=False)

    @property
    def words(self) -> int:
        """Rows of the table of word embeddings."""
        return self.backbone.text.word_embeddings.num_embeddings

    @property
    def temperature(self) -> Tensor:
        """τ, a scalar with gradient, by which cosines are divided."""
        return self.log_temperature.exp()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep τ between 0.001 and 0.5."""
        self.log_temperature.clamp_(*map(math.log, TEMPERATURES))

    @property
    def shows_where(self) -> bool:
        """Whether heat maps of a phrase can be had."""
        return True

    def need_matching(self) -> None:
        """Raise ConfigError where no matching was trained."""
        if not self.config.matching:
            raise ConfigError(
                "this model learned no matching (config.matching is false), so that nothing can be ranked again: rank by cosine "
                "alone (rerank 0)"
            )

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, d) unit rows of images and of texts."""
        found = self.backbone(pixels, input_ids, attention_mask)
        return found.image, found.text

    def match_logits(self, seen: Tensor | ImageKeys, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, 2) logits of no match and match, of each text with the image in the same place.

        Args:
            seen: image tokens (B, 1 + P, D), or their keys (:meth:`~mc_vision_language.backbone.Backbone.keys`), which pay off
                where an image meets several texts.
            input_ids: (B, L).
            attention_mask: (B, L).

        Raises:
            ConfigError: no matching was trained.
        """
        self.need_matching()
        keys = seen if isinstance(seen, ImageKeys) else self.backbone.keys(seen)
        states = self.backbone.text_states(input_ids, attention_mask)
        return self.itm_head(self.backbone.fuse_first(states, attention_mask, keys))

    def match(self, seen: Tensor | ImageKeys, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B,) logits of a match (class 1), by which candidates are ranked; see :meth:`match_logits`."""
        return self.match_logits(seen, input_ids, attention_mask)[:, 1]

    def encode_image(
        self, images: Sequence[StrPath] | Sequence[Any] | np.ndarray | Tensor, *, batch_size: int = 32
    ) -> np.ndarray:
        """(N, d) float32 unit rows, in evaluation mode; each row depends on its image alone.

        Args:
            images: paths, PIL images or arrays (H, W, 3); or (N, 3, H, W) in one array, uint8 or floats in [0, 1].
            batch_size: images encoded together.

        Raises:
            BadSampleError: a file that is no image.
        """
        rows = [self._images(images[first : first + batch_size]) for first in range(0, len(images), batch_size)]
        return np.concatenate(rows) if rows else np.zeros((0, self.config.dim), dtype=np.float32)

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """(N, d) float32 unit rows, in evaluation mode; each row depends on its text alone.

        Args:
            texts: N of them; what is longer than the encoder takes is cut.
            batch_size: texts encoded together, in the order of their length.

        Raises:
            ConfigError: one text instead of a list, or a model without tokenizer.
        """
        tokens = self.tokenized(texts)
        order = np.argsort(-tokens.lengths, kind="stable")
        embeddings = np.empty((len(texts), self.config.dim), dtype=np.float32)
        with evaluating(self):
            for first in range(0, len(order), batch_size):
                rows = order[first : first + batch_size]
                places, lengths = tokens.places(rows)
                batch, mask = padded(tokens.ids[places], lengths, self.config.text.pad_id)
                found = self.backbone.embed_tokens(batch.to(self.device), mask.to(self.device))
                embeddings[rows] = found.float().cpu().numpy()
        return embeddings

    @torch.inference_mode()
    def match_scores(self, images: Any, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """(N,) float32 logits of a match, of each text with the image in the same place; see :meth:`match`.

        Args:
            images: N, as for :meth:`encode_image`.
            texts: N.
            batch_size: pairs scored together.

        Raises:
            DataError: another number of texts. ConfigError: as :meth:`tokens_of`.
        """
        if len(images) != len(texts):
            raise DataError(f"{len(images)} images and {len(texts)} texts: give one text for each image")
        scores = [np.zeros(0, dtype=np.float32)]
        with evaluating(self):
            for first in range(0, len(texts), batch_size):
                part = slice(first, first + batch_size)
                tokens = self.backbone.image_tokens(self.pixels_of(images[part]))
                scores.append(self.match(tokens, *self.tokens_of(texts[part])).float().cpu().numpy())
        return np.concatenate(scores)

    @torch.inference_mode()
    def _images(self, images: Any) -> np.ndarray:
        with evaluating(self):
            return self.backbone.embed_images(self.pixels_of(images)).float().cpu().numpy()


def load_vision_language_model(place: StrPath, *, device: str | torch.device = "cpu") -> VisionLanguageModel:
    """A saved model, in evaluation mode.

    Args:
        place: its folder, or the folder of the run that made it.
        device: to put it on.

    Raises:
        CheckpointError: no such model, or a damaged one.
    """
    return load_saved(place, VisionLanguageModel, "a model of images and text", device=device)
