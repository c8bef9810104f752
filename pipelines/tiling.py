"""Restoring large images in bounded memory: overlapping tiles, blended where they overlap."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from transformers.utils.logging import tqdm


def tiled(
    function: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    tile_size: int,
    overlap: int,
    multiple: int = 1,
    description: str = "tiles",
) -> torch.Tensor:
    """`function(images)`, computed tile by tile.

    Each tile is run with what surrounds it. Of the strip that neighbouring tiles share, three eighths on either side are context
    and dropped; in the quarter between them one tile fades into the other, so that no border shows.

    Args:
        function: (B, C, h, w) -> (B, C', h * s, w * s) with one whole s for all sizes; what it returns for a part of an image
            should not depend much on what is `overlap * 3 / 8` away.
        images: (B, C, H, W).
        tile_size: edge of a tile with its surroundings, in input pixels.
        overlap: width of the strip that neighbouring tiles share, in input pixels; at most half of `tile_size`.
        multiple: tiles start at multiples of this (an attention window, say), so that they are cut as the whole image would be;
            `tile_size` and `overlap` are rounded up to it.
        description: of the progress bar, which is shown when there is more than one tile.

    Raises:
        ValueError: `tile_size` or `overlap` out of range.
    """
    if tile_size < 1 or overlap < 0:
        raise ValueError(f"`tile_size` must be positive and `tile_overlap` not negative, not {tile_size} and {overlap}")
    tile_size, overlap = (-(-value // multiple) * multiple for value in (tile_size, overlap))
    if 2 * overlap > tile_size:
        raise ValueError(
            f"`tile_overlap` must be at most half of `tile_size` (both rounded up to a multiple of {multiple}), not "
            f"{overlap} of {tile_size}"
        )
    height, width = images.shape[2:]
    tiles = list(product(_spans(height, tile_size, overlap), _spans(width, tile_size, overlap)))
    if len(tiles) == 1:
        return function(images)
    output = None
    for (top, bottom), (left, right) in tqdm(tiles, desc=description, leave=False):
        tile = function(images[:, :, top:bottom, left:right])
        scale = tile.shape[2] // (bottom - top)
        if output is None:
            output = tile.new_zeros(*tile.shape[:2], height * scale, width * scale)
        rows, columns = (
            _fade(start * scale, end * scale, edge * scale, overlap * scale).to(tile)
            for start, end, edge in ((top, bottom, height), (left, right, width))
        )
        output[:, :, top * scale : bottom * scale, left * scale : right * scale] += tile * rows[:, None] * columns
    return output


def _spans(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Where tiles start and end along an axis; the last one may be shorter, but is longer than the overlap."""
    return [(start, min(start + size, length)) for start in range(0, max(length - overlap, 1), size - overlap)]


def _fade(start: int, end: int, length: int, overlap: int) -> torch.Tensor:
    """Weights (end - start,) of a tile along an axis: 1, and from 0 to 1 where it shares a strip with a neighbour."""
    weights = torch.ones(end - start)
    ramp = (0.5 + (torch.arange(overlap) + 0.5 - overlap / 2) / max(overlap / 4, 1)).clamp(0, 1)
    if start > 0:
        weights[:overlap] = ramp
    if end < length:
        weights[len(weights) - overlap :] = ramp.flip(0)
    return weights
