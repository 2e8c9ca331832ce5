"""Many pictures seen once, and the scores of many (picture, caption) pairs: what retrieval and search are made of.

Legend: N pictures, M captions, E pairs, C pictures of a chunk, S side in pixels, P patches, D features of an image token, L tokens
of a text, h their features, d width of the shared space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from mc_core.errors import BadSampleError, DataError
from mc_core.modules import evaluating
from mc_core.pool import available_processes
from mc_core.random import sample_rng
from mc_core.tokens import padded
from mc_vision_language.data.images import ImageSet
from mc_vision_language.data.views import ImageViews
from mc_vision_language.model import VisionLanguageModel

BATCH = 32
KEEP = 1 << 30  # bytes of image tokens that are kept rather than made again
_PAIRS = 128  # scored together


def picture_batches(
    images: ImageSet,
    size: int,
    *,
    rows: Sequence[int] | np.ndarray | None = None,
    batch_size: int = BATCH,
    left_out: list[BadSampleError] | None = None,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Whole pictures squashed to squares, batch by batch; files are decoded by threads, one batch ahead.

    Args:
        images: N pictures.
        size: S.
        rows: which; default all, in order.
        batch_size: pictures of a batch.
        left_out: takes the errors of pictures that cannot be read, which are then left out.

    Yields:
        (C,) rows and (C, 3, S, S) uint8, or the stored size for pictures in memory.

    Raises:
        BadSampleError: a picture that cannot be read, where ``left_out`` is not given.
    """
    chosen = np.arange(len(images)) if rows is None else np.asarray(rows, dtype=np.int64)
    views = ImageViews(images, None, size)
    parts = [chosen[first : first + batch_size] for first in range(0, len(chosen), batch_size)]
    if views.in_memory:
        for part in parts:
            yield part, views.batch(part, part, 0, 0)["image"]
        return
    unused = sample_rng(0, 0, 0)

    def read(row: int) -> Tensor | BadSampleError:
        try:
            return views.sample(row, unused)
        except BadSampleError as error:
            return error

    with ThreadPoolExecutor(available_processes()) as pool:
        waiting = [pool.submit(read, row) for row in (parts[0].tolist() if parts else ())]
        for place, part in enumerate(parts):
            coming = parts[place + 1].tolist() if place + 1 < len(parts) else ()
            ready, waiting = waiting, [pool.submit(read, row) for row in coming]
            found = [one.result() for one in ready]
            bad = [one for one in found if isinstance(one, BadSampleError)]
            if bad and left_out is None:
                pool.shutdown(wait=False, cancel_futures=True)
                raise bad[0]
            if left_out is not None:
                left_out += bad
            good = [one for one in found if isinstance(one, Tensor)]
            if good:
                yield part[[isinstance(one, Tensor) for one in found]], torch.stack(good)


