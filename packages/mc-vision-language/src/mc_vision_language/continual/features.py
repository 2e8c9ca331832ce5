"""Pictures and captions as a model sees them, for measuring and for choosing what is kept: image, text and fused features.

Legend: N pictures, R samples, d width of the shared space, h features of a text token.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize

from mc_core.modules import evaluating
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.gallery import BATCH, picture_batches
from mc_vision_language.model import VisionLanguageModel


@torch.inference_mode()
def fused_features(
    model: VisionLanguageModel,
    pairs: Pairs,
    captions: np.ndarray | None = None,
    *,
    batch_size: int = 2 * BATCH,
) -> tuple[np.ndarray, np.ndarray]:
    """(R, d) image features and (R, h) features of image and caption together, float32 unit rows, in evaluation mode.

    The fused feature is the first token of the fusion layers, as CTP retrieves by; there is no projection.

    Args:
        model: with a tokenizer.
        pairs: N pictures with captions.
        captions: (R,) which captions, each with its picture; default: the first of each picture.
        batch_size: samples encoded together.

    Raises:
        BadSampleError: a picture that cannot be read.
    """
    chosen = pairs.first_caption[:-1] if captions is None else np.asarray(captions, dtype=np.int64)
    pictures = pairs.image_of[chosen]
    images = np.empty((len(chosen), model.config.dim), dtype=np.float32)
    fused = np.empty((len(chosen), model.backbone.text.num_features), dtype=np.float32)
    backbone, done = model.backbone, 0
    with evaluating(model):
        for rows, pixels in picture_batches(pairs.images, model.image_size, rows=pictures, batch_size=batch_size):
            part = slice(done, done + len(rows))
            done += len(rows)
            ids, mask = model.tokens_of([pairs.captions[i] for i in chosen[part].tolist()])
            tokens, states = backbone.image_tokens(model.prepare(pixels)), backbone.text_states(ids, mask)
            first = backbone.fuse_first(states, mask, backbone.keys(tokens))
            images[part] = backbone.embed_image_tokens(tokens).float().cpu().numpy()
            fused[part] = normalize(first.float(), dim=1).cpu().numpy()
    return images, fused
