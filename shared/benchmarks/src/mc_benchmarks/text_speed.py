"""What ESimCSE costs beyond SimCSE, and how fast sentences are trained on and embedded beside sentence-transformers.

Both sides have the same architecture, weights, sentences, batch, greatest length, precision, optimizer and clipping. Training is
timed inside whole runs, from the end of an early step to the end of the last; the time that our side takes beforehand to tokenise
the same sentences counts.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mc_benchmarks.contract import Environment, Report, Row, environment, median, median_ratio, paired, spread
from mc_core.cli import keep_freed_memory
from mc_core.engine import Progress, fit
from mc_core.optim import build_optimizer
from mc_text_code.data.pairs import SentenceData
from mc_text_code.data.sentence_files import open_sentences
from mc_text_code.data.stdlib import standard_library_sentences
from mc_text_code.encoders import SentenceEncoder, quiet_loading
from mc_text_code.methods.esimcse.model import ESimCSE
from mc_text_code.recipe import Recipe, resolve_recipe
from mc_text_code.saving import save_sentence_transformer
from mc_text_code.tokenizers import train_tokenizer
from mc_text_code.trainer import ESimCSECallback, ESimCSECollator, ESimCSELoss

SIZES: dict[str, dict[str, Any]] = {
    "2 layers of 128": {"hidden_size": 128, "layers": 2, "heads": 4},
    "4 layers of 256": {"hidden_size": 256, "layers": 4, "heads": 4},
}
SYSTEMS = {"SimCSE": "simcse-laptop", "ESimCSE": "esimcse-laptop"}
OURS, THEIRS = "ours", "sentence-transformers"
SPEED, IQR, TIMES, BESIDE = "sentences/s (median)", "IQR", "× SimCSE's time", "× sentence-transformers' speed"
_STEP_BAR, _SPEED_BAR = 1.25, 1.0
_WARMUP = 5  # steps of a run that are not counted
_TOKENIZER_ON = 20_000  # sentences


def run_text_speed(
    *,
    data: str | None,
    repeats: int = 9,
    threads: int = 2,
    batch: int = 64,
    steps: int = 45,
    texts: int = 4096,
    sizes: Sequence[str] = tuple(SIZES),
) -> Report:
    """Measure, save, show.

    Args:
        data: folder with text/; default ``$MC_DATA``, and without one the sentences of the standard library.
        repeats: rounds.
        threads: of the CPU.
        batch: sentences of a step.
        steps: of a training run.
        texts: to embed in each round.
        sizes: keys of :data:`SIZES`.
    """
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    source, sentences = read_sentences(data, max(_TOKENIZER_ON, steps * batch, texts))
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory() as folder, silent():
            tokenizer = train_tokenizer(sentences[:_TOKENIZER_ON], 16_000)
            for name in sizes:
                recipes = {
                    system: resolve_recipe(recipe, changes(name, batch, steps)) for system, recipe in SYSTEMS.items()
                }
                torch.manual_seed(0)
                encoder = SentenceEncoder(recipes["SimCSE"].method.encoder, tokenizer)
                model = save_sentence_transformer(encoder, Path(folder) / f"model-{len(rows)}")
                rows += _step_rows(name, recipes, encoder, sentences, repeats)
                rows += _training_rows(name, recipes, encoder, model, sentences[: steps * batch], repeats)
                rows += _encoding_rows(name, encoder, model, sentences[:texts], repeats)
    finally:
        torch.set_num_threads(before)
    report = Report(
        benchmark="text_speed",
        command="uv run mc-benchmark text-speed",
        question=f"Sentences per second on {threads} threads: training steps, whole training runs, embedding",
        settings={
            "sizes": {name: SIZES[name] for name in sizes},
            "repeats": repeats,
            "threads": threads,
            "batch": batch,
            "steps": steps,
            "texts": texts,
            "sentences": source,
        },
        environment=text_environment(),
        columns=[SPEED, IQR, TIMES, BESIDE],
        rows=rows,
        reading=_reading(rows),
    )
    report.save()
    report.show()
    return report


def text_environment() -> Environment:
    """The machine and versions, with those that sentences go through."""
    found = environment()
    more = {name: version(name) for name in ("mc-text-code", "sentence-transformers", "transformers", "tokenizers")}
    return found.model_copy(update={"packages": {**found.packages, **more}})


def read_sentences(data: str | None, count: int) -> tuple[str, list[str]]:
    """Their source and the sentences themselves, ``count`` or more, in an order drawn once."""
    root = data or os.environ.get("MC_DATA")
    file = None if root is None else Path(root) / "text" / "sentences-en.parquet"
    found = open_sentences(file) if file is not None and file.is_file() else standard_library_sentences()
    order = np.random.default_rng(0).permutation(len(found))
    texts = [found.texts[i] for i in order]
    while len(texts) < count:
        texts += texts
    return file.name if file is not None and file.is_file() else "docstrings of the standard library", texts


def changes(size: str, batch: int, steps: int) -> dict[str, Any]:
    """What makes of a laptop recipe a run to be timed."""
    return {
        "method": {"encoder": SIZES[size]},
        "fit": {"batch_size": batch, "steps": steps, "device": "cpu", "workers": 0, "stop_on_collapse": False},
        "warm_start": {"steps": 0},
        "batches": {"deduplicate": False},
    }


def _step_rows(
    name: str, recipes: Mapping[str, Recipe[Any]], encoder: SentenceEncoder, sentences: Sequence[str], repeats: int
) -> list[Row]:
    batch = next(iter(recipes.values())).fit.batch_size
    seconds = paired(
        {system: our_step(recipe, encoder, sentences) for system, recipe in recipes.items()},
        repeats=4 * repeats,
        warmup=_WARMUP,
    )
    return [
        Row(
            name=f"{name}: a step of {system}",
            values={
                **_speed(batch, found),
                TIMES: None if system == "SimCSE" else median_ratio(found, seconds["SimCSE"]),
                BESIDE: None,
            },
        )
        for system, found in seconds.items()
    ]


def our_step(recipe: Recipe[Any], encoder: SentenceEncoder, sentences: Sequence[str]) -> Callable[[], None]:
    """A whole step, on the next batch: views, loss, backward, clipping, AdamW, slow copy, queue."""
    size = recipe.fit.batch_size
    data = SentenceData(sentences[: 32 * size], encoder.tokenizer, recipe.augment, recipe.batches)  # type: ignore[arg-type]
    torch.manual_seed(0)
    method = ESimCSE(recipe.method, copy.deepcopy(encoder)).train()
    optimizer = build_optimizer(method.parameter_groups(recipe.fit.weight_decay), recipe.fit)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    progress = Progress(0, 100_000, 0, size)

    def step() -> None:
        first = progress.step * size % len(data)
        index = list(range(first, first + size))
        batch = {**data.get_batch(index, 0, 0), "index": torch.tensor(index), "epoch": 0, "micro": 0}
        method.training_step(batch, progress, method.prepare_step([batch], progress)).loss.backward()
        method.before_optimizer_step(progress)
        if recipe.fit.clip_norm:
            nn.utils.clip_grad_norm_(trained, recipe.fit.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            method.after_step(progress)
        progress.step += 1

    return step


def _training_rows(
    name: str,
    recipes: Mapping[str, Recipe[Any]],
    encoder: SentenceEncoder,
    model: Path,
    sentences: Sequence[str],
    repeats: int,
) -> list[Row]:
    rows = []
    for system, recipe in recipes.items():
        runs: dict[str, Callable[[Path], float]] = {
            OURS: lambda place, r=recipe: our_run(r, encoder, sentences, place),
            THEIRS: lambda place, r=recipe, s=system: their_run(r, model, sentences, place, queue=s == "ESimCSE"),
        }
        seconds: dict[str, list[float]] = {side: [] for side in runs}
        for round_ in range(repeats + 1):
            for side, run in runs.items():
                with tempfile.TemporaryDirectory() as place:
                    found = run(Path(place))
                gc.collect()
                if round_:
                    seconds[side].append(found)
        rows += _beside(f"{name}: training with {system}", seconds, recipe.fit.batch_size)
    return rows


def our_run(recipe: Recipe[Any], encoder: SentenceEncoder, sentences: Sequence[str], folder: Path) -> float:
    """Seconds per step of :func:`mc_core.engine.fit`, the step's share of tokenising included."""
    begun = time.perf_counter()
    data = SentenceData(sentences, encoder.tokenizer, recipe.augment, recipe.batches)  # type: ignore[arg-type]
    tokenising = time.perf_counter() - begun
    torch.manual_seed(0)
    method = ESimCSE(recipe.method, copy.deepcopy(encoder))
    ends: list[float] = []
    moved = method.after_step

    def after_step(progress: Progress) -> None:
        moved(progress)
        ends.append(time.perf_counter())

    method.after_step = after_step  # type: ignore[method-assign]
    fit(method, data, fit=recipe.fit, run_dir=folder / "run")
    return per_step(ends) + tokenising / len(ends)


