"""Initial values that several references share; built on `transformers.initialization`, which leaves loaded weights alone."""

from __future__ import annotations

from torch import nn
from transformers import initialization as init


def init_conv_as_torch(conv: nn.Conv2d | nn.Linear) -> None:
    """What `nn.Conv2d` and `nn.Linear` give themselves: uniform, within one over the square root of the inputs per output."""
    bound = conv.weight[0].numel() ** -0.5
    init.uniform_(conv.weight, -bound, bound)
    if conv.bias is not None:
        init.uniform_(conv.bias, -bound, bound)


def init_linear(linear: nn.Linear, std: float) -> None:
    """Truncated normal weights of standard deviation `std`, zero bias."""
    init.trunc_normal_(linear.weight, std=std)
    if linear.bias is not None:
        init.zeros_(linear.bias)
