"""Integers with one power of two for each block (arXiv 2304.01483): the definition.

The paper's text gives no formulas that could be consulted, and its authors published no code; what stands here is this project's own
definition, exact and made of shifts alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def quantize(x: torch.Tensor, bits: int, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """q = clamp(round(x 2^s), +-(2^(bits-1) - 1)),  s = (bits - 1) - e,  max|x| = f 2^e with 0.5 <= f < 1;  s = 0 where all are 0

    x (..., rows, columns) in blocks of (tall, wide) from index 0; the last ones may be smaller. Rounds half to even.
    Returns q (..., rows, columns) and s (..., ceil(rows / tall), ceil(columns / wide)), both int8.
    """
    x = x if x.dtype == torch.float64 else x.float()
    largest = _blocks(x.abs(), block).amax((-3, -1))
    shift = (bits - 1 - torch.frexp(largest).exponent).masked_fill(largest == 0, 0).clamp(-128, 127)
    limit = 2 ** (bits - 1) - 1
    q = (x * torch.exp2(spread(shift, x.shape, block).to(x.dtype))).round().clamp(-limit, limit)
    return q.to(torch.int8), shift.to(torch.int8)


def dequantize(
    q: torch.Tensor, shift: torch.Tensor, block: tuple[int, int], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """q 2^-s, of the shape of q"""
    work = torch.float64 if dtype == torch.float64 else torch.float32
    return (q.to(work) * torch.exp2(-spread(shift, q.shape, block).to(work))).to(dtype)


def rounded(x: torch.Tensor, bits: int, block: int) -> torch.Tensor:
    """Q(x): quantized in blocks along the last dimension and brought back, in the type of x"""
    rows = x if x.ndim > 1 else x[None]
    return dequantize(*quantize(rows, bits, (1, block)), (1, block), x.dtype).view_as(x)


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_shift: torch.Tensor,
    bias: torch.Tensor | None,
    activation_bits: int,
    block: int,
) -> torch.Tensor:
    """y = Q(Q(x) W^T + b); weight (out, in) int8 in blocks of (block, block)"""
    weight = dequantize(weight, weight_shift, (block, block), x.dtype)
    return rounded(F.linear(rounded(x, activation_bits, block), weight, bias), activation_bits, block)


def spread(shift: torch.Tensor, shape: torch.Size, block: tuple[int, int]) -> torch.Tensor:
    """The shift of every element of (..., rows, columns)"""
    tall, wide = block
    return shift.repeat_interleave(tall, -2)[..., : shape[-2], :].repeat_interleave(wide, -1)[..., : shape[-1]]


def _blocks(x: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """(..., rows, columns) -> (..., rows / tall, tall, columns / wide, wide), with zeros at the end where they do not divide"""
    tall, wide = block
    padded = F.pad(x, (0, -x.shape[-1] % wide, 0, -x.shape[-2] % tall))
    return padded.unflatten(-1, (-1, wide)).unflatten(-3, (-1, tall))
