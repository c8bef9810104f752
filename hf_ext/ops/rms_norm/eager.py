"""The norm in a few torch operations on rows, and its backward pass written out. Inputs of half precision are computed in float32."""

from __future__ import annotations

import torch

from ..chunks import precision, without_autocast


@without_autocast
def forward(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, compressed: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """y (rows, channels) in the type of x, and 1 / root mean square (rows,) in float32 or float64."""
    precise = x.to(precision(x))
    squares, width = precise.square().sum(-1, keepdim=True), x.shape[-1]
    if compressed:
        squares, width = squares + precise.sum(-1, keepdim=True).square(), width + 1
    scale = (squares / width + eps).rsqrt()
    y = precise * scale
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return y.to(x.dtype), scale.squeeze(-1)


@without_autocast
def backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None, scale: torch.Tensor, compressed: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x (rows, channels) in its type, and of weight and bias (channels,) in that of `scale`; empty without a weight."""
    dtype, width = scale.dtype, x.shape[-1] + compressed
    precise, grad, scale = x.to(dtype), grad.to(dtype), scale.unsqueeze(-1)
    y = precise * scale
    grad_weight, grad_bias = (x.new_empty(0, dtype=dtype) for _ in range(2))
    if weight is not None:
        grad_weight, grad_bias = (grad * y).sum(0), grad.sum(0)
        grad = grad * weight
    common = (grad * y).sum(-1, keepdim=True) / width
    if compressed:
        y = y + y.sum(-1, keepdim=True)
    return ((grad - y * common) * scale).to(x.dtype), grad_weight, grad_bias
