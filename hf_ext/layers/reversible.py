"""Reversible residual layers: activations are computed again from the output, so memory does not grow with depth.

RevNet (arXiv 1707.04585), Reformer (arXiv 2001.04451), as in "A Practical Survey on Faster and Lighter Transformers" (arXiv 2103.14636).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

Branch = Callable[[torch.Tensor], torch.Tensor]


class _Random:
    """The state of torch's random numbers, so that dropout falls the same when a branch runs again."""

    def __init__(self, device: torch.device):
        self.device = device
        self.cpu = torch.get_rng_state()
        self.accelerator = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def again(self, branch: Branch, x: torch.Tensor) -> torch.Tensor:
        devices = [self.device] if self.accelerator is not None else []
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self.cpu)
            if self.accelerator is not None:
                torch.cuda.set_rng_state(self.accelerator, self.device)
            return branch(x)


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x1: torch.Tensor, x2: torch.Tensor, blocks: Sequence[tuple[Branch, Branch]], *parameters: Any
    ):
        ctx.blocks, ctx.random = blocks, []
        for f, g in blocks:
            before_f = _Random(x1.device)
            x1 = x1 + f(x2)
            ctx.random.append((before_f, _Random(x1.device)))
            x2 = x2 + g(x1)
        ctx.save_for_backward(x1, x2, *parameters)
        return x1, x2

    @staticmethod
    def backward(ctx: Any, grad1: torch.Tensor, grad2: torch.Tensor):
        y1, y2, *parameters = ctx.saved_tensors
        wanted = [p for p in parameters if p.requires_grad]
        grads = {id(p): None for p in wanted}

        def through(branch: Branch, random: _Random, x: torch.Tensor, grad: torch.Tensor):
            """branch(x), and the gradient that `grad` leaves at x"""
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                y = random.again(branch, x)
                at_x, *at_parameters = torch.autograd.grad(y, (x, *wanted), grad, allow_unused=True)
            for p, new in zip(wanted, at_parameters):
                if new is not None:
                    grads[id(p)] = new if grads[id(p)] is None else grads[id(p)] + new
            return y.detach(), 0 if at_x is None else at_x

        for (f, g), (before_f, before_g) in zip(reversed(ctx.blocks), reversed(ctx.random)):
            output, at_input = through(g, before_g, y1, grad2)
            y2, grad1 = y2 - output, grad1 + at_input
            output, at_input = through(f, before_f, y2, grad1)
            y1, grad2 = y1 - output, grad2 + at_input
        return grad1, grad2, None, *(grads.get(id(p)) for p in parameters)


def reversible(
    x1: torch.Tensor,
    x2: torch.Tensor,
    blocks: Iterable[tuple[Branch, Branch]],
    parameters: Iterable[torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each block (F, G): y1 = x1 + F(x2), y2 = x2 + G(y1). Backward needs the last y1, y2 alone: x2 = y2 - G(y1), x1 = y1 - F(x2).

    Args:
        x1, x2: the two halves, of one shape. Branches keep the shape; dropout in them falls alike in both passes.
        parameters: what else the branches depend on and is to get gradients; the parameters of those that are modules when None.

    Raises:
        ValueError: halves of different shapes.
    """
    if x1.shape != x2.shape:
        raise ValueError(f"the halves have one shape, got {tuple(x1.shape)} and {tuple(x2.shape)}")
    blocks = list(blocks)
    if parameters is None:
        modules = (branch for block in blocks for branch in block if isinstance(branch, nn.Module))
        parameters = {id(p): p for module in modules for p in module.parameters()}.values()
    return _Reversible.apply(x1, x2, blocks, *parameters)


class ReversibleSequence(nn.Module):
    """Pairs of modules as one reversible stack: (..., channels) is doubled into two halves, whose mean comes out (as in Reformer)."""

    def __init__(self, blocks: Iterable[tuple[nn.Module, nn.Module]]):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleList(block) for block in blocks)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        y1, y2 = reversible(hidden_states, hidden_states, [tuple(block) for block in self.blocks])
        return (y1 + y2) / 2
