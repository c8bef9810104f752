"""A linear map that may carry LoRA."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Projection(NamedTuple):
    """weight (out, in), bias (out,) or None; lora_a (rank, in) and lora_b (out, rank), scaled already, or None"""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    lora_a: torch.Tensor | None = None
    lora_b: torch.Tensor | None = None

    def rows(self, start: int, stop: int) -> Projection:
        """The part that gives these outputs"""
        bias, lora_b = (None if x is None else x[start:stop] for x in (self.bias, self.lora_b))
        return Projection(self.weight[start:stop], bias, self.lora_a, lora_b)

    def __call__(self, x: torch.Tensor, factor: torch.Tensor | float = 1.0) -> torch.Tensor:
        """factor * (W x + b) + B A x"""
        y = F.linear(x, self.weight, self.bias) * factor
        return y if self.lora_a is None else y + F.linear(F.linear(x, self.lora_a), self.lora_b)
