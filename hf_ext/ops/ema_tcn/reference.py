"""The definition of the convolution stack that takes the place of MEGA's moving average (arXiv 2312.05605), in whatever precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F

ACTIVATIONS = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu, "none": lambda x: x}


def padding(kernel_size: int, dilation: int, causal: bool) -> tuple[int, int]:
    """Zeros before and after a sequence, for a convolution that keeps its length."""
    total = (kernel_size - 1) * dilation
    before = total if causal else total // 2
    return before, total - before


def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dilation: int, causal: bool) -> torch.Tensor:
    """y_t = b + sum_k w_k x_{t - before + k * dilation}; x (batch, tokens, channels), weight (channels, kernel size)"""
    padded = F.pad(x, (0, 0, *padding(weight.shape[1], dilation, causal)))
    taps = (padded[:, k * dilation : k * dilation + x.shape[1]] * w for k, w in enumerate(weight.unbind(1)))
    return sum(taps, bias)


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    omega: torch.Tensor,
    dilation_factor: int = 2,
    activation: str = "relu",
    causal: bool = True,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The arguments and output of `hf_ext.ops.ema_tcn.ema_tcn`, without states."""
    h = x if attention_mask is None else x * attention_mask.unsqueeze(-1).to(x.dtype)
    for block, (weights, biases) in enumerate(zip(weight, bias)):
        y = h
        for w, b in zip(weights, biases):
            y = ACTIVATIONS[activation](convolve(y, w, b, dilation_factor**block, causal))
        h = h + y
    return F.silu(h + omega * x)
