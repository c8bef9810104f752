"""Learned position embeddings of images, at other sizes than they were learned at."""

from __future__ import annotations

import torch
from torch import nn


def interpolate_positions(positions: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic interpolation of a square grid: (1, edge * edge, C) -> (1, height * width, C); exact when nothing changes."""
    edge = round(positions.shape[1] ** 0.5)
    if tuple(size) == (edge, edge):
        return positions
    grid = positions.transpose(1, 2).unflatten(2, (edge, edge))
    grid = nn.functional.interpolate(grid, size=tuple(size), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2)
