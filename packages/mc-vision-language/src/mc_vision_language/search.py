"""Search among one's own pictures by a sentence, and captions for a picture: by cosine, then the best ranked again by matching.

>>> import tempfile
>>> from mc_vision_language.data.images import ArrayImages
>>> from mc_vision_language.encoders_config import ImageEncoderConfig, TextEncoderConfig, VisionLanguageConfig
>>> from mc_vision_language.tokenizers import train_tokenizer
>>> image = ImageEncoderConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2)
>>> text = TextEncoderConfig(hidden_size=16, heads=2, text_layers=1, fusion_layers=1, vocabulary=64)
>>> model = VisionLanguageModel(
...     VisionLanguageConfig(image=image, text=text, dim=8), train_tokenizer(["a dog"], 64)
... ).eval()
>>> photos = ArrayImages(np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8))
>>> with tempfile.TemporaryDirectory() as folder:
...     index = SearchIndex.build(model, photos, folder)
...     found = index.search("a dog", top=3, rerank=2)
>>> len(index), len(found), found[0].match is not None, found[2].match is None
(5, 3, True, True)

Legend: N pictures, K candidates ranked again, M captions, d width of the shared space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mc_core.engine.run import locked
from mc_core.errors import BadSampleError, CheckpointError, ConfigError, DataError
from mc_core.files import StrPath, remove_partial
from mc_core.modules import evaluating
from mc_vision_language.data.images import ArrayImages, ImageSet, Readable
from mc_vision_language.evaluation.ranking import shortlist
from mc_vision_language.gallery import BATCH, Captions, Gallery, picture_batches, score_pairs
from mc_vision_language.index_files import (
    INDEX_FILE,
    IndexFiles,
    Parts,
    Stored,
    identities,
    is_ours,
    model_fingerprint,
    pack_tokens,
    read_index,
    writing,
)
from mc_vision_language.model import VisionLanguageModel

RERANK = 32
_BATCHES = 16  # encoded between two looks at what is known: one batch is decoded while another is encoded
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Hit:
    """A picture found.

    Attributes:
        row: in the index.
        name: path of the picture, or its key.
        cosine: of picture and text, in [−1, 1].
        match: logit of a match; None where it was not among those ranked again.
    """

    row: int
    name: str
    cosine: float
    match: float | None


@dataclass(frozen=True)
class CaptionHit:
    """A caption found.

    Attributes:
        row: in the list of captions.
        text: the caption.
        cosine: of picture and text, in [−1, 1].
        match: logit of a match; None where it was not among those ranked again.
    """

    row: int
    text: str
    cosine: float
    match: float | None


class SearchIndex:
    """Pictures of a folder, a tar or an array, ready to be searched; see :meth:`build` and :meth:`open`.

    Attributes:
        model: that encoded the pictures.
        files: what the index holds.
        left_out: pictures that could not be read when the index was built now; empty for one that was opened.
        encoded: pictures that went through the encoder when the index was built now.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        files: IndexFiles,
        *,
        left_out: Sequence[BadSampleError] = (),
        encoded: int = 0,
    ) -> None:
        self.model, self.files = model, files
        self.left_out, self.encoded = tuple(left_out), encoded

    def __len__(self) -> int:
        return len(self.files.names)

    @classmethod
    def open(cls, model: VisionLanguageModel, folder: StrPath) -> SearchIndex:
        """The index in a folder, without looking at the pictures.

        Raises:
            CheckpointError: no index, a damaged one, or one of another model.
        """
        return cls(model, read_index(Path(folder), model_fingerprint(model)))

    @classmethod
    def build(
        cls,
        model: VisionLanguageModel,
        images: ImageSet,
        folder: StrPath,
        *,
        tokens: Stored = "int8",
        batch_size: int = BATCH,
        progress: Progress | None = None,
    ) -> SearchIndex:
        """Encode pictures into a folder; those that its index has from the same model, unchanged, are not encoded again.

        The folder holds the old index until the new one is whole. Pictures that cannot be read are left out, see ``left_out``.

        Args:
            model: with a tokenizer.
            images: N pictures.
            folder: new, empty, or holding an index.
            tokens: how tokens are kept for ranking again: ``"int8"``, ``"float16"`` (twice the size) or ``"none"``.
            batch_size: pictures encoded together.
            progress: called with the share done.

        Raises:
            ConfigError: the folder cannot be written, holds something else, or another process writes to it.
            DataError: no picture, or none that can be read. RunError: the disk is full.
        """
        folder = Path(folder)
        if tokens not in ("int8", "float16", "none"):
            raise ConfigError(f"tokens={tokens!r}: keep them as 'int8', 'float16' or 'none'")
        if not len(images):
            raise DataError("there are no pictures to index")
        if folder.is_dir() and not (folder / INDEX_FILE).exists() and not all(map(is_ours, _entries(folder))):
            raise ConfigError(f"{folder} holds files but no {INDEX_FILE}: name an empty or a new folder for the index")
        with locked(folder):
            remove_partial(folder)
            digest = model_fingerprint(model)
            left_out, encoded = _write(model, digest, images, folder, tokens, batch_size, progress)
            files = read_index(folder, digest)
        return cls(model, files, left_out=left_out, encoded=encoded)

    def search(self, text: str, top: int = 10, *, rerank: int | None = None) -> list[Hit]:
        """The pictures that fit a sentence best.

        Args:
            text: cleaned as captions are.
            top: how many pictures; fewer where the index has fewer.
            rerank: K, of the best by cosine that are ordered by the logit of a match; the others stay behind them. 0: none.
                Default: 32, or none where the model learned no matching.

        Raises:
            ConfigError: ``top`` below 1, ``rerank`` below 0, or above where the model learned no matching. DataError: no words, or
                the index keeps no tokens.
        """
        rerank = _again(self.model, rerank)
        if top < 1 or rerank < 0:
            raise ConfigError(f"top={top}, rerank={rerank}: ask for one picture or more, and rank 0 or more again")
        if not text.strip():
            raise DataError("no words to search for")
        caption = Captions(self.model, [text])
        # by torch, as the text encoder: NumPy's threads would wait for work and take the cores from those of torch
        cosine_N = torch.mv(torch.from_numpy(self.files.features), torch.from_numpy(caption.features[0])).numpy()
        best = shortlist(cosine_N[None], max(top, rerank))[0]
        match: dict[int, float] = {}
        if rerank:
            scores = self._matches(caption, best[:rerank])
            best[:rerank] = best[:rerank][np.argsort(-scores, kind="stable")]
            match = dict(zip(best[:rerank].tolist(), sorted(scores.tolist(), reverse=True), strict=True))
        return [Hit(row, self.files.names[row], float(cosine_N[row]), match.get(row)) for row in best[:top].tolist()]

    def captions_for(
        self, image: Readable, captions: Sequence[str] | Captions, top: int = 5, *, rerank: int | None = None
    ) -> list[CaptionHit]:
        """The captions that fit a picture best; see :func:`captions_for`."""
        return captions_for(self.model, image, captions, top, rerank=rerank)

    @torch.inference_mode()
    def _matches(self, caption: Captions, rows: np.ndarray) -> np.ndarray:
        """(K,) logits of one text with these pictures."""
        model = self.model
        with evaluating(model):
            tokens = self.files.tokens_of(rows).to(model.device, caption.states.dtype)
            states, mask = (one.expand(len(rows), *one.shape[1:]) for one in (caption.states, caption.mask))
            fused = model.backbone.fuse_first(states, mask, model.backbone.keys(tokens))
            return model.itm_head(fused)[:, 1].float().cpu().numpy()


