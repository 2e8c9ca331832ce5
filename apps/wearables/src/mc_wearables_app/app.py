"""The grammar of ``mc-wearables``: verbs, their options, and where their work is done. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from mc_core.cli import call_app, value_of
from mc_core.engine.config import Fit
from mc_wearables import __version__
from mc_wearables.augment_config import AugmentConfig
from mc_wearables.data.config import IngestOptions
from mc_wearables.methods import METHODS
from mc_wearables.recipe import PairOptions, system_of

app = App(
    name="mc-wearables",
    help="Pretrain encoders of PPG and ECG on your own recordings, and see what they know. Research use, not a medical device.",
    version=__version__,
    help_format="plaintext",  # importing what renders Markdown takes a fifth of a second
)

_RECIPE_OPTIONS = "[default: the recipe's; see --print-recipe]"
_FIT = Group("Training (--fit.*)", help=f"How it is trained {_RECIPE_OPTIONS}", sort_key=2)
_METHOD = Group("Method (--method.*)", help=f"Of the method the recipe names {_RECIPE_OPTIONS}", sort_key=3)
_PAIRS = Group("Pairs (--pairs.*)", help=f"Which two segments are a positive pair {_RECIPE_OPTIONS}", sort_key=4)
_AUGMENT = Group("Augmentation (--augment.*)", help=f"Random changes of each view {_RECIPE_OPTIONS}", sort_key=5)

_Json = Annotated[bool, Parameter(name="--json", negative=())]
_Device = Literal["auto", "cpu", "cuda"]
_Signal = Literal["ppg", "ecg"]


def run(arguments: Sequence[str]) -> Any:
    """Parse and run; the options ``--method.*`` are those of the method that ``--recipe`` (or its default) names."""
    arguments = list(arguments)
    if "pretrain" in app:  # of an earlier call in this process
        del app["pretrain"]
    app.command(_pretrain_command(arguments if arguments[:1] == ["pretrain"] else []), name="pretrain")
    return call_app(app, arguments)


@app.command
def ingest(
    *records: str,
    out: Path,
    options: Annotated[IngestOptions, Parameter(name="*")],
    json: _Json = False,
) -> None:
    """Cut recordings into segments and store them: WFDB, EDF, CSV, Parquet, npz, Apple Health, Fitbit, Empatica.

    Run it again to add files or after an interruption: files that the store has are skipped.

    Args:
        records: Files and folders.
        out: Folder of the store, made or added to. Its salt is written beside it, as OUT.salt: keep it to match labels.
        json: Print one JSON object instead of a table.
    """
    from mc_wearables_app.ingest import run_ingest

    run_ingest(records, out=out, options=options, as_json=json)


@app.command
def probe(
    run: Path,
    store: Path | None = None,
    /,
    *,
    labels: Path | None = None,
    target: list[str] | None = None,
    level: Literal["auto", "participant", "segment"] = "auto",
    baselines: bool = True,
    split: Literal["train-test", "test-only"] = "train-test",
    draws: int = 1000,
    seed: int = 0,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Linear probes of frozen embeddings on people held out, beside classical features and an untrained encoder.

    Args:
        run: Run folder, or a saved encoder.
        store: Segments. Default: those of the run.
        labels: Table (.csv .tsv .parquet) with a column `participant` of raw ids, and the targets.
        target: Labels to read: of the table, or of the store. Default: all numbers among them.
        level: Probe the mean of a participant's segments, or single segments. Auto: the first where a label is constant
            for a person.
        baselines: Also probe heart rate, classical features and an untrained encoder.
        split: train-test: fit on the people the encoder was trained on, test on those held out; test-only: halve those held
            out.
        draws: Bootstrap draws over participants.
        seed: Of folds and draws.
        device: Where to compute.
        json: Print one JSON object instead of a table.
    """
    from mc_wearables_app.probe import run_probe

    run_probe(
        run,
        store,
        labels=labels,
        targets=target or [],
        level=level,
        baselines=baselines,
        split=split,
        draws=draws,
        seed=seed,
        device=device,
        as_json=json,
    )


