"""``kill -9`` twice in the middle of training, run again to the end: the same bits as without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mc_core.engine.checkpoint import CheckpointFolder, flatten
from mc_core.files import load_state, read_jsonl
from mc_testkit.files import write_image_folder

STEPS = 40
OPTIONS = [
    *("--image-size", "16", "--fit.batch-size", "16", "--fit.accumulation", "2", "--fit.steps", str(STEPS)),
    *("--fit.workers", "2", "--fit.checkpoint-every", "2", "--fit.log-every", "4", "--json"),
]
OF_RECIPE = {
    "moco-v2-laptop": ["--method.queue-size", "64", "--method.split-bn", "2"],
    "moco-v3-laptop": [],
    "dcl-laptop": [],
}
WAIT = 240.0


def _start(data: Path, run: Path, recipe: str) -> subprocess.Popen[str]:
    program = Path(sys.executable).parent / "mc-vision"
    return subprocess.Popen(
        [program, "pretrain", data, "--recipe", recipe, *OF_RECIPE[recipe], *OPTIONS, "--out", run],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _to_the_end(process: subprocess.Popen[str]) -> str:
    _, err = process.communicate(timeout=WAIT)
    assert process.returncode == 0, err
    return err


def _newest(run: Path) -> int:
    return max(
        (int(path.stem.removeprefix("step-")) for path in CheckpointFolder(run / "checkpoints").paths()), default=0
    )


def _kill_after_a_checkpoint(process: subprocess.Popen[str], run: Path, beyond: int) -> int:
    """Kill the process, not its loader workers, once it has written a checkpoint of a later step; the newest step."""
    until = time.monotonic() + WAIT
    while _newest(run) <= beyond and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, f"ended by itself before it could be killed: {err}"
    return _newest(run)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a matter of POSIX systems")
@pytest.mark.parametrize("recipe", OF_RECIPE)
def test_killed_twice_is_as_if_never_killed(recipe: str, tmp_path: Path) -> None:
    data = write_image_folder(tmp_path / "data", each=18)
    smooth, broken = tmp_path / "smooth", tmp_path / "broken"
    reference = _start(data, smooth, recipe)  # beside the other: nothing is shared but the data

    first = _kill_after_a_checkpoint(_start(data, broken, recipe), broken, beyond=0)
    second = _kill_after_a_checkpoint(_start(data, broken, recipe), broken, beyond=first)
    assert 0 < first < second < STEPS
    said = _to_the_end(_start(data, broken, recipe))
    assert f"at step {second} of {STEPS}" in " ".join(said.split())
    _to_the_end(reference)

    one, other = (load_state(run / "checkpoints" / f"step-{STEPS:09d}.safetensors") for run in (smooth, broken))
    for part in ("method", "optimizer"):
        expected, found = flatten({part: one[part]}), flatten({part: other[part]})
        assert expected.keys() == found.keys()
        assert any(isinstance(value, torch.Tensor) for value in expected.values())
        for name, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, found[name]), name
            else:
                assert value == found[name], name
    losses = [
        [(line["step"], line["loss"]) for line in read_jsonl(run / "metrics.jsonl") if "loss" in line]
        for run in (smooth, broken)
    ]
    assert [step for step, _ in losses[0]] == [step for step, _ in losses[1]]
    assert losses[0][-1][0] == STEPS
    assert not list(broken.rglob("*.part"))
