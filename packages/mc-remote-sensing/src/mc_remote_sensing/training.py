"""From scenes and a recipe to a trained model with its threshold: what the command and the benchmarks run.

The ground is split into blocks, statistics come from training blocks, the threshold from validation blocks; nothing is chosen on
test blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mc_core.data import Dataset
from mc_core.distributed import rank
from mc_core.engine import RunResult, fit
from mc_core.engine.distribution import join_processes
from mc_core.engine.method import Method
from mc_core.errors import ConfigError, DataError
from mc_core.export import save_model
from mc_core.recipes import merge
from mc_remote_sensing.augment import AugmentedTiles, TileAugment
from mc_remote_sensing.data import (
    Blocks,
    PatchScenes,
    Scene,
    TileDataset,
    band_statistics,
    spatial_blocks,
)
from mc_remote_sensing.data.coverage import footprint
from mc_remote_sensing.data.labels import TARGET
from mc_remote_sensing.evaluation import (
    Scores,
    choose_threshold,
    histogram_of,
    patch_windows,
    scene_windows,
    score,
)
from mc_remote_sensing.inference.running import Segmenter
from mc_remote_sensing.methods import METHODS
from mc_remote_sensing.methods.hpcl_net.model import HPCLNet
from mc_remote_sensing.model import SegmentationModel
from mc_remote_sensing.recipe import Recipe, SplitOptions

_BLOCKS_ALONG = 8
_LEAST_TILES = 4
_LEAST_BLOCKS = 3  # along the shorter side


@dataclass(frozen=True)
class Ground:
    """Labelled scenes split into blocks, or patches split by themselves.

    Attributes:
        scenes: of georeferenced rasters; empty for patches.
        blocks: of each scene.
        patches: with masks and no georeference, or None.
    """

    scenes: tuple[Scene, ...]
    blocks: tuple[Blocks, ...]
    patches: PatchScenes | None = None

    def tiles(self, recipe: Recipe[Any], part: str = "train") -> Dataset:
        """Random tiles of a part, in an epoch at least as many as a batch has."""
        options, least = recipe.tiles, recipe.fit.batch_size
        if self.patches is not None:
            patches = copy.copy(self.patches.part(part))
            patches.per_epoch = max(options.per_epoch or patches.count, least)
            return patches

        def draw(count: int | None) -> TileDataset:
            return TileDataset(
                self.scenes,
                self.blocks,
                part,
                tile=options.tile,
                target_share=options.target_share,
                hard_negative_share=options.hard_negative_share,
                per_epoch=count,
            )

        found = draw(options.per_epoch)
        return found if len(found) >= least else draw(least)


def split_ground(scenes: Sequence[Scene], recipe: Recipe[Any]) -> Ground:
    """Cut labelled scenes into training, validation and test blocks.

    Raises:
        ConfigError: blocks or a buffer that do not fit the scenes or the tiles.
        DataError: a scene without labels.
    """
    for scene in scenes:
        if scene.labels is None:
            raise DataError(f"{scene.name}: has no labels to learn from; name them with --labels")
    return checked(Ground(tuple(scenes), tuple(_split(scene, recipe.split, recipe.tiles.tile) for scene in scenes)))


def checked(ground: Ground) -> Ground:
    """The same ground, when there is a target to learn from and one to choose the threshold by.

    Raises:
        DataError: the training or the validation part holds none; better said before training than after.
    """
    for part in ("train", "validation"):
        if ground.patches is not None:
            patches = ground.patches.part(part)
            found = any((np.asarray(patches.read(i)["labels"]) == TARGET).any() for i in range(patches.count))
            advice = "give more tiles, or another --split.seed"
        else:
            pairs = zip(ground.scenes, ground.blocks, strict=True)
            found = any(footprint(scene, 16, blocks.part(part)).target.any() for scene, blocks in pairs)
            advice = "try smaller blocks (--split.block-m) or another draw (--split.seed)"
        if not found:
            raise DataError(f"the {part} part holds no target: {advice}")
    return ground


def _split(scene: Scene, options: SplitOptions, tile: int) -> Blocks:
    side = max(scene.grid.pixel_metres)
    tile_m = tile * side
    block_m = options.block_m
    if block_m is None:
        shortest, longest = (of(scene.grid.shape) * side for of in (min, max))
        block_m = max(longest / _BLOCKS_ALONG, min(_LEAST_TILES * tile_m, shortest / _LEAST_BLOCKS))
    return spatial_blocks(
        scene,
        block_m=block_m,
        buffer_m=tile_m if options.buffer_m is None else options.buffer_m,
        shares=options.shares,
        seed=options.seed,
    )


def data_fields(ground: Ground, modality: str = "auto") -> dict[str, Any]:
    """What the data decides of a recipe's method: bands and their statistics, resolution, and the modality for ``"auto"``.

    Raises:
        ConfigError: a modality that the data does not have.
    """
    first = ground.scenes[0] if ground.scenes else None
    names = _band_names(ground)
    possible = _possible(ground)
    has_image = possible["image"]
    if modality == "auto":
        modality = "fused" if possible["fused"] else "image" if has_image else "elevation"
    check_modality(ground, modality)
    fields: dict[str, Any] = {"network": {"modality": modality}}
    if modality == "elevation":
        fields["modality_dropout"] = 0.0
    if has_image:
        if ground.patches is not None:
            mean, std = band_statistics(ground.patches.part("train"))
        else:
            mean, std = band_statistics(ground.scenes, ground.blocks)
        fields["bands"] = {"names": list(names), "mean": mean.tolist(), "std": std.tolist()}
    if first is not None:
        fields["resolution_m"] = float(max(first.grid.pixel_metres))
    return fields


def check_modality(ground: Ground, modality: str) -> None:
    """Refuse a modality that the data does not have.

    Raises:
        ConfigError: no image, or no elevation model for some scene.
    """
    possible = _possible(ground)
    if modality not in possible:
        raise ConfigError(f"modality {modality}: there are {', '.join(possible)}")
    if not possible[modality]:
        missing = (
            "an image" if not possible["image"] and modality != "elevation" else "an elevation model for every scene"
        )
        raise ConfigError(f"modality {modality} needs {missing}")


def _possible(ground: Ground) -> dict[str, bool]:
    image = bool(_band_names(ground))
    elevation = ground.patches is None and all(scene.elevation is not None for scene in ground.scenes)
    return {"image": image, "elevation": elevation, "stacked": image and elevation, "fused": image and elevation}


def _band_names(ground: Ground) -> tuple[str, ...]:
    return ground.patches.band_names if ground.patches is not None else ground.scenes[0].band_names


def with_data(recipe: Recipe[Any], fields: Mapping[str, Any]) -> Recipe[Any]:
    """The recipe with what the data decides in place."""
    content = recipe.model_dump(mode="json")
    return type(recipe).model_validate(merge(content, {"method": fields}))


def build_method(recipe: Recipe[Any]) -> Method:
    """The recipe's method with the initial weights its seed gives."""
    torch.manual_seed(recipe.fit.seed)
    return METHODS.method_class(recipe.system)(recipe.method)


