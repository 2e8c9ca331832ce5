"""The grammar of ``mc-vision-language``: verbs, their options, and where their work is done. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from mc_core.cli import call_app, value_of
from mc_core.engine.config import Fit
from mc_vision_language import __version__
from mc_vision_language.augment_config import AugmentConfig
from mc_vision_language.data.options import ReadOptions, SplitOptions
from mc_vision_language.methods import METHODS
from mc_vision_language.methods.growclip.config import GrowCLIPConfig
from mc_vision_language.recipe import system_of
from mc_vision_language_app.astrea_options import AstreaSettings
from mc_vision_language_app.pair_options import MeasuredOptions, PairOptions
from mc_vision_language_app.task_options import TaskOptions

app = App(
    name="mc-vision-language",
    help="From images and captions to search, answers, statements and boxes.",
    version=__version__,
    default_parameter=Parameter(negative_iterable=()),
    help_format="plaintext",  # importing what renders Markdown takes a fifth of a second
)

_RECIPE_OPTIONS = "[default: the recipe's; see --print-recipe]"
_PAIRS = Group("Pairs", help="Where images and captions are, and which column is what", sort_key=1)
_ROWS = Group("Rows", help="What belongs to the rows of a task", sort_key=1)
_READING = Group("Reading (--split.*, --unit)", help=f"How pairs are divided {_RECIPE_OPTIONS}", sort_key=2)
_FIT = Group("Training (--fit.*)", help=f"How it is trained {_RECIPE_OPTIONS}", sort_key=3)
_METHOD = Group("Method (--method.*)", help=f"Of the method the recipe names {_RECIPE_OPTIONS}", sort_key=4)
_AUGMENT = Group("Augmentation (--augment.*)", help=f"Random changes of the images {_RECIPE_OPTIONS}", sort_key=5)

_Json = Annotated[bool, Parameter(name="--json", negative=())]
_Device = Literal["auto", "cpu", "cuda"]
_Pairs = Annotated[PairOptions | None, Parameter(name="*", group=_PAIRS, show_default=False)]
_Task = Literal["retrieval", "vqa", "nlvr2", "entailment", "grounding"]


astrea = App(
    name="astrea",
    help="Four experts whose views a router weighs (Astrea): train them in stages, ask, look at what counts.",
    default_parameter=Parameter(negative_iterable=()),
    help_format="plaintext",
)
app.command(astrea)
_Stage = Literal["experts", "prealign", "joint", "instruct"]


def run(arguments: Sequence[str]) -> Any:
    """Parse and run; the options ``--method.*`` are those of the method that ``--recipe`` (or its default) names."""
    arguments = list(arguments)
    if "pretrain" in app:  # of an earlier call in this process
        del app["pretrain"]
    named = value_of(arguments, "--recipe") if arguments[:1] == ["pretrain"] else None
    system = system_of(named or "albef")
    config = AstreaSettings if system == "astrea" else METHODS.config_class(system)
    app.command(_pretrain_command(config), name="pretrain")
    return call_app(app, arguments)


@app.command
def finetune(
    run: Path,
    source: str | None = None,
    /,
    *,
    task: _Task,
    rows: Annotated[TaskOptions | None, Parameter(name="*", group=_ROWS, show_default=False)] = None,
    recipe: str | None = None,
    out: Path | None = None,
    batch: int | None = None,
    assignment: str | None = None,
    scratch: bool = False,
    draws: int = 1000,
    json: _Json = False,
    print_recipe: Annotated[bool, Parameter(negative=())] = False,
    augment: Annotated[AugmentConfig | None, Parameter(name="augment", group=_AUGMENT, show_default=False)] = None,
    fit: Annotated[Fit | None, Parameter(name="fit", group=_FIT, show_default=False)] = None,
) -> None:
    """Train a pretrained model further for a task, and measure it on images held out.

    Run the same command again after an interruption: it goes on where the run was.

    Args:
        run: Run folder of pretrain, or a saved model.
        source: Rows of the task: a table, or annotation files as published (COCO, Flickr30K; VQA v2, Visual Genome; NLVR2; SNLI-VE;
            RefCOCO). Without it: those of the digit scenes.
        task: What to train for.
        recipe: By name (albef-vqa, or albef-vqa-laptop for a small CPU), a YAML file or a run folder.
            Default: albef-TASK as published, or its laptop form for the digit scenes.
        out: Run folder. Default: RUN-TASK.
        batch: Rows of an optimizer step (as --fit.batch-size).
        assignment: Of nlvr2: pairs of images and captions for the stage of text assignment before it, or "sample"; options of
            the training hold for both. Default: none.
        scratch: Train the same from random weights too, as a baseline.
        draws: Of the bootstrap over images.
        json: Print the result as one JSON object instead of tables.
        print_recipe: Print the recipe with all options in place, and do nothing.
    """
    from mc_vision_language_app.tasks import FinetuneOptions, run_finetune

    run_finetune(
        FinetuneOptions(
            run=run,
            source=source,
            task=task,
            rows=rows or TaskOptions(),
            recipe=recipe,
            out=out,
            batch=batch,
            assignment=assignment,
            scratch=scratch,
            draws=draws,
            json=json,
            print_recipe=print_recipe,
            sections={"augment": augment, "fit": fit},
        )
    )


@app.command
def evaluate(
    run: Path,
    source: str | None = None,
    /,
    *,
    pairs: Annotated[MeasuredOptions | None, Parameter(name="*", group=_PAIRS, show_default=False)] = None,
    part: Literal["test", "validation", "train", "all"] | None = None,
    rerank: int | None = None,
    add_cosine: bool = False,
    draws: int = 1000,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Measure a run on images held out: retrieval both ways, or the task it was trained for.

    Args:
        run: Run folder, or a saved model.
        source: Pairs, or rows of the task. Default: the digit scenes, for a run that was trained on them.
        part: Of the split. Default: test for the data that the run was trained on, all for others.
        rerank: Of retrieval: how many candidates of each query the fusion layers rank again. Default: 128, or a quarter of few.
        add_cosine: Of retrieval: add the cosine to the score of a match, as later code does; the paper does not.
        draws: Of the bootstrap over images.
        device: Where to compute.
        json: Print one JSON object instead of a table.
    """
    from mc_vision_language_app.evaluate import run_evaluate

    run_evaluate(
        run,
        source,
        pairs or MeasuredOptions(),
        part=part,
        rerank=rerank,
        add_cosine=add_cosine,
        draws=draws,
        device=device,
        as_json=json,
    )


