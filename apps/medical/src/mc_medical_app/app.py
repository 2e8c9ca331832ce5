"""The grammar of ``mc-medical``: verbs, their options, and where their work is done. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from mc_core.cli import call_app, value_of
from mc_core.engine.config import Fit
from mc_medical import __version__
from mc_medical.augment_config import AugmentConfig
from mc_medical.data.image_config import ImageOptions
from mc_medical.data.reports import ReportOptions
from mc_medical.methods import METHODS
from mc_medical.recipe import SplitOptions, system_of
from mc_medical_app.study_options import StudyOptions

app = App(
    name="mc-medical",
    help="From radiographs and their reports to zero-shot findings and retrieval. Research use, not a medical device.",
    version=__version__,
    default_parameter=Parameter(negative_iterable=()),
    help_format="plaintext",  # importing what renders Markdown takes a fifth of a second
)

_RECIPE_OPTIONS = "[default: the recipe's; see --print-recipe]"
_STUDIES = Group("Studies", help="A table or tar of images and reports, and which column is what", sort_key=1)
_READING = Group(
    "Reading (--image.*, --reports.*, --split.*)", help=f"How images and reports are read {_RECIPE_OPTIONS}", sort_key=2
)
_FIT = Group("Training (--fit.*)", help=f"How it is trained {_RECIPE_OPTIONS}", sort_key=3)
_METHOD = Group("Method (--method.*)", help=f"Of the method the recipe names {_RECIPE_OPTIONS}", sort_key=4)
_AUGMENT = Group("Augmentation (--augment.*)", help=f"Random changes of the images {_RECIPE_OPTIONS}", sort_key=5)

_Json = Annotated[bool, Parameter(name="--json", negative=())]
_Device = Literal["auto", "cpu", "cuda"]
_Studies = Annotated[StudyOptions | None, Parameter(name="*", group=_STUDIES, show_default=False)]


def run(arguments: Sequence[str]) -> Any:
    """Parse and run; the options ``--method.*`` are those of the method that ``--recipe`` (or its default) names."""
    arguments = list(arguments)
    if "pretrain" in app:  # of an earlier call in this process
        del app["pretrain"]
    named = value_of(arguments, "--recipe") if arguments[:1] == ["pretrain"] else None
    app.command(_pretrain_command(METHODS.config_class(system_of(named or "msd"))), name="pretrain")
    return call_app(app, arguments)


@app.command
def evaluate(
    run: Path,
    /,
    source: Path | None = None,
    *,
    studies: _Studies = None,
    part: Literal["test", "validation", "train", "all"] | None = None,
    prompts: Path | None = None,
    draws: int = 1000,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Retrieval both ways, zero-shot and few-shot findings of a run, with intervals over patients, beside the random encoder.

    Args:
        run: Run folder, or a saved model.
        source: Studies to measure on. Default: the phantoms of a run that was trained on them.
        part: Of the patients' split that the run was trained with. Default: test for the run's own studies, all for others.
        prompts: YAML file of phrases for each finding. Default: those shipped for the CheXpert findings.
        draws: Of the bootstrap over patients.
        device: Where to compute.
        json: Print one JSON object instead of tables.
    """
    from mc_medical_app.evaluate import run_evaluate

    run_evaluate(
        run,
        source,
        studies or StudyOptions(),
        part=part,
        prompts=prompts,
        draws=draws,
        device=device,
        as_json=json,
    )