def _again(model: VisionLanguageModel, asked: int | None) -> int:
    """How many are ranked again."""
    if asked:
        model.need_matching()
    return (RERANK if model.config.matching else 0) if asked is None else asked


def captions_for(
    model: VisionLanguageModel,
    image: Readable,
    captions: Sequence[str] | Captions,
    top: int = 5,
    *,
    rerank: int | None = None,
) -> list[CaptionHit]:
    """The captions that fit a picture best.

    Args:
        model: with a tokenizer.
        image: path, PIL image or array.
        captions: M texts; to ask often, encode them once as :class:`~mc_vision_language.gallery.Captions`.
        top: how many.
        rerank: of the best by cosine that are ordered by the logit of a match. 0: none. Default: 32, or none where the model
            learned no matching.

    Raises:
        ConfigError: ``top`` below 1, ``rerank`` below 0, or above where the model learned no matching. DataError: no captions.
        BadSampleError: a file that is no image.
    """
    rerank = _again(model, rerank)
    if top < 1 or rerank < 0:
        raise ConfigError(f"top={top}, rerank={rerank}: ask for one caption or more, and rank 0 or more again")
    if not len(captions):
        raise DataError("no captions to choose from")
    known = captions if isinstance(captions, Captions) else Captions(model, captions)
    pixels = (model.pixels_of([image]) * 255).round().byte().cpu()
    gallery = Gallery(model, ArrayImages(pixels))
    cosine_M = known.features @ gallery.features[0]
    best = shortlist(cosine_M[None], max(top, rerank))[0]
    match: dict[int, float] = {}
    if rerank:
        scores = score_pairs(gallery, known, np.zeros_like(best[:rerank]), best[:rerank])
        best[:rerank] = best[:rerank][np.argsort(-scores, kind="stable")]
        match = dict(zip(best[:rerank].tolist(), sorted(scores.tolist(), reverse=True), strict=True))
    return [CaptionHit(row, known.texts[row], float(cosine_M[row]), match.get(row)) for row in best[:top].tolist()]


