"""The verbs of ``mc-text-code code``. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from mc_text_code_app.code_train import add_train

code = App(
    name="code",
    help="Search in source code, locally: by words at once, by meaning where a model is named.",
    help_format="plaintext",
)

_Json = Annotated[bool, Parameter(name="--json", negative=())]
_Flag = Annotated[bool, Parameter(negative=())]
_Device = Literal["auto", "cpu", "cuda"]
_Many = Annotated[tuple[str, ...], Parameter(negative=())]


@code.command
def search(
    query: str,
    path: Path = Path("."),
    /,
    *,
    k: Annotated[int, Parameter(name=("-k", "--top"))] = 10,
    mode: Literal["hybrid", "dense", "lexical"] = "hybrid",
    lang: _Many = (),
    within: Annotated[tuple[str, ...], Parameter(name="--path", negative=())] = (),
    model: Path | None = None,
    index: Path | None = None,
    device: _Device = "auto",
    full: _Flag = False,
    vimgrep: _Flag = False,
    json: _Json = False,
) -> None:
    """Find the functions that a query describes. The index is made and brought up to date by itself.

    Exit code 1 when nothing is found.

    Args:
        query: A description in words, or a name.
        path: Folder to search.
        k: How many.
        mode: hybrid: words and, with --model, meaning; dense or lexical: one of them.
        lang: Only files of this language; may be given several times.
        within: Only files that fit this pattern, as in .gitignore (src/, *_test.go); may be given several times.
        model: For meaning: any SentenceTransformer folder or run, or a static table. What has no vector yet is embedded first.
        index: Folder of the index. Default: .mc-code in the folder searched.
        device: Where to compute.
        full: Show whole functions instead of their first lines.
        vimgrep: file:line:column:text, for editors.
        json: Print one JSON object.
    """
    from mc_text_code_app.code_search import run_search

    run_search(
        query,
        path,
        k=k,
        mode=mode,
        languages=lang,
        paths=within,
        model=model,
        index=index,
        device=device,
        full=full,
        vimgrep=vimgrep,
        as_json=json,
    )


@code.command
def status(path: Path = Path("."), /, *, index: Path | None = None, json: _Json = False) -> None:
    """What the index of a folder holds, what was skipped and why, and how much has a vector.

    Args:
        path: Folder that is searched.
        index: Folder of the index.
        json: Print one JSON object instead of a table.
    """
    from mc_text_code_app.code_search import run_status

    run_status(path, index=index, as_json=json)


@code.command
def watch(
    path: Path = Path("."),
    /,
    *,
    model: Path | None = None,
    index: Path | None = None,
    device: _Device = "auto",
    stop: _Flag = False,
) -> None:
    """Keep index and model warm until Ctrl-C; `code search` in the same folder then asks this process.

    Args:
        path: Folder that is searched.
        model: Any SentenceTransformer folder or run, or a static table.
        index: Folder of the index.
        device: Where to compute.
        stop: End the one that runs.
    """
    from mc_text_code_app.code_search import run_watch

    run_watch(path, model=model, index=index, device=device, stop=stop)


@code.command
def serve(
    path: Path = Path("."),
    /,
    *,
    mcp: _Flag = False,
    model: Path | None = None,
    index: Path | None = None,
    device: _Device = "auto",
) -> None:
    """Serve editors and agents over standard input and output by the Model Context Protocol.

    Args:
        path: Folder that is searched; nothing outside it is shown.
        mcp: The Model Context Protocol, which is the only one so far.
        model: Any SentenceTransformer folder or run, or a static table.
        index: Folder of the index.
        device: Where to compute.
    """
    from mc_text_code_app.code_search import run_serve

    run_serve(path, mcp=mcp, model=model, index=index, device=device)


@code.command
def mine(
    path: Path | None = None,
    /,
    *,
    stdlib: _Flag = False,
    out: Path = Path("pairs.jsonl"),
    json: _Json = False,
) -> None:
    """Write pairs of documentation and function, with a count for each reason to leave one out.

    Args:
        path: Folder with source code.
        stdlib: The installed Python standard library instead.
        out: File to write: .jsonl, .jsonl.gz or .parquet.
        json: Print one JSON object instead of a table.
    """
    from mc_text_code_app.code_search import run_mine

    run_mine(path, stdlib=stdlib, out=out, as_json=json)


@code.command(name="eval")
def evaluate(
    model: Path | None = None,
    /,
    *,
    data: Path | None = None,
    candidates: Path | None = None,
    path: Path | None = None,
    stdlib: _Flag = False,
    hide_names: _Flag = False,
    protocol: Literal["a", "b"] = "b",
    untrained: Annotated[bool, Parameter(negative="--no-untrained")] = True,
    seed: int = 0,
    device: _Device = "auto",
    out: Path | None = None,
    json: _Json = False,
) -> None:
    """How well functions are found by their documentation: by words, by a model, and by both, on functions held out.

    Without a model, by words alone.

    Args:
        model: A run, any SentenceTransformer folder, or a static table.
        data: File of pairs: CodeSearchNet, AdvTest, CoSQA, or any .jsonl or .parquet with questions and code.
        candidates: File of the functions that --data names its answers in by number or url. Default: the one beside it.
        path: Folder with source code; a tenth of its documented functions is asked about, of whole packages or files.
        stdlib: The installed Python standard library, likewise. Default: what the run held out.
        hide_names: Hide each function's own name in its code.
        protocol: b: each question among all candidates; a: in shuffled batches of 1,000, as CodeSearchNet.
        untrained: Also the same model with random weights, where a run began with such.
        seed: Of protocol a's order, and of those weights.
        device: Where to compute.
        out: Folder for code-eval.json and code-eval.png. Default: that of the run.
        json: Print one JSON object instead of a table.
    """
    from mc_text_code_app.code_eval import run_eval

    run_eval(
        model,
        data=data,
        candidates=candidates,
        path=path,
        stdlib=stdlib,
        hide_names=hide_names,
        protocol=protocol,
        untrained=untrained,
        seed=seed,
        device=device,
        out=out,
        as_json=json,
    )


@code.command
def ablate(
    path: Path | None = None,
    /,
    *,
    stdlib: _Flag = False,
    recipe: str = "cocosoda-laptop",
    seeds: int = 3,
    steps: int | None = None,
    out: Path = Path("runs/code-ablation"),
    json: _Json = False,
) -> None:
    """The parts of CoCoSoDa one after the other: in-batch contrast, + queue, + soft augmentation, + intra-modal, + names hidden.

    All at equal steps from equal weights, measured on functions of other packages or files, beside split BM25. Run the same
    command again after an interruption: finished rows are not run again.

    Args:
        path: Folder with source code, or a file of pairs (.jsonl, .jsonl.gz, .json, .parquet).
        stdlib: The installed Python standard library; so also without a path.
        recipe: What is changed.
        seeds: Runs of each.
        steps: Optimizer steps of each run. Default: the recipe's.
        out: Folder of the runs and the table.
        json: Print one JSON object instead of a table.
    """
    from mc_text_code_app.code_ablate import run_ablate

    run_ablate(path, stdlib=stdlib, recipe_name=recipe, seeds=seeds, steps=steps, out=out, as_json=json)


@code.command
def export(
    model: Path,
    /,
    *,
    format: Literal["onnx-int8", "static"] = "onnx-int8",
    out: Path | None = None,
    json: _Json = False,
) -> None:
    """Make searches fast: the model's queries without torch, or the whole model as a table.

    Args:
        model: A run, or any SentenceTransformer folder.
        format: onnx-int8: a copy for queries with weights of 8 bits, which `code search --model MODEL` then takes by itself;
            code keeps the vectors of the model. static: a table of token vectors, a model of its own, readable by model2vec.
        out: Folder to write. Default: onnx inside the model's folder, static beside it.
        json: Print one JSON object instead of lines.
    """
    from mc_text_code_app.code_export import run_export

    run_export(model, format=format, out=out, as_json=json)


add_train(code)
