"""The norm in Triton: a program holds a row in registers; backward, it walks along some rows and sums the weight's gradients on its way.

Functions, arguments and shapes are those of eager.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PROGRAMS = 256  # of the backward pass, and so partial sums of the weight's gradient


@triton.jit
def norm_forward(
    x, weight, bias, y, scales, width, eps,
    COMPRESSED: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, cc = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = cc < width
    b_x = tl.load(x + row * width + cc, mask=inside, other=0.0).to(tl.float32)
    squares = tl.sum(b_x * b_x, 0)
    if COMPRESSED:
        total = tl.sum(b_x, 0)
        mean = (squares + total * total) / (width + 1)
    else:
        mean = squares / width
    scale = 1 / tl.sqrt(mean + eps)
    b_y = b_x * scale
    if HAS_WEIGHT:
        b_y *= tl.load(weight + cc, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        b_y += tl.load(bias + cc, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + cc, b_y.to(y.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


@triton.jit
def norm_backward(
    grad, x, weight, scales, dx, dweight, dbias, rows, width,
    COMPRESSED: tl.constexpr, HAS_WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program, cc = tl.program_id(0), tl.arange(0, BLOCK)
    inside = cc < width
    sum_weight, sum_bias = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    if HAS_WEIGHT:
        b_weight = tl.load(weight + cc, mask=inside, other=0.0).to(tl.float32)
    for step in range(0, tl.cdiv(rows - program, tl.num_programs(0))):
        row = (program + step * tl.num_programs(0)).to(tl.int64)
        scale = tl.load(scales + row)
        b_y = tl.load(x + row * width + cc, mask=inside, other=0.0).to(tl.float32) * scale
        b_grad = tl.load(grad + row * width + cc, mask=inside, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            sum_weight += b_grad * b_y
            sum_bias += b_grad
            b_grad *= b_weight
        dot = tl.sum(b_grad * b_y, 0)
        if COMPRESSED:
            common = dot / (width + 1)
            b_y += tl.sum(b_y, 0)
        else:
            common = dot / width
        tl.store(dx + row * width + cc, ((b_grad - b_y * common) * scale).to(dx.dtype.element_ty), mask=inside)
    if HAS_WEIGHT:
        tl.store(dweight + program * width + cc, sum_weight, mask=inside)
        tl.store(dbias + program * width + cc, sum_bias, mask=inside)


def _settings(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}


def forward(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, compressed: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    rows, width = x.shape
    scales = x.new_empty(rows, dtype=torch.float32)
    if rows:
        flags = (compressed, weight is not None, bias is not None)
        norm_forward[rows,](x, weight, bias, y, scales, width, eps, *flags, **_settings(width))
    return y, scales


def backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None, scale: torch.Tensor, compressed: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grad, x = grad.contiguous(), x.contiguous()
    rows, width = x.shape
    dx = torch.empty_like(x)
    programs = min(rows, PROGRAMS)
    dweight, dbias = (scale.new_empty(programs, width if weight is not None else 0) for _ in range(2))
    if rows:
        flags = (compressed, weight is not None)
        norm_backward[programs,](grad, x, weight, scale, dx, dweight, dbias, rows, width, *flags, **_settings(width))
    return dx, dweight.sum(0), dbias.sum(0)
