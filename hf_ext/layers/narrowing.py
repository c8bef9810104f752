"""Taking channels out of layers that exist: what stays keeps its values, and the layer is smaller for good."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

LINEAR = (nn.Linear, Conv1D)


def widths(layer: nn.Linear | Conv1D) -> tuple[int, int]:
    """(inputs, outputs)"""
    outputs, inputs = layer.weight.shape[::-1] if isinstance(layer, Conv1D) else layer.weight.shape
    return inputs, outputs


def keep_outputs(layer: nn.Linear | Conv1D, index: Sequence[int]) -> None:
    """Leaves the outputs in `index`, in place: at least one, in this order."""
    _keep(layer, "weight", int(isinstance(layer, Conv1D)), index)
    _keep(layer, "bias", 0, index)
    setattr(layer, "nf" if isinstance(layer, Conv1D) else "out_features", len(index))


def keep_inputs(layer: nn.Linear | Conv1D, index: Sequence[int]) -> None:
    """Leaves the inputs in `index`, in place: at least one, in this order."""
    _keep(layer, "weight", int(not isinstance(layer, Conv1D)), index)
    setattr(layer, "nx" if isinstance(layer, Conv1D) else "in_features", len(index))


def keep_channels(module: nn.Module, index: Sequence[int]) -> None:
    """Leaves the channels in `index`, in place, of what has parameters for each: a depthwise convolution, a table of position biases."""
    if isinstance(module, nn.Conv2d):
        _keep(module, "weight", 0, index)
        _keep(module, "bias", 0, index)
        module.in_channels = module.out_channels = module.groups = len(index)
    else:
        _keep(module, "relative_position_bias_table", 1, index)


def channels_of(units: Sequence[int], count: int, channels: int, parts: int = 1) -> list[int]:
    """The channels of some of `count` equal units. Where `parts` of them are stacked, such as queries, keys and values, those in each."""
    width = channels // (parts * count)
    return [
        (part * count + unit) * width + channel for part in range(parts) for unit in units for channel in range(width)
    ]


def _keep(module: nn.Module, name: str, dim: int, index: Sequence[int]) -> None:
    parameter = getattr(module, name)
    if parameter is not None:
        chosen = torch.tensor(index, device=parameter.device)
        setattr(module, name, nn.Parameter(parameter.detach().index_select(dim, chosen), parameter.requires_grad))


class Constant(nn.Module):
    """What is left of a linear layer without inputs: its bias for every token, or 0."""

    def __init__(self, layer: nn.Linear | Conv1D):
        super().__init__()
        self.out_features = widths(layer)[1]
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        zeros = x.new_zeros(*x.shape[:-1], self.out_features)
        return zeros if self.bias is None else zeros + self.bias
