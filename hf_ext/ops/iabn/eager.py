"""Statistics first, then one scale and one shift per instance and channel.

torch's `var_mean` over rows of a CPU tensor takes 20 times as long as a mean and a norm of what remains; and one batch norm of B * C
channels takes a fifth of the time of a product and a sum that broadcast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .reference import softshrink


def forward(
    x: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    k: float,
    eps: float,
    skip_threshold: int,
) -> torch.Tensor:
    length = x.shape[2:].numel()
    if length <= skip_threshold:
        scale = (var + eps).rsqrt().repeat(x.shape[0], 1)  # torch's gradient misreads an expanded weight
        used_mean = mean
    else:
        own_var, own_mean = moments(x)
        spread = var + eps
        used_mean = mean + softshrink(own_mean - mean, k * (spread / length).sqrt())
        used_var = (var + softshrink(own_var - var, k * (2 / (length - 1)) ** 0.5 * spread)).relu()
        scale = (used_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -used_mean * scale
    return scaled_and_shifted(x, scale, shift if bias is None else shift + bias)


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unbiased variance and mean over all axes but the first two, (B, C) each, in float32 or finer."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    axes = tuple(range(2, x.ndim))
    if not x.is_cpu:
        return torch.var_mean(x, axes, correction=1)
    mean = x.mean(axes, keepdim=True)
    norm = torch.linalg.vector_norm(x - mean, dim=axes)
    return norm.square() / (x.shape[2:].numel() - 1), mean.view(x.shape[:2])


def scaled_and_shifted(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """scale x + shift, (B, C, ...) and (B, C), in the type of `x`."""
    if x.is_contiguous() and x.ndim > 2:
        scale, shift = scale.flatten(), shift.flatten()
        rows = x.view(1, scale.numel(), *x.shape[2:])
        return F.batch_norm(rows, torch.zeros_like(scale), torch.ones_like(scale), scale, shift, eps=0.0).view(x.shape)
    shape = (*x.shape[:2], *(1,) * (x.ndim - 2))
    return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(x.dtype)
