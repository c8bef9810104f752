"""Rounding of layer widths. Configurations import this, so it imports nothing."""

from __future__ import annotations


def make_divisible(width: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to `width`, but not below nine tenths of it (MobileNet's rule)."""
    nearest = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * width else nearest + divisor


def split_width(width: int, mix_block_ratio: float) -> tuple[int, int]:
    """Channels for self-attention, a multiple of 32, and for convolution in a block of that width (Next-ViT, section 3.3)."""
    attention = make_divisible(int(width * mix_block_ratio), 32)
    return attention, width - attention
