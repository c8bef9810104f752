"""The definition."""

from __future__ import annotations

import torch


def reference(images: torch.Tensor, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """out[c, y, x] = sum_ij F[g(c), i, j, y, x] * images[c, y + i - k // 2, x + j - k // 2];  F = weight features + bias"""
    _, C, H, W = images.shape
    groups, k = bias.shape[0], bias.shape[-1]
    filters = torch.einsum("gijr,bryx->bgijyx", weight, features) + bias[..., None, None]
    padded = torch.nn.functional.pad(images, (k // 2,) * 4)
    out = torch.zeros_like(images)
    for c in range(C):
        for i in range(k):
            for j in range(k):
                out[:, c] += filters[:, c * groups // C, i, j] * padded[:, c, i : i + H, j : j + W]
    return out
