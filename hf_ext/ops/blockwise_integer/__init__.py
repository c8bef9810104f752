"""Integers with one power of two for each block, and a linear layer on them (BCT, arXiv 2304.01483).

`import hf_ext` registers the attention with Transformers as `attn_implementation="bct_eager"`; `interface` is what models call then.
"""

from __future__ import annotations

import torch

from .. import native
from ..two_forms import for_export
from . import eager
from . import reference as definition
from .eager import embedding, pack, unpack
from .reference import dequantize

__all__ = ["definition", "dequantize", "embedding", "linear", "pack", "quantize", "rounded", "unpack"]


def quantize(x: torch.Tensor, bits: int, block: int | tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """q = clamp(round(x 2^s), +-(2^(bits-1) - 1)), with one shift s a block: (bits - 1) - e, where max|x| = f 2^e and 0.5 <= f < 1

    Args:
        x: (..., rows, columns), or one row (columns,).
        bits: 2 to 8, the sign among them.
        block: (tall, wide), or the width of blocks that are one row tall. Blocks start at index 0; the last ones may be smaller.

    Returns:
        q int8 of the shape of x, and s int8 (..., ceil(rows / tall), ceil(columns / wide)); (ceil(columns / wide),) for one row. Rounds
        half to even; |x - q 2^-s| <= 2^-(s+1), and up to 2^-s where the largest value is clamped. Quantizing the result changes nothing.

    Raises:
        ValueError: other bits or blocks, nothing to quantize, or a value that is not finite.
    """
    tall, wide = (1, block) if isinstance(block, int) else block
    _check(bits, tall, wide)
    if not x.ndim or not x.numel():
        raise ValueError(f"There is nothing to quantize in a tensor of shape {tuple(x.shape)}")
    if x.ndim == 1 and tall != 1:
        raise ValueError(f"One row is quantized in blocks one row tall; block is {(tall, wide)}")
    if not torch.compiler.is_compiling() and not x.isfinite().all():
        raise ValueError("A tensor with infinite values or NaN cannot be quantized")
    q, shift = definition.quantize(x if x.ndim > 1 else x[None], bits, (tall, wide))
    return (q, shift) if x.ndim > 1 else (q[0], shift[0])


def rounded(x: torch.Tensor, bits: int, block: int) -> torch.Tensor:
    """Q(x): x quantized in blocks along its last dimension and brought back, in its own type; independent of batch and length.

    Args:
        x: (..., channels), any floating type.
        bits: 2 to 8.
        block: channels that share a shift.

    A block with an infinity or NaN becomes NaN. No gradient passes.
    """
    _check(bits, 1, block)
    form = _rounded_on_cpu if _plain(x) else eager.rounded if for_export(x.shape[-1]) else _rounded
    return form(x, bits, block)


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_shift: torch.Tensor,
    bias: torch.Tensor | None = None,
    packed: bool = False,
    bits: int | None = 8,
    block: int = 64,
) -> torch.Tensor:
    """y = Q(Q(x) W^T + b)

    Args:
        x: (..., in) in any floating type.
        weight: int8 (out, in) in blocks of (block, block); with `packed`, (out, ceil(in / 2)) as `pack` makes it.
        weight_shift: int8 (ceil(out / block), ceil(in / block)).
        bias: (out,) or None.
        bits: of inputs and outputs; None leaves both as they are.

    Returns:
        (..., out) in the type of x. Sums are taken in float32 (in x's type by torch's own product where C++ does not serve).

    Raises:
        ValueError: shapes or settings that do not fit each other.

    On a CPU with byte products (AVX-512 VNNI) and blocks of a multiple of 64, integers are multiplied as they are stored; elsewhere the
    weights become floats a few rows at a time. No gradient passes.
    """
    _check(bits or 8, block, block)
    rows, columns = weight.shape[0], x.shape[-1]
    shape = (rows, -(-columns // 2) if packed else columns)
    shifts = (-(-rows // block), -(-columns // block))
    if weight.shape != shape or weight_shift.shape != shifts:
        raise ValueError(
            f"Inputs of {columns} features and blocks of {block} need weight {shape} and weight_shift {shifts}; got "
            f"{tuple(weight.shape)} and {tuple(weight_shift.shape)}"
        )
    form = _linear_on_cpu if _plain(x) else eager.linear if for_export(columns) else _linear
    return form(x, weight, weight_shift, bias, packed, bits or 0, block)


def _check(bits: int, tall: int, wide: int) -> None:
    if not 2 <= bits <= 8:
        raise ValueError(f"bits is 2 to 8, got {bits}")
    if tall < 1 or wide < 1:
        raise ValueError(f"block is 1 or more, got {tall if tall < 1 else wide}")


def _plain(x: torch.Tensor) -> bool:
    """Whether nobody watches: an op called from Python would cost some microseconds, as much as the work for one token"""
    watched = torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled())
    return type(x) is torch.Tensor and x.device.type == "cpu" and not watched


_rounded = torch.library.custom_op("hf_ext::blockwise_rounded", eager.rounded, mutates_args=())
_linear = torch.library.custom_op("hf_ext::blockwise_linear", eager.linear, mutates_args=())


@_rounded.register_kernel("cpu")
def _rounded_on_cpu(x, bits, block):
    form = native.load_native("blockwise_integer")
    if form is None or x.dtype == torch.float64:
        return eager.rounded(x, bits, block)
    return form.rounded(x.float().contiguous(), bits, block).to(x.dtype)


@_linear.register_kernel("cpu")
def _linear_on_cpu(x, weight, weight_shift, bias, packed, bits, block):
    form = native.load_native("blockwise_integer")
    if form is None or not bits or x.dtype == torch.float64 or not form.has_linear(block):
        return eager.linear(x, weight, weight_shift, bias, packed, bits, block)
    bias = None if bias is None else bias.float()
    arguments = (weight.contiguous(), weight_shift.contiguous(), bias, packed, bits, block)
    return form.linear(x.float().contiguous(), *arguments).to(x.dtype)


@_rounded.register_fake
def _(x, bits, block):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_linear.register_fake
def _(x, weight, weight_shift, bias, packed, bits, block):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _no_gradient(ctx, grad):
    raise ValueError(
        "BCT computes with integers and has no gradient: call `model.dequantize()` and train, or add LoRA to, the model that it returns"
    )


_rounded.register_autograd(_no_gradient)
_linear.register_autograd(_no_gradient)
