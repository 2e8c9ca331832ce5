"""Both protocols for several encoders at once, beside the controls that any of them has to beat.

Legend: B images, C channels, S side of the resized image, h × w grid, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.errors import ConfigError, DataError
from mc_vision.data.masks import VOID, MaskedImages
from mc_vision.patch_evaluation.config import PatchProtocol
from mc_vision.patch_evaluation.segmentation import SegmentationResult, SegmentationTally
from mc_vision.patch_evaluation.similarity import SimilarityResult, SimilarityTally
from mc_vision.patches import (
    PatchObjects,
    check_size,
    color_features,
    image_tensor,
    long_tokens,
    patch_features,
    patch_objects,
    patch_size,
    random_twin,
    similarity_matrix,
    token_lengths,
    without_patches,
)
from mc_vision.transforms_config import IMAGENET_MEAN, IMAGENET_STD

RANDOM_INIT, MEAN_COLOR, POSITION_ONLY = "random init", "mean colour", "position only"


@dataclass(frozen=True)
class PatchResult:
    """Both protocols for one model; None where one was not asked for.

    Attributes:
        segmentation: protocol A.
        similarity: protocol B.
        long_share: share of all patches with an unusually long token; None where there are no tokens to measure.
    """

    segmentation: SegmentationResult | None
    similarity: SimilarityResult | None
    long_share: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "segmentation": None if self.segmentation is None else self.segmentation.to_dict(),
            "similarity": None if self.similarity is None else self.similarity.to_dict(),
            "long_share": self.long_share,
        }


@dataclass
class _Model:
    """What gives features (B, h, w, D) of a batch, and where there are tokens their lengths (B, h, w); and what has been
    measured of them."""

    patch: int
    encode: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    segmentation: SegmentationTally | None
    similarity: SimilarityTally | None
    feature_sum: Tensor | None = None
    long: int = 0
    measured: int = 0

    @property
    def long_share(self) -> float | None:
        """See :class:`PatchResult`."""
        return self.long / self.measured if self.measured else None

    @property
    def mean_features(self) -> Tensor:
        """(1, h, w, D) mean over the data set, the same for every image."""
        assert self.feature_sum is not None
        return F.normalize(self.feature_sum, dim=2)[None]


def evaluate_patches(
    encoders: Mapping[str, nn.Module],
    data: MaskedImages,
    protocol: PatchProtocol | None = None,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, PatchResult]:
    """Prompt segmentation and object similarity of frozen patch features.

    The controls, unless turned off: the architecture of each encoder before training; mean and standard deviation of the
    colours of each patch; each encoder's position alone, which is its feature map averaged over the data set.

    Args:
        encoders: by name, in evaluation mode, with patch tokens.
        data: images and masks.
        protocol: the settings.
        mean: of the normalisation that the encoders were trained with.
        std: of the same.
        device: where the encoders work; default CPU.
        progress: called with images done and images to do, twice the number in ``data`` when there are controls.

    Returns:
        A result for each encoder in the order given, then for each control.

    Raises:
        ConfigError: an encoder without patch tokens, or an image size that its patches do not fill.
        DataError: no image, no object large enough, or no image with two of them.
    """
    protocol = protocol or PatchProtocol()
    device = device or torch.device("cpu")
    if not encoders or not len(data):
        raise DataError(f"{len(encoders)} encoders and {len(data)} images: at least one of each is needed")
    models = {name: _model(encoder, data, protocol, device) for name, encoder in encoders.items()}
    controls = _controls(encoders, models, data, protocol, device) if protocol.controls else {}
    total = len(data) * (1 + bool(controls))
    report = progress or (lambda done, total: None)
    _run({**models, **controls}, data, protocol, mean, std, device, lambda done: report(done, total))
    averaged: dict[str, _Model] = {}
    if controls:
        for name, model in models.items():
            averaged[_named(POSITION_ONLY, name, models)] = _Model(
                model.patch, partial(_repeat, model.mean_features), *_tallies(data, protocol)
            )
        _run(averaged, data, protocol, mean, std, device, lambda done: report(len(data) + done, total))
    return {
        name: PatchResult(
            model.segmentation.result() if model.segmentation is not None else None,
            model.similarity.result() if model.similarity is not None else None,
            model.long_share,
        )
        for name, model in {**models, **controls, **averaged}.items()
    }


def _tallies(data: MaskedImages, protocol: PatchProtocol) -> tuple[SegmentationTally | None, SimilarityTally | None]:
    asked = protocol.protocols
    return (
        SegmentationTally(protocol, data.kind) if "prompt-segmentation" in asked else None,
        SimilarityTally(background=protocol.background) if "object-similarity" in asked else None,
    )


def _model(encoder: nn.Module, data: MaskedImages, protocol: PatchProtocol, device: torch.device) -> _Model:
    patch = patch_size(encoder)
    check_size(protocol.size, patch)
    encoder.to(device).eval()
    return _Model(patch, partial(_encode, encoder, protocol), *_tallies(data, protocol))


def _encode(encoder: nn.Module, protocol: PatchProtocol, x_BCSS: Tensor) -> tuple[Tensor, Tensor | None]:
    with token_lengths(encoder, protocol.layer) as lengths:
        z_BhwD = patch_features(encoder, x_BCSS, layer=protocol.layer, norm=protocol.norm, keys=protocol.keys)
    if not lengths:
        if protocol.long_tokens == "exclude":
            raise ConfigError("this encoder does not show the tokens of its blocks: leave long_tokens at count")
        return z_BhwD, None
    return z_BhwD, lengths[0].view(z_BhwD.shape[:3])


def _color(patch: int, x_BCSS: Tensor) -> tuple[Tensor, None]:
    return color_features(x_BCSS, patch), None


def _repeat(mean_1hwD: Tensor, x_BCSS: Tensor) -> tuple[Tensor, None]:
    return mean_1hwD.expand(len(x_BCSS), -1, -1, -1), None


def _named(control: str, name: str, models: Mapping[str, _Model]) -> str:
    return control if len(models) == 1 else f"{control}, {name}"


def _controls(
    encoders: Mapping[str, nn.Module],
    models: Mapping[str, _Model],
    data: MaskedImages,
    protocol: PatchProtocol,
    device: torch.device,
) -> dict[str, _Model]:
    """The untrained encoders, one for each architecture, and mean colour, one for each size of patches."""
    controls: dict[str, _Model] = {}
    architectures: list[Any] = []
    for name, encoder in encoders.items():
        config = getattr(encoder, "config", None)
        if config not in architectures:
            architectures.append(config)
            several = len({str(getattr(e, "config", None)) for e in encoders.values()}) > 1
            control = f"{RANDOM_INIT}, {name}" if several else RANDOM_INIT
            controls[control] = _model(random_twin(encoder, protocol.seed), data, protocol, device)
    patches = sorted({model.patch for model in models.values()})
    for patch in patches:
        control = MEAN_COLOR if len(patches) == 1 else f"{MEAN_COLOR}, {patch} pixels"
        controls[control] = _Model(patch, partial(_color, patch), *_tallies(data, protocol))
    if overlap := controls.keys() & models.keys():
        raise ConfigError(f"an encoder is named '{overlap.pop()}', as is a control: name it otherwise")
    return controls


@torch.no_grad()
def _run(
    models: Mapping[str, _Model],
    data: MaskedImages,
    protocol: PatchProtocol,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    progress: Callable[[int], None],
) -> None:
    """Every image through every model."""
    largest = max(model.patch for model in models.values())
    skipped = 0
    for start in range(0, len(data), protocol.batch_size):
        items = [data[i] for i in range(start, min(start + protocol.batch_size, len(data)))]
        names = [item.name for item in items]
        x_BCSS = image_tensor(
            [item.image for item in items], protocol.size, patch=largest, mean=mean, std=std, names=names
        ).to(device)
        objects_BSS = [item.resized(protocol.size) for item in items]
        patches = {
            patch: [patch_objects(o, len(item.ids), patch) for item, o in zip(items, objects_BSS, strict=True)]
            for patch in {model.patch for model in models.values()}
        }
        for model in models.values():
            z_BhwD, length_Bhw = model.encode(x_BCSS)
            z_BhwD = z_BhwD.float().cpu()
            total = z_BhwD.double().sum(0)
            model.feature_sum = total if model.feature_sum is None else model.feature_sum + total
            shown = list(zip(patches[model.patch], objects_BSS, strict=True))
            if length_Bhw is not None:
                long_Bhw = long_tokens(length_Bhw.cpu(), protocol.long_from)
                model.long, model.measured = model.long + int(long_Bhw.sum()), model.measured + long_Bhw.numel()
                if protocol.long_tokens == "exclude":
                    shown = [_without(*pair, long_hw) for pair, long_hw in zip(shown, long_Bhw, strict=True)]
            for item, z_hwD, (owned, objects_SS) in zip(items, z_BhwD, shown, strict=True):
                gram_NN = similarity_matrix(z_hwD)
                if model.segmentation is not None:
                    model.segmentation.add(
                        gram_NN, owned, objects_SS, name=item.name, group=item.group, categories=item.categories
                    )
                if model.similarity is not None:
                    model.similarity.add(gram_NN, owned)
        skipped += sum(owned.skipped for owned in patches[largest])
        progress(start + len(items))
    left = " without its long tokens" if protocol.long_tokens == "exclude" else ""
    for model in models.values():
        if model.segmentation is not None and not model.segmentation.objects:
            raise DataError(
                f"{data.location}: no object has 3 patches of {model.patch} pixels at image size {protocol.size}{left} "
                f"({skipped} smaller ones in {len(data)} images): take a larger size, or check the masks"
            )


def _without(patches: PatchObjects, objects_SS: np.ndarray, long_hw: Tensor) -> tuple[PatchObjects, np.ndarray]:
    """Objects in patches and in pixels, with the long tokens' void."""
    patch = objects_SS.shape[0] // long_hw.shape[0]
    pixels_SS = long_hw.numpy().repeat(patch, 0).repeat(patch, 1)
    return without_patches(patches, long_hw), np.where(pixels_SS, VOID, objects_SS)
