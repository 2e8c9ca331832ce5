"""Logsumexp of dot products against many keys, a chunk at a time, so that no (batch × keys) matrix is ever held.

The gradient with respect to the queries is the mean of the keys under the softmax weights. That sum is carried along in
the forward pass with the same running maximum as the logsumexp (as in Dao et al. 2022, arXiv:2205.14135), so the whole
costs the two matrix products of the dense form and the backward pass is one multiplication.

Legend: B queries, K keys, C keys of one chunk, D dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mc_core.errors import RunError

# Logits of one chunk (per thread, up to four, on a CPU): few enough for the cache of a CPU and for memory, enough to
# outweigh starting threads or kernels.
_CHUNK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 22}
_CHUNK_ROWS_MIN = 512
# Up to this many queries, chunks are laid out key by key: matrix products of CPUs are slow with few and long rows.
_TALL_BATCH = 128
# Softmax weights up to this size are kept for the gradient of the keys, which saves recomputing them.
_KEEP_BYTES = 64 << 20


def streamed_logsumexp(
    query: Tensor,
    keys: Tensor,
    *,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    diagonal: int | None = None,
    matmul_dtype: torch.dtype | None = None,
) -> Tensor:
    """``log Σ_j exp(<query_i, keys_j>)`` over the keys not left out; −inf, with zero gradient, where none remains.

    Args:
        query: (B, D), already divided by the temperature.
        keys: (K, D); any K, also 0. A gradient is computed only if it requires one. Never copied as a whole.
        query_ids, key_ids: (B,), (K,); equal ids leave the key out.
        diagonal: leaves out key ``i + diagonal`` for query ``i``.
        matmul_dtype: of the matrix products; everything else is in the dtype of ``query``. Default: that one too.

    Returns:
        (B,) in the dtype of ``query``, differentiable once. The backward pass fails if ``keys`` were modified since.
    """
    grad = torch.is_grad_enabled()
    return _StreamedLogsumexp.apply(
        query,
        keys,
        query_ids,
        key_ids,
        diagonal,
        matmul_dtype or query.dtype,
        grad and query.requires_grad,
        grad and keys.requires_grad,
    )


class _Chunks:
    """Chunks of keys and their masked logits, computed into one buffer (a fresh one each time costs page faults)."""

    def __init__(
        self,
        query_BD: Tensor,
        keys_KD: Tensor,
        query_ids_B: Tensor | None,
        key_ids_K: Tensor | None,
        diagonal: int | None,
        dtype: torch.dtype,
        *,
        whole: bool = False,
    ) -> None:
        self.query, self.keys, self.dtype, self.diagonal = query_BD.to(dtype), keys_KD, dtype, diagonal
        self.query_ids, self.key_ids = query_ids_B, key_ids_K
        batch, self.count = len(query_BD), len(keys_KD)
        self.tall = batch <= _TALL_BATCH
        device = query_BD.device.type
        elements = _CHUNK_ELEMENTS.get(device, _CHUNK_ELEMENTS["cuda"])
        elements *= min(torch.get_num_threads(), 4) if device == "cpu" else 1
        rows = self.count if whole else min(self.count, max(_CHUNK_ROWS_MIN, elements // batch))
        self.rows = max(rows, 1)
        self.logits = query_BD.new_empty(batch * self.rows)
        self.product = self.logits if dtype == query_BD.dtype else torch.empty_like(self.logits, dtype=dtype)

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yields (slice, keys (C, D) in the matmul dtype, logits (B, C)); the logits are overwritten by the next
        chunk."""
        for start in range(0, self.count, self.rows):
            part = slice(start, min(start + self.rows, self.count))
            keys_CD = self.keys[part].to(self.dtype)
            size = len(self.query) * len(keys_CD)
            product_BC, logits_BC = (self._view(buffer[:size], len(keys_CD)) for buffer in (self.product, self.logits))
            if self.tall:
                torch.mm(keys_CD, self.query.T, out=product_BC.T)
            else:
                torch.mm(self.query, keys_CD.T, out=product_BC)
            if self.product is not self.logits:
                logits_BC.copy_(product_BC)
            if self.query_ids is not None and self.key_ids is not None:
                logits_BC.masked_fill_(self.query_ids[:, None] == self.key_ids[None, part], -torch.inf)
            if self.diagonal is not None:
                logits_BC.diagonal(self.diagonal - start).fill_(-torch.inf)
            yield part, keys_CD, logits_BC

    def low(self, weights_BC: Tensor) -> Tensor:
        """``weights_BC`` in the matmul dtype, reusing the buffer its logits came from."""
        if self.product is self.logits:
            return weights_BC
        return self._view(self.product[: weights_BC.numel()], weights_BC.shape[1]).copy_(weights_BC)

    def _view(self, buffer: Tensor, keys: int) -> Tensor:
        """``buffer`` as (B, C)."""
        return buffer.view(keys, -1).T if self.tall else buffer.view(-1, keys)


