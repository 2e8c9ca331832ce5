"""Where the weights of a task come from: those of a pretrained model, also for larger images or another head."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mc_core.errors import CheckpointError
from mc_vision_language.backbone import Backbone
from mc_vision_language.fusion import FusionEncoder, FusionLayer
from mc_vision_language.tasks.vocabulary import grown_rows

_PLACES = "image.backbone.pos_embed"
_WORDS = ("text.transformer.embeddings.word_embeddings.weight", "lm_head.bias")


@torch.no_grad()
def load_backbone(
    target: Backbone, source: Backbone, *, fusion: bool = True, pieces: Sequence[Sequence[int]] = ()
) -> None:
    """Take the weights of a pretrained backbone; the table of positions is resized where images have another size.

    Args:
        target: to fill.
        source: pretrained.
        fusion: also the fusion layers.
        pieces: of words that the target knows besides; see :func:`mc_vision_language.tasks.vocabulary.with_words`.

    Raises:
        CheckpointError: the two are not built alike; the message names what differs.
    """
    state = dict(source.state_dict())
    for name in _WORDS if pieces else ():
        state[name] = grown_rows(state[name], pieces)
    if _PLACES in state and target.image.grid != source.image.grid:
        extra = state[_PLACES].shape[1] - source.image.grid[0] * source.image.grid[1]
        state[_PLACES] = resized_places(state[_PLACES], source.image.grid, target.image.grid, extra)
    ours = {name: tensor for name, tensor in target.state_dict().items() if fusion or not name.startswith("fusion.")}
    wrong = [
        f"{name} is {tuple(state[name].shape) if name in state else 'not there'}, not {tuple(tensor.shape)}"
        for name, tensor in ours.items()
        if name not in state or state[name].shape != tensor.shape
    ]
    if wrong:
        raise CheckpointError(f"the pretrained model does not fit this task's settings: {'; '.join(wrong[:3])}")
    target.load_state_dict({name: state[name] for name in ours}, strict=fusion)


def resized_places(table: Tensor, old: tuple[int, int], new: tuple[int, int], extra: int) -> Tensor:
    """(1, extra + P′, D) of a table of positions (1, extra + P, D): bicubic, what belongs to no patch is kept.

    Args:
        table: positions, first those of ``extra`` tokens that are no patches.
        old, new: rows and columns of patches.
        extra: tokens that are no patches, such as [CLS].
    """
    places = table[:, extra:].unflatten(1, old).permute(0, 3, 1, 2)
    places = nn.functional.interpolate(places.float(), new, mode="bicubic", antialias=False, align_corners=False)
    return torch.cat([table[:, :extra], places.flatten(2).transpose(1, 2).to(table.dtype)], 1)


def without_unused(backbone: Backbone, *names: str) -> Backbone:
    """The same, with parts that this task does not use kept as they are: they take no gradient."""
    for name in names:
        getattr(backbone, name).requires_grad_(False)
    return backbone


@torch.no_grad()
def load_decoder_layers(target: FusionEncoder, source: FusionEncoder) -> None:
    """Start a decoder from the last fusion layers. Keys and values of the cross-attention come along where their width fits.

    Raises:
        CheckpointError: more decoder layers than fusion layers.
    """
    if len(target) > len(source):
        raise CheckpointError(
            f"{len(target)} decoder layers cannot start from {len(source)} fusion layers: take as many or fewer"
        )
    for ours, theirs in zip(target.layers, source.layers[-len(target) :], strict=True):
        state = ours.state_dict()
        state |= {name: tensor for name, tensor in theirs.state_dict().items() if tensor.shape == state[name].shape}
        ours.load_state_dict(state)


def doubled(fusion: FusionEncoder) -> FusionEncoder:
    """Every layer twice in a row; keys and values of a pair are projected by the same two layers, all else is separate."""
    twice = copy.deepcopy(fusion)
    pairs: list[nn.Module] = []
    for layer in fusion.layers:
        first, second = copy.deepcopy(layer), copy.deepcopy(layer)
        assert isinstance(first, FusionLayer)
        assert isinstance(second, FusionLayer)
        second.cross_attention.key = first.cross_attention.key
        second.cross_attention.value = first.cross_attention.value
        pairs += [first, second]
    twice.layers = nn.ModuleList(pairs)
    return twice


@torch.no_grad()
def load_doubled(target: FusionEncoder, source: FusionEncoder) -> None:
    """Take the weights of each fusion layer for both of its pair.

    Raises:
        CheckpointError: not twice as many layers.
    """
    if len(target) != 2 * len(source):
        raise CheckpointError(f"{len(target)} layers in pairs cannot start from {len(source)} fusion layers")
    for place, ours in enumerate(target.layers):
        ours.load_state_dict(source.layers[place // 2].state_dict())
