"""``mc-vision-language finetune``: from a pretrained model to one that does a task, and how it is measured."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mc_core.cli import Clock, Result, Status, keep_freed_memory, print_json, print_table
from mc_core.distributed import rank
from mc_core.engine.distribution import join_processes
from mc_core.errors import ConfigError, DataError
from mc_core.files import read_json
from mc_core.recipes import to_yaml
from mc_core.report import write_report
from mc_core.runs import folder_name, pick_device
from mc_vision_language.data import open_pairs
from mc_vision_language.data.options import SplitOptions
from mc_vision_language.data.phrases import open_phrases
from mc_vision_language.data.questions import AnswerList, open_questions
from mc_vision_language.data.statements import open_entailments, open_statements
from mc_vision_language.recipe import resolve_recipe
from mc_vision_language.sample import SAMPLE, sample_pairs
from mc_vision_language.tasks.measure import TaskScores
from mc_vision_language.tasks.recipe import resolve_task_recipe
from mc_vision_language.tasks.sample import sample_task_rows
from mc_vision_language.tasks.training import finetune_task, load_task_model, measure_task
from mc_vision_language_app.pretrain import changes_of, cleared
from mc_vision_language_app.runs import open_start, source_name, task_of_run
from mc_vision_language_app.task_options import TaskOptions

RECIPES = {"retrieval": "retrieval", "vqa": "vqa", "nlvr2": "nlvr2", "entailment": "ve", "grounding": "grounding"}
_OWNERS = {
    "annotations": "vqa",
    "answers": "vqa",
    "boxes": "grounding",
    "proposals": "grounding",
    "column": "retrieval",
    "assignment": "nlvr2",
}
"""Options of one task."""
_log = logging.getLogger("mc_core")


@dataclass(frozen=True)
class FinetuneOptions:
    """What was typed; ``sections`` are the recipe's, as option models with only what was given set."""

    run: Path
    source: str | None
    task: str
    rows: TaskOptions
    recipe: str | None
    out: Path | None
    batch: int | None
    assignment: str | None
    scratch: bool
    draws: int
    json: bool
    print_recipe: bool
    sections: Mapping[str, Any]


def run_finetune(options: FinetuneOptions) -> None:
    """Do it, and print the result to standard output."""
    clock = Clock()
    small = options.source is None
    name = options.recipe or f"albef-{RECIPES[options.task]}{'-laptop' if small else ''}"
    need_fitting(options.task, options.rows, assignment=options.assignment)
    start = open_start(options.run, pick_device("cpu"))
    changes = changes_of(options.sections, options.batch)
    changes["split"] = split_of_run(options.run) | options.rows.split.model_dump(exclude_unset=True)
    if not small and options.recipe is None and "augment" not in changes:
        _log.info("%s: images of 384 pixels, as published; say --augment.size for another", name)
    recipe = resolve_task_recipe(name, changes)
    if recipe.system != options.task:
        raise ConfigError(f"--recipe {name} is of the task {recipe.system}, not of {options.task}")
    if options.print_recipe:
        sys.stdout.write(to_yaml(recipe))
        return
    keep_freed_memory()
    join_processes(recipe.fit)
    run_dir = options.out or options.run.absolute().with_name(
        f"{options.run.absolute().name}-{folder_name(options.task)}"
    )
    with cleared(run_dir):
        rows = task_rows(options.task, options.source, options.rows, recipe.split)
        given = options.rows.answers
        pairs = assignment = None
        if options.task == "nlvr2" and options.assignment is not None:
            assignment = resolve_task_recipe("albef-ta-laptop" if small else "albef-ta", _sizes(recipe, changes))
            if options.assignment == "sample":
                pairs = sample_pairs()
            else:
                pairs = open_pairs(
                    options.assignment,
                    images=options.rows.images,
                    columns=options.rows.column,
                    read=options.rows,
                    split=recipe.split,
                )
        found = finetune_task(
            options.task,  # type: ignore[arg-type]
            start,
            rows,
            recipe,
            run_dir,
            answers=None if given is None else AnswerList.read(given),
            pairs=pairs,
            assignment=assignment,
            scratch=options.scratch,
            draws=options.draws,
        )
    if rank() != 0:
        return
    scores = found.scores
    shown = Result(scores.metric, scores.value, scores.baselines, run=run_dir, seconds=clock.seconds())
    shown.fields |= {
        "task": options.task,
        "source": SAMPLE if options.source is None else source_name(options.source),
        "training_seconds": round(found.seconds, 1),
        "low": scores.low,
        "high": scores.high,
        "details": scores.details,
        "rows": len(rows.part("test")),
    }
    plain = {key: value for key, value in shown.fields.items() if key != "details"} | dict(scores.details)
    shown.fields["report"] = str(
        write_report(run_dir, title=f"{run_dir.name}: {options.task}", result=plain, figures=[])
    )
    shown.write(run_dir)
    if options.json:
        shown.show(as_json=True, title="")
        return
    show_scores(
        scores, f"{options.task}, {len(rows.part('train')):,} rows; measured on {len(rows.part('test')):,} others"
    )
    sys.stdout.write(f"run     {run_dir}\nmodel   {run_dir / 'model'}\nreport  {shown.fields['report']}\n")


