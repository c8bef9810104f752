"""RMSNorm with weight and bias, and its compressed form, which reads a mean-free vector without its last entry (arXiv 2305.14858)."""

from __future__ import annotations

import torch

from .. import native
from ..chunks import precision
from ..two_forms import register
from . import eager
from .reference import reference

__all__ = ["reference", "rms_norm"]


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    compressed: bool = False,
) -> torch.Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight + bias, over the last axis   (arXiv 2305.14858, eq. 2)

    Compressed, x stands for a vector of one more channel whose entries sum to 0, and y is that vector's norm without its last entry:
    the mean is (sum(x^2) + sum(x)^2) / (channels + 1)   (eq. 5).

    Args:
        x: (..., channels).
        weight, bias: (channels,) or None; a bias alone is not possible.
        eps: added to the mean.
        compressed: whether the last channel is left out.

    Returns:
        y, shaped as x and in its type. Differentiable in x, weight and bias.

    Raises:
        ValueError: shapes that do not fit.

    Computes in float32 (float64 for float64 inputs): on a CPU by one C++ kernel, where there is a compiler; on CUDA by Triton, where it is
    installed; by torch operations elsewhere, and under `torch.compile`, which fuses them, `torch.export` and `torch.func`.
    """
    plain = type(x) is torch.Tensor and x.is_cpu and not _needs_grad(x, weight, bias) and not _is_recorded()
    if (
        plain and (form := native.load_native("rms_norm")) is not None
    ):  # an op called from Python costs some microseconds
        y = form.infer(x, weight, bias, eps, compressed)
        if y is not None:
            return y
    if not x.ndim or x.shape[-1] == 0 or any(p is not None and p.shape != x.shape[-1:] for p in (weight, bias)):
        shapes = [None if p is None else tuple(p.shape) for p in (weight, bias)]
        raise ValueError(
            f"weight and bias are (channels,) of x (..., channels); got x {tuple(x.shape)}, weight {shapes[0]}, bias {shapes[1]}"
        )
    if bias is not None and weight is None:
        raise ValueError("rms_norm takes a bias only together with a weight")
    if _is_recorded():
        return eager.forward(x, weight, bias, eps, compressed)[0]
    dtype = precision(x)
    weight, bias = (p if p is None or p.dtype == dtype else p.to(dtype) for p in (weight, bias))
    return _forward(x.reshape(-1, x.shape[-1]), weight, bias, float(eps), compressed)[0].view(x.shape)


def _is_recorded() -> bool:
    """Whether operations are looked at, not just run: by `torch.compile`, `torch.export`, `torch.jit.trace` or `torch.func`"""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


def _needs_grad(*tensors: torch.Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


_forward, _backward = register("rms_norm", eager)


@_forward.register_fake
def _(x, weight, bias, eps, compressed):
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(x.shape[0], dtype=precision(x))


@_backward.register_fake
def _(grad, x, weight, scale, compressed):
    sums = x.new_empty(0 if weight is None else x.shape[1], dtype=scale.dtype)
    return torch.empty_like(x, memory_format=torch.contiguous_format), sums, torch.empty_like(sums)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, bias, _, ctx.compressed = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad, _):
    x, weight, scale = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = _backward(grad, x, weight, scale, ctx.compressed)
    return grad_x, None if weight is None else grad_weight, grad_bias if ctx.has_bias else None, None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
