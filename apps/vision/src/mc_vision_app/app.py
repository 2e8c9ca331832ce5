"""The grammar of ``mc-vision``: verbs, their options, and where their work is done. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from mc_core.cli import call_app, value_of
from mc_core.engine.config import Fit
from mc_core.errors import ConfigError
from mc_vision import __version__
from mc_vision.methods import METHODS
from mc_vision.patch_evaluation.config import PatchOptions
from mc_vision.recipe import ViewOptions, system_of

app = App(
    name="mc-vision",
    help="Pretrain image encoders on your own pictures with momentum contrast, and see what they are worth.",
    version=__version__,
    help_format="plaintext",  # importing what renders Markdown takes a fifth of a second
)

_RECIPE_OPTIONS = "[default: the recipe's; see --print-recipe]"
_FIT = Group("Training (--fit.*)", help=f"How it is trained {_RECIPE_OPTIONS}", sort_key=2)
_METHOD = Group("Method (--method.*)", help=f"Of the method the recipe names {_RECIPE_OPTIONS}", sort_key=3)
_PATCHES = Group(
    "Patches (--patches.*)",
    help="How patches are read and scored, for prompt-segmentation and object-similarity",
    sort_key=2,
)
_VIEWS = Group("Views (--views.*)", help=f"Random views of the images {_RECIPE_OPTIONS}", sort_key=4)


def run(arguments: Sequence[str]) -> Any:
    """Parse and run; the options ``--method.*`` are those of the method that ``--recipe`` (or its default) names."""
    arguments = list(arguments)
    if "pretrain" in app:  # of an earlier call in this process
        del app["pretrain"]
    app.command(_pretrain_command(arguments if arguments[:1] == ["pretrain"] else []), name="pretrain")
    return call_app(app, arguments)


_Json = Annotated[bool, Parameter(name="--json", negative=())]
_Device = Literal["auto", "cpu", "cuda"]


@app.command
def evaluate(
    run: Path,
    /,
    *,
    data: str | None = None,
    test: str | None = None,
    split: str | None = None,
    protocol: Literal["knn", "linear", "cluster", "prompt-segmentation", "object-similarity", "propagation"] = "knn",
    k: int = 20,
    image_size: int | None = None,
    patches: Annotated[PatchOptions | None, Parameter(group=_PATCHES)] = None,
    seed: int = 0,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Measure a run's frozen features, beside honest baselines.

    On labelled images (knn, linear, cluster), or on images with object masks and a vision transformer (the others).

    Args:
        run: Run folder, or a saved encoder.
        data: Labelled images to learn from (class folders, tables, shards …), or images with masks (index PNGs, COCO
            JSON, VOC, DAVIS). Default: the embedded sample.
        test: Labelled images to test on. Default: a fifth of DATA, held out.
        split: Of images with masks: a list in ImageSets (VOC, DAVIS), or a folder below images and masks, such as val.
        protocol: knn: weighted nearest neighbours; linear: logistic regression on the features; cluster: k-means without
            labels, then compared with them; prompt-segmentation: IoU of what looks like one patch of an object;
            object-similarity: patches within and between objects; propagation: masks through videos.
        k: Neighbours, for knn.
        image_size: Side in pixels. Default: that of training; with masks 480, or for encoders trained on small views their
            size, at least 12 patches.
        seed: Of the split and the random encoder.
        device: Where to compute.
        json: Print one JSON object instead of a table.
    """
    if protocol in ("prompt-segmentation", "object-similarity", "propagation"):
        from mc_vision_app.evaluate_patches import run_evaluate_patches

        if test is not None:
            raise ConfigError(f"--test is for labelled images; {protocol} takes all it needs from --data")
        run_evaluate_patches(
            run,
            protocol=protocol,
            data=data,
            split=split,
            size=image_size,
            options=patches,
            seed=seed,
            device=device,
            as_json=json,
        )
        return
    if split is not None:
        raise ConfigError(f"--split is for images with masks; for {protocol} name the images with --data and --test")
    if patches is not None:
        raise ConfigError(f"--patches.* is for prompt-segmentation and object-similarity, not for {protocol}")

    from mc_vision_app.evaluate import run_evaluate

    run_evaluate(
        run, data=data, test=test, protocol=protocol, k=k, size=image_size, seed=seed, device=device, as_json=json
    )