@app.command
def evaluate(
    run: Path,
    store: Path | None = None,
    /,
    *,
    halves: Literal["segment", "session"] = "segment",
    draws: int = 1000,
    seed: int = 0,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Without labels: does an embedding recognise people held out? Re-identification, dispersion ratio, effective rank.

    Args:
        run: Run folder, or a saved encoder.
        store: Segments. Default: those of the run.
        halves: What a person's two halves are made of; sessions are the harder and more honest one.
        draws: Bootstrap draws over participants.
        seed: Of halves and draws.
        device: Where to compute.
        json: Print one JSON object instead of a table.
    """
    from mc_wearables_app.evaluate import run_evaluate

    run_evaluate(run, store, halves=halves, draws=draws, seed=seed, device=device, as_json=json)


@app.command
def embed(
    run: Path,
    data: Path,
    /,
    *,
    fs: float | None = None,
    units: str | None = None,
    signal: _Signal | None = None,
    channels: tuple[str, ...] = (),
    out: Path = Path("embeddings.parquet"),
    batch_size: int = 128,
    device: _Device = "auto",
    json: _Json = False,
) -> None:
    """Write the embeddings of a recording, a folder of them, or a store.

    Args:
        run: Run folder, or a saved encoder.
        data: Recording, folder of recordings, or store.
        fs: Samples per second of recordings that do not say.
        units: Units of recordings that do not say.
        signal: ppg or ecg. Default: what the run was trained on.
        channels: Names or numbers of the channels wanted.
        out: File to write: .parquet or .npz.
        batch_size: Segments at a time.
        device: Where to compute.
        json: Print one JSON object instead of a line.
    """
    from mc_wearables_app.embed import run_embed

    run_embed(
        run,
        data,
        fs=fs,
        units=units,
        signal=signal,
        channels=channels,
        out=out,
        batch_size=batch_size,
        device=device,
        as_json=json,
    )


@app.command
def export(
    run: Path,
    store: Path | None = None,
    /,
    *,
    format: Literal["onnx", "int8", "hub"] = "onnx",
    out: Path | None = None,
    json: _Json = False,
) -> None:
    """Write the encoder for a device, the z-score inside, with its size, its time per segment and how closely it agrees.

    Args:
        run: Run folder, or a saved encoder.
        store: Segments to compare and calibrate on. Default: those the run was trained on.
        format: onnx: 32-bit; int8: weights and activations in 8 bits, calibrated on segments of training people; hub: a folder
            with a model card.
        out: File or folder to write. Default: RUN/export/….
        json: Print one JSON object instead of lines.
    """
    from mc_wearables_app.export import run_export

    run_export(run, store, format=format, out=out, as_json=json)


@app.command
def ablate(
    store: Path | None = None,
    /,
    *,
    signal: _Signal = "ecg",
    recipe: str | None = None,
    only: list[str] | None = None,
    seeds: int = 1,
    steps: int | None = None,
    batch_size: int | None = None,
    out: Path = Path("runs/ablation"),
    json: _Json = False,
) -> None:
    """The paper's ablation as one command: pairs, KoLeo, momentum, within-view negatives, time warp, one change at a time.

    Run the same command again after an interruption: finished rows are not run again.

    Args:
        store: Segments. Default: a simulated cohort.
        signal: Of the simulated cohort.
        recipe: What is changed. Default: ahms-SIGNAL-laptop.
        only: Rows to run, by name. Default: all.
        seeds: Runs of each.
        steps: Optimizer steps of each run. Default: the recipe's.
        batch_size: People in a batch. Default: the recipe's, or as many as there are.
        out: Folder of the runs and the table.
        json: Print one JSON object instead of a table.
    """
    from mc_wearables_app.ablate import run_ablate

    run_ablate(
        store,
        signal=signal,
        recipe_name=recipe,
        only=only or [],
        seeds=seeds,
        steps=steps,
        batch_size=batch_size,
        out=out,
        as_json=json,
    )


@app.command
def demo(
    run: Path,
    store: Path | None = None,
    /,
    *,
    label: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: _Device = "auto",
    browser: bool = False,
) -> None:
    """A page in the browser: pick a segment, see its signal, quality, beats and neighbours, and a map of all embeddings.

    Args:
        run: Run folder, or a saved encoder.
        store: Segments. Default: those of the run.
        label: Label that colours the map. Default: the participant.
        host: Address to listen on; 0.0.0.0 lets others in.
        port: Port to listen on.
        device: Where to compute.
        browser: Open the page in the browser.
    """
    from mc_wearables_app.demo import run_demo

    run_demo(run, store, label=label, host=host, port=port, device=device, browser=browser)


@app.command
def inspect(target: Path, /, *, json: _Json = False) -> None:
    """Show what a run or a store holds: segments, participants, quality, and why stretches were rejected.

    Args:
        target: Run folder or store.
        json: Print one JSON object instead of a table.
    """
    from mc_wearables_app.inspect_store import run_inspect

    run_inspect(target, as_json=json)


def _pretrain_command(arguments: list[str]) -> Any:
    named = value_of(arguments, "--recipe")
    config = METHODS.config_class(system_of(named) if named else "participant")
    fit_option = Annotated[Fit | None, Parameter(name="fit", group=_FIT, show_default=False)]
    pairs_option = Annotated[PairOptions | None, Parameter(name="pairs", group=_PAIRS, show_default=False)]
    augment_option = Annotated[AugmentConfig | None, Parameter(name="augment", group=_AUGMENT, show_default=False)]
    method_option = Annotated[config | None, Parameter(name="method", group=_METHOD, show_default=False)]  # type: ignore[valid-type]

    def pretrain(
        store: Path | None = None,
        /,
        *,
        signal: _Signal | None = None,
        recipe: str | None = None,
        out: Path | None = None,
        json: _Json = False,
        print_recipe: Annotated[bool, Parameter(negative=())] = False,
        fit: Any = None,
        method: Any = None,
        pairs: Any = None,
        augment: Any = None,
    ) -> None:
        """Pretrain an encoder by participant contrast, and measure it on people held out, beside honest baselines.

        Run the same command again after an interruption: it goes on where the run was.

        Args:
            store: Segments made by `mc-wearables ingest`. Without it: a simulated cohort.
            signal: ppg or ecg. Default: what the store holds; ecg for the simulated cohort.
            recipe: A recipe by name (ahms-ppg, ahms-ecg, or with -laptop behind for a small CPU), a YAML file or a run
                folder. Default: ahms-SIGNAL, or ahms-SIGNAL-laptop for the simulated cohort.
            out: Run folder. Default: runs/RECIPE-STORE.
            json: Print the result as one JSON object instead of a table.
            print_recipe: Print the recipe with all options in place, and do nothing.
        """
        from mc_core.cli import given_fields
        from mc_wearables_app.pretrain import run_pretrain

        changes = {
            "fit": given_fields(fit),
            "method": given_fields(method),
            "pairs": given_fields(pairs),
            "augment": given_fields(augment),
        }
        run_pretrain(
            store,
            signal=signal,
            recipe_name=recipe,
            changes={name: given for name, given in changes.items() if given},
            out=out,
            as_json=json,
            print_recipe=print_recipe,
        )

    pretrain.__annotations__ |= {
        "fit": fit_option,
        "pairs": pairs_option,
        "augment": augment_option,
        "method": method_option,
    }
    return pretrain
