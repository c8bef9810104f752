"""The definition of MEGA's attention inside chunks with a relative bias (arXiv 2209.10655, 2312.05605): one query after the other."""

from __future__ import annotations

import torch

MEAN, DEVIATION = 0.707107, 0.282095  # of the Laplace activation
ACTIVATIONS = ("softmax", "relu2", "laplace")


def elementwise(scores: torch.Tensor, activation: str) -> torch.Tensor:
    """relu(s)^2, or 0.5 (1 + erf((s - mean) / (deviation sqrt 2)))"""
    if activation == "relu2":
        return scores.relu().square()
    return 0.5 * (1 + ((scores - MEAN) / (DEVIATION * 2**0.5)).erf())


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    chunk_size: int = -1,
    causal: bool = True,
    activation: str = "softmax",
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The arguments and output of `hf_ext.ops.chunked_attention.chunked_attention`."""
    batch, length, channels = q.shape
    size = chunk_size if chunk_size > 0 else length
    real = torch.ones(batch, length, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    o = torch.empty_like(v)
    for b in range(batch):
        for i in range(length):
            first = i // size * size
            keys = torch.arange(first, min(first + size, length))
            known = real[b, keys]
            if activation == "softmax" and not known.any():
                known = torch.ones_like(known)  # a chunk of nothing but padding is left as it is
            distance = bias[bias.shape[0] // 2 + keys - i]
            seen = known & (keys <= i) if causal else known
            if activation == "softmax":
                scores = k[b, keys] @ q[b, i] * channels**-0.5 + distance
                weights = scores.masked_fill(~seen, -torch.inf).softmax(0)
            else:
                count = i - first + 1 if causal else max(int(known.sum()), 1)
                weights = elementwise(k[b, keys] @ q[b, i] / count + distance, activation) * seen
            o[b, i] = weights @ v[b, keys]
    return o
