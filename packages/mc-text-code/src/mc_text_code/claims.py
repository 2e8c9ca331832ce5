"""The paper's components one by one: SimCSE, with repetition, with the queue, with both (Wu et al. 2021, table 7).

For each seed all start from the same weights (those of the transformer that is named, or of one warm start that they share), see
the same sentences in the same order and take the same number of steps; what is measured is the last step, since choosing the
best of many noisy checkpoints hides what a component does. The folder that is given holds::

    tokenizer/                as :func:`mc_text_code.training.pretrain_sentences` leaves it
    seed-0/warm-start/        a run, where the recipe has a warm start
    seed-0/<case>/            a run for each case
    rows/…-<digest>.json      its figures; the digest is of recipe, sentences and what it is measured on

so that an interrupted study goes on where it was, and other figures are measured without training again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mc_core.engine.loop import fit
from mc_core.errors import ConfigError, DataError
from mc_core.files import StrPath
from mc_core.recipes import merge, validated
from mc_core.seeds import Run, Spread, differences_over_seeds, over_seeds
from mc_text_code.data.pairs import SentenceData
from mc_text_code.data.sentences import Sentences
from mc_text_code.data.sts import StsTask
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.evaluation.baselines import MeanWordVectors, tfidf_encoder
from mc_text_code.evaluation.retrieval import Queries
from mc_text_code.evaluation.summary import evaluate_sentences
from mc_text_code.evaluation.vectors import Encode
from mc_text_code.kept_rows import all_different, digest, kept_row, plain, slug
from mc_text_code.methods import METHODS
from mc_text_code.recipe import Recipe
from mc_text_code.training import WARM_START_FOLDER, prepare, warm_start

SIMCSE, REPETITION, QUEUE, BOTH = "SimCSE", "SimCSE + repetition", "SimCSE + queue", "ESimCSE"
UNTRAINED, START, TFIDF, WORDS = "untrained", "before the contrast", "TF-IDF", "mean of word vectors"

_NO_REPETITION = {"augment": {"kind": "none"}}
_NO_QUEUE = {"method": {"queue_batches": 0.0}}

CASES: dict[str, dict[str, Any]] = {
    SIMCSE: merge(_NO_REPETITION, _NO_QUEUE),
    REPETITION: _NO_QUEUE,
    QUEUE: _NO_REPETITION,
    BOTH: {},
}
"""Case → what it changes of a recipe of ESimCSE."""

SWEEP: dict[str, dict[str, Any]] = {
    **{f"queue of {size:g} batches": {"method": {"queue_batches": size}} for size in (0.0, 1.0, 2.5, 8.0)},
    "copy from random weights": {"method": {"momentum_init": "random"}},
}
"""Cases to run instead: how long the queue is, and where the slow copy starts."""


@dataclass(frozen=True)
class Claims:
    """What :func:`component_claims` returns.

    Attributes:
        runs: for each seed, row → column → value; baselines that no seed changes are in the first one alone.
        cases: names of the rows that were trained, in order.
        notes: what to keep in mind when reading them.
    """

    runs: tuple[Run, ...]
    cases: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def rows(self) -> dict[str, dict[str, Spread]]:
        """Row → column → mean and standard deviation over the seeds."""
        return over_seeds(self.runs)

    def differences(self, baseline: str = SIMCSE) -> dict[str, dict[str, Spread]]:
        """Each trained row minus ``baseline``, seed by seed: what a component does, and how sure that is.

        Raises:
            DataError: ``baseline`` was not run.
        """
        trained = [{name: run[name] for name in self.cases if name in run} for run in self.runs]
        return differences_over_seeds(trained, baseline)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {"rows": plain(self.rows()), "seeds": len(self.runs), "notes": list(self.notes)}
        if SIMCSE in self.cases:
            found[f"minus {SIMCSE}"] = plain(self.differences())
        return found


def component_claims(
    recipe: Recipe[Any],
    sentences: Sentences | Sequence[str],
    folder: StrPath,
    *,
    tasks: Mapping[str, StsTask] | None = None,
    texts: Sequence[str] | None = None,
    sources: Sequence[Any] | None = None,
    queries: Mapping[str, Queries] | None = None,
    split: str | None = None,
    seeds: int = 3,
    cases: Mapping[str, Mapping[str, Any]] = CASES,
    baselines: bool = True,
    on_row: Callable[[str, Mapping[str, float]], None] | None = None,
) -> Claims:
    """Train every case under every seed and measure what it became. The same call made again does only what is missing.

    Args:
        recipe: of ESimCSE with repetition and queue, such as ``esimcse-laptop``; ``fit.seed`` is the first seed.
        sentences: to train on.
        folder: see above.
        tasks, texts, sources, queries, split: what to measure on, as for
            :func:`mc_text_code.evaluation.summary.evaluate_sentences`; none of it may be trained on.
        seeds: how many.
        cases: name → changes of the recipe; see :data:`CASES` and :data:`SWEEP`.
        baselines: also measure TF-IDF and the mean of word vectors, both learnt from ``sentences``.
        on_row: called with each row and its figures as soon as they are known.

    Raises:
        ConfigError: no seeds, a recipe that has nothing to switch off, or what a run raises.
        DataError: nothing to measure on.
        CheckpointError: the folder holds runs of other settings.
    """
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}: give at least 1, and 3 or more to say anything about a spread")
    if not tasks and texts is None and not queries:
        raise DataError("nothing to measure on: give STS tasks, held-out sentences or queries")
    sentences = sentences if isinstance(sentences, Sentences) else Sentences.of(sentences)
    recipes = {name: _changed(recipe, name, changes) for name, changes in cases.items()}
    all_different(
        {name: one.model_dump(mode="json") for name, one in recipes.items()},
        "with the paper's cases take a recipe that has both repetition (augment.kind other than none) and a queue "
        "(method.queue_batches above 0), such as esimcse-laptop",
    )
    if on_row is None:
        on_row = _silent

    def measure(encode: Encode) -> dict[str, float]:
        report = evaluate_sentences(
            encode,
            tasks=tasks,
            texts=texts,
            sources=sources,
            queries=queries,
            split=split,
            seed=recipe.fit.seed,  # the same pairs of sentences for every row
        )
        return report.columns()

    study = _Study(
        recipe,
        recipes,
        sentences,
        Path(folder),
        measure,
        _description(tasks, texts, sources, queries, split, recipe.fit.seed),
        on_row,
    )
    runs = [study.run(recipe.fit.seed + number) for number in range(seeds)]
    if baselines:
        runs[0] = {**study.baselines(), **runs[0]}
    return Claims(tuple(runs), tuple(recipes), tuple(_notes(recipe, seeds)))


@dataclass
class _Study:
    recipe: Recipe[Any]
    recipes: dict[str, Recipe[Any]]
    sentences: Sentences
    folder: Path
    measure: Callable[[Encode], dict[str, float]]
    measured_on: dict[str, Any]
    on_row: Callable[[str, Mapping[str, float]], None]

    def run(self, seed: int) -> dict[str, dict[str, float]]:
        """All rows of one seed."""
        begun = _Begun(self, seed)
        found: dict[str, dict[str, float]] = {}
        base = _seeded(self.recipe, seed)
        if begun.starts_new:
            found[UNTRAINED] = self.row(UNTRAINED, base, lambda: begun.untrained().encode)
        found[START] = self.row(START, base, lambda: begun.start.encode)
        for name, recipe in self.recipes.items():
            seeded = _seeded(recipe, seed)

            def work(name: str = name, seeded: Recipe[Any] = seeded) -> Encode:
                return begun.trained(name, seeded).encode

            found[name] = self.row(name, seeded, work)
        return found

    def baselines(self) -> dict[str, dict[str, float]]:
        """Rows that need no training."""
        makers: dict[str, Callable[[list[str]], Encode]] = {TFIDF: tfidf_encoder, WORDS: MeanWordVectors}
        return {
            name: self.row(name, None, lambda make=make: make(self.sentences.texts)) for name, make in makers.items()
        }

    def row(self, name: str, recipe: Recipe[Any] | None, encoder: Callable[[], Encode]) -> dict[str, float]:
        """The figures of one row, now or from before."""
        described = {
            "row": name,
            "recipe": None if recipe is None else recipe.model_dump(mode="json"),
            "sentences": self.sentences.describe(),
            "measured_on": self.measured_on,
        }
        prefix = "" if recipe is None else f"seed-{recipe.fit.seed}-"
        values = kept_row(self.folder / "rows", prefix + name, described, lambda: self.measure(encoder()))
        self.on_row(name, values)
        return values


class _Begun:
    """Where all cases of a seed start; trained when first asked for."""

    def __init__(self, study: _Study, seed: int) -> None:
        self.study, self.recipe = study, _seeded(study.recipe, seed)
        self.folder = study.folder / f"seed-{seed}"
        self.starts_new = self.recipe.method.encoder.name is None
        self._data: SentenceData | None = None
        self._start: SentenceEncoder | None = None

    def untrained(self) -> SentenceEncoder:
        """With the weights that the seed gives."""
        encoder, self._data = prepare(self.recipe, self.study.sentences, self.study.folder)
        return encoder.eval()

    @property
    def start(self) -> SentenceEncoder:
        if self._start is None:
            encoder = self.untrained()
            assert self._data is not None
            if self.recipe.warm_start.steps:
                place = self.folder / WARM_START_FOLDER
                warm_start(encoder, self._data, self.recipe.warm_start, place, self.recipe.fit)
            self._start = encoder.eval()
        return self._start

    def trained(self, name: str, recipe: Recipe[Any]) -> SentenceEncoder:
        encoder = copy.deepcopy(self.start).train()
        assert self._data is not None
        data = self._data.again(recipe.augment, recipe.batches)
        torch.manual_seed(recipe.fit.seed)
        method = METHODS.method_class(recipe.system)(recipe.method, encoder=encoder)
        resolved = recipe.model_copy(update={"method": method.config}).model_dump(mode="json")
        result = fit(method, data, fit=recipe.fit, run_dir=self.folder / slug(name), recipe=resolved)
        found = result.method.encoder
        assert isinstance(found, SentenceEncoder)
        return found.eval()


def _changed(recipe: Recipe[Any], name: str, changes: Mapping[str, Any]) -> Recipe[Any]:
    return validated(type(recipe), merge(recipe.model_dump(mode="json"), changes), source=f"case {name}")


def _seeded(recipe: Recipe[Any], seed: int) -> Recipe[Any]:
    return recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"seed": seed})})


def _notes(recipe: Recipe[Any], seeds: int) -> list[str]:
    notes = []
    if recipe.method.encoder.name is None and not recipe.warm_start.steps:
        notes.append(
            "The encoder started from random weights without a warm start: length bias does not even appear in such a one, so "
            "this is no evidence for or against the method."
        )
    if seeds < 3:
        notes.append(f"{seeds} seed{'s' if seeds > 1 else ''}: too few to tell a component from noise.")
    return notes


def _description(
    tasks: Mapping[str, StsTask] | None,
    texts: Sequence[str] | None,
    sources: Sequence[Any] | None,
    queries: Mapping[str, Queries] | None,
    split: str | None,
    seed: int,
) -> dict[str, Any]:
    """What identifies the sentences that rows are measured on."""
    found: dict[str, Any] = {"split": split, "seed": seed}
    for name, task in (tasks or {}).items():
        part, pairs = task.select(split)
        found[f"task {name}"] = [part, task.scale, digest([pairs.sentence1, pairs.sentence2, pairs.gold.tolist()])]
    for name, asked in (queries or {}).items():
        answer = np.asarray(asked.answer).tolist()
        found[f"queries {name}"] = digest([asked.queries, asked.candidates, answer])
    if texts is not None:
        found["texts"] = digest(list(texts))
        found["sources"] = None if sources is None else digest([str(source) for source in sources])
    return found


def _silent(name: str, values: Mapping[str, float]) -> None:
    pass
