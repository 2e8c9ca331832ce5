"""The queue of keys: a fixed-size first-in first-out ring.

Legend: B rows enqueued by this process, W processes, D feature width, K size of the queue.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mc_core.distributed import gather_rows
from mc_core.errors import ConfigError, DataError


class FeatureQueue(nn.Module):
    """The last ``size`` rows enqueued, as negatives (or neighbours) for the batches that follow.

    Rows are stored as given (normalise before enqueueing), in their order of arrival around a ring, so that reading
    them copies nothing. Only rows that were really enqueued are visible. All processes hold the same contents, hence a
    queue saved on four loads on one and the reverse. Contents and cursor are buffers; Python integers mirror the
    cursor, so that neither reading nor writing waits for a device (writing with ``keep`` does).

    Enqueue *after* the backward pass: the features are a view of the ring, and autograd refuses to differentiate
    through rows that were overwritten since.

    Args:
        size: K ≥ 1 rows.
        dim: D ≥ 1.
        with_ids: store an int64 id with each row (what counts as the same thing is never a negative).
        dtype: of the stored rows.

    Raises:
        ConfigError: size or dim below 1, or a dtype that is not floating point.

    Source: He et al. 2020 (MoCo, arXiv:1911.05722), §3.2.

    >>> queue = FeatureQueue(size=3, dim=1)
    >>> len(queue), queue.features.shape
    (0, torch.Size([0, 1]))
    >>> queue.enqueue(torch.tensor([[1.0], [2.0]]))
    >>> queue.enqueue(torch.tensor([[3.0], [4.0]]))
    >>> queue.features.flatten().tolist(), queue.in_order()[0].flatten().tolist()
    ([4.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    """

    ring: Tensor
    ring_ids: Tensor | None
    cursor: Tensor
    replicated_buffers = True  # see mc_core.distributed.exclude_from_ddp

    def __init__(self, size: int, dim: int, *, with_ids: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ConfigError(f"a queue of {size} rows of width {dim} holds nothing; both must be at least 1")
        if not dtype.is_floating_point:
            raise ConfigError(f"the queue's dtype is {dtype}; take a floating-point one such as torch.float32")
        self.register_buffer("ring", torch.zeros(size, dim, dtype=dtype))
        self.register_buffer("ring_ids", torch.zeros(size, dtype=torch.int64) if with_ids else None)
        self.register_buffer(
            "cursor", torch.zeros(3, dtype=torch.int64)
        )  # next row to write, rows held, rows of the last
        self._pointer = self._fill = self._last = 0

    @property
    def size(self) -> int:
        """K, the most rows it holds."""
        return self.ring.shape[0]

    @property
    def dim(self) -> int:
        """D, the width of a row."""
        return self.ring.shape[1]

    @property
    def features(self) -> Tensor:
        """(n, D) view of the rows enqueued so far, n ≤ K, in no particular order (see :meth:`in_order`)."""
        return self.ring[: self._fill]

    @property
    def ids(self) -> Tensor | None:
        """(n,) int64 view of the ids of :attr:`features`, or None for a queue without ids."""
        return None if self.ring_ids is None else self.ring_ids[: self._fill]

    def __len__(self) -> int:
        return self._fill

    def __bool__(self) -> bool:
        return True  # an empty queue is still a queue: `if queue:` asks whether there is one

    @property
    def full(self) -> bool:
        """Whether K rows are held, so that the next enqueue drops the oldest."""
        return self._fill == self.size

    @property
    def oldest_age(self) -> float:
        """How many enqueues ago the oldest row came, taking all to be as long as the last one: n / rows of the last.

        0 for an empty queue; 256 for the 65536 keys of MoCo at a batch of 256.
        """
        return self._fill / self._last if self._last else 0.0

    def in_order(self) -> tuple[Tensor, Tensor | None]:
        """Copies of the features (n, D) and ids (n,), oldest first."""
        ids = self.ids  # while the ring is not full, rolling by the pointer is rolling all the way round
        return self.features.roll(-self._pointer, 0), None if ids is None else ids.roll(-self._pointer, 0)

    @torch.no_grad()
    def enqueue(self, features: Tensor, ids: Tensor | None = None, *, keep: Tensor | None = None) -> None:
        """Append rows of all processes in rank order, dropping the oldest beyond ``size``.

        Collective when ``torch.distributed`` is initialised: every process must call it, with equally many rows. Where the
        number of keys varies, fill up with any rows and say with ``keep`` which count.

        Args:
            features: (B, D), any B; cast to the queue's dtype. Of more than K rows the last K stay.
            ids: (B,) int64, exactly when the queue was made ``with_ids``.
            keep: (B,) bool, the rows that enter; default all. To count them, their device has to be waited for.

        Raises:
            ConfigError: ids missing or unexpected.
            DataError: features, ids or keep of the wrong shape or dtype.

        >>> queue = FeatureQueue(size=3, dim=1)
        >>> queue.enqueue(torch.tensor([[1.0], [2.0], [3.0]]), keep=torch.tensor([True, False, True]))
        >>> queue.features.flatten().tolist()
        [1.0, 3.0]
        """
        self._check(features, ids, keep)
        if features.dtype.itemsize > self.ring.dtype.itemsize:
            features = features.to(self.ring.dtype)  # before it travels
        rows_GD = gather_rows(features)
        all_ids = None if ids is None else gather_rows(ids)
        if keep is not None:
            chosen = gather_rows(keep).nonzero().squeeze(1)
            rows_GD, all_ids = rows_GD[chosen], None if all_ids is None else all_ids[chosen]
        new = rows_GD.shape[0]
        if new == 0:
            return
        kept = min(new, self.size)
        start = (self._pointer + new - kept) % self.size
        self._write(self.ring, start, rows_GD[new - kept :])
        if self.ring_ids is not None and all_ids is not None:
            self._write(self.ring_ids, start, all_ids[new - kept :])
        self._set_cursor((self._pointer + new) % self.size, min(self._fill + new, self.size), new)

    def clear(self) -> None:
        """Forget all rows."""
        self._set_cursor(0, 0, 0)

    @torch.no_grad()
    def resize(self, size: int) -> None:
        """Hold ``size`` rows from now on, and of those there are the newest.

        Args:
            size: K ≥ 1.

        Raises:
            ConfigError: a size below 1.

        >>> queue = FeatureQueue(size=3, dim=1)
        >>> queue.enqueue(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
        >>> queue.resize(2)
        >>> queue.features.flatten().tolist(), queue.size
        ([3.0, 4.0], 2)
        """
        if size < 1:
            raise ConfigError(f"a queue of {size} rows holds nothing; take at least 1")
        if size == self.size:
            return
        rows, ids = (None if part is None else part[-size:] for part in self.in_order())
        assert rows is not None
        self.ring = self.ring.new_zeros(size, self.dim)
        self.ring[: len(rows)] = rows
        if self.ring_ids is not None and ids is not None:
            self.ring_ids = self.ring_ids.new_zeros(size)
            self.ring_ids[: len(ids)] = ids
        self._set_cursor(len(rows) % size, len(rows), self._last)

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.dim}, with_ids={self.ring_ids is not None}, dtype={self.ring.dtype}"

    def _write(self, ring: Tensor, start: int, rows: Tensor) -> None:
        head = min(rows.shape[0], self.size - start)
        ring[start : start + head].copy_(rows[:head])
        if head < rows.shape[0]:
            ring[: rows.shape[0] - head].copy_(rows[head:])

    @torch.no_grad()
    def _set_cursor(self, *values: int) -> None:
        self._pointer, self._fill, self._last = values
        for position, value in enumerate(values):
            self.cursor[position].fill_(value)  # a Python scalar travels as a kernel argument: no copy to wait for

    def _check(self, features: Tensor, ids: Tensor | None, keep: Tensor | None) -> None:
        if keep is not None and (keep.shape != features.shape[:1] or keep.dtype != torch.bool):
            raise DataError(
                f"keep is {keep.dtype} of shape {tuple(keep.shape)}; {features.shape[0]} rows need torch.bool of shape "
                f"({features.shape[0]},)"
            )
        if features.ndim != 2 or features.shape[1] != self.dim or not features.is_floating_point():
            raise DataError(
                f"features are {features.dtype} of shape {tuple(features.shape)}; "
                f"this queue takes floating-point rows of shape (any, {self.dim})"
            )
        if self.ring_ids is None:
            if ids is not None:
                raise ConfigError(f"{ids.numel()} ids given to a queue that keeps none; build it with with_ids=True")
        elif ids is None:
            raise ConfigError(f"this queue keeps ids, but none came with {features.shape[0]} rows; give ids=")
        elif ids.shape != features.shape[:1] or ids.dtype != torch.int64:
            raise DataError(
                f"ids are {ids.dtype} of shape {tuple(ids.shape)}; "
                f"{features.shape[0]} rows need torch.int64 of shape ({features.shape[0]},)"
            )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        errors_before = len(error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if len(error_msgs) > errors_before or self.cursor.is_meta:
            self._set_cursor(self._pointer, self._fill, self._last)  # nothing of a queue that does not fit
            return
        pointer, fill, last = self.cursor.tolist()
        if 0 <= pointer < self.size and (fill == self.size or fill == pointer) and last >= 0:
            self._pointer, self._fill, self._last = pointer, fill, last
        else:
            error_msgs.append(f"{prefix}cursor says pointer {pointer} and {fill} rows, impossible for size {self.size}")
            self.clear()


class PendingKeys:
    """Keys of the running optimizer step, which enter a queue only after it: none is a negative of its own step.

    Not part of a checkpoint: between steps it is empty.

    >>> pending = PendingKeys()
    >>> pending.add(7, torch.zeros(2, 4))  # the first micro-batch of step 7
    >>> pending.add(7, torch.ones(1, 4))
    >>> keys, ids = pending.take()
    >>> keys.shape, ids, pending.take()
    (torch.Size([3, 4]), None, None)
    """

    def __init__(self) -> None:
        self._step = -1
        self._keys: list[Tensor] = []
        self._ids: list[Tensor] = []

    def add(self, step: int, keys: Tensor, ids: Tensor | None = None) -> None:
        """Keep the keys of a micro-batch, (…, B, D), and their ids, (B,); what an unfinished earlier step left is dropped."""
        if step != self._step:
            self._keys, self._ids, self._step = [], [], step
        self._keys.append(keys.detach())
        if ids is not None:
            self._ids.append(ids)

    def take(self) -> tuple[Tensor, Tensor | None] | None:
        """All keys of the step, (…, ΣB, D), and their ids, in the order they came; None if there are none. Leaves it empty."""
        keys, ids = self._keys, self._ids
        self._keys, self._ids = [], []
        if not keys:
            return None
        return torch.cat(keys, dim=-2), torch.cat(ids) if ids else None
