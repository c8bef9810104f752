"""Gated linear attention (arXiv 2312.06635) as a function: a linear-attention recurrence whose state forgets per key channel."""

from __future__ import annotations

import torch

from ..chunks import check_borders, check_state
from ..matrix_state import register, unrolls
from . import eager
from .reference import reference

__all__ = ["gated_linear_attention", "reference"]


def gated_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T;  o_t = scale * S_t^T q_t   (arXiv 2312.06635, eq. 3)

    Args:
        q: queries (batch, tokens, query_heads, key_channels).
        k: keys (batch, tokens, heads, key_channels). `heads` divides `query_heads`: query heads j*G ... j*G+G-1 read
            head j.
        v: values (batch, tokens, heads, value_channels).
        g: log of the forget gate, at most 0, minus infinity allowed: (batch, tokens, heads, key_channels).
        scale: factor on q; key_channels ** -0.5 when None.
        initial_state: (sequences, heads, key_channels, value_channels), zeros when None. `sequences` is the batch, or
            the number of packed ones.
        output_final_state: whether to return the state after the last token.
        cu_seqlens: (sequences + 1,) integers, the borders of sequences packed along `tokens` in a batch of 1:
            0 ... tokens.

    Returns:
        o (batch, tokens, query_heads, value_channels) in the type of q, and the final state in float32 (float64 for
        float64 inputs) or None. Differentiable in q, k, v, g and initial_state.

    Raises:
        ValueError: shapes that do not fit each other.

    Computes in float32 (float64 for float64 inputs) on any device, with memory linear in `tokens`. CUDA tensors take
    Triton kernels where Triton is installed; those keep states and sums in float32 and round factors to the type of q.
    """
    _check(q, k, v, g, initial_state, cu_seqlens)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if cu_seqlens is None and q.shape[1] == 1:
        o, final_state = eager.step(q, k, v, g, scale, initial_state)
    elif unrolls(q, cu_seqlens):
        o, final_state = eager.forward(q, k, v, g, scale, initial_state, None)
    else:
        o, final_state = _forward(q, k, v, g, scale, initial_state, cu_seqlens)
    return o, final_state if output_final_state else None


def _check(q, k, v, g, initial_state, cu_seqlens) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, g {tuple(g.shape)}"
    if any(x.ndim != 4 for x in (q, k, v, g)):
        raise ValueError(f"q, k, v and g have four dimensions (batch, tokens, heads, channels); got {shapes}")
    if k.shape != g.shape or k.shape[:3] != v.shape[:3] or k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3]:
        raise ValueError(
            "k and g share one shape (batch, tokens, heads, key_channels), q differs from it in heads alone and v in channels alone; "
            f"got {shapes}"
        )
    if 0 in q.shape or 0 in v.shape or q.shape[2] % k.shape[2]:
        raise ValueError(f"no dimension may be 0, and the heads of q are a multiple of those of k; got {shapes}")
    expected = (check_borders(q, cu_seqlens), k.shape[2], k.shape[3], v.shape[3])
    check_state(expected, "sequences, heads, key_channels, value_channels", initial_state)


_forward = register("gated_linear_attention", eager)
