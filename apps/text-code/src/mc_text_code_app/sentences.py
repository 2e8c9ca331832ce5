"""The verbs of ``mc-text-code sentences``. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Group, Parameter

from mc_core.engine.config import Fit
from mc_text_code.augment_config import AugmentConfig
from mc_text_code.methods.esimcse.config import ESimCSEConfig
from mc_text_code.recipe import BatchOptions, WarmStart

sentences = App(
    name="sentences",
    help="Sentence embeddings from raw text: train, measure, embed, search, deduplicate.",
    help_format="plaintext",
)

_RECIPE_OPTIONS = "[default: the recipe's; see --print-recipe]"
_FIT = Group("Training (--fit.*)", help=f"How it is trained {_RECIPE_OPTIONS}", sort_key=2)
_METHOD = Group("Method (--method.*)", help=f"ESimCSE and its encoder {_RECIPE_OPTIONS}", sort_key=3)
_AUGMENT = Group("Second view (--augment.*)", help=f"What is repeated {_RECIPE_OPTIONS}", sort_key=4)
_BATCHES = Group("Batches (--batches.*)", help=f"How sentences are put together {_RECIPE_OPTIONS}", sort_key=5)
_WARM = Group("Warm start (--warm-start.*)", help=f"Masked-language-model steps before {_RECIPE_OPTIONS}", sort_key=6)

_Json = Annotated[bool, Parameter(name="--json", negative=())]
_Device = Literal["auto", "cpu", "cuda"]
_Corpus = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]
_Column = Annotated[str | None, Parameter(name="--column")]


@sentences.command
def pretrain(
    corpus: _Corpus = (),
    /,
    *,
    encoder: str | None = None,
    recipe: str | None = None,
    column: _Column = None,
    sts: Path | None = None,
    holdout: float | None = None,
    out: Path | None = None,
    json: _Json = False,
    print_recipe: Annotated[bool, Parameter(negative=())] = False,
    fit: Annotated[Fit | None, Parameter(name="fit", group=_FIT, show_default=False)] = None,
    method: Annotated[ESimCSEConfig | None, Parameter(name="method", group=_METHOD, show_default=False)] = None,
    augment: Annotated[AugmentConfig | None, Parameter(name="augment", group=_AUGMENT, show_default=False)] = None,
    batches: Annotated[BatchOptions | None, Parameter(name="batches", group=_BATCHES, show_default=False)] = None,
    warm_start: Annotated[WarmStart | None, Parameter(name="warm-start", group=_WARM, show_default=False)] = None,
) -> None:
    """Train a sentence encoder on raw text by ESimCSE, and measure it on sentences held out, beside honest baselines.

    The run folder's `model/` is what plain SentenceTransformer("…/model") loads. Run the same command again after an
    interruption: it goes on where the run was.

    Args:
        corpus: Files of sentences: .txt (one per line), .csv, .tsv, .jsonl, .parquet, a folder or a glob of them. Without:
            the docstrings of the installed Python standard library.
        encoder: tiny (a small one with random weights and a tokenizer trained on the corpus), or a transformer by its folder
            or hub name. Default: the recipe's.
        recipe: A recipe by name (esimcse, esimcse-bert-large, esimcse-roberta-base, esimcse-roberta-large, simcse,
            esimcse-laptop, simcse-laptop), a YAML file or a run folder. Default: esimcse-laptop, or esimcse with --encoder.
        column: Column of tables that holds the sentences. Default: sentence or text.
        sts: Folder or file of scored sentence pairs to measure on as well.
        holdout: Share of the sentences kept out of training, to measure on. Default: 0.05, at most 2,000 sentences; whole
            modules of the standard library.
        out: Run folder. Default: runs/RECIPE-CORPUS.
        json: Print the result as one JSON object instead of a table.
        print_recipe: Print the recipe with all options in place, and do nothing.
    """
    from mc_core.cli import given_fields
    from mc_text_code_app.pretrain import run_pretrain

    changes = {
        "fit": given_fields(fit),
        "method": given_fields(method),
        "augment": given_fields(augment),
        "batches": given_fields(batches),
        "warm_start": given_fields(warm_start),
    }
    run_pretrain(
        corpus,
        encoder=encoder,
        recipe_name=recipe,
        changes={name: given for name, given in changes.items() if given},
        column=column,
        sts=sts,
        holdout=holdout,
        out=out,
        as_json=json,
        print_recipe=print_recipe,
    )


@sentences.command
def evaluate(
    run: Path,
    /,
    *,
    sts: Path | None = None,
    split: str | None = None,
    corpus: Annotated[tuple[str, ...], Parameter(name="--corpus", consume_multiple=True, negative=())] = (),
    column: _Column = None,
    mteb: Annotated[tuple[str, ...], Parameter(name="--mteb", consume_multiple=True, negative=())] = (),
    baselines: bool = True,
    seed: int = 0,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Measure an encoder: scored sentence pairs (STS), length bias, alignment and uniformity, finding a sentence by its half.

    Args:
        run: Run folder, or any SentenceTransformer folder.
        sts: Folder or file of scored sentence pairs: SentEval's layout, or tables with sentence1, sentence2 and score.
        split: Which pairs of sets that have several parts: test, dev, train, or all of them. Default: test, where there is none
            train; dev stays free to choose with.
        corpus: Sentences for retrieval and length bias. Default: those the run held out.
        column: Column of tables that holds the sentences.
        mteb: Tasks to run through MTEB (extra mteb); it downloads their data.
        baselines: Also measure TF-IDF, BM25, mean word vectors and the untrained encoder.
        seed: Of what is drawn.
        device: Where to compute.
        json: Print one JSON object instead of tables.
    """
    from mc_text_code_app.evaluate import run_evaluate

    run_evaluate(
        run,
        sts=sts,
        split=split,
        corpus=corpus,
        column=column,
        mteb=mteb,
        baselines=baselines,
        seed=seed,
        device=device,
        as_json=json,
    )


