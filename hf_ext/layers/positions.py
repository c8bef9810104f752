"""Positions: sinusoids, and learned embeddings of images at other sizes than they were learned at."""

from __future__ import annotations

import math

import torch
from torch import nn


def interpolate_positions(positions: torch.Tensor, size: tuple[int, int], mode: str = "bicubic") -> torch.Tensor:
    """Interpolation of a square grid: (1, edge * edge, C) -> (1, height * width, C); exact when nothing changes."""
    edge = round(positions.shape[1] ** 0.5)
    if tuple(size) == (edge, edge):
        return positions
    grid = positions.transpose(1, 2).unflatten(2, (edge, edge))
    grid = nn.functional.interpolate(grid, size=tuple(size), mode=mode, align_corners=False)
    return grid.flatten(2).transpose(1, 2)


def sinusoid_positions(length: int, width: int, device: torch.device | None = None, first: int = 0) -> torch.Tensor:
    """(length, width) float32, width even: sine and cosine in turn, of wavelengths from 2 pi to 10000 * 2 pi (arXiv 1706.03762).

    `first` is the position of the first row.
    """
    frequencies = torch.exp(
        torch.arange(0, width, 2, dtype=torch.float32, device=device) * (-math.log(10000.0) / width)
    )
    angles = torch.arange(first, first + length, dtype=torch.float32, device=device)[:, None] * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
