"""The definition of instance-aware batch normalisation (NOTE, arXiv 2208.05117, section 3.1)."""

from __future__ import annotations

import torch


def reference(
    x: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    k: float = 4.0,
    eps: float = 1e-5,
    skip_threshold: int = 1,
) -> torch.Tensor:
    """An instance's own statistics count as far as they lie beyond k standard errors from those of the batch norm."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    mean, var = mean.view(shape), var.view(shape)
    axes = tuple(range(2, x.ndim))
    length = x[0, 0].numel()
    if length > skip_threshold:
        own_var, own_mean = torch.var_mean(x, axes, correction=1, keepdim=True)
        shrunk_mean = softshrink(own_mean - mean, k * ((var + eps) / length).sqrt())
        shrunk_var = softshrink(own_var - var, k * (var + eps) * (2 / (length - 1)) ** 0.5)
        mean, var = mean + shrunk_mean, (var + shrunk_var).relu()
    y = (x - mean) / (var + eps).sqrt()
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def softshrink(x: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Zero within the threshold, and what goes beyond it elsewhere."""
    return (x - threshold).relu() - (-(x + threshold)).relu()
