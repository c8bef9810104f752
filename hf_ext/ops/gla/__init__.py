"""Gated linear attention (arXiv 2312.06635) as a function: a linear-attention recurrence whose state forgets per key channel."""

from __future__ import annotations

import torch

from . import eager
from .reference import reference

__all__ = ["gated_linear_attention", "reference"]


def gated_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T;  o_t = scale * S_t^T q_t   (arXiv 2312.06635, eq. 3)

    Args:
        q: queries (batch, tokens, query_heads, key_channels).
        k: keys (batch, tokens, heads, key_channels). `heads` divides `query_heads`: query heads j*G ... j*G+G-1 read
            head j.
        v: values (batch, tokens, heads, value_channels).
        g: log of the forget gate, at most 0, minus infinity allowed: (batch, tokens, heads, key_channels).
        scale: factor on q; key_channels ** -0.5 when None.
        initial_state: (sequences, heads, key_channels, value_channels), zeros when None. `sequences` is the batch, or
            the number of packed ones.
        output_final_state: whether to return the state after the last token.
        cu_seqlens: (sequences + 1,) integers, the borders of sequences packed along `tokens` in a batch of 1:
            0 ... tokens.

    Returns:
        o (batch, tokens, query_heads, value_channels) in the type of q, and the final state in float32 (float64 for
        float64 inputs) or None. Differentiable in q, k, v, g and initial_state.

    Raises:
        ValueError: shapes that do not fit each other.

    Computes in float32 (float64 for float64 inputs) on any device, with memory linear in `tokens`. CUDA tensors take
    Triton kernels where Triton is installed; those keep states and sums in float32 and round factors to the type of q.
    """
    _check(q, k, v, g, initial_state, cu_seqlens)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if cu_seqlens is None and q.shape[1] == 1:
        o, final_state = eager.step(q, k, v, g, scale, initial_state)
    elif cu_seqlens is None and torch.compiler.is_exporting() and isinstance(q.shape[1], int):
        # Plain torch operations: the exported program runs where hf_ext is not installed, and converts to ONNX.
        o, final_state = eager.forward(q, k, v, g, scale, initial_state, None)
    else:
        o, final_state = _forward(q, k, v, g, scale, initial_state, cu_seqlens)
    return o, final_state if output_final_state else None


def _check(q, k, v, g, initial_state, cu_seqlens) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, g {tuple(g.shape)}"
    if any(x.ndim != 4 for x in (q, k, v, g)):
        raise ValueError(f"q, k, v and g have four dimensions (batch, tokens, heads, channels); got {shapes}")
    if k.shape != g.shape or k.shape[:3] != v.shape[:3] or k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3]:
        raise ValueError(
            "k and g share one shape (batch, tokens, heads, key_channels), q differs from it in heads alone and v in channels alone; "
            f"got {shapes}"
        )
    if 0 in q.shape or 0 in v.shape or q.shape[2] % k.shape[2]:
        raise ValueError(f"no dimension may be 0, and the heads of q are a multiple of those of k; got {shapes}")
    sequences = q.shape[0]
    if cu_seqlens is not None:
        if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2 or cu_seqlens.is_floating_point() or q.shape[0] != 1:
            raise ValueError(
                "cu_seqlens holds the integer borders 0 ... tokens of sequences packed in a batch of 1; "
                f"got shape {tuple(cu_seqlens.shape)}, type {cu_seqlens.dtype} with a batch of {q.shape[0]}"
            )
        sequences = cu_seqlens.shape[0] - 1
        if not torch.compiler.is_compiling() and cu_seqlens.device.type == "cpu":
            borders = cu_seqlens.tolist()
            if borders[0] != 0 or borders[-1] != q.shape[1] or sorted(borders) != borders:
                raise ValueError(f"cu_seqlens must rise from 0 to the number of tokens, {q.shape[1]}; got {borders}")
    expected = (sequences, k.shape[2], k.shape[3], v.shape[3])
    if initial_state is not None and tuple(initial_state.shape) != expected:
        raise ValueError(
            f"initial_state must be (sequences, heads, key_channels, value_channels) = {expected}; got {tuple(initial_state.shape)}"
        )


_forward = torch.library.custom_op("hf_ext::gated_linear_attention", eager.forward, mutates_args=())
_backward = torch.library.custom_op("hf_ext::gated_linear_attention_backward", eager.backward, mutates_args=())


def _gpu_form(q: torch.Tensor, *tensors: torch.Tensor):
    """The module whose kernels serve CUDA tensors; Triton is imported here, so on a GPU call alone."""
    if eager.precision(q, *tensors) == torch.float64:
        return eager
    try:
        from . import triton
    except ImportError:
        return eager
    return triton


@_forward.register_kernel("cuda")
def _(q, k, v, g, scale, initial_state, cu_seqlens):
    return _gpu_form(q, k, v, g).forward(q, k, v, g, scale, initial_state, cu_seqlens)


@_backward.register_kernel("cuda")
def _(grad_o, grad_final, q, k, v, g, scale, initial_state, cu_seqlens):
    form = _gpu_form(q, k, v, g)
    return form.backward(grad_o, grad_final, q, k, v, g, scale, initial_state, cu_seqlens)


@_forward.register_fake
def _(q, k, v, g, scale, initial_state, cu_seqlens):
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    final_state = v.new_empty(sequences, k.shape[2], k.shape[3], v.shape[3], dtype=eager.precision(q, k, v, g))
    return q.new_empty(*q.shape[:3], v.shape[3]), final_state


@_backward.register_fake
def _(grad_o, grad_final, q, k, v, g, scale, initial_state, cu_seqlens):
    return *(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, g)), torch.empty_like(
        grad_final
    )


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.scale, initial_state, cu_seqlens = inputs
    ctx.save_for_backward(*tensors, initial_state, cu_seqlens)


def _differentiate(ctx, grad_o, grad_final):
    q, k, v, g, initial_state, cu_seqlens = ctx.saved_tensors
    *grads, grad_start = _backward(grad_o, grad_final, q, k, v, g, ctx.scale, initial_state, cu_seqlens)
    grad_start = None if initial_state is None else grad_start.to(initial_state.dtype)
    return *grads, None, grad_start, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
