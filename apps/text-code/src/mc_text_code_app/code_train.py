"""The verb ``mc-text-code code train`` and its options. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Group, Parameter

from mc_core.engine.config import Fit
from mc_text_code.code_recipe import CodeBatchOptions
from mc_text_code.methods.cocosoda.config import CoCoSoDaConfig

_RECIPE_OPTIONS = "[default: the recipe's; see --print-recipe]"
_FIT = Group("Training (--fit.*)", help=f"How it is trained {_RECIPE_OPTIONS}", sort_key=2)
_METHOD = Group("Method (--method.*)", help=f"CoCoSoDa and its encoder {_RECIPE_OPTIONS}", sort_key=3)
_BATCHES = Group("Batches (--batches.*)", help=f"What is read of pairs {_RECIPE_OPTIONS}", sort_key=4)


def add_train(code: App) -> None:
    """Give ``mc-text-code code`` its verb ``train``."""
    code.command(train)


def train(
    path: Path | None = None,
    /,
    *,
    stdlib: Annotated[bool, Parameter(negative=())] = False,
    encoder: str | None = None,
    recipe: str | None = None,
    out: Path | None = None,
    json: Annotated[bool, Parameter(name="--json", negative=())] = False,
    print_recipe: Annotated[bool, Parameter(negative=())] = False,
    fit: Annotated[Fit | None, Parameter(name="fit", group=_FIT, show_default=False)] = None,
    method: Annotated[CoCoSoDaConfig | None, Parameter(name="method", group=_METHOD, show_default=False)] = None,
    batches: Annotated[CodeBatchOptions | None, Parameter(name="batches", group=_BATCHES, show_default=False)] = None,
) -> None:
    """Train an encoder of questions and code by CoCoSoDa on documented functions, and measure it on some held out.

    `code search --model RUN` then searches with it. A tenth of the functions is kept for `code eval RUN`, another tenth to
    measure now; no folder is on two sides. Run the same command again after an interruption: it goes on where the run was.

    Args:
        path: Folder with source code, or a file of pairs (.jsonl, .jsonl.gz, .json, .parquet).
        stdlib: The installed Python standard library; so also without a path.
        encoder: tiny (a small one with random weights and a tokenizer trained on the code), or a transformer such as UniXcoder
            by its folder or hub name. Default: the recipe's.
        recipe: A recipe by name (cocosoda, cocosoda-released, cocosoda-finetune, cocosoda-laptop, in-batch-laptop), a YAML file
            or a run folder. Default: cocosoda-laptop, or cocosoda with --encoder.
        out: Run folder. Default: runs/RECIPE-NAME.
        json: Print the result as one JSON object instead of a table.
        print_recipe: Print the recipe with all options in place, and do nothing.
    """
    from mc_core.cli import given_fields
    from mc_text_code_app.code_training import run_train

    changes = {"fit": given_fields(fit), "method": given_fields(method), "batches": given_fields(batches)}
    run_train(
        path,
        stdlib=stdlib,
        encoder=encoder,
        recipe_name=recipe,
        changes={name: given for name, given in changes.items() if given},
        out=out,
        as_json=json,
        print_recipe=print_recipe,
    )
