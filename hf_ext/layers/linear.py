"""Linear layers on tokens, fast on CPUs of any make."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

SMALL = 512  # weights below which a convolution costs more than it saves

FEWEST_TOKENS = 32


def token_linear(layer: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """`layer(tokens)` for tokens (..., C).

    A layer that somebody has put something in the place of, or hooked (LoRA, 8-bit, offloading), is simply called.
    """
    if is_plain_linear(layer) and tokens.numel():
        return fast_linear(tokens, layer.weight, layer.bias)
    # 8-bit linear layers take three axes and no more
    return layer(tokens.flatten(1, -2)).unflatten(1, tokens.shape[1:-1]) if tokens.ndim > 3 else layer(tokens)


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether `layer` is an `nn.Linear` and nothing but its weights tells what it computes."""
    return (
        type(layer) is nn.Linear
        and "forward" not in vars(layer)
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    )


def fast_linear(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear(tokens, weight, bias)` for tokens (..., C).

    Torch gives float32 linear layers to MKL, which holds back on CPUs that are not Intel's, and 1x1 convolutions to oneDNN, which does
    not (if they are dilated; see `PointwiseConv2d`). So a linear layer on a CPU runs as such a convolution over a map of one row.
    Measured on one thread of an EPYC: 1.4 to 3 times the speed of `nn.Linear`, forward, and as much for a training step;
    for a handful of tokens it loses, and they are left to MKL.
    """
    on_cpu = tokens.device.type == "cpu" and tokens.dtype == torch.float32 and not torch.compiler.is_compiling()
    if not on_cpu or weight.numel() < SMALL or tokens.numel() < FEWEST_TOKENS * tokens.shape[-1]:
        return F.linear(tokens, weight, bias)
    row = tokens.reshape(1, 1, -1, tokens.shape[-1]).permute(0, 3, 1, 2)  # (1, C, 1, all tokens), channels last
    row = F.conv2d(row, weight[:, :, None, None], bias, dilation=2)
    return row.permute(0, 2, 3, 1).reshape(*tokens.shape[:-1], -1)
