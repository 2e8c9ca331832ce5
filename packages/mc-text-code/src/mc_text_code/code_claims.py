"""The parts of CoCoSoDa one after the other: in-batch contrast, + queue, + soft augmentation, + intra-modal terms, + hidden names.

For each seed all cases start from the same weights, see the same pairs in the same order and take the same number of steps. What is
measured is the last step, on pairs of packages that nobody was trained on, with functions' own names shown and hidden, by the
encoder alone and fused with words, at a weight chosen on yet other packages where there are such; split BM25 stands beside. Hiding
names in keys is ours, the other parts are the paper's (Shi et al. 2023, arXiv:2204.03293, tables III to V, which have no row for
the queue alone). The folder that is given holds::

    tokenizer/                as :func:`mc_text_code.code_training.train_code` leaves it
    seed-0/<case>/            a run for each case
    rows/…-<digest>.json      its figures; the digest is of recipe, pairs and what it is measured on

so that an interrupted study goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from mc_core.engine.loop import fit
from mc_core.errors import ConfigError
from mc_core.files import StrPath
from mc_core.recipes import merge, validated
from mc_core.seeds import Run, Spread, differences_over_seeds, over_seeds
from mc_text_code.code_recipe import CodeRecipe
from mc_text_code.code_training import new_code_encoder, prepare_code
from mc_text_code.codesearch.config import RankingConfig
from mc_text_code.data.code_data import CodeData
from mc_text_code.data.code_pairs import CodePair
from mc_text_code.data.code_search_sets import CodeSearchSet
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.evaluation.code_search import (
    DENSE,
    HYBRID,
    LEXICAL,
    OneEncoder,
    choose_dense_weight,
    evaluate_code_search,
)
from mc_text_code.kept_rows import all_different, digest, kept_row, plain, slug
from mc_text_code.methods import METHODS

IN_BATCH, QUEUE, SOFT, INTRA, NAMES = "in-batch", "+ queue", "+ soft augmentation", "+ intra-modal", "+ names hidden"
UNTRAINED, WORDS = "untrained", "split BM25"
SHOWN, HIDDEN, SHOWN_BOTH, HIDDEN_BOTH = "MRR", "MRR, name hidden", "with words", "with words, name hidden"

_NO_AUGMENTATION = {"kinds": [], "query": False, "hide_names": 0.0}
_HIDDEN_SHARE = 0.5

CASES: dict[str, dict[str, Any]] = {
    IN_BATCH: {"momentum_keys": False, "queue_size": 0, "intra_modal": False, "augment": _NO_AUGMENTATION},
    QUEUE: {"momentum_keys": True, "intra_modal": False, "augment": _NO_AUGMENTATION},
    SOFT: {"momentum_keys": True, "intra_modal": False, "augment": {"hide_names": 0.0}},
    INTRA: {"momentum_keys": True, "intra_modal": True, "augment": {"hide_names": 0.0}},
    NAMES: {"momentum_keys": True, "intra_modal": True, "augment": {"hide_names": _HIDDEN_SHARE}},
}
"""Case → what it changes of the method in a recipe of CoCoSoDa; each has one part more than the one before."""


@dataclass(frozen=True)
class CodeClaims:
    """What :func:`code_claims` returns.

    Attributes:
        runs: for each seed, row → column → value; split BM25, which no seed changes, is in the first one alone.
        cases: names of the rows that were trained, in order.
        notes: what to keep in mind when reading them.
    """

    runs: tuple[Run, ...]
    cases: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def rows(self) -> dict[str, dict[str, Spread]]:
        """Row → column → mean and standard deviation over the seeds."""
        return over_seeds(self.runs)

    def steps(self) -> dict[str, dict[str, Spread]]:
        """Each case minus the one before it, seed by seed: what its part does."""
        found = {}
        for before, name in pairwise(self.cases):
            two = [{row: run[row] for row in (before, name)} for run in self.runs]
            found[name] = differences_over_seeds(two, before)[name]
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows": plain(self.rows()),
            "minus the row before": plain(self.steps()),
            "seeds": len(self.runs),
            "notes": list(self.notes),
        }


def code_claims(
    recipe: CodeRecipe[Any],
    train: Sequence[CodePair],
    asked: CodeSearchSet,
    folder: StrPath,
    *,
    seeds: int = 3,
    choose: CodeSearchSet | None = None,
    cases: Mapping[str, Mapping[str, Any]] = CASES,
    processes: int = 1,
    on_row: Callable[[str, Mapping[str, float]], None] | None = None,
) -> CodeClaims:
    """Train every case under every seed and measure what it became. The same call made again does only what is missing.

    Args:
        recipe: of CoCoSoDa with queue and soft augmentation, such as ``cocosoda-laptop``; ``fit.seed`` is the first seed.
        train: pairs to train on.
        asked: what is measured on; none of it may be trained on.
        folder: see above.
        seeds: how many.
        choose: other questions, on which the encoder's weight beside words is chosen; default: its ranks count as theirs.
        cases: name → changes of the method; see :data:`CASES`.
        processes: that parse; 0 for one on each processor.
        on_row: called with each row and its figures as soon as they are known.

    Raises:
        ConfigError: no seeds, a recipe that has nothing to switch off, or what a run raises.
        CheckpointError: the folder holds runs of other settings.
    """
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}: give at least 1, and 3 or more to say anything about a spread")
    recipes = {name: _changed(recipe, name, changes) for name, changes in cases.items()}
    all_different(
        {name: one.model_dump(mode="json") for name, one in recipes.items()},
        "take a recipe with a queue (method.queue_size) and soft augmentation (method.augment), such as cocosoda-laptop",
    )
    if cases is CASES and not recipe.method.queue_size:
        raise ConfigError("method.queue_size is 0: the cases add a queue, whose size it says; take cocosoda-laptop")
    study = _Study(recipe, recipes, train, asked, choose, Path(folder), processes, on_row or _silent)
    runs = [study.run(recipe.fit.seed + number) for number in range(seeds)]
    runs[0] = {WORDS: study.row(WORDS, None, lambda: None), **runs[0]}
    notes = []
    if recipe.method.encoder.name is None:
        notes.append("The encoder started from random weights: what a part does for a pretrained one may differ.")
    if seeds < 3:
        notes.append(f"{seeds} seed{'s' if seeds > 1 else ''}: too few to tell a part from noise.")
    return CodeClaims(tuple(runs), tuple(recipes), tuple(notes))


@dataclass
class _Study:
    recipe: CodeRecipe[Any]
    recipes: dict[str, CodeRecipe[Any]]
    train: Sequence[CodePair]
    asked: CodeSearchSet
    choose: CodeSearchSet | None
    folder: Path
    processes: int
    on_row: Callable[[str, Mapping[str, float]], None]
    _prepared: tuple[SentenceEncoder, CodeData] | None = field(default=None, init=False)

    def run(self, seed: int) -> dict[str, dict[str, float]]:
        """All rows of one seed."""
        found = {}
        base = _seeded(self.recipe, seed)
        if self.recipe.method.encoder.name is None:
            found[UNTRAINED] = self.row(UNTRAINED, base, lambda: self.start(base))
        for name, recipe in self.recipes.items():
            seeded = _seeded(recipe, seed)

            def work(name: str = name, seeded: CodeRecipe[Any] = seeded) -> SentenceEncoder:
                return self.trained(name, seeded)

            found[name] = self.row(name, seeded, work)
        return found

    def data(self) -> CodeData:
        """The pairs as all cases see them, parsed and tokenised once."""
        if self._prepared is None:
            self._prepared = prepare_code(self.recipe, self.train, self.folder, processes=self.processes)
        return self._prepared[1]

    def start(self, recipe: CodeRecipe[Any]) -> SentenceEncoder:
        """With the weights that the seed gives."""
        self.data()
        assert self._prepared is not None
        tokenizer = self._prepared[0].tokenizer
        assert tokenizer is not None
        return new_code_encoder(recipe.method.encoder, tokenizer, recipe.fit.seed)

    def trained(self, name: str, recipe: CodeRecipe[Any]) -> SentenceEncoder:
        """After its run."""
        encoder = self.start(recipe)
        torch.manual_seed(recipe.fit.seed)
        method = METHODS.method_class(recipe.system)(recipe.method, encoder=encoder)
        resolved = recipe.model_copy(update={"method": method.config}).model_dump(mode="json")
        place = self.folder / f"seed-{recipe.fit.seed}" / slug(name)
        result = fit(method, self.data(), fit=recipe.fit, run_dir=place, recipe=resolved)
        found = result.method.encoder
        assert isinstance(found, SentenceEncoder)
        return found

    def row(
        self, name: str, recipe: CodeRecipe[Any] | None, encoder: Callable[[], SentenceEncoder | None]
    ) -> dict[str, float]:
        """The figures of one row, now or from before."""
        described = {
            "row": name,
            "recipe": None if recipe is None else recipe.model_dump(mode="json"),
            "pairs": digest([(pair.query, pair.code) for pair in self.train]),
            "measured_on": _digest(self.asked),
            "chosen_on": None if self.choose is None else _digest(self.choose),
        }
        prefix = "" if recipe is None else f"seed-{recipe.fit.seed}-"
        values = kept_row(self.folder / "rows", prefix + name, described, lambda: self.measure(encoder()))
        self.on_row(name, values)
        return values

    def measure(self, encoder: SentenceEncoder | None) -> dict[str, float]:
        found: dict[str, float] = {}
        one = None if encoder is None else OneEncoder(encoder.eval().encode)
        for hidden, alone, both in ((False, SHOWN, SHOWN_BOTH), (True, HIDDEN, HIDDEN_BOTH)):
            ranking = RankingConfig()
            if one is not None and self.choose is not None:
                weight = choose_dense_weight(self.choose, one, names_hidden=hidden)
                ranking = RankingConfig(dense_weight=weight)
            rows = evaluate_code_search(self.asked, one, names_hidden=hidden, ranking=ranking).rows
            found[alone] = rows[LEXICAL if one is None else DENSE].mrr
            if one is not None:
                found[both] = rows[HYBRID].mrr
        return {name: found[name] for name in (SHOWN, HIDDEN, SHOWN_BOTH, HIDDEN_BOTH) if name in found}


def _digest(asked: CodeSearchSet) -> str:
    return digest([asked.queries, asked.codes, asked.answer.tolist(), asked.names])


def _changed(recipe: CodeRecipe[Any], name: str, changes: Mapping[str, Any]) -> CodeRecipe[Any]:
    whole = merge(recipe.model_dump(mode="json"), {"method": changes})
    return validated(type(recipe), whole, source=f"case {name}")


def _seeded(recipe: CodeRecipe[Any], seed: int) -> CodeRecipe[Any]:
    return recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"seed": seed})})


def _silent(name: str, values: Mapping[str, float]) -> None:
    pass
