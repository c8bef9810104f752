"""Rearrangements of tensors that Transformers' own conversion operations do not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers.core_model_loading import ConversionOps


class Flatten(ConversionOps):
    """Makes one axis of all from `start` on: a 1x1 kernel becomes a matrix (1), a broadcastable factor a vector (0)."""

    def __init__(self, start: int = 0):
        self.start = start

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs) -> dict[str, torch.Tensor]:
        return {target_patterns[0]: only_tensor(input_dict).flatten(self.start)}


class Reshape(ConversionOps):
    """Gives a tensor another shape of as many entries; one size may be -1."""

    def __init__(self, shape: Sequence[int]):
        self.shape = tuple(shape)

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs) -> dict[str, torch.Tensor]:
        return {target_patterns[0]: only_tensor(input_dict).reshape(self.shape)}


class SplitParts(ConversionOps):
    """Splits the first axis into parts of these sizes; a number without axes is copied to every part."""

    def __init__(self, sizes: Sequence[int]):
        self.sizes = list(sizes)

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs) -> dict[str, torch.Tensor]:
        tensor = only_tensor(input_dict)
        parts = tensor.split(self.sizes) if tensor.ndim else [tensor] * len(self.sizes)
        return {name: part.clone() for name, part in zip(target_patterns, parts)}


class Kernel(ConversionOps):
    """A kernel (..., in, out), as TensorFlow has them, its leading axes joined with `in`, becomes a Linear's weight (out, in)."""

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs) -> dict[str, torch.Tensor]:
        kernel = only_tensor(input_dict)
        return {target_patterns[0]: kernel.reshape(-1, kernel.shape[-1]).T.contiguous()}


def only_tensor(tensors: Mapping[str, torch.Tensor | list[torch.Tensor]]) -> torch.Tensor:
    (tensor,) = tensors.values()
    return tensor[0] if isinstance(tensor, list) else tensor