@app.command(name="zero-shot")
def zero_shot(
    run: Path,
    /,
    *radiographs: Path,
    finding: list[str] | None = None,
    prompts: Path | None = None,
    out: Path | None = None,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Score findings in radiographs by their names alone.

    Args:
        run: Run folder, or a saved model.
        radiographs: DICOM, PNG or JPEG files, and folders of them.
        finding: Only this finding, such as "Pleural Effusion"; one without shipped phrases is asked for as it is written.
            Repeat for several. Default: all that --prompts has.
        prompts: YAML file of phrases for each finding. Default: those shipped for the CheXpert findings.
        out: Table to write: .csv or .parquet. Default: printed.
        device: Where to compute.
        json: Print one JSON object instead of a table.
    """
    from mc_medical_app.zero_shot import run_zero_shot

    run_zero_shot(run, radiographs, findings=finding or [], prompts=prompts, out=out, device=device, as_json=json)


@app.command(name="few-shot")
def few_shot(
    run: Path,
    /,
    source: Path | None = None,
    *,
    studies: _Studies = None,
    finding: list[str] | None = None,
    draws: int = 5,
    save: str | None = None,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Heads on frozen features from 4 to 32 labelled images a class, and from 1, 10 and 100 % of the training patients.

    Args:
        run: Run folder, or a saved model.
        source: Studies with labels. Default: the phantoms of a run that was trained on them.
        finding: Only this finding; repeat for several.
        draws: Of the labelled images.
        save: Keep a head on all training images of this finding, as RUN/heads/FINDING.
        device: Where to compute.
        json: Print one JSON object instead of a table.
    """
    from mc_medical_app.few_shot import run_few_shot

    run_few_shot(
        run,
        source,
        studies or StudyOptions(),
        findings=finding or [],
        draws=draws,
        save=save,
        device=device,
        as_json=json,
    )


@app.command
def retrieve(
    run: Path,
    query: str,
    /,
    source: Path | None = None,
    *,
    studies: _Studies = None,
    top: int = 5,
    out: Path | None = None,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Find radiographs by a phrase, or reports by a radiograph.

    Args:
        run: Run folder, or a saved model.
        query: A phrase such as "left pleural effusion", or a DICOM, PNG or JPEG file.
        source: Studies to search. Default: the phantoms of a run that was trained on them.
        top: How many to show.
        out: Picture of the radiographs found. Default: none.
        device: Where to compute.
        json: Print one JSON object instead of a table.
    """
    from mc_medical_app.retrieve import run_retrieve

    run_retrieve(run, query, source, studies or StudyOptions(), top=top, out=out, device=device, as_json=json)


@app.command
def embed(
    run: Path,
    source: Path,
    /,
    *,
    studies: _Studies = None,
    what: Literal["image", "text", "features"] = "image",
    out: Path = Path("embeddings.parquet"),
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Write a vector for each radiograph, or each report.

    Args:
        run: Run folder, or a saved model.
        source: Studies, or a folder of radiographs.
        what: image or text: unit vectors of the shared space; features: of the image encoder before its projection.
        out: File to write: .parquet or .npz.
        device: Where to compute.
        json: Print one JSON object instead of a line.
    """
    from mc_medical_app.embed import run_embed

    run_embed(run, source, studies or StudyOptions(), what=what, out=out, device=device, as_json=json)


@app.command
def export(
    run: Path,
    /,
    *,
    format: Literal["onnx", "timm", "transformers"] = "onnx",
    out: Path | None = None,
    json: _Json = False,
) -> None:
    """Write the model for other tools.

    Args:
        run: Run folder, or a saved model.
        format: onnx: image and text towers to unit vectors, each with a parity check; timm: weights of the image encoder for
            timm.create_model(…, checkpoint_path=…); transformers: folder of the text encoder for AutoModel.
        out: File or folder to write. Default: RUN/export/….
        json: Print one JSON object instead of lines.
    """
    from mc_medical_app.export import run_export

    run_export(run, format=format, out=out, as_json=json)


@app.command
def inspect(
    radiographs: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    out: Path | None = None,
    image: Annotated[ImageOptions | None, Parameter(name="image", group=_READING, show_default=False)] = None,
    json: _Json = False,
) -> None:
    """Show how files are read, step by step: a picture with the histogram of each step, or a contact sheet of several.

    Args:
        radiographs: A DICOM, PNG or JPEG file, several, or a folder.
        out: Picture to write. Default: inspect.png.
        json: Print one JSON object instead of a table.
    """
    from mc_medical_app.inspect import run_inspect

    run_inspect(radiographs, out=out, image=image or ImageOptions(), as_json=json)


@app.command
def efficiency(
    *,
    recipe: str | None = None,
    batch: int = 1024,
    micro: list[int] | None = None,
    repeats: int = 3,
    out: Path | None = None,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Pairs per second, peak memory and time of an epoch on this machine: MSD, GradCache and plain accumulation in one run.

    Args:
        recipe: Whose encoders and sizes. Default: msd-laptop without a GPU, msd with one.
        batch: Pairs of a contrastive batch.
        micro: Pairs in the autograd graph; repeat for several. Default: 8, 16, 32, 64.
        repeats: Steps of each, alternating.
        out: JSON file to write. Default: none.
        device: Where to compute.
        json: Print one JSON object instead of a table.
    """
    from mc_medical_app.efficiency import run_efficiency

    run_efficiency(
        recipe_name=recipe,
        batch=batch,
        micro=micro or [8, 16, 32, 64],
        repeats=repeats,
        out=out,
        device=device,
        as_json=json,
    )


@app.command
def demo(
    run: Path,
    source: Path | None = None,
    /,
    *,
    studies: _Studies = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: _Device = "auto",
    browser: bool = False,
) -> None:
    """A page in the browser: a radiograph, its zero-shot scores, the nearest reports, and where a phrase is seen.

    Args:
        run: Run folder, or a saved model.
        source: Studies whose radiographs and reports the page shows. Default: the phantoms of a run that was trained on them.
        host: Address to listen on; 0.0.0.0 lets others in, with all the studies that the page shows.
        port: Port to listen on.
        device: Where to compute.
        browser: Open the page in the browser.
    """
    from mc_medical_app.demo import run_demo

    run_demo(run, source, studies or StudyOptions(), host=host, port=port, device=device, browser=browser)


def _pretrain_command(config: Any) -> Any:
    def pretrain(
        source: Path | None = None,
        /,
        *,
        studies: Any = None,
        recipe: str | None = None,
        out: Path | None = None,
        batch: int | None = None,
        micro_batch: int | None = None,
        cache: Path | None = None,
        json: _Json = False,
        print_recipe: Annotated[bool, Parameter(negative=())] = False,
        image: Any = None,
        reports: Any = None,
        split: Any = None,
        augment: Any = None,
        fit: Any = None,
        method: Any = None,
    ) -> None:
        """Train an image encoder and a text encoder on radiographs with their reports, and measure them on patients held out.

        Run the same command again after an interruption: it goes on where the run was.

        Args:
            source: Table (.csv, .tsv, .jsonl, .parquet) or tar of studies. Without it: phantoms, procedural radiographs of nobody.
            recipe: A recipe by name (msd, or msd-laptop for a small CPU), a YAML file or a run folder.
                Default: msd, or msd-laptop for the phantoms.
            out: Run folder. Default: runs/RECIPE-DATA. The salt of its patient keys is written beside it, as OUT.salt.
            batch: Pairs of a contrastive batch (as --fit.batch-size).
            micro_batch: Of these, pairs in the autograd graph of a process at a time (sets --fit.accumulation).
            cache: Folder for decoded images, where there are more than memory holds. It holds pixels of patients.
            json: Print the result as one JSON object instead of tables.
            print_recipe: Print the recipe with all options in place, and do nothing.
        """
        from mc_medical_app.pretrain import PretrainOptions, run_pretrain

        run_pretrain(
            PretrainOptions(
                source=source,
                studies=studies or StudyOptions(),
                recipe=recipe,
                out=out,
                batch=batch,
                micro_batch=micro_batch,
                cache=cache,
                json=json,
                print_recipe=print_recipe,
                sections={
                    "image": image,
                    "reports": reports,
                    "split": split,
                    "augment": augment,
                    "fit": fit,
                    "method": method,
                },
            )
        )

    pretrain.__annotations__ |= {
        "studies": _Studies,
        "image": Annotated[ImageOptions | None, Parameter(name="image", group=_READING, show_default=False)],
        "reports": Annotated[ReportOptions | None, Parameter(name="reports", group=_READING, show_default=False)],
        "split": Annotated[SplitOptions | None, Parameter(name="split", group=_READING, show_default=False)],
        "augment": Annotated[AugmentConfig | None, Parameter(name="augment", group=_AUGMENT, show_default=False)],
        "fit": Annotated[Fit | None, Parameter(name="fit", group=_FIT, show_default=False)],
        "method": Annotated[config | None, Parameter(name="method", group=_METHOD, show_default=False)],
    }
    return pretrain
