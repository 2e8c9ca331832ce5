"""The grammar of ``mc-benchmark``. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cyclopts import App

from mc_benchmarks.app_astrea import ASTREA_COMMANDS
from mc_benchmarks.app_code import CODE_COMMANDS
from mc_benchmarks.app_continual import CONTINUAL_COMMANDS
from mc_benchmarks.app_medical import MEDICAL_COMMANDS
from mc_benchmarks.app_remote_sensing import REMOTE_SENSING_COMMANDS
from mc_benchmarks.app_vl import VL_COMMANDS
from mc_core.cli import call_app

app = App(
    name="mc-benchmark",
    help_format="plaintext",
    help="Paired benchmarks; each writes results/NAME.json and prints its table.",
)
_Device = Literal["cpu", "cuda"]


def run(arguments: Sequence[str]) -> Any:
    """Parse and run."""
    return call_app(app, arguments)


@app.command
def step_time(
    *, repeats: int = 30, batch_size: int = 64, size: int = 64, device: _Device = "cpu", lightly: bool = True
) -> None:
    """A whole MoCo step beside its floor and lightly's step.

    Args:
        repeats: Rounds.
        batch_size: Images.
        size: Side in pixels.
        device: Where.
        lightly: Also time lightly's step (needs --group peers).
    """
    from mc_benchmarks.step_time import run_step_time

    run_step_time(repeats=repeats, batch_size=batch_size, size=size, device=device, lightly=lightly)


@app.command
def queue_loss(*, repeats: int = 15, device: _Device = "cpu") -> None:
    """Time and memory of the streamed queue loss beside the dense one.

    Args:
        repeats: Rounds.
        device: Where.
    """
    from mc_benchmarks.queue_loss import run_queue_loss

    run_queue_loss(repeats=repeats, device=device)


@app.command
def sinkhorn(*, repeats: int = 15, device: _Device = "cpu") -> None:
    """Time, passes over memory and error of SwAV's assignments beside the literal form.

    Args:
        repeats: Rounds.
        device: Where.
    """
    from mc_benchmarks.sinkhorn import run_sinkhorn

    run_sinkhorn(repeats=repeats, device=device)


@app.command
def loader(*, images: int = 256, size: int = 224, workers: int = 2, repeats: int = 5) -> None:
    """Images per second from JPEG files to two views, beside torchvision.

    Args:
        images: Files to write and read.
        size: Side of the views.
        workers: Loader processes.
        repeats: Passes.
    """
    from mc_benchmarks.loader import run_loader

    run_loader(images=images, size=size, workers=workers, repeats=repeats)


@app.command
def cifar(
    *,
    data: str | None = None,
    recipe: str = "moco-v2-laptop",
    epochs: int = 20,
    seeds: int = 3,
    device: _Device = "cpu",
    train_images: int | None = None,
    lightly: bool = True,
) -> None:
    """kNN on CIFAR-10 after a laptop recipe, beside lightly at equal steps.

    Args:
        data: Folder with cifar10-train-*.parquet and cifar10-test.parquet. Default: $MC_DATA/vision.
        recipe: Recipe of MoCo with a queue.
        epochs: Passes over the data.
        seeds: Runs of each.
        device: Where.
        train_images: Use only the first so many.
        lightly: Also train lightly's MoCo (needs --group peers).
    """
    from mc_benchmarks.cifar import run_cifar

    run_cifar(
        data=data,
        recipe_name=recipe,
        epochs=epochs,
        seeds=seeds,
        device=device,
        train_images=train_images,
        lightly=lightly,
    )


@app.command
def cifar_gpu(
    *,
    data: str | None = None,
    epochs: int = 200,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    batches: tuple[int, ...] = (32, 64, 128, 256),
    train_images: int | None = None,
) -> None:
    """ResNet-18 on CIFAR-10: MoCo, and DCL beside InfoNCE at small batches. Hours on a GPU; resumable row by row.

    Args:
        data: Folder with the Parquet files. Default: $MC_DATA/vision.
        epochs: Passes over the data.
        device: Where; a CPU runs a short version with --epochs and --train-images.
        batches: Batch sizes of DCL and InfoNCE.
        train_images: Use only the first so many.
    """
    from mc_benchmarks.cifar_gpu import run_cifar_gpu

    run_cifar_gpu(data=data, epochs=epochs, device=device, batches=batches, train_images=train_images)


@app.command
def mmc_step(*, repeats: int = 15, device: _Device = "cpu") -> None:
    """A whole step of MMC beside its networks alone.

    Args:
        repeats: Rounds.
        device: Where.
    """
    from mc_benchmarks.mmc_step import run_mmc_step

    run_mmc_step(repeats=repeats, device=device)


@app.command
def segment(*, repeats: int = 15, page: bool = True) -> None:
    """Pointing at a photo: time to encode it, and from a click to its mask.

    Args:
        repeats: Clicks.
        page: Also click in the page of `mc-vision demo` (needs Chromium).
    """
    from mc_benchmarks.segment import run_segment

    run_segment(repeats=repeats, page=page)


@app.command
def swav_claims(
    *,
    data: str | None = None,
    epochs: int = 10,
    seeds: int = 3,
    train_images: int = 25_000,
    keep: Path = Path("runs/benchmarks"),
) -> None:
    """SwAV on CIFAR-10: small crops against two crops at equal epochs, balanced against softmax targets.

    Args:
        data: Folder with the Parquet files. Default: $MC_DATA/vision.
        epochs: Passes over the data.
        seeds: Runs of each.
        train_images: Use only the first so many.
        keep: Where finished runs are kept: the same command goes on after them.
    """
    from mc_benchmarks.swav_claims import run_swav_claims

    run_swav_claims(data=data, epochs=epochs, seeds=seeds, train_images=train_images, keep=keep)


@app.command
def mmc_claims(
    *,
    data: str | None = None,
    seeds: int = 3,
    train_images: int = 12_800,
    steps: int | None = None,
    keep: Path = Path("runs/benchmarks"),
) -> None:
    """MMC with each loss alone and all three: similarity of patches and segmentation by pointing, beside the controls.

    Args:
        data: Folder with vision/ (CIFAR-10) and vision-language/ (COCO photos with masks). Default: $MC_DATA.
        seeds: Runs of each.
        train_images: Photos to train on.
        steps: Optimizer steps of each run. Default: the recipe's ten epochs of scenes, five of photos.
        keep: Where finished runs are kept: the same command goes on after them.
    """
    from mc_benchmarks.mmc_claims import run_mmc_claims

    run_mmc_claims(data=data, seeds=seeds, train_images=train_images, steps=steps, keep=keep)


@app.command
def wearables_speed(*, repeats: int = 15, threads: int = 2, people: int = 256, segments: int = 256) -> None:
    """Loading pairs of PPG and ECG beside per-sample neurokit2 and beside a step; embedding in PyTorch and ONNX Runtime.

    Args:
        repeats: Rounds.
        threads: Of the CPU, for steps and embeddings; loaders run on one.
        people: Whose segments the loaders choose from.
        segments: To embed in each round.
    """
    from mc_benchmarks.wearables_speed import run_wearables_speed

    run_wearables_speed(repeats=repeats, threads=threads, people=people, segments=segments)


@app.command
def wearables_cohort(
    *,
    seeds: int = 3,
    signals: tuple[Literal["ppg", "ecg"], ...] = ("ppg", "ecg"),
    people: int | None = None,
    steps: int | None = None,
    keep: Path = Path("runs/benchmarks"),
) -> None:
    """What encoders know of simulated people held out, beside segment pairs, untrained, heart rate, classical and the ceiling.

    Args:
        seeds: Cohorts, numbered from 1.
        signals: PPG, ECG or both.
        people: To train on; half as many are held out. Default: 600.
        steps: Optimizer steps. Default: the recipe's.
        keep: Where finished runs are kept: the same command goes on after them.
    """
    from mc_benchmarks.wearables_cohort import run_wearables_cohort

    run_wearables_cohort(seeds=seeds, keep=keep, signals=signals, people=people, steps=steps)


@app.command
def wearables_real(
    *,
    data: str | None = None,
    seeds: int = 3,
    steps: int | None = None,
    cinc: bool = True,
    keep: Path = Path("runs/benchmarks"),
) -> None:
    """Real ECG and PPG, read as they are: identification, age, sex and fibrillation of people held out, beside baselines.

    Args:
        data: Folder with wearables/. Default: $MC_DATA.
        seeds: Splits of the people, weights and pairs.
        steps: Optimizer steps. Default: the recipe's.
        cinc: Also read the rhythm of CinC 2017 records with the encoder of ECG-ID.
        keep: Where finished runs are kept: the same command goes on after them.
    """
    from mc_benchmarks.wearables_real import run_wearables_real

    run_wearables_real(data=data, seeds=seeds, steps=steps, cinc=cinc, keep=keep)


@app.command
def wearables_ablation(
    *, signal: Literal["ppg", "ecg"] = "ecg", seeds: int = 3, keep: Path = Path("runs/benchmarks")
) -> None:
    """The ablation of participant contrast on a simulated cohort, beside the directions of its paper.

    Args:
        signal: PPG or ECG.
        seeds: Runs of each row.
        keep: Where finished rows are kept: the same command goes on after them.
    """
    from mc_benchmarks.wearables_ablation import run_wearables_ablation

    run_wearables_ablation(signal=signal, seeds=seeds, keep=keep)


@app.command
def text_claims(
    *,
    data: str | None = None,
    seeds: int = 3,
    sentences: int | None = None,
    steps: int | None = None,
    warm_steps: int | None = None,
    keep: Path = Path("runs/benchmarks"),
) -> None:
    """ESimCSE's components one by one, from scratch on real sentences: STS, length bias, alignment and uniformity.

    Args:
        data: Folder with text/. Default: $MC_DATA.
        seeds: Runs of each case.
        sentences: To train on. Default: all.
        steps: Of the contrast. Default: the recipe's.
        warm_steps: Of the warm start. Default: the recipe's.
        keep: Where finished runs are kept: the same command goes on after them.
    """
    from mc_benchmarks.text_claims import run_text_claims

    run_text_claims(data=data, seeds=seeds, sentences=sentences, steps=steps, warm_steps=warm_steps, keep=keep)


@app.command
def text_speed(
    *,
    data: str | None = None,
    repeats: int = 9,
    threads: int = 2,
    batch: int = 64,
    steps: int = 45,
    texts: int = 4096,
) -> None:
    """A step of ESimCSE beside one of SimCSE; training and embedding sentences beside sentence-transformers.

    Args:
        data: Folder with text/. Default: $MC_DATA, and without one the docstrings of the standard library.
        repeats: Rounds.
        threads: Of the CPU.
        batch: Sentences of a step.
        steps: Of each training run.
        texts: To embed in each round.
    """
    from mc_benchmarks.text_speed import run_text_speed

    run_text_speed(data=data, repeats=repeats, threads=threads, batch=batch, steps=steps, texts=texts)


@app.command
def tables(*files: Path, check: bool = False) -> None:
    """Write the tables of README files from the saved results, between their ``<!-- benchmark: NAME -->`` marks.

    Args:
        files: Markdown files. Default: those of this workspace.
        check: Change nothing; fail when a table is not what the results say.
    """
    from mc_benchmarks.tables import run_tables

    run_tables(list(files), check=check)


for _command in (
    *CODE_COMMANDS,
    *MEDICAL_COMMANDS,
    *REMOTE_SENSING_COMMANDS,
    *VL_COMMANDS,
    *CONTINUAL_COMMANDS,
    *ASTREA_COMMANDS,
):
    app.command(_command)
