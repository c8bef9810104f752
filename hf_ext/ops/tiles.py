"""What the Triton forms of chunked recurrences share: tiles of tokens by channels, and how sequences lie along one axis.

Only modules named `triton` import this one, so Triton is loaded on a GPU call alone.

Letters: C tokens of a chunk, H heads of k and v, G query heads per head of k, K key channels, V value channels.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

SHORT = 64  # tokens up to which the recurrent forms are taken
C = 64


@triton.jit
def load_as_is(pointer, first, last, stride, channel, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """ROWS tokens from `first` on and COLUMNS channels from `channel` on, in their own type, zeros outside."""
    rows, columns = first + tl.arange(0, ROWS), channel + tl.arange(0, COLUMNS)
    mask = (rows[:, None] < last) & (columns[None, :] < channels)
    return tl.load(pointer + rows[:, None].to(tl.int64) * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def load_rows(pointer, first, last, stride, channel, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The same in float32."""
    return load_as_is(pointer, first, last, stride, channel, channels, ROWS, COLUMNS).to(tl.float32)


@triton.jit
def store_rows(pointer, x, first, last, stride, channel, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows, columns = first + tl.arange(0, ROWS), channel + tl.arange(0, COLUMNS)
    mask = (rows[:, None] < last) & (columns[None, :] < channels)
    tl.store(
        pointer + rows[:, None].to(tl.int64) * stride + columns[None, :], x.to(pointer.dtype.element_ty), mask=mask
    )


@triton.jit
def dot(a, b, DTYPE: tl.constexpr):
    """Matrix product in the inputs' precision with a float32 sum; float32 inputs are not rounded to tf32."""
    return tl.dot(a.to(DTYPE), b.to(DTYPE), input_precision="ieee")


def _pieces(borders: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(borders, chunks before each sequence, first token of each chunk, end of each chunk's sequence)"""
    counts = (borders.diff() + C - 1) // C
    chunks = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    sequence = torch.arange(len(counts), device=borders.device).repeat_interleave(counts)
    starts = borders[sequence] + (torch.arange(len(sequence), device=borders.device) - chunks[sequence]) * C
    return borders, chunks, starts, borders[sequence + 1]


@lru_cache(maxsize=32)
def _even_pieces(batch: int, length: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Of sequences of one length; kept, since working them out takes longer than some kernels and makes the host wait for the GPU."""
    return _pieces(torch.arange(0, batch * length + 1, length, device=device))


class Layout:
    """Sizes, borders and blocks that the launches share."""

    def __init__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor | None):
        batch, length, heads, self.K = k.shape
        self.H, self.G, self.V = heads, q.shape[2] // heads, v.shape[3]
        self.tokens = batch * length
        if cu_seqlens is None:
            pieces = _even_pieces(batch, length, q.device)
        else:
            pieces = _pieces(cu_seqlens.to(q.device, torch.int64))
        self.borders, self.chunks, self.starts, self.ends = pieces
        self.sequences, self.count = len(self.borders) - 1, len(self.starts)
        self.BK = max(16, triton.next_power_of_2(self.K))  # all key channels
        self.BV = min(64, max(16, triton.next_power_of_2(self.V)))
        self.short = length <= SHORT

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        return self.sequences, self.H, self.K, self.V

    def blocks(self, BK: int) -> tuple[int, int, int]:
        return triton.cdiv(self.K, BK), triton.cdiv(self.V, self.BV), self.sequences * self.H
