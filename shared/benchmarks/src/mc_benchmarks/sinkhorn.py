"""SwAV's assignments: our Sinkhorn beside the literal form of the released code, in time, memory traffic and error."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mc_benchmarks.contract import Report, Row, environment, median, median_ratio, paired, spread
from mc_core import losses
from mc_core.cli import keep_freed_memory
from mc_core.losses import sinkhorn_assignments

SIZES = (
    (512, 300, 0.05),
    (512, 3000, 0.05),
    (4096, 3000, 0.05),
    (7936, 3000, 0.05),
    (4096, 3000, 0.02),
    (4096, 3000, 0.01),
)
"""Samples of batch and queue, prototypes, ε. 4096 is the published batch, or 256 and its queue; 0.01 overflows float32."""
_DIM = 128
_CROPS = 2
_CACHE = 4 << 20  # bytes, as a core's caches of today


def literal_sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """The released iteration on one crop, (B, K): exponentiate, then divide by row and column sums of the whole matrix."""
    q_KB = (scores / epsilon).exp().t()
    prototypes, samples = q_KB.shape
    q_KB /= q_KB.sum()
    for _ in range(iterations):
        q_KB /= q_KB.sum(dim=1, keepdim=True)
        q_KB /= prototypes
        q_KB /= q_KB.sum(dim=0, keepdim=True)
        q_KB /= samples
    q_KB *= samples
    return q_KB.t()


class Traffic(TorchDispatchMode):
    """Counts the bytes that operators move between memory and a cache while active. Views cost nothing.

    The cache holds whole tensors, by address and size, the last used ones up to ``cache`` bytes: reading one that it holds costs
    nothing, one that was written costs once, when it has to make room or at the end. Larger tensors pass it by.
    """

    def __init__(self, cache: int = _CACHE) -> None:
        super().__init__()
        self.bytes, self.cache = 0, cache
        self._held: OrderedDict[tuple[int, int], bool] = OrderedDict()  # (address, size) → whether it was written
        self._alive: list[Tensor] = []  # so that no address is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator and count its tensors."""
        out = func(*args, **(kwargs or {}))
        if not func.is_view and not func.name().startswith(("aten::_unsafe_view", "aten::detach", "aten::empty")):
            targets = tree_leaves((kwargs or {}).get("out"))
            read = [x for x in tree_leaves((args, kwargs)) if not any(x is target for target in targets)]
            for tensor, written in (*((x, False) for x in read), *((x, True) for x in tree_leaves(out))):
                if isinstance(tensor, Tensor):
                    self._touch(tensor, written)
        return out

    def _touch(self, tensor: Tensor, written: bool) -> None:
        size = tensor.untyped_storage().nbytes() if 0 in tensor.stride() else tensor.nbytes
        if size > self.cache or tensor.device.type != "cpu":
            self.bytes += size
            return
        self._alive.append(tensor)
        place = tensor.data_ptr(), size
        if place not in self._held and not written:
            self.bytes += size
        self._held[place] = self._held.pop(place, False) or written
        while sum(size for _, size in self._held) > self.cache:
            (_, size), was_written = self._held.popitem(last=False)
            self.bytes += size * was_written

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        """Write back what is left."""
        super().__exit__(exc_type, exc_val, exc_tb)
        self.bytes += sum(size for (_, size), was_written in self._held.items() if was_written)
        self._held.clear()


def passes(work: Callable[[], object], matrix_bytes: int) -> float:
    """How many times ``work`` reads or writes a matrix of this size."""
    with Traffic() as traffic:
        work()
    return traffic.bytes / matrix_bytes


def passes_on_a_gpu(shape: torch.Size, epsilon: float) -> float:
    """The same for our form on a GPU, from the operators it calls there, on tensors without storage."""
    scores = torch.empty(shape, device="meta")
    form = losses._sinkhorn_scaling if epsilon >= losses._SINKHORN_SCALING_EPSILON else losses._sinkhorn_log
    return passes(lambda: form(scores, epsilon, 3, False), scores.nbytes)


def _scores(samples: int, prototypes: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    c = normalize(torch.randn(prototypes, _DIM, generator=generator), dim=1)
    noise = normalize(torch.randn(_CROPS * samples, _DIM, generator=generator), dim=1)
    nearest = torch.randint(prototypes, (_CROPS * samples,), generator=generator)
    z = normalize(c[nearest] + 0.3 * noise, dim=1)  # as late in training: each near one prototype
    return (z @ c.T).view(_CROPS, samples, prototypes).to(device)


def _error(found: Tensor, exact: Tensor) -> float | str:
    """Largest difference of an assignment, as a share of its row's largest."""
    if not found.isfinite().all():
        return "not finite"
    return float(((found.double() - exact).abs() / exact.amax(-1, keepdim=True)).max())


def run_sinkhorn(*, repeats: int = 15, device: str = "cpu") -> Report:
    """Measure, save, show."""
    keep_freed_memory()
    target = torch.device(device)
    rows = []
    for samples, prototypes, epsilon in SIZES:
        scores = _scores(samples, prototypes, device)

        def ours(scores: Tensor = scores, epsilon: float = epsilon) -> Tensor:
            return sinkhorn_assignments(scores, epsilon=epsilon)

        def literal(scores: Tensor = scores, epsilon: float = epsilon) -> Tensor:
            return torch.stack([literal_sinkhorn(crop, epsilon) for crop in scores])

        def in_place_of_stack(scores: Tensor = scores, epsilon: float = epsilon) -> list[Tensor]:
            return [literal_sinkhorn(crop, epsilon) for crop in scores]  # the stack is ours, for comparing

        exact = torch.stack([literal_sinkhorn(crop, epsilon) for crop in scores.double()])
        seconds = paired({"ours": ours, "literal": in_place_of_stack}, repeats=repeats, warmup=2, device=target)
        rows.append(
            Row(
                name=f"B = {samples:,}, K = {prototypes:,}, ε = {epsilon:g}",
                values={
                    "ours ms": 1e3 * median(seconds["ours"]),
                    "IQR ms": 1e3 * spread(seconds["ours"]),
                    "literal ms": 1e3 * median(seconds["literal"]),
                    "literal / ours": median_ratio(seconds["literal"], seconds["ours"]),
                    "ours passes": passes(ours, scores.nbytes),
                    "on a GPU": passes_on_a_gpu(scores.shape, epsilon),
                    "literal passes": passes(in_place_of_stack, scores.nbytes),
                    "ours error": _error(ours(), exact),
                    "literal error": _error(literal(), exact),
                },
            )
        )
    report = Report(
        benchmark=f"sinkhorn_{target.type}",
        command="uv run mc-benchmark sinkhorn" + ("" if device == "cpu" else f" --device {device}"),
        question="SwAV's assignments of two crops, 3 iterations: ours beside the literal form of the released code",
        settings={"repeats": repeats, "crops": _CROPS, "dim": _DIM, "iterations": 3},
        environment=environment(target),
        columns=[
            "ours ms",
            "IQR ms",
            "literal ms",
            "literal / ours",
            "ours passes",
            "on a GPU",
            "literal passes",
            "ours error",
            "literal error",
        ],
        rows=rows,
        reading=f"Passes: how often the matrix of scores is read from memory or written to it, where a cache of {_CACHE >> 20} MiB "
        "keeps what was used last (a matrix that fits is read once); on a GPU (counted without one and without a cache) values are "
        "not checked and one kernel makes the exponentials. Error: against float64, of a row's largest entry. "
        "Below ε = 0.03 ours begins with logarithms, which holds where the literal form overflows.",
    )
    report.save()
    report.show()
    return report
