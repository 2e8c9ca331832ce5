"""What a large contrastive batch costs on this machine: MSD, GradCache, plain accumulation and the true batch, in one run.

Whole optimizer steps are measured as the engine makes them: pixels wait on the host as uint8, each micro-batch is moved, turned
into views and let go; forward, backward, clipping, AdamW, moving average. All schemes see the same made pairs, in turns, so that a
slow moment of the machine hits all of them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from mc_core.data import finish_on_device, to_device
from mc_core.engine.config import Fit
from mc_core.engine.method import Batch, Progress
from mc_core.engine.streaming import StreamedBatches
from mc_core.errors import ConfigError
from mc_core.optim import build_optimizer
from mc_core.random import BatchRandom
from mc_medical.augment import make_view
from mc_medical.augment_config import AugmentConfig
from mc_medical.methods.msd.config import MSDConfig
from mc_medical.methods.msd.model import MSD

SCHEMES: dict[str, dict[str, Any]] = {
    "MSD": {"keys": "ema"},
    "GradCache": {"keys": "grad_cache", "alpha": None},
    "GradCache, teacher's targets": {"keys": "grad_cache+ema_targets"},
    "plain accumulation": {"keys": "batch", "alpha": None},
}
"""Name of each scheme, and what of MSD's settings it changes."""
TRUE_BATCH = "true batch"
"""The whole batch in the graph; only asked for by name."""
PLAIN = "plain accumulation"


@dataclass(frozen=True)
class Efficiency:
    """What one scheme costs at one micro-batch.

    Attributes:
        scheme: a name of :data:`SCHEMES`, or :data:`TRUE_BATCH`.
        micro_batch: pairs in the graph.
        batch: pairs of an optimizer step.
        seconds: of each measured step.
        ratio: to plain accumulation at the same micro-batch, the median over rounds; None where that was not measured.
        graph_bytes: the most that autograd held for the backward pass; 0 where it was not measured.
        device_bytes: the most that was allocated on a GPU; None on a CPU.
    """

    scheme: str
    micro_batch: int
    batch: int
    seconds: tuple[float, ...]
    ratio: float | None
    graph_bytes: int
    device_bytes: int | None

    @property
    def step_seconds(self) -> float:
        """The median."""
        return float(np.median(self.seconds))

    @property
    def spread_seconds(self) -> float:
        """The interquartile range."""
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return float(high - low)

    @property
    def pairs_per_second(self) -> float:
        """At the median."""
        return self.batch / self.step_seconds

    def epoch_seconds(self, pairs: int) -> float:
        """For one pass over so many pairs."""
        return pairs / self.pairs_per_second


