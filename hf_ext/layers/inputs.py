"""Checks of what enters a model, before any work: shapes only, so that models stay exportable."""

from __future__ import annotations

import torch


def check_images(pixel_values: torch.Tensor | None, num_channels: int) -> None:
    """`ValueError` unless `pixel_values` is (B, num_channels, H, W) with something in it."""
    if pixel_values is None or pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
        given = "nothing" if pixel_values is None else f"shape {tuple(pixel_values.shape)}"
        raise ValueError(f"`pixel_values` must have the shape (batch, {num_channels}, height, width), not {given}")
    if 0 in pixel_values.shape:
        raise ValueError(f"`pixel_values` holds no pixels: its shape is {tuple(pixel_values.shape)}")
