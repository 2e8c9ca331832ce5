"""``mc-text-code sentences evaluate``: what an encoder is worth, beside baselines, on scored pairs and on sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mc_core.cli import Clock, Result, Status, print_table
from mc_core.errors import ConfigError
from mc_text_code.data.sts import open_sts
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.evaluation.mteb import evaluate_mteb
from mc_text_code_app.measure import TRAINED, UNTRAINED, measure, untrained_like
from mc_text_code_app.opening import evaluation_sentences, open_encoder
from mc_text_code_app.pretrain import result_of, show


def run_evaluate(
    run: Path,
    *,
    sts: Path | None,
    split: str | None,
    corpus: Sequence[str],
    column: str | None,
    mteb: Sequence[str],
    baselines: bool,
    seed: int,
    device: str,
    as_json: bool,
) -> Result:
    """Measure, print, and write the same into the run folder as ``evaluate.json``."""
    clock = Clock()
    if split is not None and sts is None:
        raise ConfigError(f"--split {split} is a part of scored pairs: name their folder with --sts")
    tasks = None if sts is None else open_sts(sts)
    test = evaluation_sentences(run, corpus, column)
    encoder = open_encoder(run, device)
    encoders = {TRAINED: encoder.encode}
    if baselines and isinstance(encoder, SentenceEncoder):
        encoders[UNTRAINED] = untrained_like(encoder, seed).to(next(encoder.parameters()).device).encode
    found = measure(encoders, test=test, fitted_on=None, tasks=tasks, split=split, baselines=baselines, seed=seed)
    if mteb:
        with Status("running MTEB"):
            found.more["mteb"] = evaluate_mteb(encoder.encode, mteb, name=f"mc-text-code/{run.name}", download=True)
    result = result_of(found, run, clock)
    result.write(run, "evaluate.json")
    if as_json:
        result.show(as_json=True, title="")
        return result
    show(found, f"{run}" + (f", {len(test):,} sentences of {test.source}" if test is not None else ""))
    if mteb:
        print_table(
            "MTEB, main score", ["task", ""], [(name, f"{value:.4f}") for name, value in found.more["mteb"].items()]
        )
    return result