class Gallery:
    """Pictures as a model sees them: embedded once, and their tokens kept where they are few enough.

    Args:
        model: in evaluation mode while it works.
        images: N pictures.
        batch_size: pictures encoded together.
        keep: bytes of tokens that may be kept; beyond it pictures are encoded again when they are scored.

    Attributes:
        features: (N, d) float32 unit rows.

    Raises:
        BadSampleError: a picture that cannot be read.
    """

    def __init__(
        self, model: VisionLanguageModel, images: ImageSet, *, batch_size: int = BATCH, keep: int = KEEP
    ) -> None:
        self.model, self.images, self.batch_size = model, images, batch_size
        self.features = np.empty((len(images), model.config.dim), dtype=np.float32)
        self._tokens: Tensor | None = None
        room = True
        with torch.inference_mode(), evaluating(model):
            for rows, pixels in picture_batches(images, model.image_size, batch_size=batch_size):
                tokens = model.backbone.image_tokens(model.prepare(pixels))
                self.features[rows] = model.backbone.embed_image_tokens(tokens).float().cpu().numpy()
                if self._tokens is None and room:
                    room = len(images) * tokens[0].numel() * tokens.element_size() <= keep
                    self._tokens = tokens.new_empty((len(images), *tokens.shape[1:])) if room else None
                if self._tokens is not None:
                    self._tokens[torch.from_numpy(rows).to(tokens.device)] = tokens

    def __len__(self) -> int:
        return len(self.features)

    def tokens(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Tokens of these pictures in their order, chunk by chunk: (C,) rows and (C, 1 + P, D)."""
        if self._tokens is None:
            for part, pixels in picture_batches(
                self.images, self.model.image_size, rows=rows, batch_size=self.batch_size
            ):
                yield part, self.model.backbone.image_tokens(self.model.prepare(pixels))
            return
        for first in range(0, len(rows), self.batch_size):
            part = rows[first : first + self.batch_size]
            yield part, self._tokens[torch.from_numpy(part).to(self._tokens.device)]


class Captions:
    """Texts as a model reads them, before they meet a picture: each through the text layers once.

    Args:
        model: in evaluation mode while it works.
        texts: M of them; what is longer than the encoder takes is cut.
        batch_size: texts encoded together, in the order of their length.

    Attributes:
        texts: as given.
        features: (M, d) float32 unit rows.
        states: (M, L, h), on the model's device.
        mask: (M, L).

    Raises:
        ConfigError: a model without tokenizer.
    """

    def __init__(self, model: VisionLanguageModel, texts: Sequence[str], *, batch_size: int = 2 * BATCH) -> None:
        self.texts = tuple(texts)
        tokens = model.tokenized(self.texts)
        width = max(int(tokens.lengths.max(initial=0)), 1)
        self.features = np.empty((len(texts), model.config.dim), dtype=np.float32)
        self.states = torch.zeros((len(texts), width, model.backbone.text.num_features), device=model.device)
        self.mask = torch.zeros((len(texts), width), dtype=torch.int64, device=model.device)
        self.lengths = tokens.lengths
        order = np.argsort(-tokens.lengths, kind="stable")
        with torch.inference_mode(), evaluating(model):
            for first in range(0, len(order), batch_size):
                rows = order[first : first + batch_size]
                places, lengths = tokens.places(rows)
                ids, mask = (
                    one.to(model.device) for one in padded(tokens.ids[places], lengths, model.config.text.pad_id)
                )
                states = model.backbone.text_states(ids, mask)
                self.features[rows] = model.backbone.embed_text_states(states).float().cpu().numpy()
                at = torch.from_numpy(rows).to(model.device)
                self.states[at, : states.shape[1]] = states.float()
                self.mask[at, : mask.shape[1]] = mask

    def __len__(self) -> int:
        return len(self.features)


@torch.inference_mode()
def score_pairs(gallery: Gallery, captions: Captions, image_rows: np.ndarray, text_rows: np.ndarray) -> np.ndarray:
    """(E,) float32 logits of a match (class 1): the pictures' keys are made once, whatever number of captions meets them.

    Args:
        gallery: N pictures.
        captions: M texts, of the same model.
        image_rows: (E,) int64.
        text_rows: (E,) int64.

    Raises:
        DataError: lengths differ. ConfigError: a model that learned no matching.
    """
    gallery.model.need_matching()
    if image_rows.shape != text_rows.shape or image_rows.ndim != 1:
        raise DataError(f"{image_rows.shape} pictures and {text_rows.shape} captions: give one of each for a pair")
    model = gallery.model
    scores = np.empty(len(image_rows), dtype=np.float32)
    # pairs of one picture stand together, and texts of like length share a batch
    order = np.lexsort((captions.lengths[text_rows], image_rows))
    different, first = np.unique(image_rows[order], return_index=True)
    ends = np.append(first, len(order))
    done = 0
    with evaluating(model):
        for part, tokens in gallery.tokens(different):
            keys = model.backbone.keys(tokens)
            begin, end = ends[done], ends[done + len(part)]
            local = np.repeat(np.arange(len(part)), np.diff(ends[done : done + len(part) + 1]))
            done += len(part)
            for start in range(begin, end, _PAIRS):
                pairs = order[start : min(start + _PAIRS, end)]
                texts = text_rows[pairs]
                width = int(captions.lengths[texts].max())
                at = torch.from_numpy(texts).to(model.device)
                states, mask = captions.states[at, :width], captions.mask[at, :width]
                seen = keys.take(torch.from_numpy(local[start - begin : start - begin + len(pairs)]).to(model.device))
                fused = model.backbone.fuse_first(states.to(tokens.dtype), mask, seen)
                scores[pairs] = model.itm_head(fused)[:, 1].float().cpu().numpy()
    return scores
