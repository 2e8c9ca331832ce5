"""The micro-batches of a step, moved to the device one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

from mc_core.engine.method import Batch


class StreamedBatches(Sequence[Batch]):
    """Micro-batches as the loader gave them, each finished on the device whenever it is asked for, and then let go.

    Args:
        raw: as read, on the host.
        finish: moves a batch to the device and applies the data set's ``device_transform``.
        needs: names of the views that a phase reads, or None; see :meth:`mc_core.engine.method.Method.needs`.
        phase: written into each batch.

    >>> batches = StreamedBatches([{"x": 1}, {"x": 2}], lambda b: {**b, "x": -b["x"]}, lambda phase: None, "prepare")
    >>> [batch["x"] for batch in batches], len(batches), batches[1]["phase"]
    ([-1, -2], 2, 'prepare')
    """

    def __init__(
        self,
        raw: Sequence[Batch],
        finish: Callable[[Batch], Batch],
        needs: Callable[[str], tuple[str, ...] | None],
        phase: str,
    ) -> None:
        self._raw, self._finish, self._needs, self._phase = raw, finish, needs, phase

    def __len__(self) -> int:
        return len(self._raw)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return StreamedBatches(self._raw[index], self._finish, self._needs, self._phase)
        extra: Batch = {"phase": self._phase}
        needs = self._needs(self._phase)
        if needs is not None:
            extra["needs"] = needs
        return self._finish({**self._raw[index], **extra})

    def in_phase(self, phase: str) -> StreamedBatches:
        """The same micro-batches for another phase."""
        return StreamedBatches(self._raw, self._finish, self._needs, phase)