class MadePairs:
    """Random pairs that cost as much as real ones: uint8 squares, and texts of a third to the whole of the longest, sorted.

    Args:
        count: pairs.
        side: of a stored square, in pixels.
        longest: tokens.
        vocabulary: of the token ids.
        augment: of the views.
    """

    def __init__(self, count: int, side: int, longest: int, vocabulary: int, augment: AugmentConfig) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (count, 1, side, side), generator=generator, dtype=torch.uint8)
        self.lengths = torch.randint(max(longest // 3, 3), longest + 1, (count,), generator=generator).sort().values
        ids = torch.randint(5, vocabulary, (count, longest), generator=generator)
        self.mask = (torch.arange(longest) < self.lengths[:, None]).long()
        self.ids = ids * self.mask
        self.augment = augment

    def __len__(self) -> int:
        return len(self.pixels)

    def get(self, index: int, rng: np.random.Generator) -> Batch:
        """One pair, without the views that the device makes."""
        return {"pixels": self.pixels[index], "input_ids": self.ids[index], "attention_mask": self.mask[index]}

    def micro_batches(self, size: int) -> list[Batch]:
        """All pairs as raw micro-batches on the host, each cut to its longest text."""
        batches: list[Batch] = []
        for micro, start in enumerate(range(0, len(self.pixels), size)):
            rows = slice(start, start + size)
            index = torch.arange(start, min(start + size, len(self.pixels)))
            longest = int(self.lengths[rows].max())
            batches.append(
                {
                    "pixels": self.pixels[rows].clone(),
                    "input_ids": self.ids[rows, :longest].clone(),  # as from a loader: not a part of a larger storage
                    "attention_mask": self.mask[rows, :longest].clone(),
                    "study_ids": index,
                    "text_ids": index + len(self.pixels),
                    "index": index,
                    "epoch": 0,
                    "micro": micro,
                }
            )
        return batches

    def device_transform(self, batch: Batch, random: BatchRandom) -> Batch:
        """The views that are needed."""
        views = batch.get("needs") or ("view_1", "view_2")
        made = {name: make_view(batch["pixels"], random, int(name[-1]), self.augment) for name in views}
        return {**{name: value for name, value in batch.items() if name != "pixels"}, **made}


def training_step(method: MSD, data: MadePairs, micro_batch: int, fit: Fit) -> Callable[[], float]:
    """A function that makes one whole optimizer step and returns its loss.

    Args:
        method: on its device, in training mode.
        data: pairs of one step.
        micro_batch: pairs in the graph.
        fit: optimizer, clipping and precision.
    """
    device = method.model.logit_scale.device
    optimizer = build_optimizer(method.parameter_groups(fit.weight_decay, decay_1d=fit.decay_1d), fit)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    raw = data.micro_batches(micro_batch)
    if device.type == "cuda":
        raw = [{n: v.pin_memory() if isinstance(v, Tensor) else v for n, v in batch.items()} for batch in raw]
    progress = Progress(100, 10_000, 100, len(data.pixels))
    lower = fit.precision != "fp32"

    def finish(batch: Batch) -> Batch:
        return finish_on_device(data, to_device(batch, device), fit.seed)

    def step() -> float:
        batches = StreamedBatches(raw, finish, method.needs, "prepare")
        with torch.autocast(device.type, torch.bfloat16, enabled=lower):
            with torch.no_grad():
                prepared = method.prepare_step(batches, progress)
            total = torch.zeros((), device=device)
            for batch in batches.in_phase("train"):
                output = method.training_step(batch, progress, prepared)
                (output.loss / len(raw)).backward()
                total += output.loss.detach() / len(raw)
        if fit.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, fit.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            method.after_step(progress)
        progress.step += 1
        return float(total)

    return step


def graph_bytes(step: Callable[[], object], keep: Sequence[Tensor] = ()) -> int:
    """The most bytes that autograd held at once for a backward pass, each storage counted once.

    Args:
        step: forward and backward.
        keep: tensors that are there anyway, such as weights; not counted.
    """
    ours = {tensor.untyped_storage().data_ptr() for tensor in keep}
    holders: dict[int, int] = {}
    live = peak = 0

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal live, peak
            storage = tensor.untyped_storage()
            # detached: a result that its own node keeps would never be let go
            self.tensor, self.place, self.size = tensor.detach(), storage.data_ptr(), storage.nbytes()
            if self.place in ours:
                return
            holders[self.place] = holders.get(self.place, 0) + 1
            if holders[self.place] == 1:
                live += self.size
                peak = max(peak, live)

        def __del__(self) -> None:
            nonlocal live
            if self.place in ours:
                return
            holders[self.place] -= 1
            if holders[self.place] == 0:
                live -= self.size

    with saved_tensors_hooks(Held, lambda held: held.tensor):
        step()
    gc.collect()
    return peak


def measure_efficiency(
    config: MSDConfig,
    *,
    augment: AugmentConfig,
    fit: Fit,
    stored: int,
    batch: int = 1024,
    micro_batches: Sequence[int] = (8, 16, 32, 64),
    schemes: Sequence[str] = tuple(SCHEMES),
    repeats: int = 3,
    warmup: int = 1,
    device: str | torch.device = "cpu",
    memory: bool = True,
    told: Callable[[str], None] | None = None,
) -> list[Efficiency]:
    """Time whole steps of each scheme at each micro-batch, in turns.

    Args:
        config: encoders and settings, of a recipe; weights are random, since time does not depend on them.
        augment: of the views; its size must be that of the image encoder.
        fit: optimizer, clipping and precision.
        stored: side of the stored squares, in pixels.
        batch: N, pairs of an optimizer step.
        micro_batches: sizes to try; those above ``batch`` are refused.
        schemes: names of :data:`SCHEMES`, and :data:`TRUE_BATCH`, whose micro-batch is the batch.
        repeats: measured rounds.
        warmup: rounds before.
        device: where.
        memory: also measure what autograd holds, in one more step of each.
        told: is shown what is measured next.

    Returns:
        A line for each micro-batch and scheme.

    Raises:
        ConfigError: an unknown scheme, or a micro-batch larger than the batch.
    """
    known = [*SCHEMES, TRUE_BATCH]
    for name in schemes:
        if name not in known:
            raise ConfigError(f"no scheme {name!r}; choose of {', '.join(known)}")
    if max(micro_batches) > batch or min(micro_batches) < 2:
        raise ConfigError(f"micro-batches {tuple(micro_batches)} of a batch of {batch}: take 2 to {batch} pairs")
    target = torch.device(device)
    longest = config.text.max_length
    found: list[Efficiency] = []
    data = MadePairs(batch, stored, longest, config.text.vocabulary, augment)
    for size in micro_batches:
        cheap = [name for name in schemes if name != TRUE_BATCH]
        found += _round(config, data, fit, target, dict.fromkeys(cheap, size), repeats, warmup, memory, told)
    if TRUE_BATCH in schemes:
        found += _round(config, data, fit, target, {TRUE_BATCH: batch}, repeats, warmup, memory, told)
    return found


def _round(
    config: MSDConfig,
    data: MadePairs,
    fit: Fit,
    device: torch.device,
    sizes: Mapping[str, int],
    repeats: int,
    warmup: int,
    memory: bool,
    told: Callable[[str], None] | None,
) -> list[Efficiency]:
    """All of these schemes with their micro-batches, in turns."""
    steps: dict[str, Callable[[], float]] = {}
    held: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in sizes}
    peaks: dict[str, int | None] = dict.fromkeys(sizes)
    for name, size in sizes.items():
        method = make_method(config, name).to(device).train()
        steps[name] = training_step(method, data, size, fit)
        held[name] = graph_bytes(steps[name], list(method.parameters())) if memory else 0
    for number in range(warmup + repeats):
        for name, step in steps.items():
            if told is not None:
                told(f"{name}, micro-batch {sizes[name]}, round {number + 1} of {warmup + repeats}")
            taken, peaks[name] = _timed(step, device)
            if number >= warmup:
                seconds[name].append(taken)
    base = seconds.get(PLAIN)
    found = []
    for name, size in sizes.items():
        ratio = None if base is None else float(np.median(np.divide(seconds[name], base)))
        times = tuple(seconds[name])
        found.append(Efficiency(name, size, len(data.pixels), times, ratio, held[name], peaks[name]))
    return found


def _timed(step: Callable[[], float], device: torch.device) -> tuple[float, int | None]:
    """Seconds of a step, and on a GPU the most that was allocated beyond what was there before."""
    before = 0
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    start = time.perf_counter()
    step()  # reads its loss, and so waits for the device
    taken = time.perf_counter() - start
    return taken, torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None


def make_method(config: MSDConfig, scheme: str) -> MSD:
    """The method of a scheme with random weights, the same for all; a published text encoder as a BERT of the base size."""
    changes = {"keys": "batch", "alpha": None} if scheme == TRUE_BATCH else SCHEMES[scheme]
    image = {**config.image.model_dump(), "pretrained": False}
    text = config.text.model_dump()
    if config.text.name is not None:
        text |= {
            "name": None,
            "architecture": None,
            "hidden_size": 768,
            "layers": 12,
            "heads": 12,
            "vocabulary": 28_996,
        }
    given = {
        **config.model_dump(),
        "image": image,
        "text": text,
        "alpha": None,
        "queue_size": 0,
        "intra_modal": 0.0,
        **changes,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MSD(MSDConfig.model_validate(given))