class _StreamedLogsumexp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_BD: Tensor,
        keys_KD: Tensor,
        query_ids_B: Tensor | None,
        key_ids_K: Tensor | None,
        diagonal: int | None,
        dtype: torch.dtype,
        query_grad: bool,
        keys_grad: bool,
    ) -> Tensor:
        batch = len(query_BD)
        keep = keys_grad and batch * len(keys_KD) * dtype.itemsize <= _KEEP_BYTES
        # The lowest finite number instead of −inf: rows without a key then never meet −inf − (−inf).
        peak_B1 = query_BD.new_full((batch, 1), torch.finfo(query_BD.dtype).min)
        total_B1 = torch.zeros_like(peak_B1)
        mean_BD = torch.zeros_like(query_BD) if query_grad else None
        weights_BC: Tensor | None = None
        with torch.autocast(query_BD.device.type, enabled=False):
            chunks = _Chunks(query_BD, keys_KD, query_ids_B, key_ids_K, diagonal, dtype, whole=keep)
            for _, keys_CD, logits_BC in chunks:
                higher_B1 = torch.maximum(peak_B1, logits_BC.amax(1, keepdim=True))
                logits_BC.sub_(higher_B1).exp_()
                shrink_B1 = peak_B1.sub_(higher_B1).exp_()
                total_B1.mul_(shrink_B1).add_(logits_BC.sum(1, keepdim=True))
                if query_grad or keep:
                    weights_BC = chunks.low(logits_BC)
                if mean_BD is not None and weights_BC is not None:
                    mean_BD.mul_(shrink_B1)
                    if dtype == mean_BD.dtype:
                        mean_BD.addmm_(weights_BC, keys_CD)
                    else:
                        mean_BD.add_(weights_BC @ keys_CD)
                peak_B1 = higher_B1
        inverse_B1 = torch.where(total_B1 > 0, total_B1.reciprocal(), 0.0)
        if mean_BD is not None:
            mean_BD.mul_(inverse_B1)
        result_B = (peak_B1 + total_B1.log()).squeeze(1)
        ctx.save_for_backward(
            query_BD if keys_grad else None,
            keys_KD,  # also where no gradient needs it: autograd then notices an enqueue before the backward pass
            query_ids_B,
            key_ids_K,
            mean_BD,
            weights_BC if keep else None,
            inverse_B1,
            result_B,
        )
        ctx.diagonal, ctx.dtype, ctx.keys_grad = diagonal, dtype, keys_grad
        return result_B

    @staticmethod
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        if torch.is_grad_enabled():  # create_graph=True: what follows would be taken for a constant
            raise RunError("contrastive losses have no second derivative: call backward without create_graph=True")
        query_BD, keys_KD, query_ids_B, key_ids_K, mean_BD, weights_BK, inverse_B1, result_B = ctx.saved_tensors
        grad_B1 = grad_B[:, None]
        grad_query = None if mean_BD is None else mean_BD * grad_B1
        grad_keys = None
        if ctx.keys_grad:
            with torch.autocast(keys_KD.device.type, enabled=False):
                if weights_BK is not None:
                    grad_keys = (weights_BK.T @ (query_BD * (grad_B1 * inverse_B1)).to(ctx.dtype)).to(keys_KD.dtype)
                else:
                    grad_keys = torch.empty_like(keys_KD)
                    scaled_BD = (query_BD * grad_B1).to(ctx.dtype)
                    result_B1 = torch.where(result_B == -torch.inf, 0.0, result_B)[:, None]
                    chunks = _Chunks(query_BD, keys_KD, query_ids_B, key_ids_K, ctx.diagonal, ctx.dtype)
                    for part, _, logits_BC in chunks:
                        grad_keys[part] = chunks.low(logits_BC.sub_(result_B1).exp_()).T @ scaled_BD
        return grad_query, grad_keys, None, None, None, None, None, None
