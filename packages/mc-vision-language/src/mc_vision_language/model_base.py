"""What all models of this package share: how pictures and texts become their input, and how they are saved.

Legend: B samples, S side in pixels, L tokens of a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.export import load_model, save_model, staging
from mc_core.files import StrPath, sync_folder
from mc_core.modules import Shared
from mc_core.tokens import Tokens, padded, tokenize
from mc_vision_language.data.captions import clean_caption
from mc_vision_language.encoders_config import VisionLanguageConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Config = TypeVar("Config", bound=VisionLanguageConfig)
Model = TypeVar("Model", bound="PictureTextModel")


class PictureTextModel(nn.Module):
    """A model that takes pictures and texts. Subclasses set ``config`` and their weights, then take a tokenizer.

    Attributes:
        config: of both encoders, and what the subclass adds.
    """

    config: Any

    def __init__(self) -> None:
        super().__init__()
        self._tokenizer = Shared(None)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """Of the text encoder, or None."""
        return self._tokenizer.value

    @property
    def image_size(self) -> int:
        """Side of the images that the encoder takes, in pixels."""
        return self.config.image.image_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def prepare(self, pixels: Tensor | np.ndarray) -> Tensor:
        """(B, 3, S, S) in [0, 1] on the model's device: the whole picture, squeezed into a square.

        Args:
            pixels: (B, 3, H, W), uint8, or floats in [0, 1].

        Raises:
            DataError: another shape.
        """
        x = torch.as_tensor(pixels)
        if x.ndim != 4 or x.shape[1] != 3:
            raise DataError(f"images of shape {tuple(x.shape)}; give (count, 3, height, width)")
        x = x.to(self.device)
        x = x.float() / 255 if x.dtype == torch.uint8 else x.to(next(self.parameters()).dtype)
        side = self.image_size
        if tuple(x.shape[2:]) == (side, side):
            return x
        return F.interpolate(x, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)

    def pixels_of(self, images: Any) -> Tensor:
        """(B, 3, S, S) in [0, 1] on the model's device, of paths, PIL images or arrays (H, W, 3), or of (B, 3, H, W) in one array.

        Raises:
            BadSampleError: a file that is no image.
        """
        if isinstance(images, (np.ndarray, Tensor)):
            return self.prepare(images)
        from mc_vision_language.data.images import read_image, squashed

        return self.prepare(np.stack([np.asarray(squashed(read_image(image), self.image_size)) for image in images]))

    def tokens_of(self, texts: Sequence[str], max_length: int | None = None) -> tuple[Tensor, Tensor]:
        """(B, L) ids and attention mask of texts on the model's device, cleaned as captions are; what is too long is cut.

        Args:
            texts: B of them.
            max_length: tokens, special ones included; default: that of the text encoder.

        Raises:
            ConfigError: one text instead of a list, or a model without tokenizer.
        """
        tokens = self.tokenized(texts, max_length)
        ids_BL, mask_BL = padded(tokens.ids, tokens.lengths, self.config.text.pad_id)
        return ids_BL.to(self.device), mask_BL.to(self.device)

    def tokenized(self, texts: Sequence[str], max_length: int | None = None) -> Tokens:
        """The same as ragged rows, which are padded later."""
        if isinstance(texts, str):
            raise ConfigError("give a list of texts, not one text: put it into brackets")
        if self.tokenizer is None:
            raise ConfigError(
                f"this model has no tokenizer: give {type(self).__name__} one, or load the model from its run"
            )
        cleaned = [clean_caption(one, self.config.captions) for one in texts]
        return tokenize(self.tokenizer, cleaned, max_length or self.config.text.max_length)

    def take_tokenizer(self, tokenizer: PreTrainedTokenizerFast | None) -> None:
        """Use this tokenizer from now on.

        Raises:
            ConfigError: it does not fit the text encoder.
        """
        if tokenizer is None:
            return
        from mc_vision_language.tokenizers import check_tokenizer, with_sep

        check_tokenizer(tokenizer, self.words)
        self._tokenizer = Shared(with_sep(tokenizer, self.config.text.add_sep))

    @property
    def words(self) -> int:
        """Rows of the table of word embeddings."""
        found = next(part for part in self.modules() if hasattr(part, "word_embeddings"))
        table: Any = found.word_embeddings
        return int(table.num_embeddings)

    def save(self, folder: StrPath, *, card: Mapping[str, Any] | str | None = None) -> Path:
        """Save as a folder: configuration, weights, tokenizer, model card, and what else the model needs.

        Raises:
            ConfigError: the folder cannot be written. RunError: the disk is full.
        """
        folder = Path(folder)
        if folder.exists():
            self._save_beside(folder)
            return save_model(self, folder, card=card)
        with staging(folder) as stage:
            save_model(self, stage / "model", card=card)
            self._save_beside(stage / "model")
            (stage / "model").rename(folder)
            sync_folder(folder.parent)
        return folder

    def save_extras(self, folder: Path) -> None:
        """Write what belongs to the model besides its weights and its tokenizer. Default: nothing."""

    def load_extras(self, folder: Path) -> None:
        """Read what :meth:`save_extras` wrote."""

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer, where there is one, into a folder."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
            (folder / "chat_template.jinja").unlink(missing_ok=True)

    def load_beside(self, folder: Path) -> None:
        """Read tokenizer and extras from the folder of a saved model."""
        if (folder / "tokenizer.json").is_file():
            from mc_vision_language.tokenizers import load_tokenizer

            self.take_tokenizer(load_tokenizer(folder))
        self.load_extras(folder)

    def _save_beside(self, folder: Path) -> None:
        self.save_tokenizer(folder)
        self.save_extras(folder)


def load_saved(place: StrPath, kind: type[Model], said: str, *, device: str | torch.device = "cpu") -> Model:
    """A saved model with what stands beside it, in evaluation mode.

    Args:
        place: its folder, or the folder of the run that made it.
        kind: what it must be.
        said: that in words.
        device: to put it on.

    Raises:
        CheckpointError: no such model, a damaged one, or one of another kind.
    """
    folder = Path(place)
    folder = folder / "model" if (folder / "model" / "config.json").is_file() else folder
    model = load_model(folder, device=device)
    if not isinstance(model, kind):
        raise CheckpointError(f"{folder} holds a {type(model).__name__}, not {said}")
    model.load_beside(folder)
    return model


def with_tokenizer(config: Config, tokenizer: PreTrainedTokenizerFast) -> Config:
    """With the ids of the tokenizer's special tokens and, for an encoder of our own, its size.

    Raises:
        ConfigError: a tokenizer without one of them.
    """
    names = {"pad_id": "pad_token_id", "cls_id": "cls_token_id", "sep_id": "sep_token_id", "mask_id": "mask_token_id"}
    found: dict[str, Any] = {ours: getattr(tokenizer, theirs) for ours, theirs in names.items()}
    missing = [names[name].removesuffix("_id") for name, value in found.items() if value is None]
    if missing:
        raise ConfigError(f"the tokenizer has no {', '.join(missing)}: take that of a BERT-style model, or train one")
    if config.text.name is None:
        found["vocabulary"] = max(len(tokenizer), 8)
    return config.model_copy(update={"text": config.text.model_copy(update=found)})