@app.command
def embed(
    run: Path,
    data: str,
    /,
    *,
    out: Path = Path("embeddings.parquet"),
    batch_size: int = 256,
    image_size: int | None = None,
    workers: int | None = None,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Write the features of all images to one file. Interrupted, the same command goes on.

    Args:
        run: Run folder, or a saved encoder.
        data: Images: folder, table, shards, …
        out: File to write: .parquet or .npz.
        batch_size: Images at a time.
        image_size: Side in pixels. Default: that of training.
        workers: Loader processes.
        device: Where to compute.
        json: Print one JSON object instead of a line.
    """
    from mc_vision_app.embed import run_embed

    run_embed(
        run, data=data, out=out, batch_size=batch_size, size=image_size, workers=workers, device=device, as_json=json
    )


@app.command
def export(
    run: Path,
    /,
    *,
    format: Literal["timm", "onnx", "hub"] = "timm",
    out: Path | None = None,
    image_size: int | None = None,
    json: _Json = False,
) -> None:
    """Write the encoder for other tools, heads left out.

    Args:
        run: Run folder, or a saved encoder.
        format: timm: a checkpoint for timm.create_model; onnx: with a parity check; hub: a folder with model card.
        out: File or folder to write. Default: RUN/export/….
        image_size: Side in pixels, for onnx. Default: that of training.
        json: Print one JSON object instead of lines.
    """
    from mc_vision_app.export import run_export

    run_export(run, format=format, out=out, size=image_size, as_json=json)


@app.command
def segment(
    run: Path,
    /,
    *images: Path,
    point: list[str] | None = None,
    threshold: str = "auto",
    mask: list[Path] | None = None,
    mask_id: int | None = None,
    out: Path | None = None,
    image_size: int | None = None,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Point at something in a photo and get its mask: all that looks like the patch under the point.

    Args:
        run: Run folder, or a saved encoder: of a vision transformer.
        images: Photos to segment.
        point: x,y in pixels from the top left. Several: all that looks like any of them.
        threshold: Least cosine similarity, or auto: the split of the similarity map that separates it best (Otsu).
        mask: A PNG mask per image, to measure the IoU with.
        mask_id: The number of the object in the masks. Default: the object under the point, or the only one there is.
        out: Folder for NAME-mask.png and NAME-overlay.png. Default: beside the image.
        image_size: Longer side in pixels that the encoder sees. Default: 480, or that of training if it was below 160.
        device: Where to compute.
        json: Print one JSON object instead of a table.
    """
    from mc_vision_app.segment import run_segment

    run_segment(
        run,
        images,
        points=point or [],
        threshold=threshold,
        masks=mask or [],
        mask_id=mask_id,
        out=out,
        size=image_size,
        device=device,
        as_json=json,
    )


@app.command
def demo(
    run: Path,
    /,
    *,
    index: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    image_size: int | None = None,
    device: _Device = "auto",
    browser: bool = False,
) -> None:
    """A page in the browser: click on a photo to see what looks like that spot; find similar images in a folder.

    Args:
        run: Run folder, or a saved encoder.
        index: Images to search for neighbours (folder, table, shards …).
        host: Address to listen on; 0.0.0.0 lets others in.
        port: Port to listen on.
        image_size: Longer side in pixels that the encoder sees. Default: as for segment.
        device: Where to compute.
        browser: Open the page in the browser.
    """
    from mc_vision_app.demo import run_demo

    run_demo(run, index=index, host=host, port=port, size=image_size, device=device, browser=browser)


@app.command
def inspect(target: str, /, *, json: _Json = False) -> None:
    """Show what a run, a saved encoder or a data set holds.

    Args:
        target: Run folder, encoder folder, or data as for pretrain.
        json: Print one JSON object instead of a table.
    """
    from mc_vision_app.inspect_run import run_inspect

    run_inspect(target, as_json=json)


def _pretrain_command(arguments: list[str]) -> Any:
    named = value_of(arguments, "--recipe")
    config = METHODS.config_class(system_of(named) if named else "moco")
    fit_option = Annotated[Fit | None, Parameter(name="fit", group=_FIT, show_default=False)]
    views_option = Annotated[ViewOptions | None, Parameter(name="views", group=_VIEWS, show_default=False)]
    method_option = Annotated[config | None, Parameter(name="method", group=_METHOD, show_default=False)]  # type: ignore[valid-type]

    def pretrain(
        data: str | None = None,
        /,
        *,
        recipe: str | None = None,
        out: Path | None = None,
        backbone: str | None = None,
        pretrained: bool | None = None,
        image_size: int | None = None,
        labels: Literal["auto", "none"] = "auto",
        holdout: float = 0.1,
        max_bad: str | None = None,
        json: _Json = False,
        print_recipe: Annotated[bool, Parameter(negative=())] = False,
        fit: Any = None,
        views: Any = None,
        method: Any = None,
    ) -> None:
        """Pretrain an image encoder without labels, and measure it beside honest baselines.

        Run the same command again after an interruption: it goes on where the run was.

        Args:
            data: A folder of images (flat, or with class folders), a list or table of paths (.txt .csv .tsv .parquet),
                WebDataset shards (path, glob or URL), torchvision:NAME?root=…, or hf:NAME. Without it: the embedded sample.
            recipe: A recipe by name (moco-v2, dcl, …, or with -laptop behind for a small CPU), a YAML file or a run folder.
                Default: moco-v2, or dcl-laptop for the embedded sample.
            out: Run folder. Default: runs/RECIPE-DATA.
            backbone: Encoder, by its timm name (resnet50, vit_small_patch16_224, …) or one of ours (see README).
            pretrained: Start from timm's pretrained weights (downloads them).
            image_size: Side of the views in pixels.
            labels: Labels, where the data has them, are used only to measure: auto or none.
            holdout: Share of the images kept out of training, to measure on.
            max_bad: Share of unreadable images to accept, as 0.01 or 1%.
            json: Print the result as one JSON object instead of a table.
            print_recipe: Print the recipe with all options in place, and do nothing.
        """
        from mc_vision_app.pretrain import PretrainOptions, run_pretrain

        run_pretrain(
            PretrainOptions(
                data=data,
                recipe=recipe,
                out=out,
                backbone=backbone,
                pretrained=pretrained,
                image_size=image_size,
                labels=labels,
                holdout=holdout,
                max_bad=max_bad,
                json=json,
                print_recipe=print_recipe,
                fit=fit,
                views=views,
                method=method,
            )
        )

    pretrain.__annotations__ |= {"fit": fit_option, "views": views_option, "method": method_option}
    return pretrain
