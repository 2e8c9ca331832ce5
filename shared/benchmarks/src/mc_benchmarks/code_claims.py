"""The parts of CoCoSoDa one after the other, trained from scratch on real code and measured on packages nobody was trained on."""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mc_benchmarks.contract import Report, Row, environment
from mc_core.seeds import Spread
from mc_text_code.code_claims import CASES, HIDDEN, HIDDEN_BOTH, INTRA, SHOWN, SHOWN_BOTH, UNTRAINED, WORDS, code_claims
from mc_text_code.code_recipe import resolve_code_recipe
from mc_text_code.data.code_mining import mine, mine_standard_library
from mc_text_code.data.code_pairs import CodePair, PairSplit, require_pairs, split_pairs
from mc_text_code.data.code_search_sets import CodeSearchSet

RECIPE = "cocosoda-laptop"
COLUMNS = (SHOWN, HIDDEN, SHOWN_BOTH, HIDDEN_BOTH)
STANDARD_LIBRARY = "the standard library"
_VALID, _FEW = (
    0.03,
    1_500,
)  # share of all pairs on which the weight beside words is chosen; more where that were fewer than these
_ROOM = 1.1  # the test part comes out a little smaller than asked for


def run_code_claims(
    *,
    roots: Sequence[Path],
    pairs: int,
    seeds: int,
    steps: int | None,
    batch_size: int | None,
    device: str,
    keep: Path,
    processes: int = 0,
) -> Report:
    """Measure, save, show.

    Args:
        roots: folders of source code; default: the standard library and the packages installed beside it.
        pairs: of the test part, each asked for among all of them.
        seeds: runs of each case.
        steps: of each run; default: the recipe's.
        batch_size: default: the recipe's.
        device: where to train.
        keep: where finished runs are kept.
        processes: that parse; 0 for all.
    """
    mined = mined_pairs(roots, processes)
    parts = package_split([pair for found in mined.values() for pair in found], pairs)
    drawn = np.random.Generator(np.random.Philox(0)).permutation(len(parts.test))[:pairs]
    asked = CodeSearchSet.of([parts.test[place] for place in np.sort(drawn)])
    fields: dict[str, Any] = {"device": device}
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        fields |= {} if value is None else {name: value}
    recipe = resolve_code_recipe(RECIPE, {"fit": fields})
    found = code_claims(
        recipe,
        parts.train,
        asked,
        keep / "code-search-claims",
        seeds=seeds,
        choose=CodeSearchSet.of(parts.valid),
        processes=processes,
        on_row=_say,
    )
    rows = found.rows()
    command = "uv run mc-benchmark code-search-claims" + "".join(f" --root {root}" for root in roots)
    given = {"pairs": pairs if pairs != 5_000 else None, "seeds": seeds if seeds != 3 else None, "steps": steps}
    given |= {"batch-size": batch_size, "device": device if device != "cpu" else None}
    command += "".join(f" --{name} {value}" for name, value in given.items() if value is not None)
    report = Report(
        benchmark="code_search_claims",
        command=command,
        question=f"Parts of CoCoSoDa from equal random weights at equal steps: MRR of {len(asked.queries):,} questions of "
        f"unseen packages, each among {len(asked.codes):,} functions (mean ± sd over {seeds} seeds)",
        settings={
            "seeds": seeds,
            "steps": recipe.fit.steps,
            "batch_size": recipe.fit.batch_size,
            "mined": {name: len(some) for name, some in mined.items()},
            "train": len(parts.train),
            "chosen_on": len(parts.valid),
            "test": len(asked.queries),
            "groups": parts.groups,
            "near_duplicates": parts.near_duplicates,
            "runs": [{row: dict(values) for row, values in run.items()} for run in found.runs],
        },
        environment=environment(),
        columns=list(COLUMNS),
        rows=[
            Row(name=name, values={c: format(rows[name][c], ".3f") for c in COLUMNS if c in rows[name]})
            for name in (WORDS, UNTRAINED, *CASES)
            if name in rows
        ],
        reading=_reading(rows, found.steps(), parts),
    )
    report.save()
    report.show()
    return report


def mined_pairs(roots: Sequence[Path], processes: int) -> dict[str, list[CodePair]]:
    """Pairs of Python functions of each root, by its name."""
    if roots:
        return {str(root): mine(root, languages=("python",), processes=processes).pairs for root in roots}
    installed = Path(sysconfig.get_paths()["purelib"])
    return {
        STANDARD_LIBRARY: mine_standard_library(processes=processes).pairs,
        installed.name: mine(installed, languages=("python",), processes=processes).pairs,
    }


def package_split(pairs: list[CodePair], test: int) -> PairSplit:
    """Parts that share no package, the test part of about so many pairs.

    Raises:
        DataError: fewer than three times as many pairs as are tested on.
    """
    require_pairs(pairs, 3 * test, what=f"train on and test on {test:,}")
    share = min(0.5, _ROOM * test / len(pairs))
    valid = max(_VALID, min(share, _FEW / len(pairs)))
    return split_pairs([replace(pair, partition="") for pair in pairs], valid=valid, test=share, by="package")


def _say(name: str, values: Mapping[str, float]) -> None:
    print(f"{name}: " + ", ".join(f"{column} {value:.3f}" for column, value in values.items()), flush=True)


def _reading(
    rows: Mapping[str, Mapping[str, Spread]], steps: Mapping[str, Mapping[str, Spread]], parts: PairSplit
) -> str:
    def signed(value: Spread) -> str:
        return f"{'+' if value.mean >= 0 else ''}{value:.3f}"

    adds = ", ".join(f"{name} {signed(row[HIDDEN])}" for name, row in steps.items())
    full = rows[INTRA]  # the paper's method
    return (
        f"Trained on {len(parts.train):,} pairs from {parts.groups['train']:,} packages, tested on {parts.groups['test']:,} "
        f"others. Against the row before, of the same seed, with the name hidden: {adds}. Words and the paper's method ({INTRA}) "
        f"together: {full[SHOWN_BOTH]:.3f}, words alone {rows[WORDS][SHOWN]:.3f}, encoder alone {full[SHOWN]:.3f}; with the name "
        f"hidden {full[HIDDEN_BOTH]:.3f}, words alone {rows[WORDS][HIDDEN]:.3f}, encoder alone {full[HIDDEN]:.3f}. The encoder's "
        "weight is chosen on "
        f"{len(parts.valid):,} pairs of further packages. A small encoder from random weights, not a "
        "pretrained one as in the paper, and other data: the figures cannot be compared with the paper's."
    )
