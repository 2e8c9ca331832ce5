"""Features of image patches, and which object each patch belongs to: what the label-free evaluations are made of.

Legend: B images, C channels, S side of the resized image in pixels, h × w grid of patches, N = h·w patches, D features,
O objects.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mc_core.errors import ConfigError, DataError
from mc_core.images.decoding import to_channels
from mc_vision.data.masks import VOID
from mc_vision.encoders import TimmEncoder
from mc_vision.transforms_config import IMAGENET_MEAN, IMAGENET_STD

MIXED = -3
"""Label of a patch of which no object, nor the ground, nor void has half."""
LEAST_PATCHES = 3
"""Objects with fewer are skipped."""
_REDUCING_GAP = 3.0  # PIL's "almost the same as the fair resampling"
_EXACT = 1 << 30


def patch_size(encoder: nn.Module) -> int:
    """Side of the square patches in pixels.

    Raises:
        ConfigError: the encoder has no patch tokens, or its patches are not square.
    """
    size = getattr(getattr(getattr(encoder, "backbone", None), "patch_embed", None), "patch_size", None)
    if size is None or not isinstance(encoder, TimmEncoder):
        raise _no_tokens(encoder)
    size = (size, size) if isinstance(size, int) else size
    if size[0] != size[1]:
        raise ConfigError(
            f"{_name(encoder)} has patches of {size[0]}×{size[1]} pixels, these evaluations take square ones"
        )
    return int(size[0])


def check_size(size: int, patch: int) -> int:
    """``size`` when patches fill it.

    Raises:
        ConfigError: they do not; with the nearest sizes that would do.

    >>> check_size(480, 16)
    480
    """
    if size < patch or size % patch:
        near = [side for side in (size // patch * patch, -(-size // patch) * patch) if side > 0]
        raise ConfigError(
            f"image size {size} is not filled by patches of {patch} pixels: take {' or '.join(map(str, near))}"
        )
    return size


def image_tensor(
    images: Sequence[Image.Image],
    size: int | tuple[int, int],
    *,
    patch: int = 1,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    names: Sequence[str] | None = None,
) -> Tensor:
    """Whole images resized to one size, whatever their shape, and normalised.

    Args:
        images: to resize.
        size: S, or (height, width).
        patch: an image must have at least one patch of so many pixels.
        mean: of the normalisation; 1 number for gray images, 3 for colour.
        std: of the normalisation.
        names: of the images, for the error message.

    Returns:
        (B, C, height, width) float32, C as ``mean`` has numbers.

    Raises:
        DataError: an image is smaller than a patch.

    >>> image_tensor([Image.new("RGB", (30, 20))], 16).shape
    torch.Size([1, 3, 16, 16])
    """
    height, width = (size, size) if isinstance(size, int) else size
    made = []
    for i, image in enumerate(images):
        if min(image.size) < patch:
            name = names[i] if names is not None else "the image"
            raise DataError(f"{name} is {image.width}×{image.height} pixels, smaller than one patch ({patch}×{patch})")
        image = to_channels(image, len(mean))
        assert isinstance(image, Image.Image)
        resized = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=_REDUCING_GAP)
        made.append(torch.from_numpy(np.array(resized)).view(height, width, len(mean)))
    x_BCHW = torch.stack(made).permute(0, 3, 1, 2).float().div_(255)
    statistics = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return x_BCHW.sub_(next(statistics)).div_(next(statistics))


@torch.no_grad()
def patch_features(
    encoder: nn.Module, x_BCHW: Tensor, *, layer: int = -1, norm: bool = True, keys: bool = False
) -> Tensor:
    """L2-normalised features of the patches.

    By default the tokens after the last LayerNorm, as the evaluations of MMC take them; other work on dense features reads
    other places, and results are comparable only at the same one.

    Args:
        encoder: a :class:`~mc_vision.encoders.TimmEncoder` with patch tokens, in evaluation mode.
        x_BCHW: normalised images, see :func:`image_tensor`.
        layer: block whose output is taken; -1 is the last.
        norm: apply the last LayerNorm to that output.
        keys: take the keys of that block's attention instead of its output (then ``norm`` has no effect).

    Returns:
        (B, h, w, D) float32 of unit length.

    Raises:
        ConfigError: no patch tokens, or no such layer or keys.
        DataError: images that the encoder does not take.

    >>> from mc_vision.encoders_config import EncoderConfig
    >>> encoder = TimmEncoder(EncoderConfig(backbone="moco-vit-tiny-8")).eval()
    >>> patch_features(encoder, torch.zeros(2, 3, 32, 48)).shape
    torch.Size([2, 4, 6, 96])
    """
    patch = patch_size(encoder)
    assert isinstance(encoder, TimmEncoder)
    backbone: Any = encoder.backbone
    depth = len(getattr(backbone, "blocks", ()))
    if (layer != -1 or keys) and not -depth <= layer < depth:
        raise ConfigError(f"layer {layer}: {_name(encoder)} has the layers 0 to {depth - 1}, or -1 for the last")
    try:
        if keys:
            with _attention_keys(encoder, layer) as found:
                encoder.forward_tokens(x_BCHW)
            tokens_BND = found[0]
        elif layer in (-1, depth - 1) and norm:
            tokens_BND = encoder.forward_tokens(x_BCHW)
        else:
            if not hasattr(backbone, "forward_intermediates"):
                raise ConfigError(f"{_name(encoder)} gives its last layer only: leave layer at -1 and norm on")
            tokens_BND = backbone.forward_intermediates(
                x_BCHW, indices=[layer % depth], norm=norm, output_fmt="NLC", intermediates_only=True
            )[0]
    except ConfigError as error:
        raise _no_tokens(encoder) if "has no patch tokens" in str(error) else error from error
    h, w = x_BCHW.shape[2] // patch, x_BCHW.shape[3] // patch
    if tokens_BND.shape[1] != h * w:
        raise _no_tokens(encoder)
    return F.normalize(tokens_BND.float(), dim=2).unflatten(1, (h, w))


def random_twin(encoder: nn.Module, seed: int = 0) -> TimmEncoder:
    """The same architecture as it was before any training: a control. The global random state is left alone."""
    patch_size(encoder)
    assert isinstance(encoder, TimmEncoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TimmEncoder.from_config(encoder.config).eval()


def color_features(x_BCHW: Tensor, patch: int) -> Tensor:
    """Mean and standard deviation of each channel in each patch, L2-normalised: a control that knows nothing but colour.

    Values are centred by the normalisation of the images; without that, all colours would point the same way.

    Returns:
        (B, h, w, 2C) float32; zeros where a patch is exactly of mean colour.
    """
    mean_BChw = F.avg_pool2d(x_BCHW, patch)
    mean_of_square = F.avg_pool2d(x_BCHW.square(), patch)
    std_BChw = (mean_of_square - mean_BChw.square()).clamp_(min=0).sqrt_()
    return F.normalize(torch.cat([mean_BChw, std_BChw], dim=1), dim=1).permute(0, 2, 3, 1)


def similarity_matrix(z_hwD: Tensor) -> Tensor:
    """(N, N) float64 cosine similarity of all patches of one image, on the CPU.

    Rounded to 2⁻³⁰, far below the error of float32 features: otherwise the order of summation would tell equal
    similarities apart.

    >>> similarity_matrix(torch.tensor([[[3.0, 0.0], [0.0, 0.1]]])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    z_ND = F.normalize(z_hwD.detach().flatten(0, 1).cpu().double(), dim=1)
    gram_NN = (z_ND @ z_ND.T).mul_(_EXACT).round_().div_(_EXACT).clamp_(-1, 1)
    return gram_NN.fill_diagonal_(1.0)


@dataclass(frozen=True)
class PatchObjects:
    """Which object each patch of an image belongs to.

    Attributes:
        labels: (h, w) int64: position in ``kept``, or ``BACKGROUND``, ``VOID``, ``MIXED``.
        kept: (O,) int64 positions of the objects in the image's ``ids``.
        skipped: objects with too few patches.
    """

    labels: Tensor
    kept: Tensor
    skipped: int

    @property
    def members(self) -> Tensor:
        """(O, h, w) bool."""
        return self.labels == torch.arange(len(self.kept))[:, None, None]


def patch_objects(objects_SS: np.ndarray, count: int, patch: int, *, least: int = LEAST_PATCHES) -> PatchObjects:
    """A patch belongs to the object that covers at least half of its pixels, of two halves to the first.

    Background and void take patches by the same rule; what is left, and the patches of objects that are skipped, is
    ``MIXED``.

    Args:
        objects_SS: as ``MaskedImage.resized`` gives them, both sides multiples of ``patch``.
        count: objects of the image.
        patch: side of a patch in pixels.
        least: objects with fewer patches are skipped; MMC's loader says 3 (and does not do it).

    >>> patch_objects(np.array([[0, 0, 0, -1]] * 4, np.int32).repeat(2, 1), 1, 2, least=1).labels.tolist()
    [[0, 0, 0, -1], [0, 0, 0, -1]]
    """
    h, w = (side // patch for side in objects_SS.shape)
    where_SS = (np.arange(h).repeat(patch) * w)[:, None] + np.arange(w).repeat(patch)
    codes = where_SS * (count + 2) + (objects_SS + 2)  # void first, then the ground, then objects
    pixels_NO = torch.from_numpy(np.bincount(codes.ravel(), minlength=h * w * (count + 2)).reshape(h * w, count + 2))
    of_special, special = pixels_NO[:, :2].max(1)
    half = patch * patch / 2
    labels = torch.where(of_special >= half, special + VOID, MIXED)
    if count:
        of_object, first = pixels_NO[:, 2:].max(1)
        labels = torch.where(of_object >= half, first, labels)
    return _large_enough(labels.view(h, w), torch.arange(count), 0, least)


def without_patches(patches: PatchObjects, left_out_hw: Tensor, *, least: int = LEAST_PATCHES) -> PatchObjects:
    """The same with some patches void: they count neither for nor against, and nobody points at them.

    Objects of which fewer than ``least`` patches remain are skipped.

    >>> objects = PatchObjects(torch.tensor([[0, 0, 1, -1]]), torch.tensor([4, 7]), 0)
    >>> left = without_patches(objects, torch.tensor([[False, False, True, False]]), least=1)
    >>> left.labels.tolist(), left.kept.tolist(), left.skipped
    ([[0, 0, -2, -1]], [4], 1)
    """
    return _large_enough(torch.where(left_out_hw, VOID, patches.labels), patches.kept, patches.skipped, least)


def _large_enough(labels_hw: Tensor, kept: Tensor, skipped: int, least: int) -> PatchObjects:
    """Objects with ``least`` patches, renumbered."""
    if not len(kept):
        return PatchObjects(labels_hw, kept, skipped)
    enough = torch.bincount(labels_hw[labels_hw >= 0], minlength=len(kept)) >= least
    renumbered = torch.where(enough, enough.cumsum(0) - 1, MIXED)
    labels_hw = torch.where(labels_hw >= 0, renumbered[labels_hw.clamp(min=0)], labels_hw)
    return PatchObjects(labels_hw, kept[enough], skipped + int((~enough).sum()))


def long_tokens(length_Bhw: Tensor, multiple: float) -> Tensor:
    """(B, h, w) bool: patches whose token is longer than ``multiple`` times the median of its image.

    >>> long_tokens(torch.tensor([[[1.0, 1.2, 0.9, 9.0]]]), 3.0).tolist()
    [[[False, False, False, True]]]
    """
    return length_Bhw > multiple * length_Bhw.flatten(1).median(1).values[:, None, None]


@contextlib.contextmanager
def token_lengths(encoder: nn.Module, layer: int = -1) -> Generator[list[Tensor]]:
    """While images are encoded: (B, N) lengths of the patches' tokens as one block leaves them, before any LayerNorm.

    Large transformers keep notes on a whole image in a few patches of its background, whose tokens stand out by their length
    (Darcet et al. 2024, "Vision Transformers Need Registers", arXiv:2309.16588).

    Args:
        encoder: with patch tokens.
        layer: of the block; -1 is the last.

    Yields:
        A list that grows by a tensor for each batch; it stays empty where a block does not give tokens.
    """
    assert isinstance(encoder, TimmEncoder)
    prefix = getattr(encoder.backbone, "num_prefix_tokens", 0)
    blocks: Any = getattr(encoder.backbone, "blocks", ())

    def lengths(tokens: Tensor) -> Tensor:
        return tokens.flatten(1, -2)[:, prefix:].float().norm(dim=2)

    with _hooked(blocks[layer] if len(blocks) else None, lengths) as found:
        yield found


@contextlib.contextmanager
def _attention_keys(encoder: TimmEncoder, layer: int) -> Generator[list[Tensor]]:
    """Collects (B, N, D) keys of one block while the block runs."""
    backbone: Any = encoder.backbone
    projection = getattr(getattr(backbone.blocks[layer], "attn", None), "qkv", None)
    if projection is None:
        raise ConfigError(f"{_name(encoder)} does not compute query, key and value together: leave keys off")
    prefix = getattr(backbone, "num_prefix_tokens", 0)
    with _hooked(projection, lambda output: output.chunk(3, dim=2)[1][:, prefix:]) as found:
        yield found


@contextlib.contextmanager
def _hooked(module: nn.Module | None, read: Callable[[Tensor], Tensor]) -> Generator[list[Tensor]]:
    """Collects what ``read`` makes of each output of a module."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found.append(read(output))

    handle = None if module is None else module.register_forward_hook(keep)
    try:
        yield found
    finally:
        if handle is not None:
            handle.remove()


def _name(encoder: nn.Module) -> str:
    config = getattr(encoder, "config", None)
    return f"backbone '{config.backbone}'" if hasattr(config, "backbone") else f"encoder {type(encoder).__name__}"


def _no_tokens(encoder: nn.Module) -> ConfigError:
    return ConfigError(
        f"{_name(encoder)} has no patch tokens to compare: it serves pretrain, embed, export and evaluate with the "
        "protocols knn, linear and cluster; this takes a vision transformer (such as vit_small_patch16_224)"
    )
