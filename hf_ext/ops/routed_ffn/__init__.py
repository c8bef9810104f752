"""A feed-forward network cut into blocks, of which a router activates some for each token (SPT, arXiv 2312.10365, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import eager
from .projection import Projection
from .reference import reference

__all__ = ["Projection", "reference", "routed_ffn"]


def routed_ffn(
    x: torch.Tensor,
    probabilities: torch.Tensor,
    up: Projection,
    down: Projection,
    gate: Projection | None = None,
    *,
    activation: Callable[[torch.Tensor], torch.Tensor],
    active_blocks: int,
    weighted: bool = True,
) -> torch.Tensor:
    """y = sum over the chosen blocks b of down_b(activation(up_b(x))), or of down_b(activation(gate_b(x)) * up_b(x)).

    Args:
        x: (..., width).
        probabilities: (..., blocks), from the router; blocks of highest probability are chosen.
        up, gate: from width to hidden, hidden a multiple of blocks; `down` back.
        activation: elementwise.
        active_blocks: chosen for each token, 1 to blocks.
        weighted: multiply what a block's own weights give by 2 * its probability (not what LoRA adds), through which the router learns.

    Returns:
        (..., width). Differentiable in everything but the choice.

    Raises:
        ValueError: sizes that do not fit.

    Work is active_blocks / blocks of the dense products, but for LoRA's first. Hidden activations are formed again in the backward pass.
    """
    hidden, width = up.weight.shape
    blocks = probabilities.shape[-1]
    if x.shape[-1] != width or x.shape[:-1] != probabilities.shape[:-1]:
        raise ValueError(
            f"x is (..., {width}) and probabilities (..., blocks); got {tuple(x.shape)}, {tuple(probabilities.shape)}"
        )
    if hidden % blocks:
        raise ValueError(f"The hidden size {hidden} must be a multiple of the number of blocks, {blocks}")
    if not 1 <= active_blocks <= blocks:
        raise ValueError(f"active_blocks={active_blocks} must be between 1 and the number of blocks, {blocks}")
    form = reference if torch.compiler.is_compiling() else eager.grouped
    y = form(
        x.reshape(-1, width), probabilities.reshape(-1, blocks), up, down, gate, activation, active_blocks, weighted
    )
    return y.view(*x.shape[:-1], y.shape[-1])
