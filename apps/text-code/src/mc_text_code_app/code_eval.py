"""``mc-text-code code eval``: words, a model, and both as one list, on functions held out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from mc_core.cli import Clock, Result, Status, print_json, print_table
from mc_core.errors import ConfigError
from mc_core.files import write_json
from mc_text_code.codesearch.embedding import CodeEncoder
from mc_text_code.data.code_files import open_pairs
from mc_text_code.data.code_mining import mine, mine_standard_library
from mc_text_code.data.code_pairs import CodePair, require_pairs, split_pairs
from mc_text_code.data.code_records import read_records
from mc_text_code.data.code_search_sets import CodeSearchSet, open_search_set
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.evaluation.code_search import DENSE, HYBRID, LEXICAL, CodeSearchReport, evaluate_code_search
from mc_text_code_app import figures
from mc_text_code_app.code_search import SentenceModel, code_encoder
from mc_text_code_app.folders import run_ranking
from mc_text_code_app.measure import UNTRAINED, untrained_like

HELD_OUT = "held-out.jsonl"
"""In the folder of a run: the pairs it was not trained on."""
VALID = "valid.jsonl"
"""In the folder of a run: pairs it was chosen with, which stand among the candidates."""
FEWEST = 50
"""Documented functions that a folder must have, of which a tenth is asked about."""
_DEEPEST = 100


@dataclass(frozen=True)
class Source:
    """What is asked, and a name for it."""

    asked: CodeSearchSet
    name: str


def run_eval(
    model: Path | None,
    *,
    data: Path | None,
    candidates: Path | None,
    path: Path | None,
    stdlib: bool,
    hide_names: bool,
    protocol: Literal["a", "b"],
    untrained: bool,
    seed: int,
    device: str,
    out: Path | None,
    as_json: bool,
) -> CodeSearchReport:
    """Measure, print, and write the same as ``code-eval.json`` and ``code-eval.png`` beside the run, or into ``--out``."""
    clock = Clock()
    if sum((data is not None, path is not None, stdlib)) > 1:
        raise ConfigError("--data, --path and --stdlib are three things to measure on: take one of them")
    if candidates is not None and data is None:
        raise ConfigError("--candidates belongs to --data: name the file of the questions, too")
    encoder = None if model is None else code_encoder(model, device)
    with Status("reading pairs"):
        source = _source(model, data, candidates, path, stdlib)
    if hide_names and not any(source.asked.names):
        raise ConfigError(f"--hide-names: {source.name} does not say what its functions are called")
    others: dict[str, CodeEncoder] = {}
    if untrained and model is not None and (other := _untrained(model, encoder, seed)) is not None:
        others[UNTRAINED] = other
    with Status(f"measuring on {len(source.asked.queries):,} questions"):
        found = evaluate_code_search(
            source.asked,
            encoder,
            others=others,
            protocol=protocol,
            names_hidden=hide_names,
            seed=seed,
            ranking=run_ranking(model),
        )
    fields = _fields(found, source, model, clock)
    folder = out or (model if model is not None and (model / "recipe.yaml").is_file() else None)
    if folder is not None:
        fields["picture"] = str(recall_curves(found, folder / "code-eval.png"))
        write_json(folder / "code-eval.json", fields)
    if as_json:
        print_json(fields)
        return found
    print_table(
        f"{source.name}: {len(found.ranks[LEXICAL]):,} questions, each among {found.rows[LEXICAL].candidates:,} functions"
        f"{', names hidden' if hide_names else ''}; protocol {protocol.upper()}",
        ["", "MRR", *(f"R@{k}" for k in found.rows[LEXICAL].recall), "median rank"],
        [
            (_label(name), f"{row.mrr:.3f}", *(f"{value:.3f}" for value in row.recall.values()), f"{row.median_rank:g}")
            for name, row in found.rows.items()
        ],
    )
    sys.stdout.write("".join(f"{line}\n" for line in _lines(found)))
    if folder is not None:
        sys.stdout.write(f"{folder / 'code-eval.json'}\n{fields['picture']}\n")
    return found


def _source(model: Path | None, data: Path | None, candidates: Path | None, path: Path | None, stdlib: bool) -> Source:
    if data is not None:
        return Source(open_search_set(data, candidates=candidates), data.name)
    if path is not None or stdlib:
        name = "the standard library" if path is None else str(path)
        pairs = (mine_standard_library(processes=0) if path is None else mine(path, processes=0)).pairs
        require_pairs(pairs, FEWEST, what="measure on", source=name)
        parts = split_pairs(pairs)
        return Source(CodeSearchSet.of(parts.test, parts.valid), name)
    if model is not None and (held := held_out_pairs(model)):
        others = open_pairs(model / VALID).pairs if (model / VALID).is_file() else []
        return Source(CodeSearchSet.of(held, others), f"{model}, held out")
    raise ConfigError("name what to measure on: --data FILE with pairs, --path FOLDER with source code, or --stdlib")


def held_out_pairs(run: Path) -> list[CodePair]:
    """The pairs that a run was not trained on; none where it held out sentences, or nothing."""
    file = run / HELD_OUT
    if not file.is_file():
        return []
    _, first = next(read_records(file))
    return open_pairs(file).pairs if "code" in first else []


def _untrained(folder: Path, encoder: CodeEncoder | None, seed: int) -> CodeEncoder | None:
    """The same encoder with random weights, of a run that began with such."""
    recipe = folder / "recipe.yaml"
    if not recipe.is_file() or not isinstance(encoder, SentenceModel):
        return None
    method = (yaml.safe_load(recipe.read_text("utf-8")) or {}).get("method") or {}
    if (method.get("encoder") or {}).get("name") is not None or not isinstance(encoder.encoder, SentenceEncoder):
        return None
    device = next(encoder.encoder.parameters()).device
    other = untrained_like(encoder.encoder, seed).to(device)
    return SentenceModel(lambda: other, UNTRAINED)


def _fields(found: CodeSearchReport, source: Source, model: Path | None, clock: Clock) -> dict[str, Any]:
    more = {"data": source.name, **found.to_dict()}
    if model is None:
        return {"metric": "mrr", "seconds": round(clock.seconds(), 1), **more}
    values = {name: row.mrr for name, row in found.rows.items()}
    trained = values.pop(DENSE)
    hybrid = values.pop(HYBRID)
    return Result("mrr", trained, values, run=model, seconds=clock.seconds(), more={HYBRID: hybrid, **more}).fields


def _lines(found: CodeSearchReport) -> list[str]:
    lines = []
    for name, spread in found.spread.items():
        parts = [("alignment", spread.alignment), ("uniformity of questions", spread.query_uniformity)]
        parts.append(("of code", spread.code_uniformity))
        lines.append(
            f"{_label(name)}: " + ", ".join(f"{what} {value:.2f}" for what, value in parts if value is not None)
        )
    if HYBRID in found.rows:
        words, both = found.rows[LEXICAL].mrr, found.rows[HYBRID].mrr
        better = "name the model in `code search`" if both > words else "search this code by words alone"
        lines.append(f"both together against words alone: {both - words:+.3f} MRR; {better}")
    if found.left_out:
        lines.append(f"{found.left_out:,} questions were left out")
    return lines


def _label(name: str) -> str:
    return {LEXICAL: "words (split BM25)", DENSE: "model", HYBRID: "words and model"}.get(name, name)


def recall_curves(found: CodeSearchReport, path: Path) -> Path:
    """The share of questions whose function is among the first k, over k."""
    plt = figures.pyplot()
    figure, axis = plt.subplots(figsize=(6, 3.4))
    deepest = min(_DEEPEST, next(iter(found.rows.values())).candidates)
    ks = np.arange(1, deepest + 1)
    styles = {LEXICAL: (figures.GRAY, "--"), DENSE: (figures.ORANGE, "-"), HYBRID: (figures.BLUE, "-")}
    for name, ranks in found.ranks.items():
        colour, line = styles.get(name, ("black", ":"))
        label = f"{_label(name)}, MRR {found.rows[name].mrr:.3f}"
        axis.plot(ks, [ranks.recall(int(k)) for k in ks], color=colour, linestyle=line, label=label)
    if deepest > 1:
        axis.set_xscale("log")
        axis.set_xticks([k for k in (1, 2, 5, 10, 20, 50, 100) if k <= deepest])
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
    axis.set_xlim(1, max(2, deepest))
    axis.set_ylim(0, 1)
    axis.set_xlabel("first k")
    axis.set_ylabel("found among them")
    axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return figures.save(figure, path)
