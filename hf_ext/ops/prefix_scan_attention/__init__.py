"""Softmax attention of one fixed query over every prefix of a sequence (arXiv 2405.13956): attention as a recurrent network."""

from __future__ import annotations

import torch

from ..chunks import precision
from ..two_forms import for_export, gpu_form, register
from . import eager
from .reference import PrefixState, reference

__all__ = ["PrefixState", "prefix_softmax_attention", "reference"]


def prefix_softmax_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None = None,
    attention_mask: torch.Tensor | None = None,
    initial_state: PrefixState | None = None,
) -> tuple[torch.Tensor, PrefixState]:
    """o_t = sum_{i<=t} softmax(s_1 ... s_t)_i v_i,  s_i = scale * q . k_i   (arXiv 2405.13956, section 3.1)

    Args:
        q: one query per head, (heads, key channels), for all tokens and sequences.
        k: keys (batch, tokens, heads, key channels).
        v: values (batch, tokens, heads, value channels).
        scale: factor on the scores; key channels ** -0.5 when None.
        attention_mask: (batch, tokens), 0 at tokens that are skipped: they leave the state as it is, and give what the token before gave.
            Before any token that counts the output is 0.
        initial_state: what an earlier part of the sequences left, or None.

    Returns:
        o (batch, tokens, heads, value channels) in the type of v, and the state after the last token in float32 (float64 for float64
        inputs). Differentiable in q, k, v and the a and c of states; m is a constant to the gradient, as it cancels in every output.

    Raises:
        ValueError: shapes that do not fit each other.

    Computes in float32 (float64 for float64 inputs), with memory linear in `tokens`: on a CPU by one C++ kernel each for forward and
    backward, on a GPU by Triton kernels that read 16-bit inputs as they are; where there is no compiler or Triton, chunk by chunk in
    torch. No difference of scores overflows.
    """
    _check(q, k, v, attention_mask, initial_state)
    dtype = precision(q, k, v)
    scale = k.shape[-1] ** -0.5 if scale is None else float(scale)
    inputs = [q, k, v] if _fused(q, k, v) else [x.to(dtype) for x in (q, k, v)]
    state = [None] * 3 if initial_state is None else [x.to(dtype) for x in initial_state]
    mask = None if attention_mask is None else attention_mask.bool()
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*inputs, *state))
    forward = eager.forward if for_export(k.shape[1]) else _forward
    o, *state, _, _ = forward(*inputs, mask, *state, scale, save)
    return o.to(v.dtype), PrefixState(*state)


def _fused(*tensors: torch.Tensor) -> bool:
    """Whether the Triton form serves these tensors."""
    return tensors[0].is_cuda and gpu_form(eager, tensors) is not eager


def _check(q, k, v, attention_mask, initial_state) -> None:
    if q.ndim != 2 or k.ndim != 4 or v.ndim != 4 or q.shape != k.shape[2:] or k.shape[:3] != v.shape[:3]:
        raise ValueError(
            "q must be (heads, key channels), k (batch, tokens, heads, key channels), v (batch, tokens, heads, value channels); "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if 0 in k.shape or 0 in v.shape:
        raise ValueError(f"no dimension may be 0; got k {tuple(k.shape)}, v {tuple(v.shape)}")
    if attention_mask is not None and attention_mask.shape != k.shape[:2]:
        raise ValueError(
            f"attention_mask must be (batch, tokens) = {tuple(k.shape[:2])}; got {tuple(attention_mask.shape)}"
        )
    if initial_state is not None:
        batch, heads, channels = k.shape[0], k.shape[2], v.shape[3]
        expected = {"a": (batch, heads, channels), "c": (batch, heads), "m": (batch, heads)}
        for (name, shape), x in zip(expected.items(), initial_state):
            if tuple(x.shape) != shape:
                raise ValueError(f"initial_state.{name} must be {shape}; got {tuple(x.shape)}")


_forward, _backward = register("prefix_softmax_attention", eager)


@_forward.register_fake
def _(q, k, v, attention_mask, a, c, m, scale, save):
    batch, tokens, heads, channels = v.shape
    per_token = (batch, tokens, heads) if save else (0,)
    shapes = (batch, heads, channels), (batch, heads), (batch, heads), per_token, per_token
    return v.new_empty(v.shape), *(v.new_empty(shape, dtype=precision(v)) for shape in shapes)


@_backward.register_fake
def _(grad_o, grad_a, grad_c, q, k, v, m, o, last_c, scores, normalizers, scale):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, grad_a, grad_c))


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, _, _, _, m, ctx.scale, _ = inputs
    o, _, c, last_m, scores, normalizers = output
    ctx.save_for_backward(q, k, v, m, o, c, scores, normalizers)
    ctx.mark_non_differentiable(last_m, scores, normalizers)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_o, grad_a, grad_c, *_):
    q, k, v, m, o, c, scores, normalizers = ctx.saved_tensors
    grad_o = torch.zeros_like(o) if grad_o is None else grad_o
    grad_a = torch.zeros_like(o[:, 0], dtype=c.dtype) if grad_a is None else grad_a
    grad_c = torch.zeros_like(c) if grad_c is None else grad_c
    dq, dk, dv, da, dc = _backward(grad_o, grad_a, grad_c, q, k, v, m, o, c, scores, normalizers, ctx.scale)
    return dq, dk, dv, None, *((None, None) if m is None else (da, dc)), None, None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
