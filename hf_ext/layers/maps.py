"""Between maps (B, C, H, W) in channels-last memory and tokens (B, H * W, C): both are views of the same memory."""

from __future__ import annotations

import torch

# Permuting, rather than transposing what was flattened, keeps the usual strides in a batch of one. With others torch's gradient of
# BatchNorm is wrong (seen in 2.13: a contiguous input and a channels-last gradient whose batch stride is not C * H * W).


def as_map(tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, H * W, C) -> (B, C, H, W)"""
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


def as_tokens(feature_map: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, H * W, C)"""
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)
