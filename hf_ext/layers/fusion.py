"""Re-parameterization: folding BatchNorm and parallel branches into one linear operation, exactly, for inference.

- A module that can be folded has `fuse(self) -> nn.Module`, which returns its replacement: another module, or itself after folding
  what it holds. Children are folded before their parents.
- A `PreTrainedModel` that derives from `FusionMixin` has `model.fuse()`. A configuration with `fused=True` builds the folded
  structure, so that both forms save and load.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Model = TypeVar("Model", bound="FusionMixin")
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


class Unfolded:
    """Marks layers that compute with more than their `weight`, until a `fold` puts it all together. Whatever reads weights has to wait."""


def check_folded(model: nn.Module) -> None:
    """A ValueError where layers are still to be folded."""
    if any(isinstance(module, Unfolded) for module in model.modules()):
        raise ValueError(
            "Weights of removed blocks stand beside those of their neighbours: `hf_ext.surgery.fusegpt.fold` the model first"
        )


class FusionMixin:
    """Gives a `PreTrainedModel` `fuse()`. It stands before `PreTrainedModel`; the configuration has a field `fused: bool = False`."""

    is_fused = False

    def fuse(self: Model) -> Model:
        """Folds every module that can be folded, in place, and sets `config.fused`. Outputs stay equal up to rounding.

        Raises:
            ValueError: in training mode, with adapters or quantized weights, or while weights are offloaded.
        """
        if self.is_fused:
            return self
        check_can_fuse(self)
        return self._fold()

    def post_init(self) -> None:
        if self.config.fused:
            self._fold()
        super().post_init()

    @torch.no_grad()
    def _fold(self: Model) -> Model:
        if not self.is_fused:
            fold_children(self)
            self.is_fused = self.config.fused = True
        return self


def check_can_fuse(model: nn.Module) -> None:
    """A ValueError where the weights of a Transformers model cannot be folded as they are now."""
    if model.training:
        raise ValueError("A model is fused for inference: call `model.eval()` before `model.fuse()`")
    check_folded(model)
    check_plain_weights(model)


def check_plain_weights(model: nn.Module) -> None:
    """A ValueError where weights are adapted, quantized or offloaded, so that nothing can be folded into them."""
    if any(hasattr(module, "base_layer") for module in model.modules()):
        raise ValueError("The model carries adapters: `merge_and_unload()` them before `model.fuse()`")
    if getattr(model, "is_quantized", False):
        raise ValueError("Quantized weights cannot be folded: fuse and save the model, then load it quantized")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("Some weights are offloaded: load the model whole, without `device_map`, to fuse it")


def fold_children(module: nn.Module) -> None:
    """Replaces every module below `module` that has `fuse` by what it returns."""
    for name, child in module.named_children():
        if isinstance(child, FusionMixin):
            child._fold()
            continue
        fold_children(child)
        if hasattr(child, "fuse"):
            setattr(module, name, child.fuse())


def fuse_conv_batchnorm(conv: Layer, norm: BatchNorm) -> Layer:
    """One convolution or linear layer, with bias, equal to `norm(conv(x))` in eval mode."""
    return _replaced(
        conv,
        *fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        ),
    )


def batchnorm_affine(norm: BatchNorm, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, shift), each (C,): in eval mode `norm(x)` is `x * scale + shift`. Computed in `dtype`, the norm's own by default."""
    scale = (norm.running_var.to(dtype) + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def fuse_affine_before(scale: torch.Tensor, shift: torch.Tensor, layer: Layer) -> Layer:
    """One layer, with bias, equal to `layer(x * scale + shift)`.

    Args:
        scale, shift: (C,), one for each channel that enters.
        layer: linear, or a convolution without padding: the border of a padded one sees zeros, which are not shifted.
    """
    if isinstance(layer, nn.Conv2d) and set(layer.padding) != {0}:
        raise ValueError(f"What precedes a convolution can be folded into it only without padding, not {layer}")
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    # (groups, out / groups, in / groups, pixels of the kernel)
    weight = layer.weight.unflatten(0, (groups, -1)).unsqueeze(-1).flatten(3)
    bias = (weight * shift.view(groups, 1, -1, 1)).sum((-2, -1)).flatten()
    weight = (weight * scale.view(groups, 1, -1, 1)).view_as(layer.weight)
    return _replaced(layer, weight, bias if layer.bias is None else bias + layer.bias)


def fuse_batchnorm_before(norm: BatchNorm, layer: Layer) -> Layer:
    """One layer equal to `layer(norm(x))` in eval mode; see `fuse_affine_before`."""
    return fuse_affine_before(*batchnorm_affine(norm), layer)


def fuse_scale_after(layer: Layer, scale: torch.Tensor) -> Layer:
    """One layer equal to `layer(x) * scale`, with a factor for each channel that leaves."""
    weight = (layer.weight.flatten(1) * scale[:, None]).view_as(layer.weight)
    return _replaced(layer, weight, None if layer.bias is None else layer.bias * scale)


def fuse_affine_after(layer: Layer, scale: torch.Tensor, shift: torch.Tensor) -> Layer:
    """One layer, with bias, equal to `layer(x) * scale + shift`, with a pair for each channel that leaves."""
    scaled = fuse_scale_after(layer, scale)
    return _replaced(scaled, scaled.weight, shift if scaled.bias is None else scaled.bias + shift)


def fuse_parallel_convs(convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """One convolution equal to the sum of `convs`, with the fewest groups and the largest kernel among them.

    Finer groups become blocks on the diagonal of coarser ones, smaller kernels are centred in larger ones.

    Args:
        convs: of equal channels and strides, with odd kernels and a padding of half the kernel. Each number of groups is a
            multiple of the smallest.
    """
    groups, size = min(conv.groups for conv in convs), max(conv.kernel_size[0] for conv in convs)
    for conv in convs:
        kernel = conv.kernel_size[0]
        if conv.groups % groups or conv.kernel_size != (kernel, kernel) or conv.padding != (kernel // 2, kernel // 2):
            raise ValueError(
                f"Parallel convolutions fuse when their groups are multiples of the smallest ({groups}), their kernels square "
                f"and their padding half the kernel; there is {conv}"
            )
    weight = sum(_regrouped(conv, groups, size) for conv in convs)
    biases = [conv.bias for conv in convs if conv.bias is not None]
    first = convs[0]
    fused = nn.Conv2d(
        first.in_channels, first.out_channels, size, first.stride, size // 2, groups=groups, device="meta"
    )
    fused.requires_grad_(first.weight.requires_grad)
    return _replaced(fused, weight, sum(biases) if biases else None)


def _regrouped(conv: nn.Conv2d, groups: int, size: int) -> torch.Tensor:
    """The kernel (out, in / groups, size, size) of the convolution with fewer groups and a larger kernel that equals `conv`."""
    ratio, margin = conv.groups // groups, (size - conv.kernel_size[0]) // 2
    kernel = nn.functional.pad(conv.weight, [margin] * 4)
    kernel = kernel.unflatten(0, (groups, ratio, -1)).unsqueeze(3)  # (groups, ratio, out / g, 1, in / g, size, size)
    diagonal = torch.eye(ratio, dtype=kernel.dtype, device=kernel.device).view(1, ratio, 1, ratio, 1, 1, 1)
    return (kernel * diagonal).flatten(3, 4).flatten(0, 2)


def output_rows(conv: nn.Conv2d, start: int, stop: int) -> nn.Conv2d:
    """The convolution, with one group, that computes the output channels from `start` to `stop` of `conv`, whose stride is 1."""
    size = conv.kernel_size[0]
    rows = nn.Conv2d(conv.in_channels, stop - start, size, padding=conv.padding, device="meta")
    rows.requires_grad_(conv.weight.requires_grad)
    bias = None if conv.bias is None else conv.bias[start:stop]
    return _replaced(rows, _regrouped(conv, 1, size)[start:stop], bias)


def identity_conv(channels: int, like: torch.Tensor) -> nn.Conv2d:
    """The 1x1 depthwise convolution that returns its input, on the device and in the dtype of `like`."""
    conv = nn.Conv2d(channels, channels, 1, groups=channels, bias=False, device=like.device, dtype=like.dtype)
    return _replaced(conv, torch.ones_like(conv.weight), None)


def _replaced(layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None) -> Layer:
    """A copy of `layer` with these parameters, in its dtype."""
    copy = deepcopy(layer)
    trainable, dtype = layer.weight.requires_grad, layer.weight.dtype
    copy.weight = nn.Parameter(weight.detach().to(dtype), trainable)
    copy.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), trainable)
    return copy
