"""The definition: softmax attention within each sequence of a pack, one sequence and one head after the other."""

from __future__ import annotations

import itertools

import torch


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scale: float | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """o (tokens, heads, value_channels); arguments as in `varlen_attention`."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    group = q.shape[1] // k.shape[1]
    o = v.new_zeros(q.shape[0], q.shape[1], v.shape[2])
    borders = cu_seqlens.tolist()
    for start, stop in itertools.pairwise(borders):
        for head in range(q.shape[1]):
            scores = scale * q[start:stop, head] @ k[start:stop, head // group].T
            if is_causal:
                scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
            o[start:stop, head] = scores.softmax(-1) @ v[start:stop, head // group]
    return o
