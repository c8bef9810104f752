"""Leaky integrate-and-fire neurons with a surrogate gradient, as a function (arXiv 2402.04882, section 3)."""

from __future__ import annotations

import torch

from ..chunks import check_state, precision
from ..two_forms import for_export, register
from . import eager
from .reference import reference

__all__ = ["lif", "reference"]


def lif(
    x: torch.Tensor,
    membrane: torch.Tensor | None = None,
    tau: float = 2.0,
    threshold: float = 1.0,
    reset: float | None = 0.0,
    decay_input: bool = True,
    detach_reset: bool = True,
    alpha: float = 4.0,
    output_membranes: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """v <- v + (x_t - (v - reset)) / tau;  s_t = 1 if v >= threshold else 0;  v <- reset where s_t = 1

    Backward, ds/dv is the derivative of sigmoid(alpha * (v - threshold)).

    Args:
        x: input currents (batch, time, channels).
        membrane: v before the first step, (batch, 1, channels); `reset` everywhere when None.
        tau: time constant in steps, 1 or more.
        threshold: membrane at which a neuron fires.
        reset: membrane after a spike, and the one that it decays to; None takes `threshold` off instead, and decays to 0.
        decay_input: whether the current is divided by tau too; otherwise v <- v - (v - reset) / tau + x_t.
        detach_reset: whether the reset is a constant to the gradient.
        alpha: steepness of the surrogate, above 0.
        output_membranes: whether to return v after the reset of every step, which then is a constant to the gradient.

    Returns:
        The spikes, 0 and 1 in the type of x and shaped as x, and v after the last step (batch, 1, channels), or after every step, in
        float32 (float64 for float64 inputs). Differentiable in x and membrane.

    Raises:
        ValueError: shapes that do not fit, or a constant out of its range.

    Computes in float32 (float64 for float64 inputs): on a CPU by one C++ kernel each for forward and backward; where there is no
    compiler, and on other devices, by a loop of torch operations.
    """
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"x must be (batch, time, channels) with nothing of size 0; got {tuple(x.shape)}")
    check_state((x.shape[0], 1, x.shape[2]), "batch, 1, channels", membrane)
    if not tau >= 1 or not alpha > 0:
        raise ValueError(f"tau must be 1 or more and alpha above 0; got {tau} and {alpha}")
    dtype = precision(x)
    reset = None if reset is None else float(reset)
    constants = (float(tau), float(threshold), reset, decay_input, detach_reset, float(alpha))
    forward = eager.forward if for_export(x.shape[1]) else _forward
    membrane = None if membrane is None else membrane.to(dtype)
    spikes, membranes, last = forward(x.to(dtype), membrane, *constants, output_membranes)
    return spikes.to(x.dtype), membranes.detach() if output_membranes else last


_forward, _backward = register("lif", eager)


@_forward.register_fake
def _(x, membrane, tau, threshold, reset, decay_input, detach_reset, alpha, output_membranes):
    membranes = torch.empty_like(x) if output_membranes else x.new_empty(0)
    return torch.empty_like(x), membranes, x.new_empty(x.shape[0], 1, x.shape[2])


@_backward.register_fake
def _(grad_spikes, grad_last, x, membrane, tau, threshold, reset, decay_input, detach_reset, alpha):
    return torch.empty_like(x), torch.empty_like(grad_last)


def _setup_context(ctx, inputs, output) -> None:
    x, membrane, *ctx.constants, _ = inputs
    ctx.save_for_backward(x, membrane)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_spikes, _, grad_last):
    x, membrane = ctx.saved_tensors
    grad_spikes = torch.zeros_like(x) if grad_spikes is None else grad_spikes
    grad_last = torch.zeros_like(x[:, :1]) if grad_last is None else grad_last
    grad_x, grad_membrane = _backward(grad_spikes, grad_last, x, membrane, *ctx.constants)
    return grad_x, None if membrane is None else grad_membrane, *[None] * 7


_forward.register_autograd(_differentiate, setup_context=_setup_context)