def _entries(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def _kept(folder: Path, digest: str, stored: Stored) -> IndexFiles | None:
    try:
        files = read_index(folder, digest)
    except CheckpointError:
        return None
    return files if files.stored == stored else None


def _write(
    model: VisionLanguageModel,
    digest: str,
    images: ImageSet,
    folder: Path,
    stored: Stored,
    batch_size: int,
    progress: Progress | None,
) -> tuple[list[BadSampleError], int]:
    """Write the index; the pictures that could not be read, and how many were encoded."""
    names, marks = identities(images)
    old = _kept(folder, digest, stored)
    known = {} if old is None else {mark: row for row, mark in enumerate(old.identities) if mark}
    left_out: list[BadSampleError] = []
    encoded, pace = 0, _BATCHES * batch_size
    with writing(folder, stored, digest, {"image_size": model.image_size}) as writer:
        for first in range(0, len(names), pace):
            rows = range(first, min(first + pace, len(names)))
            made = _encode(
                model, images, [row for row in rows if marks[row] not in known], stored, batch_size, left_out
            )
            encoded += len(made)
            for row in rows:
                parts = made.get(row)
                if parts is None and old is not None and marks[row] in known:
                    parts = old.rows_of(np.array([known[marks[row]]]))
                if parts is not None:
                    writer.add([names[row]], [marks[row]], *parts)
            if progress is not None:
                progress((rows[-1] + 1) / len(names))
        if not writer.names and left_out:
            raise DataError(f"none of the {len(names)} pictures can be read; the first: {left_out[0]}")
    return left_out, encoded


def _encode(
    model: VisionLanguageModel,
    images: ImageSet,
    rows: list[int],
    stored: Stored,
    batch_size: int,
    left_out: list[BadSampleError],
) -> dict[int, Parts]:
    """Features, tokens and scales of each of these pictures, as they are kept."""
    found: dict[int, Parts] = {}
    if not rows:
        return found
    with torch.inference_mode(), evaluating(model):
        batches = picture_batches(images, model.image_size, rows=rows, batch_size=batch_size, left_out=left_out)
        for part, pixels in batches:
            tokens = model.backbone.image_tokens(model.prepare(pixels))
            features = model.backbone.embed_image_tokens(tokens).float().cpu().numpy()
            packed, scales = pack_tokens(tokens, stored)
            for place, row in enumerate(part.tolist()):
                at = slice(place, place + 1)
                found[row] = Parts(
                    features[at], None if packed is None else packed[at], None if scales is None else scales[at]
                )
    return found
