"""The definition: the dense network, with what is not chosen set to zero (ytgui/SPT-proto, `LoRARoutedFFN` and `RoutedFFN`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .projection import Projection


def reference(
    x: torch.Tensor,
    probabilities: torch.Tensor,
    up: Projection,
    down: Projection,
    gate: Projection | None,
    activation: Callable[[torch.Tensor], torch.Tensor],
    active_blocks: int,
    weighted: bool,
) -> torch.Tensor:
    """As `routed_ffn`, for x (tokens, width)"""
    size = up.weight.shape[0] // probabilities.shape[-1]
    chosen = torch.zeros_like(probabilities).scatter(-1, probabilities.topk(active_blocks).indices, 1.0)
    factor = (2 * probabilities if weighted else torch.ones_like(probabilities)).repeat_interleave(size, -1)
    h = activation(up(x, factor)) if gate is None else activation(gate(x, factor)) * up(x, factor)
    h = h * chosen.repeat_interleave(size, -1)
    y = F.linear(h * factor, down.weight, down.bias)
    return y if down.lora_a is None else y + F.linear(F.linear(h, down.lora_a), down.lora_b)
