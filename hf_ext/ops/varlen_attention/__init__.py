"""Softmax attention over sequences of different length packed without padding (ByteTransformer, arXiv 2210.03052).

`import hf_ext` registers it with Transformers as `attn_implementation="bytetransformer"`; `interface` is what models call then.
"""

from __future__ import annotations

import torch

from . import eager
from .packing import Packing
from .reference import reference

__all__ = ["Packing", "reference", "varlen_attention"]


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scale: float | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(scale * q k^T) v within each sequence (section IV-C of the paper).

    Args:
        q: queries of all sequences, one behind the other: (tokens, query_heads, key_channels).
        k: keys (tokens, heads, key_channels). `heads` divides `query_heads`.
        v: values (tokens, heads, value_channels).
        cu_seqlens: (sequences + 1,) integers, the borders of the sequences, 0 ... tokens. Sequences may be empty.
        scale: factor on the scores; key_channels ** -0.5 when None.
        is_causal: whether a token sees only those before it and itself.
        dropout: of attention weights, 0 to 1.

    Returns:
        o (tokens, query_heads, value_channels). Differentiable in q, k and v.

    Raises:
        ValueError: shapes that do not fit each other, or borders that do not fit the tokens.

    Work grows with the sum of squared lengths. On the CPU each length that occurs is one call of torch's fused attention; a GPU
    in half precision takes one kernel for all. The borders are read on the host, so `torch.compile` breaks its graph here.
    """
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.ndim != 3 or k.ndim != 3 or v.ndim != 3:
        raise ValueError(f"q, k and v have three dimensions (tokens, heads, channels); got {shapes}")
    if q.shape[0] != k.shape[0] or k.shape[:2] != v.shape[:2] or q.shape[2] != k.shape[2] or q.shape[1] % k.shape[1]:
        raise ValueError(
            "q, k and v have the same tokens, q and k the same channels, k and v the same heads, of which q has a multiple; "
            f"got {shapes}"
        )
    if cu_seqlens.ndim != 1 or not len(cu_seqlens) or cu_seqlens.is_floating_point():
        raise ValueError(f"cu_seqlens is one row of integers; got {tuple(cu_seqlens.shape)} of {cu_seqlens.dtype}")
    if cu_seqlens.device.type == "cpu":
        borders = cu_seqlens.tolist()
        if borders[0] != 0 or borders[-1] != q.shape[0] or sorted(borders) != borders:
            raise ValueError(f"cu_seqlens must rise from 0 to the number of tokens, {q.shape[0]}; got {borders}")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return eager.forward(q, k, v, cu_seqlens, scale, is_causal, dropout)
