"""MEGA's attention inside chunks (arXiv 2209.10655, section 3.5; 2312.05605) as a function: linear in the length."""

from __future__ import annotations

import torch

from . import eager
from .eager import OpenChunk, Softmax, leave_open
from .reference import ACTIVATIONS, reference

__all__ = ["ACTIVATIONS", "OpenChunk", "chunked_attention", "leave_open", "reference"]


def chunked_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    chunk_size: int = -1,
    causal: bool = True,
    activation: str = "softmax",
    attention_mask: torch.Tensor | None = None,
    seen: torch.Tensor | None = None,
    chunk: OpenChunk | None = None,
    softmax: Softmax = eager.sdpa,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One head whose tokens attend to those of their own chunk.

    softmax: weights = softmax(q k / sqrt(key channels) + bias). relu2 and laplace: weights = activation(q k / n + bias), where n is the
    place in the chunk, from 1 on, of a causal query, and otherwise the number of tokens in the chunk that are no padding.

    Args:
        q, k: (batch, tokens, key channels).
        v: (batch, tokens, value channels).
        bias: (2 P - 1,) by distance, key minus query, from -(P - 1) to P - 1; P at least the length of the longest chunk.
        chunk_size: tokens of a chunk; all are one chunk if it is below 1. The last chunk may be shorter.
        causal: whether tokens see none after them.
        activation: "softmax", "relu2" or "laplace".
        attention_mask: (batch, tokens), 0 at tokens that nobody sees.
        seen, chunk: (batch,) tokens read before, and what `leave_open` left of them; causal only. Padding then stands behind the tokens.
        softmax: (q, k, v, mask) -> (output, weights), torch's `scaled_dot_product_attention` by default.
        dropout: rate at which weights of relu2 and laplace are dropped.

    Returns:
        o (batch, tokens, value channels), and the weights (batch, chunks, queries, keys), or (batch, queries, keys) after a chunk; None
        where `softmax` gives none. Differentiable in everything.

    Raises:
        ValueError: shapes that do not fit each other, too few biases, an unknown activation.
    """
    _check(q, k, v, bias, chunk_size, causal, activation, attention_mask, chunk)
    bias = bias.to(q.dtype)
    if chunk is None:
        return eager.forward(q, k, v, bias, chunk_size, causal, activation, attention_mask, softmax, dropout)
    real = torch.full_like(seen, q.shape[1]) if attention_mask is None else attention_mask.long().sum(1)
    return eager.proceed(q, k, v, bias, chunk_size, activation, seen, real, chunk, softmax, dropout)


def _check(q, k, v, bias, chunk_size, causal, activation, attention_mask, chunk) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    shapes = [tuple(x.shape) for x in (q, k, v)]
    if q.ndim != 3 or q.shape != k.shape or v.ndim != 3 or v.shape[:2] != q.shape[:2] or 0 in (*q.shape, *v.shape):
        raise ValueError(
            f"q, k must be (batch, tokens, key channels), v (batch, tokens, value channels), nothing of size 0; got {shapes}"
        )
    if attention_mask is not None and attention_mask.shape != q.shape[:2]:
        raise ValueError(
            f"attention_mask must be (batch, tokens) = {tuple(q.shape[:2])}; got {tuple(attention_mask.shape)}"
        )
    if chunk is not None and not causal:
        raise ValueError("Only causal attention goes on after a chunk: causal=False sees later tokens too")
    longest = q.shape[1] + (0 if chunk is None else chunk.keys.shape[1])
    longest = min(longest, chunk_size) if chunk_size > 0 else longest
    if bias.ndim != 1 or bias.shape[0] % 2 == 0 or bias.shape[0] < 2 * longest - 1:
        raise ValueError(f"bias must be (2 P - 1,) with P at least {longest}; got {tuple(bias.shape)}")
