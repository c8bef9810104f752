"""Stochastic depth ("Deep Networks with Stochastic Depth", arXiv 1603.09382)."""

from __future__ import annotations

import torch
from torch import nn


class DropPath(nn.Module):
    """Drops the whole input of some samples of a batch while training, and scales up what stays.

    Args:
        rate: probability that a sample is dropped, in [0, 1).
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.rate == 0.0 or not self.training:
            return hidden_states
        keep = 1 - self.rate
        mask = hidden_states.new_empty(hidden_states.shape[:1] + (1,) * (hidden_states.ndim - 1)).bernoulli_(keep)
        return hidden_states * (mask / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def linear_rates(rate: float, depth: int) -> list[float]:
    """The customary schedule: `depth` rates that grow evenly from 0 to `rate`."""
    return torch.linspace(0, rate, depth, device="cpu").tolist()
