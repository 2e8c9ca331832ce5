"""The components of ESimCSE one by one, trained from scratch on real sentences and measured on real scored pairs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mc_benchmarks.contract import Report, Row, environment
from mc_core.errors import DataError
from mc_core.recipes import merge
from mc_core.seeds import Spread
from mc_text_code.claims import BOTH, QUEUE, REPETITION, SIMCSE, START, TFIDF, UNTRAINED, WORDS, component_claims
from mc_text_code.data.sentence_files import open_sentences
from mc_text_code.data.sentences import Sentences
from mc_text_code.data.sts import open_sts
from mc_text_code.recipe import resolve_recipe

RECIPE = "esimcse-laptop"
ORDER = (UNTRAINED, START, SIMCSE, REPETITION, QUEUE, BOTH, TFIDF, WORDS)


def run_text_claims(
    *, data: str | None, seeds: int, sentences: int | None, steps: int | None, warm_steps: int | None, keep: Path
) -> Report:
    """Measure, save, show.

    Args:
        data: folder with text/; default ``$MC_DATA``.
        seeds: runs of each case.
        sentences: how many to train on; default: all.
        steps: of the contrast; default: the recipe's.
        warm_steps: of the warm start; default: the recipe's.
        keep: where finished runs are kept.
    """
    folder = text_folder(data)
    corpus = open_sentences(folder / "sentences-en.parquet", deduplicate=True)
    if sentences:
        corpus = corpus.select(range(min(sentences, len(corpus))))
    tasks = open_sts(folder / "sts-pairs.parquet")
    changes: dict[str, Any] = {"fit": {"device": "cpu"}}
    if steps:
        changes = merge(changes, {"fit": {"steps": steps}})
    if warm_steps is not None:
        changes = merge(changes, {"warm_start": {"steps": warm_steps}})
    recipe = resolve_recipe(RECIPE, changes)
    found = component_claims(recipe, corpus, keep / "text-claims", tasks=tasks, seeds=seeds, on_row=_say)
    rows = found.rows()
    differences = found.differences()
    command = "uv run mc-benchmark text-claims" + (f" --seeds {seeds}" if seeds != 3 else "")
    command += f" --sentences {sentences}" if sentences else ""
    command += f" --steps {steps}" if steps else ""
    command += f" --warm-steps {warm_steps}" if warm_steps is not None else ""
    shown = [name for name in rows[BOTH] if name in tasks or name.startswith("average")]
    shown += ["gap", "length leak within", "alignment", "uniformity"]
    order = [name for name in ORDER if name in rows and (name != START or recipe.warm_start.steps)]
    report = Report(
        benchmark="text_claims",
        command=command,
        question="Components of ESimCSE from equal weights at equal steps, last step measured: Spearman × 100 "
        f"(mean ± sd over {seeds} seeds)",
        settings={
            "seeds": seeds,
            "sentences": len(corpus),
            "steps": recipe.fit.steps,
            "warm_steps": recipe.warm_start.steps,
            "runs": [{row: dict(values) for row, values in run.items()} for run in found.runs],
        },
        environment=environment(),
        columns=shown,
        rows=[Row(name=name, values={c: _cell(c, rows[name][c]) for c in shown if c in rows[name]}) for name in order],
        reading=_reading(
            rows,
            differences,
            corpus,
            tasks,
            next(c for c in shown if c.startswith("average")),
            recipe.warm_start.steps,
        ),
    )
    report.save()
    report.show()
    return report


def text_folder(data: str | None) -> Path:
    """The folder ``text`` of the data.

    Raises:
        DataError: it is not there.
    """
    root = data or os.environ.get("MC_DATA")
    if root is None or not (Path(root) / "text").is_dir():
        raise DataError(f"no folder text in {root or 'the data'}: name a folder with --data or in MC_DATA")
    return Path(root) / "text"


def _say(name: str, values: Mapping[str, float]) -> None:
    print(f"{name}: " + ", ".join(f"{column} {value:.3g}" for column, value in values.items()), flush=True)


def _cell(column: str, value: Spread) -> str:
    return format(value, ".3f" if column in ("gap", "length leak within", "alignment", "uniformity") else ".1f")


def _reading(
    rows: Mapping[str, Mapping[str, Spread]],
    differences: Mapping[str, Mapping[str, Spread]],
    corpus: Sentences,
    tasks: Mapping[str, Any],
    average: str,
    warm_steps: int,
) -> str:
    parts = [
        f"{name.removeprefix('SimCSE + ')} {differences[name][average]:+.1f}".replace(" ± +", " ± ")
        for name in (REPETITION, QUEUE, BOTH)
    ]
    above = [task for task in tasks if rows[BOTH][task].mean > rows[UNTRAINED][task].mean]
    below: Sequence[str] = [task for task in tasks if task not in above]
    return (
        f"Trained from random weights on {len(corpus):,} sentences, "
        + (f"{warm_steps:,} masked-language-model steps first" if warm_steps else "without a warm start")
        + ". Against SimCSE of the same seed, "
        f"{average}: "
        + ", ".join(parts)
        + f". ESimCSE is above its random initialisation on {len(above)} of {len(tasks)} tasks"
        + (f" (not {', '.join(below)})" if below else "")
        + ". The sets are those at hand, not the official seven test sets. Gap and leak: length bias, 0 is none"
        + ("" if warm_steps else "; without a warm start they say nothing for or against repetition")
        + ". The paper's gains "
        "are those of pretrained encoders with the best of many checkpoints chosen on STS-B dev; nothing was chosen here."
    )