@app.command
def search(
    run: Path,
    images: str,
    query: str,
    /,
    *,
    pairs: _Pairs = None,
    top: int = 10,
    rerank: int | None = None,
    index: Path | None = None,
    out: Path | None = None,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Find images by a sentence, or sentences by an image.

    The first search encodes the images into an index; later ones encode only what is new.

    Args:
        run: Run folder, or a saved model.
        images: Folder, tar or list of images to search in. For an image as the query: a .txt file of sentences, or pairs.
        query: A sentence such as "two dogs on grass", or an image file.
        top: How many to show.
        rerank: How many of the best the fusion layers rank again; 0: none. Default: 32, or none where no matching was trained.
        index: Folder of the index. Default: in the run.
        out: Picture of the images found. Default: none.
        device: Where to compute.
        json: Print one JSON object instead of a table.
    """
    from mc_vision_language_app.search import run_search

    run_search(
        run,
        images,
        query,
        pairs or PairOptions(),
        top=top,
        rerank=rerank,
        index=index,
        out=out,
        device=device,
        as_json=json,
    )


@app.command
def vqa(
    run: Path,
    photo: Path,
    question: str,
    /,
    *,
    answers: Path | None = None,
    top: int = 3,
    generate: bool = False,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Answer a question about an image.

    Args:
        run: Run folder of finetune --task vqa.
        photo: The image.
        question: Such as "what is left of the cup?".
        answers: File of answers to choose from, one in each line. Default: those that the run knows.
        top: Answers to show.
        generate: Answer in free words instead of choosing.
        device: Where to compute.
        json: Print one JSON object instead of a table.
    """
    from mc_vision_language_app.answer import run_vqa

    run_vqa(run, photo, question, answers=answers, top=top, generate=generate, device=device, as_json=json)


@app.command
def judge(run: Path, sentence: str, /, *photos: Path, device: _Device = "auto", json: _Json = False) -> None:
    """Say whether a sentence is true of one image, or of two.

    Args:
        run: Run folder of finetune --task entailment (one image) or nlvr2 (two).
        sentence: What is claimed.
        photos: The images, in order.
        device: Where to compute.
        json: Print one JSON object instead of a table.
    """
    from mc_vision_language_app.answer import run_judge

    run_judge(run, sentence, photos, device=device, as_json=json)


@app.command
def ground(
    run: Path,
    photo: Path,
    phrase: str,
    /,
    *,
    out: Path | None = None,
    mode: Literal["itm", "itc"] = "itm",
    layer: int | None = None,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Show where a phrase is in an image: a heat map and a box.

    Args:
        run: Run folder of pretrain, or of finetune --task grounding.
        photo: The image.
        phrase: Such as "the red car".
        out: Picture to write. Default: PHOTO-where.png in this folder.
        mode: itm: by the cross-attention behind the score of a match; itc: by the image encoder's attention behind the cosine.
        layer: Of the fusion layers or the image encoder, from 0. Default: the middle one, or the last.
        device: Where to compute.
        json: Print one JSON object instead of lines.
    """
    from mc_vision_language_app.ground import run_ground

    run_ground(run, photo, phrase, out=out, mode=mode, layer=layer, device=device, as_json=json)


@app.command
def embed(
    run: Path,
    source: str,
    /,
    *,
    pairs: _Pairs = None,
    what: Literal["image", "text"] = "image",
    out: Path = Path("embeddings.parquet"),
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Write a unit vector for each image, or each text.

    Args:
        run: Run folder, or a saved model.
        source: Folder, tar or list of images; for texts a .txt file, or a list of pairs.
        what: Which of them.
        out: File to write: .parquet or .npz.
        device: Where to compute.
        json: Print one JSON object instead of a line.
    """
    from mc_vision_language_app.embed import run_embed

    run_embed(run, source, pairs or PairOptions(), what=what, out=out, device=device, as_json=json)


@app.command
def export(
    run: Path,
    /,
    *,
    format: Literal["onnx", "timm", "albef"] = "onnx",
    out: Path | None = None,
    json: _Json = False,
) -> None:
    """Write the model for other tools.

    Args:
        run: Run folder, or a saved model.
        format: onnx: image and text towers and the score of a match, each with a parity check; timm: weights of the image encoder;
            albef: weights under the names of the official checkpoints, also of a run of finetune.
        out: File or folder to write. Default: RUN/export/….
        json: Print one JSON object instead of lines.
    """
    from mc_vision_language_app.export import run_export

    run_export(run, format=format, out=out, as_json=json)


@app.command
def convert(
    checkpoint: Path,
    /,
    out: Path,
    *,
    answers: Path | None = None,
    tokenizer: str | None = None,
    download: bool = False,
    image_heads: int | None = None,
    text_heads: int | None = None,
    json: _Json = False,
) -> None:
    """Make a model of this package from an official ALBEF checkpoint, pretrained or of a task; which, its names tell.

    Args:
        checkpoint: A .pth or .safetensors file as the authors publish them.
        out: Folder to write.
        answers: Of visual question answering: the list to choose from, which no checkpoint holds: JSON, or one in each line.
        tokenizer: Folder or hub name of the tokenizer, bert-base-uncased's. Without it the model takes token ids alone.
        download: Fetch the tokenizer from the hub when it is not here.
        image_heads: Attention heads of the image encoder, which a checkpoint does not say. Default: one for 64 features.
        text_heads: The same of the text encoder and the fusion layers.
        json: Print one JSON object instead of lines.
    """
    from mc_vision_language_app.convert import run_convert

    run_convert(
        checkpoint,
        out,
        answers=answers,
        tokenizer=tokenizer,
        download=download,
        image_heads=image_heads,
        text_heads=text_heads,
        as_json=json,
    )


@app.command
def ablate(
    source: str | None = None,
    /,
    *,
    pairs: _Pairs = None,
    recipe: str = "albef-laptop",
    out: Path | None = None,
    seeds: int = 3,
    noise: list[float] | None = None,
    steps: int | None = None,
    strengths: bool = False,
    downstream: bool = False,
    json: _Json = False,
) -> None:
    """What each part is worth on these pairs: matching and words, contrast, hard negatives, momentum distillation.

    Args:
        source: Pairs, as for pretrain. Without it: the digit scenes.
        recipe: What every row starts from, by name or file.
        out: Folder of the rows; those that are done are kept. Default: runs/ablation-DATA.
        seeds: Weights and order of their own.
        noise: Share of the training captions that are swapped among themselves; repeat for several. Default: 0 and 0.4.
        steps: Optimizer steps of each row. Default: the recipe's.
        strengths: Also rows with hard negatives of strength 0.25, 0.5 and 0.75.
        downstream: Also two rows that train the last one further for retrieval, without and with momentum distillation.
        json: Print one JSON object instead of a table.
    """
    from mc_vision_language_app.ablate import run_ablate

    run_ablate(
        source,
        pairs or PairOptions(),
        recipe=recipe,
        out=out,
        seeds=seeds,
        noises=noise or [0.0, 0.4],
        steps=steps,
        strengths=strengths,
        downstream=downstream,
        as_json=json,
    )


@app.command(name="zero-shot")
def zero_shot(
    run: Path,
    source: str | None = None,
    /,
    *,
    templates: Path | None = None,
    names: Path | None = None,
    root: Path | None = None,
    draws: int = 1000,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Tell which class an image is of, by sentences about the classes alone.

    Args:
        run: Run folder, or a saved model.
        source: Folder with a folder of images for each class; a standard set as published (ImageNet, CIFAR-10, CIFAR-100,
            Caltech101, Flowers102, Food101, SUN397, DTD, Pets); or torchvision:NAME. Default: the digit scenes, for a run trained
            on them.
        templates: File of sentences with {} where the class goes, one in each line. Default: CLIP's for a standard set, else
            "a photo of a {}.".
        names: File of class names, one in each line or FOLDER<tab>NAME. Default: those of the folders or of the set.
        root: Of torchvision:NAME: the folder that holds it; nothing is downloaded.
        draws: Of the bootstrap over images.
        device: Where to compute.
        json: Print one JSON object instead of tables.
    """
    from mc_vision_language_app.zero_shot import run_zero_shot

    run_zero_shot(run, source, templates=templates, names=names, root=root, draws=draws, device=device, as_json=json)


@app.command
def grow(
    *sources: str,
    pairs: _Pairs = None,
    recipe: str | None = None,
    out: Path | None = None,
    slices: int = 4,
    beside: bool | None = None,
    labelled: str | None = None,
    templates: Path | None = None,
    batch: int | None = None,
    json: _Json = False,
    print_recipe: Annotated[bool, Parameter(negative=())] = False,
    unit: Annotated[Literal["image", "caption"] | None, Parameter(group=_READING, show_default=False)] = None,
    split: Annotated[SplitOptions | None, Parameter(name="split", group=_READING, show_default=False)] = None,
    augment: Annotated[AugmentConfig | None, Parameter(name="augment", group=_AUGMENT, show_default=False)] = None,
    fit: Annotated[Fit | None, Parameter(name="fit", group=_FIT, show_default=False)] = None,
    method: Annotated[GrowCLIPConfig | None, Parameter(name="method", group=_METHOD, show_default=False)] = None,
) -> None:
    """Train on pairs that keep arriving, with a model that grows when it pays (GrowCLIP).

    Run the same command again after an interruption, or with more sources at the end: it goes on where the run was.

    Args:
        sources: Images with captions, as for pretrain: several arrive in their order, one is divided into slices. Without any:
            scenes of handwritten digits in four slices, with a fixed small model and restarting beside it.
        recipe: growclip, or growclip-laptop for a small CPU; a YAML file or a run folder.
            Default: growclip, or growclip-laptop for the digit scenes.
        out: Run folder. Default: runs/RECIPE-DATA.
        slices: Into how many one source is divided.
        beside: Also train a fixed small model, and one that begins anew at each step, with as many updates.
            Default: for the digit scenes.
        labelled: Folder of classes, or a standard set, to classify after each step; see zero-shot. Default: none.
        templates: File of sentences for it; see zero-shot.
        batch: Pairs of an optimizer step (as --fit.batch-size).
        json: Print the result as one JSON object instead of a table.
        print_recipe: Print the recipe with all options in place, and do nothing.
    """
    from mc_vision_language_app.grow import GrowOptions, run_grow

    run_grow(
        GrowOptions(
            sources=sources,
            pairs=pairs or PairOptions(),
            recipe=recipe,
            out=out,
            slices=slices,
            beside=beside,
            labelled=labelled,
            templates=templates,
            batch=batch,
            json=json,
            print_recipe=print_recipe,
            sections={"unit": unit, "split": split, "augment": augment, "fit": fit, "method": method},
        )
    )


@app.command
def continual(
    source: str | None = None,
    /,
    *,
    method: list[str] | None = None,
    start: Path | None = None,
    buffer: int | None = None,
    reverse: Annotated[bool, Parameter(negative=())] = False,
    recipe: str | None = None,
    out: Path | None = None,
    json: _Json = False,
    print_recipe: Annotated[bool, Parameter(negative=())] = False,
    read: Annotated[ReadOptions | None, Parameter(name="*", group=_PAIRS, show_default=False)] = None,
    unit: Annotated[Literal["image", "caption"] | None, Parameter(group=_READING, show_default=False)] = None,
    split: Annotated[SplitOptions | None, Parameter(name="split", group=_READING, show_default=False)] = None,
    augment: Annotated[AugmentConfig | None, Parameter(name="augment", group=_AUGMENT, show_default=False)] = None,
    fit: Annotated[Fit | None, Parameter(name="fit", group=_FIT, show_default=False)] = None,
) -> None:
    """Train on one domain after the other without the old data, or with a few samples of it, and measure after each.

    Run the same command again after an interruption: it goes on where it was, at any task and step. With more tasks at the end of
    the list it goes on with those.

    Args:
        source: YAML list of tasks, the first one first, each with name and data (whatever pretrain takes), and where it is wanted
            columns, category and where (column: value, so that one file can hold several domains); or p9d:FOLDER. Without it:
            five tasks of two handwritten digits each.
        method: ctp, ctp+er, ctp-first, sequential, joint, ewc, mas, si, rwalk, afec, lwf, er, mof, kmeans, icarl or lucir; repeat
            for several. Default: ctp; without TASKS sequential, ctp and joint.
        start: A trained model that all methods begin with, such as a run of pretrain or continual: its encoders, tokenizer and
            image size are taken. Default: encoders as the recipe says.
        buffer: Samples of finished tasks that are kept, for methods that replay. Default: a hundredth of all.
        reverse: The last task first.
        recipe: A recipe by name (ctp, or ctp-laptop for a small CPU), a YAML file or a run folder; holds for every task.
            Default: ctp, or ctp-laptop for the digits.
        out: Folder of the runs, one for each method. Default: runs/continual-TASKS.
        json: Print the result as one JSON object instead of tables.
        print_recipe: Print the recipe of each method with all options in place, and do nothing.
    """
    from mc_vision_language_app.continual import ContinualOptions, run_continual

    run_continual(
        ContinualOptions(
            source=source,
            methods=method or [],
            read=read or ReadOptions(),
            recipe=recipe,
            out=out,
            start=start,
            buffer=buffer,
            reverse=reverse,
            json=json,
            print_recipe=print_recipe,
            sections={"unit": unit, "split": split, "augment": augment, "fit": fit},
        )
    )


@astrea.default
@astrea.command(name="train")
def astrea_train(
    source: str | None = None,
    /,
    *,
    pairs: _Pairs = None,
    recipe: str | None = None,
    out: Path | None = None,
    stage: list[_Stage] | None = None,
    expert: list[str] | None = None,
    beside: bool | None = None,
    batch: int | None = None,
    draws: int = 1000,
    json: _Json = False,
    print_recipe: Annotated[bool, Parameter(negative=())] = False,
    split: Annotated[SplitOptions | None, Parameter(name="split", group=_READING, show_default=False)] = None,
    augment: Annotated[AugmentConfig | None, Parameter(name="augment", group=_AUGMENT, show_default=False)] = None,
    fit: Annotated[Fit | None, Parameter(name="fit", group=_FIT, show_default=False)] = None,
    method: Annotated[AstreaSettings | None, Parameter(name="method", group=_METHOD, show_default=False)] = None,
) -> None:
    """Train experts, align them, train a router over them by momentum contrast, and teach a language model to read the result.

    Run the same command again after an interruption: it goes on where the run was, at any stage and step.

    Args:
        source: Pictures with captions and what else is known of them: tar or WebDataset shards with objects, masks and questions, a
            folder or file of COCO's instances, or whatever pretrain takes. Experts without annotations are left out, and named.
            Without it: scenes of handwritten digits with everything.
        recipe: astrea, or astrea-laptop for a small CPU; a YAML file or a run folder.
            Default: astrea, or astrea-laptop for the digit scenes.
        out: Run folder. Default: runs/RECIPE-DATA.
        stage: Only this stage: experts, prealign, joint or instruct; repeat for several. Default: all that are on.
        expert: A ready one as KIND=FOLDER, trained elsewhere; repeat for several.
        beside: Also train the expert that counts most alone, and all with uniform weights, with as many updates.
            Default: for the digit scenes.
        batch: Pictures of an optimizer step (as --fit.batch-size).
        draws: Of the bootstrap over pictures.
        json: Print the result as one JSON object instead of tables.
        print_recipe: Print the recipe with all options in place, and do nothing.
    """
    from mc_vision_language_app.astrea import AstreaOptions, run_train

    run_train(
        AstreaOptions(
            source=source,
            pairs=pairs or PairOptions(),
            recipe=recipe,
            out=out,
            stages=stage or [],
            experts=expert or [],
            beside=beside,
            batch=batch,
            draws=draws,
            json=json,
            print_recipe=print_recipe,
            sections={"split": split, "augment": augment, "fit": fit, "method": method},
        )
    )


@astrea.command(name="evaluate")
def astrea_evaluate(
    run: Path,
    source: str | None = None,
    /,
    *,
    pairs: _Pairs = None,
    part: Literal["test", "validation", "train", "all"] | None = None,
    mode: Literal["generate", "rank"] = "generate",
    draws: int = 1000,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Measure a run on pictures held out: what it finds, answers and writes.

    Args:
        run: Run folder of astrea, or its model.
        source: Pictures, as for train. Default: the digit scenes, for a run that was trained on them.
        part: Of the split. Default: test for the data that the run was trained on, all for others.
        mode: Answer in free words, or rank the training answers.
        draws: Of the bootstrap over pictures.
        device: Where to compute.
        json: Print one JSON object instead of tables.
    """
    from mc_vision_language_app.astrea import run_evaluate

    run_evaluate(run, source, pairs or PairOptions(), part=part, mode=mode, draws=draws, device=device, as_json=json)


@astrea.command(name="ask")
def astrea_ask(
    run: Path,
    photo: Path,
    question: str,
    /,
    *,
    answers: Path | None = None,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Answer a question about an image.

    Args:
        run: Run folder of astrea, or its model.
        photo: The image.
        question: Such as "which digit is red?".
        answers: File of answers to choose from, one in each line. Default: an answer in free words.
        device: Where to compute.
        json: Print one JSON object instead of a line.
    """
    from mc_vision_language_app.astrea import run_ask

    run_ask(run, photo, question, answers=answers, device=device, as_json=json)


@astrea.command(name="caption")
def astrea_caption(run: Path, /, *photos: Path, device: _Device = "auto", json: _Json = False) -> None:
    """Write a caption of each image.

    Args:
        run: Run folder of astrea, or its model.
        photos: The images.
        device: Where to compute.
        json: Print one JSON object instead of lines.
    """
    from mc_vision_language_app.astrea import run_caption

    run_caption(run, photos, device=device, as_json=json)


@astrea.command(name="inspect")
def astrea_inspect(
    run: Path,
    source: str | None = None,
    /,
    *,
    pairs: _Pairs = None,
    out: Path | None = None,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Show how much each expert counts, where in a picture, how that came about, and what is lost without it.

    Args:
        run: Run folder of astrea, or its model.
        source: Folder, tar or list of images. Default: the digit scenes, for a run that was trained on them.
        out: Folder of the pictures to write. Default: RUN/inspect.
        device: Where to compute.
        json: Print one JSON object instead of tables.
    """
    from mc_vision_language_app.astrea import run_inspect

    run_inspect(run, source, pairs or PairOptions(), out=out, device=device, as_json=json)


@astrea.command(name="ablate")
def astrea_ablate(
    source: str | None = None,
    /,
    *,
    pairs: _Pairs = None,
    recipe: str = "astrea-laptop",
    out: Path | None = None,
    seeds: int = 3,
    row: list[str] | None = None,
    steps: int | None = None,
    answers: Annotated[bool, Parameter(negative=())] = False,
    json: _Json = False,
) -> None:
    """What each part is worth on these pictures, at equal updates: experts, ways to fuse them, queue, pre-alignment, shortcut.

    Args:
        source: Pictures, as for train. Without it: the digit scenes.
        recipe: What every row starts from, by name or file.
        out: Folder of the rows; those that are done are kept. Default: runs/astrea-ablation-DATA.
        seeds: Experts, weights and order of their own.
        row: Only this one, such as "uniform weights" or "without detection"; repeat for several. Default: all.
        steps: Optimizer steps of joint training. Default: the recipe's.
        answers: Also train the language model in each row, and measure answers.
        json: Print one JSON object instead of a table.
    """
    from mc_vision_language_app.astrea import run_ablate

    run_ablate(
        source,
        pairs or PairOptions(),
        recipe=recipe,
        out=out,
        seeds=seeds,
        rows=row or [],
        steps=steps,
        answers=answers,
        as_json=json,
    )


@app.command
def demo(
    run: Path,
    images: str | None = None,
    /,
    *,
    vqa: Path | None = None,
    pairs: _Pairs = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: _Device = "auto",
    browser: bool = False,
) -> None:
    """A page in the browser: search among images, ask about one, and see where a phrase is.

    Args:
        run: Run folder, or a saved model.
        images: Folder, tar or list of images. Default: digit scenes.
        vqa: Run folder of finetune --task vqa, which answers on the page. Default: none.
        host: Address to listen on; 0.0.0.0 lets others in, with all the images that the page shows.
        port: Port to listen on.
        device: Where to compute.
        browser: Open the page in the browser.
    """
    from mc_vision_language_app.demo import run_demo

    run_demo(run, images, pairs or PairOptions(), vqa=vqa, host=host, port=port, device=device, browser=browser)


def _pretrain_command(config: Any) -> Any:
    def pretrain(
        source: str | None = None,
        /,
        *,
        pairs: Any = None,
        recipe: str | None = None,
        out: Path | None = None,
        batch: int | None = None,
        rerank: int | None = None,
        json: _Json = False,
        print_recipe: Annotated[bool, Parameter(negative=())] = False,
        unit: Any = None,
        split: Any = None,
        augment: Any = None,
        fit: Any = None,
        method: Any = None,
    ) -> None:
        """Train encoders and fusion layers on images with captions, and measure retrieval on images held out.

        Run the same command again after an interruption: it goes on where the run was.

        Args:
            source: Table (.csv, .tsv, .jsonl, .parquet), annotations (.json of COCO, Karpathy or ALBEF), WebDataset shards (files,
                a pattern or an address), folder of images with texts, or hf:NAME. Without it: scenes of handwritten digits.
            recipe: A recipe by name (albef, or albef-laptop for a small CPU), a YAML file or a run folder.
                Default: albef, or albef-laptop for the digit scenes.
            out: Run folder. Default: runs/RECIPE-DATA.
            batch: Pairs of an optimizer step (as --fit.batch-size).
            rerank: How many candidates of each query the fusion layers rank again. Default: 128, or a quarter of few.
            json: Print the result as one JSON object instead of tables.
            print_recipe: Print the recipe with all options in place, and do nothing.
        """
        from mc_vision_language_app.pretrain import PretrainOptions, run_pretrain

        run_pretrain(
            PretrainOptions(
                source=source,
                pairs=pairs or PairOptions(),
                recipe=recipe,
                out=out,
                batch=batch,
                rerank=rerank,
                json=json,
                print_recipe=print_recipe,
                sections={"unit": unit, "split": split, "augment": augment, "fit": fit, "method": method},
            )
        )

    pretrain.__annotations__ |= {
        "pairs": _Pairs,
        "unit": Annotated[Literal["image", "caption"] | None, Parameter(group=_READING, show_default=False)],
        "split": Annotated[SplitOptions | None, Parameter(name="split", group=_READING, show_default=False)],
        "augment": Annotated[AugmentConfig | None, Parameter(name="augment", group=_AUGMENT, show_default=False)],
        "fit": Annotated[Fit | None, Parameter(name="fit", group=_FIT, show_default=False)],
        "method": Annotated[config | None, Parameter(name="method", group=_METHOD, show_default=False)],
    }
    return pretrain
