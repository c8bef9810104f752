"""Parameters and multiply-additions of a model, counted without allocating its weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from . import Row


def multiply_adds(build: Callable[[], nn.Module], *shape: int) -> float:
    """Billions of multiply-additions of one forward pass on an input of `shape`: convolutions, linear layers and attention."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        build().eval().requires_grad_(False)(torch.empty(shape))
    return counter.get_total_flops() / 2e9


def size_rows(name: str, build: Callable[[], nn.Module], size: int, parameters: str, gmacs: str) -> list[Row]:
    """Two rows: what the network weighs and what an image of `size` pixels costs, beside the paper's figures."""
    with torch.device("meta"):
        model = build()
    count = sum(tensor.numel() for tensor in model.parameters())
    return [
        Row(f"{name}: parameters", count, paper=parameters),
        Row(f"{name}: GMACs at {size}x{size}", multiply_adds(build, 1, 3, size, size), paper=gmacs),
    ]
