"""Methods that stream their micro-batches: nothing piles up on the device, and nothing else changes."""

import weakref

import pytest
import torch

from mc_core.engine import Fit, fit
from mc_core.engine.streaming import StreamedBatches
from mc_testkit.toys import ToyDCL, vector_pairs


class Watched(dict):
    """A batch that can be told apart from others while it lives."""


class Counting:
    """Data that notes which phase each finishing was for, and how many finished batches live at once."""

    def __init__(self, count=32):
        self.inner = vector_pairs(count)
        self.phases = []
        self.needs = []

    def __len__(self):
        return len(self.inner)

    def get(self, index, rng):
        return self.inner.get(index, rng)

    def get_batch(self, indices, epoch, seed):
        return self.inner.get_batch(indices, epoch, seed)

    def device_transform(self, batch, random):
        self.phases.append((batch.get("phase"), int(batch["micro"])))
        self.needs.append(batch.get("needs"))
        noise = random.uniform(batch["view_1"].shape[1]) * 0.1
        return {**batch, "view_1": batch["view_1"] + noise}


class Streaming(ToyDCL):
    streams_micro_batches = True

    def __init__(self):
        super().__init__(dropout=0.0)
        self.seen = []

    def needs(self, phase):
        return ("view_1",) if phase == "train" else None

    def prepare_step(self, micro_batches, progress):
        self.seen.append(type(micro_batches))
        return super().prepare_step(micro_batches, progress)


def run(method_class, folder, **changes):
    torch.manual_seed(0)
    data, method = Counting(), method_class()
    settings = {"steps": 3, "batch_size": 8, "accumulation": 4, "lr": 0.05, "workers": 0, "device": "cpu"}
    result = fit(method, data, fit=Fit.model_validate({**settings, **changes}), run_dir=folder)
    return result.method, data


def test_each_micro_batch_is_finished_once_for_each_phase(tmp_path):
    method, data = run(Streaming, tmp_path / "run")
    one_step = [("prepare", i) for i in range(4)] + [("train", i) for i in range(4)]
    assert data.phases == one_step * 3
    assert data.needs == ([None] * 4 + [("view_1",)] * 4) * 3
    assert set(method.seen) == {StreamedBatches}


def test_streaming_changes_no_weight(tmp_path):
    streamed, _ = run(Streaming, tmp_path / "streamed")

    class Plain(ToyDCL):
        def __init__(self):
            super().__init__(dropout=0.0)

    held, data = run(Plain, tmp_path / "held")
    assert data.phases == [(None, i) for i in range(4)] * 3
    for (name, ours), theirs in zip(streamed.state_dict().items(), held.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_only_one_finished_batch_lives_at_a_time():
    alive = []

    def finish(batch):
        made = Watched(batch)
        alive.append(weakref.ref(made))
        assert sum(ref() is not None for ref in alive) == 1
        return made

    batches = StreamedBatches([{"x": i} for i in range(5)], finish, lambda phase: None, "prepare")
    for i in range(len(batches)):
        assert batches[i]["x"] == i
    assert batches.in_phase("train")[1:3][1]["phase"] == "train"
    with pytest.raises(IndexError):
        batches[5]
