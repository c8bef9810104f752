"""Between maps (B, C, H, W) and tokens (B, H * W, C)."""

from __future__ import annotations

import torch


def to_tokens(feature_map: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, H * W, C), row by row.

    Not `flatten(2).transpose(1, 2)`: its gradient has, for a batch of one, strides that torch's BatchNorm on the CPU takes for
    another memory layout, and the gradients of everything before are then wrong (torch 2.13).
    """
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


def to_map(tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, H * W, C) -> (B, C, H, W) with `size` = (H, W)."""
    return tokens.unflatten(1, tuple(size)).permute(0, 3, 1, 2)
