"""The grammar of ``mc-remote-sensing``: verbs, their options, and where their work is done. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from mc_core.cli import call_app, value_of
from mc_core.engine.config import Fit
from mc_remote_sensing import __version__
from mc_remote_sensing.augment_config import AugmentConfig
from mc_remote_sensing.methods import METHODS
from mc_remote_sensing.recipe import SplitOptions, TileOptions, system_of
from mc_remote_sensing_app.scene_options import SceneOptions

app = App(
    name="mc-remote-sensing",
    help="From an image, an elevation model and a few polygons to a georeferenced map, with momentum contrast.",
    version=__version__,
    default_parameter=Parameter(negative_iterable=()),
    help_format="plaintext",  # importing what renders Markdown takes a fifth of a second
)

_RECIPE_OPTIONS = "[default: the recipe's; see --print-recipe]"
_SCENE = Group("Rasters and labels", help="Read by windows, in any CRS and resolution", sort_key=1)
_TILES = Group("Tiles (--tiles.*)", help=f"Crops, and how the ground is split {_RECIPE_OPTIONS}", sort_key=2)
_FIT = Group("Training (--fit.*)", help=f"How it is trained {_RECIPE_OPTIONS}", sort_key=3)
_METHOD = Group("Method (--method.*)", help=f"Of the method the recipe names {_RECIPE_OPTIONS}", sort_key=4)
_AUGMENT = Group("Augmentation (--augment.*)", help=f"Random changes of the tiles {_RECIPE_OPTIONS}", sort_key=5)

_Json = Annotated[bool, Parameter(name="--json", negative=())]
_Device = Literal["auto", "cpu", "cuda"]
_Scene = Annotated[SceneOptions | None, Parameter(name="*", group=_SCENE, show_default=False)]


def run(arguments: Sequence[str]) -> Any:
    """Parse and run; the options ``--method.*`` are those of the method that ``--recipe`` (or its default) names."""
    arguments = list(arguments)
    for verb, default, make in (
        ("train", "hpcl-net", _train_command),
        ("pretrain", "scene-contrast", _pretrain_command),
    ):
        if verb in app:  # of an earlier call in this process
            del app[verb]
        named = value_of(arguments, "--recipe") if arguments[:1] == [verb] else None
        app.command(make(METHODS.config_class(system_of(named or default))), name=verb)
    return call_app(app, arguments)


@app.command
def predict(
    run: Path,
    /,
    *,
    out: Path,
    scene: _Scene = None,
    classes: Path | None = None,
    polygons: Path | None = None,
    probability: Literal["uint8", "float32"] = "uint8",
    threshold: float | None = None,
    min_area: float = 0.0,
    tile: int | None = None,
    overlap: int | None = None,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Map a scene of any size with a trained model. Interrupted, the same command goes on.

    Args:
        run: Run folder, or a saved model.
        out: Probability raster to write: a cloud-optimised GeoTIFF on the grid of the image.
        classes: Also write a raster of classes: 1 where the probability reaches the threshold, 0 elsewhere, 255 no data.
        polygons: Also write polygons of the mapped class, with area, probability and slope: a GeoPackage.
        probability: uint8: 0 to 200 for 0 to 1, 255 no data; float32: as it is.
        threshold: Probability from which a pixel counts. Default: the one chosen on the validation blocks of the training.
        min_area: Leave out polygons below this many square metres.
        tile: Side of a tile in pixels. Default: what the model needs, at least 512.
        overlap: Pixels that neighbouring tiles share. Default: twice the model's receptive field, or a quarter of the tile.
        device: Where to compute.
        json: Print one JSON object instead of a table.
    """
    from mc_remote_sensing_app.predict import run_predict

    run_predict(
        run,
        scene or SceneOptions(),
        out=out,
        classes=classes,
        polygons=polygons,
        probability=probability,
        threshold=threshold,
        min_area=min_area,
        tile=tile,
        overlap=overlap,
        device=device,
        as_json=json,
    )


