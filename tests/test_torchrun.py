"""The command under ``torchrun``: two processes train together and leave one result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mc_core.engine.checkpoint import CheckpointFolder
from mc_core.files import load_state, read_jsonl
from mc_testkit.files import write_image_folder


@pytest.mark.slow
def test_two_processes_leave_one_result(tmp_path: Path) -> None:
    data, run = write_image_folder(tmp_path / "data", each=18), tmp_path / "run"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "mc_vision_app", "pretrain", data, "--recipe", "moco-v2-laptop", "--out", run, "--json"),
            *("--image-size", "16", "--fit.batch-size", "16", "--fit.steps", "3", "--fit.workers", "0"),
            *("--method.queue-size", "32", "--method.split-bn", "2", "--fit.device", "cpu", "--fit.log-every", "1"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()  # process 0 speaks, the other is silent
    found = json.loads(line)
    assert (found["metric"], found["steps"], found["images"]) == ("knn_accuracy", 3, 32)
    written = json.loads((run / "result.json").read_text())
    assert written == {name: value for name, value in found.items() if name != "report"}

    (checkpoint,) = CheckpointFolder(run / "checkpoints").paths()
    state = load_state(checkpoint)
    assert state["step"] == 3
    assert not any(name.startswith("module.") for name in state["method"])  # names as a single process has them
    assert [record["step"] for record in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3]
    assert (run / "model" / "model.safetensors").exists()
    assert (run / "report.html").exists()


@pytest.mark.slow
def test_two_processes_share_a_cohort_and_a_contrastive_batch(tmp_path: Path) -> None:
    """Salt and tokenizer are made once, and micro-batches are counted on each process."""
    from mc_core.recipes import load_recipe
    from mc_medical.phantom import write_phantoms

    files, run = write_phantoms(tmp_path / "phantoms", patients=30, size=48, seed=4), tmp_path / "run"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "mc_medical_app", "pretrain", files.table, "--recipe", "msd-laptop", "--out", run, "--json"),
            *("--method.image.image-size", "32", "--method.image.width", "8", "--method.dim", "16"),
            *(
                "--method.text.hidden-size",
                "16",
                "--method.text.heads",
                "2",
                "--image.size",
                "36",
                "--augment.size",
                "32",
            ),
            *(
                "--batch",
                "32",
                "--micro-batch",
                "4",
                "--fit.steps",
                "2",
                "--fit.warmup-epochs",
                "0",
                "--fit.device",
                "cpu",
            ),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert set(json.loads(line)["measured"]) == {"trained", "random_encoder"}
    assert load_recipe("mc_medical", run)["fit"]["accumulation"] == 4
    assert (tmp_path / "run.salt").exists()
    assert sorted(path.name for path in (run / "tokenizer").iterdir())[-1] == "tokenizer_config.json"


@pytest.mark.slow
def test_two_processes_share_pairs_and_a_queue(tmp_path: Path) -> None:
    """Tokenizer and splits are made once, and both queues hold the keys of both processes."""
    from PIL import Image

    from mc_core.samples import digit_scenes

    scenes, run = digit_scenes(40, size=32), tmp_path / "run"
    lines = ["image,caption,split"]
    for place, text in enumerate(scenes.captions):
        Image.fromarray(scenes.images[place].permute(1, 2, 0).numpy()).save(tmp_path / f"{place}.png")
        lines.append(f"{place}.png,{text},{'train' if place < 28 else 'test'}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "mc_vision_language_app", "pretrain", tmp_path / "pairs.csv", "--recipe", "albef-laptop"),
            *("--out", run, "--json", "--batch", "8", "--fit.steps", "3", "--fit.device", "cpu", "--fit.workers", "0"),
            *("--method.image.image-size", "32", "--method.image.patch-size", "16", "--method.image.width", "16"),
            *("--method.image.heads", "2", "--method.text.hidden-size", "16", "--method.text.heads", "2"),
            *("--method.dim", "8", "--method.queue-size", "20", "--augment.size", "32", "--fit.warmup-epochs", "0"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["splits"]["train"]["images"] == 28
    (checkpoint,) = CheckpointFolder(run / "checkpoints").paths()
    state = load_state(checkpoint)["method"]
    for name in ("image", "text"):
        assert int(state[f"queues.{name}.cursor"][1]) == 20  # three steps of eight keys, of which twenty are held
    assert (run / "tokenizer" / "tokenizer.json").exists()
    assert (run / "model" / "model.safetensors").exists()
