"""The fast form in torch: two products with a (d x d) matrix instead of an (N x N) one, or the other way round, whichever is less.

The convolution, whose d kernels all heads share, runs on all channels at once, on values as they lie in memory (channels last).
"""

from __future__ import annotations

import torch


def forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    size: tuple[int, int],
    eps: float,
) -> torch.Tensor:
    dtype = query.dtype
    query, key, value, weight, bias = (
        x.to(torch.promote_types(dtype, torch.float32)) for x in (query, key, value, weight, bias)
    )
    queries, keys, values = (x.transpose(1, 2) for x in (query.relu(), key.relu(), value))  # (B, heads, N, d)
    normalizer = queries @ keys.sum(2).unsqueeze(-1) + eps  # (B, heads, N, 1)
    if query.shape[1] <= query.shape[3]:
        out = (queries @ keys.mT) @ values
    else:
        out = queries @ (keys.mT @ values)
    return ((out / normalizer).transpose(1, 2) + convolution(value, weight, bias, size)).to(dtype)


def convolution(value: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, M, heads, d) -> (B, H * W, heads, d)"""
    heads, tokens = value.shape[2], size[0] * size[1]
    channels = value.flatten(2)
    if channels.shape[1] != tokens:
        channels = torch.nn.functional.interpolate(channels.mT, size=tokens, mode="linear", align_corners=False).mT
    maps = channels.unflatten(1, size).permute(0, 3, 1, 2)
    maps = torch.nn.functional.conv2d(
        maps, weight.repeat(heads, 1, 1, 1), bias.repeat(heads), padding=weight.shape[-1] // 2, groups=channels.shape[2]
    )
    return maps.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (heads, -1))
