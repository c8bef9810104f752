"""The definition, in plain torch with autograd."""

from __future__ import annotations

import torch


def reference(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    compressed: bool = False,
) -> torch.Tensor:
    """Arguments and shapes as in `rms_norm`."""
    squares, width = x.square().sum(-1, keepdim=True), x.shape[-1]
    if compressed:
        squares, width = squares + x.sum(-1, keepdim=True).square(), width + 1
    y = x / (squares / width + eps).sqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias
