"""The fast form in torch: one multiply-add of whole images for each tap of the kernel.

Filters exist for one row of the kernel at a time, and neighbourhoods are never gathered (as `unfold` would, k * k times the
image). Measured on one CPU thread, 48 channels, 64x64 pixels, 7x7 filters: 16 times the speed of `unfold`.
"""

from __future__ import annotations

import torch


def forward(images: torch.Tensor, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    batch, _, height, width = images.shape
    groups, kernel_size = bias.shape[0], bias.shape[-1]
    # (B, groups, channels of a group, H + k - 1, W + k - 1)
    padded = torch.nn.functional.pad(images.contiguous(), (kernel_size // 2,) * 4).unflatten(1, (groups, -1))
    features = features.flatten(2)
    # 49 terms would lose digits in half precision
    out = padded.new_zeros(*padded.shape[:3], height, width, dtype=torch.promote_types(images.dtype, torch.float32))
    for i in range(kernel_size):
        row = weight[:, i].flatten(0, 1).expand(batch, -1, -1)
        filters = torch.baddbmm(bias[:, i].reshape(-1, 1), row, features)  # (B, groups * k, H * W)
        filters = filters.view(batch, groups, kernel_size, 1, height, width).unbind(2)
        for j, tap in enumerate(filters):
            out.addcmul_(tap, padded[..., i : i + height, j : j + width])
    return out.flatten(1, 2).to(images.dtype)