def their_run(recipe: Recipe[Any], model: Path, sentences: Sequence[str], folder: Path, *, queue: bool) -> float:
    """Seconds per step of ``SentenceTransformerTrainer``: SimCSE as its documentation has it, ESimCSE by our parts for it."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import PrinterCallback, TrainerCallback

    ends: list[float] = []

    class Ends(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    online = SentenceTransformer(str(model), device="cpu")
    online.max_seq_length = recipe.method.encoder.max_length
    texts = list(sentences)
    settings, options = recipe.fit, recipe.method
    loss: nn.Module
    if queue:
        loss = ESimCSELoss(
            online,
            temperature=options.temperature,
            queue_size=options.queue_size(settings.batch_size),
            momentum=options.momentum.momentum,
        )
        parts: dict[str, Any] = {
            "train_dataset": Dataset.from_dict({"sentence": texts}),
            "data_collator": ESimCSECollator.of(online, recipe.augment),
            "callbacks": [ESimCSECallback(loss), Ends()],
        }
    else:
        loss = MultipleNegativesRankingLoss(online, scale=1 / options.temperature)
        parts = {
            "train_dataset": Dataset.from_dict({"sentence1": texts, "sentence2": texts}),
            "callbacks": [Ends()],
        }
    trainer = SentenceTransformerTrainer(
        model=online,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=settings.batch_size,
            max_steps=settings.steps or 0,
            learning_rate=settings.lr,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.clip_norm or 0.0,
            lr_scheduler_type="linear",
            logging_steps=settings.log_every,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            seed=settings.seed,
        ),
        loss=loss,
        **parts,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return per_step(ends)


def per_step(ends: Sequence[float]) -> float:
    """Seconds per step between the end of an early one and the end of the last."""
    early = min(_WARMUP, len(ends) - 1)
    return (ends[-1] - ends[early - 1]) / (len(ends) - early)


def _encoding_rows(name: str, encoder: SentenceEncoder, model: Path, texts: Sequence[str], repeats: int) -> list[Row]:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(model), device="cpu")
    ours = copy.deepcopy(encoder).eval()
    asked = list(texts)
    work: dict[str, Callable[[], np.ndarray]] = {
        OURS: lambda: ours.encode(asked, batch_size=64),
        THEIRS: lambda: theirs.encode(asked, batch_size=64, show_progress_bar=False),
    }
    np.testing.assert_allclose(work[OURS](), work[THEIRS](), rtol=0, atol=1e-5)
    return _beside(f"{name}: embedding", paired(work, repeats=repeats, warmup=1), len(asked))


def _beside(name: str, seconds: Mapping[str, list[float]], count: int) -> list[Row]:
    return [
        Row(
            name=f"{name}, {side}",
            values={
                **_speed(count, found),
                TIMES: None,
                BESIDE: median_ratio(seconds[THEIRS], found) if side == OURS else None,
            },
        )
        for side, found in seconds.items()
    ]


def _speed(count: int, seconds: list[float]) -> dict[str, float | str | None]:
    return {SPEED: count / median(seconds), IQR: spread([count / one for one in seconds])}


def _reading(rows: Sequence[Row]) -> str:
    times = [value for row in rows if isinstance(value := row.values[TIMES], float)]
    beside = {
        kind: [value for row in rows if kind in row.name and isinstance(value := row.values[BESIDE], float)]
        for kind in ("training with SimCSE", "training with ESimCSE", "embedding")
    }
    shown = "; ".join(
        f"{kind} {_span(values)} × its speed ({_met(min(values) >= _SPEED_BAR)})" for kind, values in beside.items()
    )
    return (
        f"A step of ESimCSE takes {_span(times)} × that of SimCSE (7/6 by counting passes; bar {_STEP_BAR}: "
        f"{_met(max(times) <= _STEP_BAR)}). Beside sentence-transformers, bar {_SPEED_BAR:g} each: {shown}. "
        "Its SimCSE is its own loss on pairs of equal columns, without a head; its ESimCSE is our "
        "loss, collator and callback in its trainer."
    )


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _met(true: bool) -> str:
    return "reached" if true else "not reached"


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """No progress bars and reports of either side between the results."""
    import datasets

    logs = [logging.getLogger(name) for name in ("mc_core", "sentence_transformers")]
    levels = [log.level for log in logs]
    shown = datasets.is_progress_bar_enabled()
    for log in logs:
        log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with quiet_loading():
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
        if shown:
            datasets.enable_progress_bars()
