"""``mc-remote-sensing pretrain``: encoders of image and elevation from scenes without labels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor
from torch.nn.functional import normalize

from mc_core.cli import Clock, Result, Status, given_fields, keep_freed_memory
from mc_core.data import finish_on_device, stack_samples
from mc_core.distributed import rank
from mc_core.engine import fit
from mc_core.engine.distribution import join_processes
from mc_core.errors import ConfigError, DataError
from mc_core.evaluation import retrieval_metrics
from mc_core.random import sample_rng
from mc_core.recipes import to_yaml
from mc_core.report import write_report
from mc_core.runs import folder_name
from mc_remote_sensing.augment import AugmentedTiles, TileAugment
from mc_remote_sensing.data import Scene, ScenePairs, band_statistics, open_scene
from mc_remote_sensing.methods.scene_contrast.model import SceneContrast
from mc_remote_sensing.recipe import Recipe, resolve_recipe
from mc_remote_sensing.training import build_method, with_data
from mc_remote_sensing_app.scene_options import SceneOptions, refuse_lone_labels
from mc_remote_sensing_app.train import SAMPLE, scenes_of

METRIC = "other_view_recall_at_1"
_ASKED = 512
_CHUNK = 64


@dataclass(frozen=True)
class PretrainOptions:
    """The options of ``mc-remote-sensing pretrain`` as parsed."""

    scene: SceneOptions
    same_place: bool
    recipe: str | None
    out: Path | None
    json: bool
    print_recipe: bool
    sections: Mapping[str, BaseModel | None]


def run_pretrain(options: PretrainOptions) -> Result | None:
    """Train, measure, report, and print."""
    embedded = not options.scene.given
    if embedded:
        refuse_lone_labels(options.scene)
    name = options.recipe or ("scene-contrast-laptop" if embedded else "scene-contrast")
    changes = {section: given_fields(model) for section, model in options.sections.items()}
    recipe = resolve_recipe(name, {section: fields for section, fields in changes.items() if fields})
    if recipe.system != "scene-contrast":
        raise ConfigError(f"--recipe {name}: trains {recipe.system}; that is `mc-remote-sensing train`")
    if options.print_recipe:
        sys.stdout.write(to_yaml(recipe))
        return None
    clock = Clock()
    keep_freed_memory()
    first = options.scene.image or options.scene.dem
    run_dir = (
        options.out
        or Path("runs") / f"{folder_name(Path(name).stem)}-{folder_name(first[0].stem) if first else SAMPLE}"
    )
    scenes = []
    for given in scenes_of(options.scene, run_dir, recipe):
        unlabelled = {n: v for n, v in given.items() if n in _OPTIONS}
        with Status("opening the scenes"):
            scenes.append(open_scene(**unlabelled, cache=run_dir / "elevation"))
    recipe, pairs = pair_data(recipe, scenes, same_place=options.same_place)
    join_processes(recipe.fit)
    data = AugmentedTiles(pairs, TileAugment(recipe.augment, recipe.method.bands))
    method = build_method(recipe)
    result = fit(method, data, fit=recipe.fit, run_dir=run_dir, recipe=recipe.model_dump(mode="json"))
    if rank() != 0:
        return None
    trained = result.method
    assert isinstance(trained, SceneContrast)
    with Status("measuring beside the baselines"):
        scores = measure(recipe, trained, data)
    more = {"steps": result.step, "training_seconds": round(result.seconds, 1), "scenes": len(scenes)}
    baselines = {n: v for n, v in scores.items() if n != "trained"}
    found = Result(METRIC, scores["trained"], baselines, run=run_dir, seconds=clock.seconds(), more=more)
    found.write(run_dir)
    report = write_report(run_dir, title=f"{run_dir.name}: {recipe.system}", result=found.fields)
    found.fields["report"] = str(report)
    title = f"{recipe.system}, {recipe.method.modality}: the other view of a crop among {min(_ASKED, len(data))}"
    found.show(as_json=options.json, title=title)
    if not options.json:
        sys.stdout.write(f"{run_dir}\n{run_dir / 'model'}\n{report}\n")
        sys.stdout.write(f"start from it with: mc-remote-sensing train … --pretrained {run_dir}\n")
    return found


_OPTIONS = ("image", "elevation", "bands", "band_names", "nodata", "assume_crs", "vertical_unit")


def pair_data(recipe: Recipe[Any], scenes: Sequence[Scene], *, same_place: bool) -> tuple[Recipe[Any], ScenePairs]:
    """The recipe with what the scenes decide in place, and pairs of crops of them.

    Raises:
        ConfigError: an encoder of elevation asked for where a scene has none.
    """
    have_elevation = all(scene.elevation is not None for scene in scenes)
    modality = recipe.method.modality
    if modality == "both" and not have_elevation:
        modality = "image"
    if modality == "elevation" and not have_elevation:
        raise ConfigError("method.modality elevation: name an elevation model for every scene with --dem")
    mean, std = band_statistics(list(scenes))
    fields = {
        "modality": modality,
        "bands": {"names": list(scenes[0].band_names), "mean": mean.tolist(), "std": std.tolist()},
    }
    places: list[Scene | Sequence[Scene]] = [list(scenes)] if same_place else list(scenes)
    found = ScenePairs(places, tile=recipe.tiles.tile, per_epoch=recipe.tiles.per_epoch)
    if len(found) < recipe.fit.batch_size:
        found = ScenePairs(places, tile=recipe.tiles.tile, per_epoch=recipe.fit.batch_size)
    return with_data(recipe, fields), found


@torch.inference_mode()
def measure(recipe: Recipe[Any], trained: SceneContrast, data: AugmentedTiles) -> dict[str, float]:
    """Share of crops whose other view is the nearest of all, for the encoders, untrained ones, and the mean of each input."""
    device = next(trained.parameters()).device
    fresh = build_method(recipe).to(device).eval()
    assert isinstance(fresh, SceneContrast)
    encoders: dict[str, Callable[[dict[str, Any], int], Tensor]] = {
        "trained": lambda batch, view: _features(trained.eval(), batch, view),
        "random_encoder": lambda batch, view: _features(fresh, batch, view),
        "mean_of_inputs": lambda batch, view: _means(fresh, batch, view),
    }
    views: dict[str, list[list[Tensor]]] = {name: [[], []] for name in encoders}
    count = max(2, min(_ASKED, 8 * len(data)))
    seed = recipe.fit.seed + 1  # crops and changes that training did not see
    ids = []
    for start in range(0, count, _CHUNK):
        index = range(start, min(start + _CHUNK, count))
        batch = stack_samples([data.get(i, sample_rng(seed, 0, i)) for i in index])
        batch |= {"index": torch.tensor(list(index)), "epoch": 0}
        batch = finish_on_device(
            data, {n: v.to(device) if isinstance(v, Tensor) else v for n, v in batch.items()}, seed
        )
        ids.append(batch["ids"].cpu())
        for name, encode in encoders.items():
            for view in (0, 1):
                views[name][view].append(encode(batch, view + 1))
    place = torch.cat(ids)
    if len(place.unique()) < 2:
        raise DataError("the scenes hold a single crop: take smaller tiles with --tiles.tile")
    same = place[:, None] == place[None, :]
    found = {}
    for name, (first, second) in views.items():
        a, b = (torch.cat(part).float() for part in (first, second))
        if name == "mean_of_inputs":
            spread = torch.cat([a, b]).std(0).clamp_min(1e-9)
            distance = torch.cdist(a / spread, b / spread)
            found[name] = retrieval_metrics(-distance.cpu(), same).recall[1]
        else:
            found[name] = retrieval_metrics((normalize(a, dim=1) @ normalize(b, dim=1).T).cpu(), same).recall[1]
    return found


def _features(method: SceneContrast, batch: dict[str, Any], view: int) -> Tensor:
    parts = [method.online[name].features(method.view(batch, name, view)) for name in method.online]  # type: ignore[operator]
    return torch.cat(parts, dim=1)


def _means(method: SceneContrast, batch: dict[str, Any], view: int) -> Tensor:
    return torch.cat([method.view(batch, name, view).mean((2, 3)) for name in method.online], dim=1)
