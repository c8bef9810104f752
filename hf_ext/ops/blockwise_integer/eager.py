"""Blockwise integers in torch, on any device. Never a float copy of a whole matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .reference import dequantize

# So many weights of a matrix are floats at one time
FLOATS = 2**20


def pack(q: torch.Tensor) -> torch.Tensor:
    """Two int4 a byte: (rows, columns) -> (rows, ceil(columns / 2)), int8; the low nibble is the even column"""
    low, high = q[:, ::2], F.pad(q, (0, q.shape[1] % 2))[:, 1::2]
    return (low & 15) | (high << 4)


def unpack(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """The int4 of `pack` as int8: (..., ceil(columns / 2)) -> (..., columns)"""
    return torch.stack((packed << 4 >> 4, packed >> 4), -1).flatten(-2)[..., :columns]


def exponent(x: torch.Tensor) -> torch.Tensor:
    """e with 2^(e-1) <= x < 2^e, which is `frexp`'s, in operations that ONNX has; x above 0"""
    near = x.log2().floor() + 1
    return near + (torch.exp2(near) <= x).to(x.dtype) - (torch.exp2(near - 1) > x).to(x.dtype)


def rounded(x: torch.Tensor, bits: int, block: int) -> torch.Tensor:
    """Q(x) of the definition; a block with an infinity or NaN becomes NaN"""
    work = x if x.dtype == torch.float64 else x.float()
    size = x.shape[-1]
    blocks = F.pad(work, (0, -size % block)).unflatten(-1, (-1, block))
    largest = blocks.abs().amax(-1, keepdim=True)
    shift = (bits - 1 - exponent(largest)).masked_fill(largest == 0, 0).clamp(-128, 127)
    back = torch.exp2(-shift).masked_fill(~largest.isfinite(), torch.nan)
    limit = 2 ** (bits - 1) - 1
    q = (blocks * torch.exp2(shift)).round().clamp(-limit, limit)
    return (q * back).flatten(-2)[..., :size].to(x.dtype).contiguous()


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_shift: torch.Tensor,
    bias: torch.Tensor | None,
    packed: bool,
    bits: int,
    block: int,
) -> torch.Tensor:
    """Q(Q(x) W^T + b), without Q where `bits` is 0; some rows of W are floats at a time"""
    columns = x.shape[-1]
    tall = max(1, FLOATS // (columns * block)) * block
    inputs = rounded(x, bits, block) if bits else x
    parts = []
    for start in range(0, weight.shape[0], tall):
        rows = weight[start : start + tall]
        rows = unpack(rows, columns) if packed else rows
        shift = weight_shift[start // block : (start + tall) // block]
        part = None if bias is None else bias[start : start + tall]
        parts.append(F.linear(inputs, dequantize(rows, shift, (block, block), x.dtype), part))
    y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    return rounded(y, bits, block) if bits else y


def embedding(
    ids: torch.Tensor,
    weight: torch.Tensor,
    weight_shift: torch.Tensor,
    packed: bool,
    block: int,
    columns: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Rows of W: ids (...) -> (..., columns)"""
    rows = F.embedding(ids, weight)
    rows = unpack(rows, columns) if packed else rows
    shift = F.embedding(ids.div(block, rounding_mode="floor"), weight_shift)
    return dequantize(rows[..., None, :], shift[..., None, :], (1, block), dtype).squeeze(-2)