@sentences.command
def embed(
    run: Path,
    corpus: _Corpus,
    /,
    *,
    column: _Column = None,
    out: Path = Path("embeddings.parquet"),
    normalize: bool = True,
    batch_size: int = 64,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Write the embeddings of sentences.

    Args:
        run: Run folder, or any SentenceTransformer folder.
        corpus: Files of sentences.
        column: Column of tables that holds the sentences.
        out: File to write: .parquet (sentence, embedding) or .npz.
        normalize: Unit length.
        batch_size: Sentences at a time.
        device: Where to compute.
        json: Print one JSON object instead of a line.
    """
    from mc_text_code_app.embed import run_embed

    run_embed(
        run,
        corpus,
        column=column,
        out=out,
        normalize=normalize,
        batch_size=batch_size,
        device=device,
        as_json=json,
    )


@sentences.command
def search(
    corpus: str,
    query: str,
    /,
    *,
    run: Path | None = None,
    mode: Literal["dense", "lexical"] | None = None,
    column: _Column = None,
    k: Annotated[int, Parameter(name=("-k", "--top"))] = 10,
    index: Path | None = None,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Find the sentences of a corpus that mean what the query says. Exit code 1 when there is none.

    Args:
        corpus: File of sentences, or a folder or glob of them.
        query: What to look for.
        run: Run folder, or any SentenceTransformer folder. Default: the newest run under runs/.
        mode: dense (embeddings) or lexical (BM25, needs no encoder). Default: dense where there is a run.
        column: Column of tables that holds the sentences.
        k: How many.
        index: Folder for the corpus's embeddings, made or brought up to date. Default: in the run folder.
        device: Where to compute.
        json: Print one JSON object instead of lines.
    """
    from mc_text_code_app.search import run_search

    run_search(corpus, query, run=run, mode=mode, column=column, k=k, index=index, device=device, as_json=json)


@sentences.command
def dedup(
    corpus: _Corpus,
    /,
    *,
    run: Path | None = None,
    threshold: float = 0.95,
    linkage: Literal["first", "chain"] = "first",
    column: _Column = None,
    out: Path | None = None,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Group sentences that say the same, and keep one of each group.

    Args:
        corpus: Files of sentences.
        run: Run folder, or any SentenceTransformer folder. Default: the newest run under runs/; without any, equal sentences
            alone are found.
        threshold: Cosine from which two sentences are the same; cosines of two encoders do not compare.
        linkage: first: a sentence goes if it is near one that stays; chain: whatever is joined by near pairs is one group.
        column: Column of tables that holds the sentences.
        out: File for the sentences kept, one per line. Default: groups are only shown.
        device: Where to compute.
        json: Print one JSON object instead of groups.
    """
    from mc_text_code_app.dedup import run_dedup

    run_dedup(
        corpus,
        run=run,
        threshold=threshold,
        linkage=linkage,
        column=column,
        out=out,
        device=device,
        as_json=json,
    )


@sentences.command
def claims(
    corpus: _Corpus = (),
    /,
    *,
    sts: Path | None = None,
    recipe: str = "esimcse-laptop",
    encoder: str | None = None,
    seeds: int = 3,
    steps: int | None = None,
    column: _Column = None,
    out: Path = Path("runs/claims"),
    json: _Json = False,
) -> None:
    """The paper's components one by one: SimCSE, with repetition, with the queue, with both, at equal steps.

    Run the same command again after an interruption: finished rows are not run again.

    Args:
        corpus: Files of sentences. Without: the docstrings of the installed Python standard library.
        sts: Folder or file of scored sentence pairs. Without, the table holds length bias and retrieval only.
        recipe: What is changed.
        encoder: tiny, or a transformer by its folder or hub name. Default: the recipe's.
        seeds: Runs of each.
        steps: Optimizer steps of each run. Default: the recipe's.
        column: Column of tables that holds the sentences.
        out: Folder of the runs and the table.
        json: Print one JSON object instead of a table.
    """
    from mc_text_code_app.claims import run_claims

    run_claims(
        corpus,
        sts=sts,
        recipe_name=recipe,
        encoder=encoder,
        seeds=seeds,
        steps=steps,
        column=column,
        out=out,
        as_json=json,
    )


@sentences.command
def export(
    run: Path,
    /,
    *,
    format: Literal["sentence-transformers", "onnx"] = "sentence-transformers",
    out: Path | None = None,
    json: _Json = False,
) -> None:
    """Write the encoder for use elsewhere.

    Args:
        run: Run folder, or any SentenceTransformer folder.
        format: sentence-transformers: a folder its SentenceTransformer loads; onnx: one ONNX file from token ids to the
            embedding, compared with PyTorch before it is reported, with tokenizer.json beside it.
        out: Folder or file to write. Default: RUN/export/….
        json: Print one JSON object instead of lines.
    """
    from mc_text_code_app.export import run_export

    run_export(run, format=format, out=out, as_json=json)


@sentences.command
def demo(
    run: Path,
    corpus: _Corpus = (),
    /,
    *,
    column: _Column = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: _Device = "auto",
    browser: bool = False,
) -> None:
    """A page in the browser: search a corpus by meaning, beside BM25, and compare two sentences.

    Args:
        run: Run folder, or any SentenceTransformer folder.
        corpus: Files of sentences. Default: those the run held out.
        column: Column of tables that holds the sentences.
        host: Address to listen on; 0.0.0.0 lets others in.
        port: Port to listen on.
        device: Where to compute.
        browser: Open the page in the browser.
    """
    from mc_text_code_app.demo import run_demo

    run_demo(run, corpus, column=column, host=host, port=port, device=device, browser=browser)


@sentences.command
def inspect(target: str, /, *, column: _Column = None, json: _Json = False) -> None:
    """Show what a run or a corpus holds: steps and result, or sentences, lengths, and what was left out.

    Args:
        target: Run folder, or files of sentences.
        column: Column of tables that holds the sentences.
        json: Print one JSON object instead of a table.
    """
    from mc_text_code_app.inspect_corpus import run_inspect

    run_inspect(target, column=column, as_json=json)
