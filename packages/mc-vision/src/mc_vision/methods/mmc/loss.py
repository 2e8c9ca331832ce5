"""The distillation of MMC: cross-entropy between two wide softmaxes, without keeping either.

Logits of T tokens over E classes are the memory peak of such a method (MC-SSL: 25 088 × 8192 floats per network and GPU). Here
they exist a chunk of tokens at a time: since the targets take no gradient and every row's weight is known beforehand, the
gradient at the tokens and at the classes is finished in the forward pass, so nothing is kept and nothing is computed twice.

Legend: T tokens, D dim, E classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits of one chunk: few enough for the cache of a CPU and for memory, enough to outweigh starting kernels.
_CHUNK_LOGITS = {"cpu": 1 << 19, "cuda": 1 << 24}


def distillation(
    student_TD: Tensor,
    student_weight_ED: Tensor,
    teacher_TD: Tensor,
    teacher_weight_ED: Tensor,
    center_E: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    row_weight_T: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the student's classes under the teacher's, and the teacher's entropy.

    ``T = softmax((z_t W_tᵀ − c)/τ_t)``, ``S = log_softmax(z_s W_sᵀ/τ_s)``, loss ``−Σ_t w_t <T_t, S_t>``. Differentiable,
    once, in ``student_TD`` and ``student_weight_ED``; everything else is taken as constant. Under autocast the matrix
    products run in its dtype, everything else in at least float32.

    Args:
        student_TD, teacher_TD: tokens, as the classes take them: normalised by the caller.
        student_weight_ED, teacher_weight_ED: a row per class.
        center_E: c.
        student_temperature, teacher_temperature: τ_s, τ_t > 0.
        row_weight_T: w ≥ 0; default: 1/T each, the mean.
        chunk: tokens at a time; default: by device and E.

    Returns:
        The loss, never below the entropy of T weighted alike and equal to it where student and teacher agree; and the
        mean entropy over all tokens, without gradient.

    Source: the loss of Caron et al. 2021 (DINO, arXiv:2104.14294), equations 1, 2 and 4, on patches as in Zhou et al.
    2022 (iBOT, arXiv:2111.07832) and Atito et al. 2021 (MC-SSL, arXiv:2111.15340).

    >>> z, classes = torch.eye(2), torch.eye(3, 2)
    >>> loss, entropy = distillation(
    ...     z, classes, z, classes, torch.zeros(3), student_temperature=0.5, teacher_temperature=0.5
    ... )
    >>> bool(torch.isclose(loss, entropy))
    True
    """
    device = student_TD.device.type
    dtype = student_TD.dtype
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    budget = _CHUNK_LOGITS.get(device, _CHUNK_LOGITS["cuda"])
    rows = chunk or max(1, budget // len(student_weight_ED))
    return _Distillation.apply(
        student_TD,
        student_weight_ED,
        teacher_TD.detach(),
        teacher_weight_ED.detach(),
        center_E,
        row_weight_T,
        student_temperature,
        teacher_temperature,
        rows,
        dtype,
        torch.is_grad_enabled(),
    )


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_TD: Tensor,
        student_weight_ED: Tensor,
        teacher_TD: Tensor,
        teacher_weight_ED: Tensor,
        center_E: Tensor,
        row_weight_T: Tensor | None,
        student_temperature: float,
        teacher_temperature: float,
        chunk: int,
        dtype: torch.dtype,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        device = student_TD.device
        wide = torch.promote_types(student_TD.dtype, torch.float32)
        with torch.autocast(device.type, enabled=False):
            student_wide = student_TD.to(wide) / student_temperature
            student = student_wide.to(dtype)
            teacher = (teacher_TD.to(wide) / teacher_temperature).to(dtype)
            w_s, w_t = student_weight_ED.to(dtype), teacher_weight_ED.to(dtype)
            shift_E = center_E.to(wide) / teacher_temperature
            # relative to the mean, so that gradients of a half-precision product stay far from its underflow
            relative_T = None if row_weight_T is None else row_weight_T.to(wide) * len(student_TD)
            pulled = student if relative_T is None else (student_wide * relative_T[:, None]).to(dtype)
            d_token = torch.empty_like(student_TD, dtype=wide) if keep else None
            d_weight = torch.zeros_like(student_weight_ED, dtype=wide) if keep else None
            loss = torch.zeros((), dtype=wide, device=device)
            entropy = torch.zeros((), dtype=wide, device=device)
            for start in range(0, len(student), chunk):
                part = slice(start, start + chunk)
                logits_t = (teacher[part] @ w_t.T).to(wide).sub_(shift_E)
                q = logits_t.softmax(1)
                entropy += _logsumexp(logits_t, q).sum() - torch.dot(q.view(-1), logits_t.view(-1))
                logits_s = (student[part] @ w_s.T).to(wide)
                p = logits_s.softmax(1)
                if relative_T is None:
                    loss += _logsumexp(logits_s, p).sum() - torch.dot(q.view(-1), logits_s.view(-1))
                else:
                    loss += torch.dot(_logsumexp(logits_s, p) - (q * logits_s).sum(1), relative_T[part])
                if d_token is not None and d_weight is not None:
                    d_logit = p.sub_(q).to(dtype)
                    d_token[part] = d_logit @ w_s
                    if dtype == wide:
                        d_weight.addmm_(d_logit.T, pulled[part])
                    else:
                        d_weight += d_logit.T @ pulled[part]
            count = len(student)
            if d_token is not None and d_weight is not None:
                d_token.mul_(1 / (student_temperature * count))
                if relative_T is not None:
                    d_token.mul_(relative_T[:, None])
                d_weight.div_(count)
                ctx.save_for_backward(d_token.to(student_TD.dtype), d_weight.to(student_weight_ED.dtype))
        loss, entropy = loss / count, entropy / count
        ctx.mark_non_differentiable(entropy)
        return loss, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        d_token, d_weight = ctx.saved_tensors
        grad = grads[0]
        return (grad * d_token, grad * d_weight, *[None] * 9)


def _logsumexp(logits: Tensor, softmax: Tensor) -> Tensor:
    """Of each row, from its softmax, without another exponential: the largest entry of a softmax is at least 1/E."""
    return logits.amax(1) - softmax.amax(1).log()
