"""A stack of dilated depthwise convolutions in the place of MEGA's moving average (arXiv 2312.05605) as a function."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..chunks import precision
from ..two_forms import for_export, register
from . import eager
from .eager import ring_sizes
from .reference import ACTIVATIONS, reference

__all__ = ["ACTIVATIONS", "TCNState", "ema_tcn", "reference", "ring_sizes"]


class TCNState(NamedTuple):
    """What a causal stack has to know of the tokens it has read.

    Attributes:
        rings: (batch, places, channels), a ring of (K - 1) * dilation inputs for each convolution, one behind the other (`ring_sizes`);
            what a convolution read at position p lies at p modulo the size of its ring.
        seen: (batch,) int64, the number of tokens read.
    """

    rings: torch.Tensor
    seen: torch.Tensor


def ema_tcn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    omega: torch.Tensor,
    dilation_factor: int = 2,
    activation: str = "relu",
    causal: bool = True,
    attention_mask: torch.Tensor | None = None,
    state: TCNState | None = None,
    output_final_state: bool = False,
) -> tuple[torch.Tensor, TCNState | None]:
    """h_0 = x;  h_{i+1} = h_i + y_i, y_i the result of convolutions with dilation f^i, each with an activation;  o = silu(h + omega x)

    Cost and memory are linear in the number of tokens, the receptive field grows exponentially with the number of blocks.

    Args:
        x: (batch, tokens, channels).
        weight: (blocks, convolutions of a block, channels, kernel size), the oldest token's tap first.
        bias: (blocks, convolutions of a block, channels).
        omega: (channels,).
        dilation_factor: f, at least 1.
        activation: "relu", "silu", "gelu" or "none".
        causal: whether a token sees itself and earlier ones only; otherwise both sides, the earlier ones with the smaller half.
        attention_mask: (batch, tokens), 0 at padding, which counts as a zero input to the first block. With a state, padding must stand
            behind the tokens, which it then does not advance.
        state: what an earlier part of the sequences left; of causal stacks only. A call with one token updates it in place.
        output_final_state: whether to return the state after the last token. States carry no gradient.

    Returns:
        o, shaped and typed as x, and the state or None. Differentiable in x, weight, bias, omega.

    Raises:
        ValueError: shapes that do not fit each other, an unknown activation, a state where tokens see later ones.

    Computes in float32 (float64 for float64 inputs): on a CPU by one C++ kernel each for forward and backward, which keep a few channels of
    the whole sequence in the cache for all blocks; where there is no compiler, and on other devices, by torch's convolutions.
    """
    _check(x, weight, bias, omega, dilation_factor, activation, attention_mask)
    if (state is not None or output_final_state) and not causal:
        raise ValueError("Only causal convolutions have a state: causal=False reads later tokens too")
    dtype = precision(x, weight, bias, omega)
    inner, weight, bias, omega = (tensor.to(dtype) for tensor in (x, weight, bias, omega))
    h = inner if attention_mask is None else inner * attention_mask.unsqueeze(-1).to(dtype)
    if state is not None and x.shape[1] == 1:
        h, state = _step(h, weight, bias, dilation_factor, activation, attention_mask, state)
    else:
        h, state = _parallel(
            h, weight, bias, dilation_factor, activation, causal, attention_mask, state, output_final_state
        )
    return F.silu(torch.addcmul(h, inner, omega)).to(x.dtype), state if output_final_state else None


def _parallel(h, weight, bias, dilation_factor, activation, causal, attention_mask, state, output_final_state):
    history = None if state is None else _unrolled(state, weight, dilation_factor)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (h, weight, bias))
    forward = eager.forward if for_export(h.shape[1]) else _forward
    outputs, inputs, _ = forward(
        h, weight, bias, history, dilation_factor, activation, causal, save or output_final_state
    )
    if not output_final_state:
        return outputs, None
    batch, tokens = h.shape[:2]
    real = h.new_full((batch,), tokens, dtype=torch.long) if attention_mask is None else attention_mask.long().sum(1)
    before = torch.zeros_like(real) if state is None else state.seen
    return outputs, TCNState(
        _rolled(inputs.detach(), state, before, before + real, weight, dilation_factor), before + real
    )


def _sizes(weight: torch.Tensor, dilation_factor: int) -> list[int]:
    return ring_sizes(*weight.shape[:2], weight.shape[3], dilation_factor)


def _unrolled(state: TCNState, weight: torch.Tensor, dilation_factor: int) -> torch.Tensor:
    """The rings with the oldest input first"""
    rings = state.rings.split(_sizes(weight, dilation_factor), 1)
    places = [(state.seen[:, None] + torch.arange(x.shape[1], device=x.device)) % max(x.shape[1], 1) for x in rings]
    return torch.cat([x.take_along_dim(index.unsqueeze(-1), 1) for x, index in zip(rings, places)], 1)


def _rolled(inputs, state, before, after, weight, dilation_factor) -> torch.Tensor:
    """Rings after `inputs` (convolutions, batch, tokens, channels) at positions from `before` (batch,) on, as far as `after`"""
    sizes = _sizes(weight, dilation_factor)
    olds = [None] * len(sizes) if state is None else state.rings.split(sizes, 1)
    rings = []
    for size, old, new in zip(sizes, olds, inputs):
        slots = torch.arange(size, device=new.device)
        age = (after[:, None] - 1 - slots) % max(size, 1)  # of what a slot holds now, in tokens
        index = (after - before)[:, None] - 1 - age  # among the inputs
        ring = new.take_along_dim(index.clamp(min=0).unsqueeze(-1), 1)
        old = torch.zeros_like(ring) if old is None else old
        rings.append(torch.where((index >= 0).unsqueeze(-1), ring, old))
    return torch.cat(rings, 1)


@torch.no_grad()
def _step(h, weight, bias, dilation_factor, activation, attention_mask, state):
    """One token (batch, 1, channels): reads K - 1 places of each ring and writes one."""
    sizes, kernel_size = _sizes(weight, dilation_factor), weight.shape[3]
    real = None if attention_mask is None else attention_mask.bool().view(-1, 1, 1)
    rings, seen = iter(state.rings.split(sizes, 1)), state.seen
    for block, (weights, biases) in enumerate(zip(weight, bias)):
        lags = torch.arange(kernel_size - 1, 0, -1, device=h.device) * dilation_factor**block
        y = h
        for w, b in zip(weights, biases):
            ring, taps = next(rings), y
            if kernel_size > 1:
                size = ring.shape[1]
                taps = torch.cat((ring.take_along_dim(((seen[:, None] - lags) % size).unsqueeze(-1), 1), y), 1)
                slot = (seen % size).view(-1, 1, 1)
                kept = y if real is None else torch.where(real, y, ring.take_along_dim(slot, 1))
                ring.scatter_(1, slot.expand_as(y), kept)
            y = ACTIVATIONS[activation](torch.einsum("bkd,dk->bd", taps, w) + b).unsqueeze(1)
        h = h + y
    return h, TCNState(state.rings, seen + (1 if real is None else real.view(-1).long()))


def _check(x, weight, bias, omega, dilation_factor, activation, attention_mask) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    if dilation_factor < 1:
        raise ValueError(f"dilation_factor must be at least 1; got {dilation_factor}")
    shapes = [tuple(tensor.shape) for tensor in (x, weight, bias, omega)]
    if x.ndim != 3 or weight.ndim != 4 or 0 in (*x.shape, *weight.shape) or bias.shape != weight.shape[:3]:
        raise ValueError(
            "x must be (batch, tokens, channels), weight (blocks, convolutions, channels, kernel size), bias (blocks, convolutions, "
            f"channels) and omega (channels,), nothing of size 0; got {shapes}"
        )
    if weight.shape[2] != x.shape[2] or omega.shape != x.shape[2:]:
        raise ValueError(f"x, weight, bias and omega must have the same number of channels; got {shapes}")
    if attention_mask is not None and attention_mask.shape != x.shape[:2]:
        raise ValueError(
            f"attention_mask must be (batch, tokens) = {tuple(x.shape[:2])}; got {tuple(attention_mask.shape)}"
        )


_forward, _backward = register("ema_tcn", eager)


@_forward.register_fake
def _(x, weight, bias, history, dilation_factor, activation, causal, save):
    saved = (weight.shape[0] * weight.shape[1], *x.shape) if save else (0,)
    return x.new_empty(x.shape), x.new_empty(saved), x.new_empty(saved)


@_backward.register_fake
def _(grad_h, weight, history, inputs, pre, dilation_factor, activation, causal):
    return grad_h.new_empty(grad_h.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[:3])


def _setup_context(ctx, inputs, output) -> None:
    _, weight, _, history, *ctx.options, _ = inputs
    ctx.save_for_backward(weight, history, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_h, *_):
    weight, history, inputs, pre = ctx.saved_tensors
    return *_backward(grad_h, weight, history, inputs, pre, *ctx.options), *[None] * 5


_forward.register_autograd(_differentiate, setup_context=_setup_context)
