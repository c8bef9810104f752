"""The neuron in plain torch: a loop of a few elementwise operations per step, with the backward pass written out.

Nothing is kept for the backward pass but the input: it walks forward again, then back.
"""

from __future__ import annotations

import torch

from ..chunks import without_autocast


@without_autocast
def forward(
    x: torch.Tensor,
    membrane: torch.Tensor | None,
    tau: float,
    threshold: float,
    reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    alpha: float,
    output_membranes: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Spikes (B, T, C), membranes after the resets (B, T, C), where `output_membranes` asks for them, and the last of these (B, 1, C).
    What concerns gradients is read in `backward`."""
    charged, v = charge(x, membrane, tau, threshold, reset, decay_input)
    membranes = discharge(charged, threshold, reset) if output_membranes else x.new_empty(0)
    return (charged >= threshold).to(x.dtype), membranes, v.unsqueeze(1)


def charge(
    x: torch.Tensor,
    membrane: torch.Tensor | None,
    tau: float,
    threshold: float,
    reset: float | None,
    decay_input: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Membranes before each reset (B, T, C), and after the last one (B, C)."""
    rest = 0.0 if reset is None else reset
    v = torch.full_like(x[:, 0], rest) if membrane is None else membrane[:, 0]
    charged = []
    for current in x.unbind(1):
        v = v + (current - (v - rest)) / tau if decay_input else v - (v - rest) / tau + current
        charged.append(v)
        v = discharge(v, threshold, reset)
    return torch.stack(charged, 1), v


def discharge(charged: torch.Tensor, threshold: float, reset: float | None) -> torch.Tensor:
    """Membranes after the reset."""
    return torch.where(charged >= threshold, charged - threshold if reset is None else reset, charged)


@without_autocast
def backward(
    grad_spikes: torch.Tensor,
    grad_last: torch.Tensor,
    x: torch.Tensor,
    membrane: torch.Tensor | None,
    tau: float,
    threshold: float,
    reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    alpha: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of x (B, T, C) and of the first membrane (B, 1, C)."""
    charged, _ = charge(x, membrane, tau, threshold, reset, decay_input)
    sigmoid = torch.sigmoid(alpha * (charged - threshold))
    slopes = alpha * sigmoid * (1 - sigmoid)
    grads, dv = [], grad_last[:, 0]
    for t in reversed(range(x.shape[1])):
        v, ds = charged[:, t], grad_spikes[:, t]
        if not detach_reset:
            ds = ds - dv * (threshold if reset is None else v - reset)
        if reset is not None:
            dv = torch.where(v >= threshold, 0.0, dv)
        dv = dv + ds * slopes[:, t]
        grads.append(dv / tau if decay_input else dv)
        dv = dv - dv / tau
    return torch.stack(grads[::-1], 1), dv.unsqueeze(1).clone()