def evaluate_task(
    run: Path,
    task: str,
    source: str | None,
    options: Any,
    *,
    part: str | None,
    rerank: int | None,
    add_cosine: bool,
    draws: int,
    device: str,
    as_json: bool,
) -> None:
    """Measure a run of :func:`run_finetune`, and print the figures."""
    if task != "retrieval" and (rerank is not None or add_cosine):
        raise ConfigError(f"--rerank and --add-cosine are of retrieval; {run} was trained for {task}")
    model = load_task_model(run, device=pick_device(device))
    known = read_json(run / "result.json").get("source") if (run / "result.json").is_file() else None
    given = TaskOptions(**{name: getattr(options, name) for name in options.model_fields_set})
    if source is None and not (run / "recipe.yaml").is_file():
        raise DataError(f"{run} is a saved model: say which rows to measure on")
    if source is None and known not in (None, SAMPLE):
        raise DataError(f"{run} was trained on {known}: say which rows to measure on")
    need_fitting(task, given)
    rows = task_rows(task, source, given, SplitOptions(**split_of_run(run)))
    own = source is None or known == source_name(source)
    part = part or ("test" if own else "all")
    with Status(f"measuring {task}"):
        scores = measure_task(
            model,
            rows if part == "all" else rows.part(part),
            rows.part("train") if own else None,
            draws=draws,
            k=rerank,
            add_cosine=add_cosine,
        )
    if as_json:
        print_json(
            {
                "metric": scores.metric,
                "trained": scores.value,
                "baselines": scores.baselines,
                "low": scores.low,
                "high": scores.high,
                "details": scores.details,
                "run": str(run),
            }
        )
        return
    show_scores(scores, f"{run}: {task} on {SAMPLE if source is None else source_name(source)}, {part} split")


def need_fitting(task: str, options: TaskOptions, *, assignment: str | None = None) -> None:
    """Options that the task does not read are mistakes.

    Raises:
        ConfigError: one was typed.
    """
    typed = options.model_fields_set | ({"assignment"} if assignment is not None else set())
    for name, owner in _OWNERS.items():
        if name in typed and owner != task and not (name == "column" and assignment is not None):
            raise ConfigError(f"--{name} is of the task {owner}, not of {task}")


def split_of_run(run: Path) -> dict[str, Any]:
    """How the data of a run were divided, so that none of what it was trained on is measured on; nothing for a saved model."""
    if not (run / "recipe.yaml").is_file():
        return {}
    resolve = resolve_recipe if task_of_run(run) is None else resolve_task_recipe
    return resolve(run).split.model_dump()


def task_rows(task: str, source: str | None, options: TaskOptions, split: SplitOptions) -> Any:
    """The rows of a task with splits: the user's, or those of the sample."""
    if source is None:
        with Status(f"drawing {SAMPLE}"):
            return sample_task_rows(task)  # type: ignore[arg-type]
    given: dict[str, Any] = {"images": options.images, "read": options}
    with Status(f"opening {source_name(source)}"):
        if task == "retrieval":
            return open_pairs(source, columns=options.column, split=split, **given)
        if task == "vqa":
            rows: Any = open_questions(source, annotations=options.annotations, **given)
        elif task == "nlvr2":
            rows = open_statements(source, **given)
        elif task == "entailment":
            rows = open_entailments(source, **given)
        else:
            rows = open_phrases(source, boxes=options.boxes, proposals=options.proposals, **given)
    for reason, count in rows.dropped.most_common():
        _log.warning("left out %d: %s (for example %s)", count, reason, rows.examples.get(reason, reason))
    told = set(rows.splits.tolist())
    if not split.own or not {"train", "test"} <= told:
        rows = rows.divided(split.shares, split.seed)
    return rows


def show_scores(scores: TaskScores, title: str) -> None:
    """The figure beside its baselines, then the details."""
    spread = f" ({scores.low:.3f}–{scores.high:.3f})" if scores.high > scores.low else ""
    rows = [["trained", f"{scores.value:.3f}{spread}"]]
    rows += [[name.replace("_", " "), f"{value:.3f}"] for name, value in scores.baselines.items()]
    print_table(f"{title}: 95 % interval over images", ["", scores.metric.replace("_", " ")], rows)
    if scores.details:
        print_table(
            "More of the same model",
            ["", ""],
            [[k.replace("_", " "), f"{v:.3f}" if v <= 1 else f"{v:g}"] for k, v in scores.details.items()],
        )


def _sizes(recipe: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Of the stage before: images of the same size, and what was typed of the training."""
    return {"augment": {"size": recipe.augment.size}, "fit": dict(changes.get("fit", {}))}
