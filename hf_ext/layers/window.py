"""Cutting a feature map into windows, and putting it together again. Maps are (B, H, W, C)."""

from __future__ import annotations

import torch
from torch import nn


def as_image(layer: nn.Module, feature_map: torch.Tensor) -> torch.Tensor:
    """A convolution, which takes (B, C, H, W), on (B, H, W, C). Nothing is copied: that is torch's channels-last format."""
    return layer(feature_map.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def window_partition(feature_map: torch.Tensor, size: int | tuple[int, int]) -> torch.Tensor:
    """(B, H, W, C) -> (B, H / h, W / w, h * w, C) for windows of `size` (h, w), or of that edge; they divide the map."""
    height, width = (size, size) if isinstance(size, int) else size
    windows = feature_map.unflatten(2, (-1, width)).unflatten(1, (-1, height))
    return windows.transpose(2, 3).flatten(3, 4)


def window_reverse(windows: torch.Tensor, size: int | tuple[int, int]) -> torch.Tensor:
    """Undoes `window_partition`: (B, rows, columns, h * w, C) -> (B, rows * h, columns * w, C)."""
    windows = windows.unflatten(3, (size, size) if isinstance(size, int) else tuple(size))
    return windows.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def overlapping_windows(feature_map: torch.Tensor, size: int, overlap_size: int) -> torch.Tensor:
    """Windows of edge `overlap_size`, one around each window of edge `size`, with zeros beyond the border.

    (B, H, W, C) -> (B, H / size, W / size, overlap_size * overlap_size, C); `overlap_size - size` is even.
    """
    margin = (overlap_size - size) // 2
    padded = nn.functional.pad(feature_map, (0, 0, margin, margin, margin, margin))
    windows = padded.unfold(1, overlap_size, size).unfold(2, overlap_size, size)  # (B, rows, columns, C, o, o)
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3, 4)


def reflect_to_multiple(images: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pads (B, C, H, W) at the bottom and the right, up to the next multiple of `multiple`, by reflection.

    Where the padding is longer than the image, the reflection goes back and forth, so that any size works; an edge of one
    pixel is repeated.
    """
    height, width = images.shape[-2:]
    rows, columns = (_reflected(length, -length % multiple, images.device) for length in (height, width))
    return images[:, :, rows[:, None], columns]


def _reflected(length: int, padding: int, device: torch.device) -> torch.Tensor:
    """Indices 0, 1, ..., length - 1, length - 2, ..., in all `length + padding`."""
    period = max(2 * (length - 1), 1)
    index = torch.arange(length + padding, device=device) % period
    return torch.minimum(index, period - index) if length > 1 else index
