"""Simplified linear attention: linear attention with ReLU as kernel, plus a depthwise convolution of the values ("SLAB: Efficient
Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch Normalization", arXiv 2405.11582, section 3.3)."""

from __future__ import annotations

import torch

from . import eager
from .reference import reference

__all__ = ["reference", "simplified_linear_attention"]


def simplified_linear_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    size: tuple[int, int],
    eps: float = 1e-6,
) -> torch.Tensor:
    """Every token of a map reads every token of a map, in time linear in their number, and its neighbours' values.

    Args:
        query: (batch, H * W, heads, d), row by row. ReLU is applied here, to `key` too; nothing is scaled.
        key, value: (batch, M, heads, d). With M other than H * W the values are interpolated, along the tokens as they follow each
            other, for the convolution.
        weight: (d, 1, kernel, kernel), `kernel` odd; all heads share it.
        bias: (d,).
        size: (H, W).
        eps: added to the sum of a token's weights.

    Returns:
        (batch, H * W, heads, d), in the type of `query`; computed in float32 (float64 for float64), under autocast too.

    Raises:
        ValueError: shapes that do not fit each other.

    Plain torch operations on any device: differentiable, exportable, compilable.
    """
    kernel = weight.shape[-1]
    if (
        query.ndim != 4
        or key.shape != value.shape
        or key.shape[:1] + key.shape[2:] != query.shape[:1] + query.shape[2:]
        or size[0] * size[1] != query.shape[1]
        or weight.shape != (query.shape[3], 1, kernel, kernel)
        or bias.shape != query.shape[3:]
        or kernel % 2 == 0
    ):
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value, weight, bias))
        raise ValueError(
            "`simplified_linear_attention` takes a query (B, H * W, heads, d), key and value (B, M, heads, d), a weight (d, 1, k, k) "
            f"with an odd k, a bias (d,) and a size (H, W), not {shapes} and {tuple(size)}"
        )
    with torch.autocast(query.device.type, enabled=False):
        return eager.forward(query, key, value, weight, bias, size, eps)
