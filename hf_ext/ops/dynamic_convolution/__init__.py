"""Convolution whose filters are predicted for each pixel ("On the Connection between Local Attention and Dynamic Depth-wise
Convolution", arXiv 2106.04263, the inhomogeneous form; as DLGSANet uses it, arXiv 2301.02031)."""

from __future__ import annotations

import torch

from . import eager
from .reference import reference

__all__ = ["dynamic_convolution", "reference"]


def dynamic_convolution(
    images: torch.Tensor, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Depthwise convolution with filters `weight @ features + bias` of each pixel's own, zero-padded.

    Args:
        images: what is convolved, (batch, channels, height, width).
        features: what the filters are predicted from, (batch, features, height, width).
        weight: (groups, kernel, kernel, features), `kernel` odd; `groups` divides `channels`, and each run of
            channels / groups neighbouring channels shares a filter.
        bias: (groups, kernel, kernel).

    Returns:
        (batch, channels, height, width), in the type of `images`; sums are in float32 (float64 for float64).

    Raises:
        ValueError: shapes that do not fit each other.

    Plain torch operations on any device: differentiable, exportable, compilable.
    """
    groups, kernel_size = bias.shape[0], bias.shape[-1]
    if (
        weight.shape != (*bias.shape, features.shape[1])
        or bias.shape != (groups, kernel_size, kernel_size)
        or images.ndim != 4
        or features.shape[2:] != images.shape[2:]
        or features.shape[0] != images.shape[0]
        or images.shape[1] % groups
        or kernel_size % 2 == 0
    ):
        raise ValueError(
            "`dynamic_convolution` takes images (B, C, H, W), features (B, R, H, W), weight (G, k, k, R) and bias (G, k, k) with an "
            f"odd k and G dividing C, not {', '.join(str(tuple(x.shape)) for x in (images, features, weight, bias))}"
        )
    return eager.forward(images, features, weight, bias)