@app.command
def evaluate(
    run: Path,
    /,
    tiles: Path | None = None,
    *,
    scene: _Scene = None,
    part: Literal["test", "validation", "train", "all"] | None = None,
    threshold: float | None = None,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Measure a run on its own test blocks, or on another labelled scene.

    Args:
        run: Run folder, or a saved model.
        tiles: Image tiles with masks, for a run trained on such.
        part: Of the blocks of the run. Default: test for the run's own scenes, all for others.
        threshold: Probability from which a pixel counts. Default: the one chosen on the validation blocks of the training.
        device: Where to compute.
        json: Print one JSON object instead of a table.
    """
    from mc_remote_sensing_app.evaluate import run_evaluate

    run_evaluate(run, tiles, scene or SceneOptions(), part=part, threshold=threshold, device=device, as_json=json)


@app.command
def align(*, scene: _Scene = None, out: Path | None = None, json: _Json = False) -> None:
    """Look whether rasters and polygons fit together, before hours are spent on them.

    Args:
        out: Picture to write: image, relief and outlines over one another. Default: align.png.
        json: Print one JSON object instead of a table.
    """
    from mc_remote_sensing_app.align import run_align

    run_align(scene or SceneOptions(), out=out, as_json=json)


@app.command
def embed(
    run: Path,
    /,
    *,
    scene: _Scene = None,
    out: Path = Path("embeddings.parquet"),
    tile: int = 256,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Write one feature vector per square of the scene, with its coordinates.

    Args:
        run: Run folder (of train or pretrain), or a saved model.
        out: File to write: .parquet or .npz.
        tile: Side of a square in pixels.
        device: Where to compute.
        json: Print one JSON object instead of a line.
    """
    from mc_remote_sensing_app.embed import run_embed

    run_embed(run, scene or SceneOptions(), out=out, tile=tile, device=device, as_json=json)


@app.command
def export(
    run: Path,
    /,
    *,
    format: Literal["onnx", "timm"] = "onnx",
    out: Path | None = None,
    tile: int | None = None,
    json: _Json = False,
) -> None:
    """Write the model for other tools.

    Args:
        run: Run folder, or a saved model.
        format: onnx: image and elevation in, probability out, with a parity check; timm: encoder weights for
            timm.create_model(…, features_only=True), one file per encoder.
        out: File or folder to write. Default: RUN/export/….
        tile: Side of a tile in pixels, for onnx. Default: what the model needs, at least 512.
        json: Print one JSON object instead of lines.
    """
    from mc_remote_sensing_app.export import run_export

    run_export(run, format=format, out=out, tile=tile, as_json=json)


@app.command
def ablate(
    tiles: Path | None = None,
    /,
    *,
    scene: _Scene = None,
    recipe: str | None = None,
    only: list[str] | None = None,
    everything: Annotated[bool, Parameter(name="--all", negative=())] = False,
    seeds: int = 3,
    steps: int | None = None,
    out: Path = Path("runs/ablation"),
    tile_options: Annotated[TileOptions | None, Parameter(name="tiles", group=_TILES, show_default=False)] = None,
    split: Annotated[SplitOptions | None, Parameter(name="split", group=_TILES, show_default=False)] = None,
    json: _Json = False,
) -> None:
    """What each part is worth: modalities, contrast, queue, momentum, where cells are drawn. Rows that are done are kept.

    Args:
        tiles: Image tiles with masks. Without data: the made terrain.
        recipe: Recipe to start from. Default: hpcl-net-laptop.
        only: Only this row; repeat for several.
        everything: All combinations of modality, parts and sampling, not only the informative ones.
        seeds: Runs of each row.
        steps: Optimizer steps of each run. Default: the recipe's.
        out: Folder of the rows.
        json: Print one JSON object instead of a table.
    """
    from mc_remote_sensing_app.ablate import run_ablate

    run_ablate(
        tiles,
        scene or SceneOptions(),
        recipe_name=recipe or "hpcl-net-laptop",
        only=only or [],
        everything=everything,
        seeds=seeds,
        steps=steps,
        out=out,
        sections={"tiles": tile_options, "split": split},
        as_json=json,
    )


@app.command
def demo(
    run: Path,
    /,
    *,
    scene: _Scene = None,
    map: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: _Device = "auto",
    browser: bool = False,
) -> None:
    """A page in the browser: the map over the image, with a slider for the threshold.

    Args:
        run: Run folder, or a saved model.
        map: Probability raster that `predict` wrote. Default: it is made when the page starts.
        host: Address to listen on; 0.0.0.0 lets others in.
        port: Port to listen on.
        device: Where to compute.
        browser: Open the page in the browser.
    """
    from mc_remote_sensing_app.demo import run_demo

    run_demo(run, scene or SceneOptions(), map_path=map, host=host, port=port, device=device, browser=browser)


def _train_command(config: Any) -> Any:
    def train(
        tiles: Path | None = None,
        /,
        *,
        scene: Any = None,
        recipe: str | None = None,
        out: Path | None = None,
        modality: Literal["auto", "image", "elevation", "stacked", "fused"] = "auto",
        pretrained: Path | None = None,
        json: _Json = False,
        print_recipe: Annotated[bool, Parameter(negative=())] = False,
        tile_options: Any = None,
        split: Any = None,
        augment: Any = None,
        fit: Any = None,
        method: Any = None,
    ) -> None:
        """Train a segmentation model, choose its threshold on validation blocks, measure it on test blocks.

        Run the same command again after an interruption: it goes on where the run was.

        Args:
            tiles: Image tiles with masks and no georeference (a folder or tar of NAME.jpg and NAME.seg.png), instead of rasters.
                Without any data: a made terrain of landslide scars and decoys.
            recipe: A recipe by name (hpcl-net, or hpcl-net-laptop for a small CPU), a YAML file or a run folder.
                Default: hpcl-net, or hpcl-net-laptop for the made terrain.
            out: Run folder. Default: runs/RECIPE-DATA.
            modality: What the model looks at. Default: all that is given, fused.
            pretrained: Run folder of `pretrain`, whose encoders to start from.
            json: Print the result as one JSON object instead of a table.
            print_recipe: Print the recipe with all options in place, and do nothing.
        """
        from mc_remote_sensing_app.train import TrainOptions, run_train

        run_train(
            TrainOptions(
                tiles=tiles,
                scene=scene or SceneOptions(),
                recipe=recipe,
                out=out,
                modality=modality,
                pretrained=pretrained,
                json=json,
                print_recipe=print_recipe,
                sections={"tiles": tile_options, "split": split, "augment": augment, "fit": fit, "method": method},
            )
        )

    train.__annotations__ |= {"scene": _Scene, **_sections(config)}
    return train


def _pretrain_command(config: Any) -> Any:
    def pretrain(
        *,
        scene: Any = None,
        same_place: bool = False,
        recipe: str | None = None,
        out: Path | None = None,
        json: _Json = False,
        print_recipe: Annotated[bool, Parameter(negative=())] = False,
        tile_options: Any = None,
        augment: Any = None,
        fit: Any = None,
        method: Any = None,
    ) -> None:
        """Pretrain encoders of image and elevation on scenes without labels.

        Args:
            same_place: The images are one place in several seasons, on one grid: the same ground in another season is a positive.
            recipe: A recipe by name (scene-contrast, or scene-contrast-laptop), a YAML file or a run folder.
                Default: scene-contrast, or scene-contrast-laptop for the made terrain.
            out: Run folder. Default: runs/RECIPE-DATA.
            json: Print the result as one JSON object instead of a table.
            print_recipe: Print the recipe with all options in place, and do nothing.
        """
        from mc_remote_sensing_app.pretrain import PretrainOptions, run_pretrain

        run_pretrain(
            PretrainOptions(
                scene=scene or SceneOptions(),
                same_place=same_place,
                recipe=recipe,
                out=out,
                json=json,
                print_recipe=print_recipe,
                sections={"tiles": tile_options, "augment": augment, "fit": fit, "method": method},
            )
        )

    sections = _sections(config)
    del sections["split"]
    pretrain.__annotations__ |= {"scene": _Scene, **sections}
    return pretrain


def _sections(config: Any) -> dict[str, Any]:
    """Options of the recipe's sections."""
    return {
        "tile_options": Annotated[TileOptions | None, Parameter(name="tiles", group=_TILES, show_default=False)],
        "split": Annotated[SplitOptions | None, Parameter(name="split", group=_TILES, show_default=False)],
        "augment": Annotated[AugmentConfig | None, Parameter(name="augment", group=_AUGMENT, show_default=False)],
        "fit": Annotated[Fit | None, Parameter(name="fit", group=_FIT, show_default=False)],
        "method": Annotated[config | None, Parameter(name="method", group=_METHOD, show_default=False)],
    }
