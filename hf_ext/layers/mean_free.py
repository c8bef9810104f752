"""Residual streams without a mean: norms that read one, modules that write to one, and the algebra of linear layers that makes it so.

Paper: Pre-RMSNorm and Pre-CRMSNorm Transformers, arXiv 2305.14858. A stream is either `d` channels wide and sums to 0, or compressed: its
last channel, minus the sum of the others, is left out.

The functions below edit a layer in place, with new parameters: tensors that another model shares stay as they are. A layer is an
`nn.Linear`, a convolution, a `Conv1D`, an `nn.Embedding` or a `Constant`; they compute in float64 and keep the layer's type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_ext.ops.rms_norm import rms_norm

from .narrowing import Constant

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WRITERS = (nn.Linear, Conv1D, nn.Embedding, Constant, *CONVOLUTIONS)
READERS = (nn.Linear, Conv1D)


class MeanFreeNorm(nn.LayerNorm):
    """RMSNorm with weight and bias: what a LayerNorm computes of mean-free tokens (..., channels).

    `centres_in_training` makes it a LayerNorm while it trains: for streams that lose their zero mean to dropout then.
    """

    centres_in_training = False

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.training and self.centres_in_training:
            return super().forward(hidden_states)
        return rms_norm(hidden_states, self.weight, self.bias, self.eps)


class CompressedNorm(nn.Module):
    """CRMSNorm: compressed tokens (..., d - 1) in and out, without parameters."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden_states, eps=self.eps, compressed=True)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class ExpandingNorm(nn.Module):
    """RMSNorm with weight and bias of whole tokens (..., d); compressed ones (..., d - 1) come in."""

    def __init__(self, weight: nn.Parameter | None, bias: nn.Parameter | None, eps: float):
        super().__init__()
        self.weight, self.bias, self.eps = weight, bias, eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return rms_norm(expand(hidden_states), self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


def mean_free(norm: nn.LayerNorm) -> MeanFreeNorm:
    """The norm with its own parameters, as one of mean-free tokens."""
    return _layer_norm(MeanFreeNorm, norm.normalized_shape, norm.eps, norm.weight, norm.bias)


def without_affine(kind: type[nn.LayerNorm], norm: nn.LayerNorm) -> nn.LayerNorm:
    """A norm of that kind and the size of `norm`, without parameters."""
    return kind(norm.normalized_shape, norm.eps, elementwise_affine=False)


def whole(norm: CompressedNorm | ExpandingNorm, width: int) -> MeanFreeNorm:
    """The norm of whole tokens (..., width) in the place of one of compressed tokens."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    return _layer_norm(MeanFreeNorm, (width,), norm.eps, weight, bias)


def _layer_norm(kind, shape, eps, weight, bias):
    made = kind(shape, eps, weight is not None, bias is not None, device="meta")
    made.weight, made.bias = weight, bias
    return made


def expand(compressed: torch.Tensor) -> torch.Tensor:
    """Compressed tokens (..., d - 1) -> whole ones (..., d)"""
    return torch.cat((compressed, -compressed.sum(-1, keepdim=True)), -1)


def without_mean(x: torch.Tensor, axis: int = -1) -> torch.Tensor:
    return x - x.mean(axis, keepdim=True)


class RecentredOutput:
    """Marks modules whose output (..., channels), the first one of a tuple, loses its mean and, where `compresses`, its last channel."""

    compresses = False

    def recentred(self, output: Any) -> Any:
        if isinstance(output, tuple):
            return self.recentred(output[0]), *output[1:]
        output = without_mean(output, 1 if isinstance(self, CONVOLUTIONS) else -1)
        return output[..., :-1] if self.compresses else output


def recentre_output(module: nn.Module, compresses: bool = False) -> None:
    """Makes a module a `RecentredOutput`, in place. Its class keeps its name, which `device_map` goes by."""
    if not isinstance(module, RecentredOutput):
        module.__class__ = _recentred_class(type(module))
    module.compresses = compresses


def leave_output(module: nn.Module) -> None:
    """Takes back what `recentre_output` did."""
    module.__class__ = type(module).__mro__[2]
    del module.compresses


@dataclass
class RecentredInput:
    """A hook before a layer: its hidden states, the first argument, lose their mean and, where `compresses`, their last channel."""

    compresses: bool = False

    def __call__(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        hidden_states = without_mean(args[0] if args else kwargs["hidden_states"])
        hidden_states = hidden_states[..., :-1] if self.compresses else hidden_states
        return ((hidden_states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden_states})

    @staticmethod
    def of(layer: nn.Module) -> RecentredInput | None:
        """The hook of a layer that has one."""
        return next((hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, RecentredInput)), None)


def recentre_input(layer: nn.Module, compresses: bool = False) -> None:
    """Hooks a `RecentredInput` to a layer."""
    if (hook := RecentredInput.of(layer)) is None:
        layer.register_forward_pre_hook(RecentredInput(compresses), with_kwargs=True)
    else:
        hook.compresses = compresses


@cache
def _recentred_class(module_class: type) -> type:
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.recentred(module_class.forward(self, *args, **kwargs))

    def recentred_linear(self, x: torch.Tensor) -> torch.Tensor:
        """The same for a layer's weights, of which there are fewer than outputs when a model trains."""
        axis = _output_axis(self)
        weight, bias = without_mean(self.weight, axis), None if self.bias is None else without_mean(self.bias)
        return F.linear(x, weight.T if axis else weight, bias)

    body = {
        "forward": recentred_linear if issubclass(module_class, READERS) else forward,
        "__module__": __name__,
        "__qualname__": module_class.__qualname__,
    }
    return type(module_class)(module_class.__name__, (RecentredOutput, module_class), body)


def _edit(module: nn.Module, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    old = getattr(module, name)
    new = change(old.detach().double()).to(old.dtype).contiguous()
    setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _output_axis(layer: nn.Module) -> int:
    return 1 if isinstance(layer, (Conv1D, nn.Embedding)) else 0


def _edit_outputs(layer: nn.Module, change: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    """`change(tensor, axis of the output channels)` for the weight and the bias, where there are such"""
    channels = change(torch.empty(outputs_of(layer), device="meta"), 0).shape[0]
    for name, axis in (("weight", _output_axis(layer)), ("bias", 0)):
        if getattr(layer, name, None) is not None:
            _edit(layer, name, lambda x, axis=axis: change(x, axis))
    for size in ("out_features", "out_channels", "embedding_dim", "nf"):
        if hasattr(layer, size):
            setattr(layer, size, channels)


def outputs_of(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, Constant) else layer.weight.shape[_output_axis(layer)]


def recentre(layer: nn.Module) -> None:
    """Takes the mean off the outputs of a layer."""
    _edit_outputs(layer, without_mean)


def drop_last_output(layer: nn.Module) -> None:
    """Compresses the outputs of a layer."""
    _edit_outputs(layer, lambda x, axis: x.narrow(axis, 0, x.shape[axis] - 1))


def restore_last_output(layer: nn.Module) -> None:
    """The inverse of `drop_last_output`."""
    _edit_outputs(layer, lambda x, axis: torch.cat((x, -x.sum(axis, keepdim=True)), axis))


def scale_outputs(layer: nn.Module, scale: torch.Tensor) -> None:
    """Multiplies each output of a layer by its factor, (channels,)."""
    scale = scale.detach().double()
    _edit_outputs(layer, lambda x, axis: (x.transpose(axis, -1) * scale.to(x.device)).transpose(axis, -1))


def recentre_table(owner: nn.Module, name: str) -> None:
    """Takes the mean off a parameter or tensor (..., channels)."""
    _edit(owner, name, without_mean)


def drop_last_entry(owner: nn.Module, name: str) -> None:
    _edit(owner, name, lambda x: x[..., :-1])


def restore_last_entry(owner: nn.Module, name: str) -> None:
    _edit(owner, name, expand)


def _edit_inputs(reader: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """`change` of the weight as (..., inputs)"""
    transposed = isinstance(reader, Conv1D)
    _edit(reader, "weight", lambda weight: change(weight.T).T if transposed else change(weight))
    setattr(reader, "nx" if transposed else "in_features", reader.weight.shape[0 if transposed else 1])


def drop_last_input(reader: nn.Module) -> None:
    """Makes a layer read compressed inputs."""
    _edit_inputs(reader, lambda weight: weight[:, :-1] - weight[:, -1:])


def restore_last_input(reader: nn.Module) -> None:
    """Makes a layer that reads compressed inputs read whole ones."""
    _edit_inputs(reader, lambda weight: F.pad(weight, (0, 1)))


def fold_affine(norm: nn.LayerNorm, readers: list[nn.Module]) -> None:
    """Moves weight and bias of a norm into all the layers that read it, which get a bias where they have none; the norm stays as it is."""
    gain, shift = (None if p is None else p.detach().double() for p in (norm.weight, norm.bias))
    for reader in readers:
        if shift is not None:
            weight = reader.weight.detach().double()
            added = shift @ weight if isinstance(reader, Conv1D) else weight @ shift
            if reader.bias is None:
                reader.bias = nn.Parameter(added.to(reader.weight.dtype), reader.weight.requires_grad)
            else:
                _edit(reader, "bias", lambda bias, added=added: bias + added)
        if gain is not None:
            _edit_inputs(reader, lambda weight: weight * gain)