@dataclass(frozen=True)
class Trained:
    """A trained model and how it did on the validation part.

    Attributes:
        model: with its threshold, in eval mode.
        run: what the engine says of the run.
        validation: scores at the threshold that was chosen there.
    """

    model: SegmentationModel
    run: RunResult
    validation: Scores


def train_segmentation(recipe: Recipe[Any], ground: Ground, run_dir: Path) -> Trained | None:
    """Train, choose the threshold on the validation part, and save the model with it.

    Args:
        recipe: with what the data decides in place (:func:`with_data`).
        ground: split into parts.
        run_dir: of the run; one that was interrupted goes on.

    Returns:
        None in processes other than the first.

    Raises:
        DataError: the validation part holds no target.
        McError: whatever the engine stops at.
    """
    join_processes(recipe.fit)
    augment = TileAugment(recipe.augment, recipe.method.bands, second_view=recipe.method.contrast)
    data = AugmentedTiles(ground.tiles(recipe), augment)
    method = build_method(recipe)
    result = fit(method, data, fit=recipe.fit, run_dir=run_dir, recipe=recipe.model_dump(mode="json"))
    if rank() != 0:
        return None
    trained = result.method
    assert isinstance(trained, HPCLNet)
    model = trained.export_module()
    device = next(trained.parameters()).device
    model.to(device).eval()
    model.set_threshold(choose_threshold(histogram_of(part_windows(model, ground, "validation", device=device))))
    validation = score(part_windows(model, ground, "validation", device=device), model.threshold)
    save_model(model, run_dir / "model", card={"run": run_dir.name, "steps": result.step})
    return Trained(model, result, validation)


def part_windows(
    model: Segmenter, ground: Ground, part: str, *, device: str | torch.device | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Probabilities and labels of a part of the ground, window by window.

    Args:
        model: any segmenter; it is put into evaluation mode.
        ground: split into parts.
        part: ``"train"``, ``"validation"`` or ``"test"``.
        device: default the GPU where there is one.
    """
    if ground.patches is not None:
        if isinstance(model, torch.nn.Module):
            model.eval()
        yield from patch_windows(model, ground.patches.part(part), device=device or "cpu")
        return
    for scene, blocks in zip(ground.scenes, ground.blocks, strict=True):
        yield from scene_windows(model, scene, blocks.part(part), tile=tile_of(model), device=device)


def tile_of(model: Segmenter, least: int = 512, most: int = 2048) -> int:
    """A side for tiles whose halo covers the model's receptive field, where that is at most ``most``.

    >>> class Model:
    ...     stride, receptive_field = 8, 111
    >>> tile_of(Model())
    512
    """
    side = min(max(least, 4 * (model.receptive_field or 0)), most)
    return -(-side // model.stride) * model.stride
