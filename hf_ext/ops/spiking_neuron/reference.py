"""The definition: a loop over time in plain torch, with autograd."""

from __future__ import annotations

import torch


class Spike(torch.autograd.Function):
    """1 where the distance to the threshold is 0 or more; backward, the derivative of sigmoid(alpha * distance)."""

    @staticmethod
    def forward(ctx, distance: torch.Tensor, alpha: float) -> torch.Tensor:
        ctx.save_for_backward(distance)
        ctx.alpha = alpha
        return (distance >= 0).to(distance.dtype)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (distance,) = ctx.saved_tensors
        sigmoid = torch.sigmoid(ctx.alpha * distance)
        return grad * ctx.alpha * sigmoid * (1 - sigmoid), None


def reference(
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
    """Arguments and shapes as in `lif`."""
    rest = 0.0 if reset is None else reset
    v = torch.full_like(x[:, 0], rest) if membrane is None else membrane[:, 0]
    spikes, membranes = [], []
    for current in x.unbind(1):
        v = v + (current - (v - rest)) / tau if decay_input else v - (v - rest) / tau + current
        s = Spike.apply(v - threshold, alpha)
        spikes.append(s)
        kept = s.detach() if detach_reset else s
        v = v - kept * threshold if reset is None else (1 - kept) * v + kept * reset
        membranes.append(v)
    return torch.stack(spikes, 1), torch.stack(membranes, 1).detach() if output_membranes else v.unsqueeze(1)
