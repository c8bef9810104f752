"""PGN, a gated network in the place of an RNN that reads all earlier inputs at once (arXiv 2409.17703), as a function."""

from __future__ import annotations

import torch

from . import eager
from .eager import extend, gated_update, gather, group_linear
from .reference import reference

__all__ = ["extend", "gated_update", "gather", "group_linear", "pgn", "reference"]


def pgn(
    inputs: torch.Tensor,
    history_weight: torch.Tensor,
    history_bias: torch.Tensor,
    gate_weight: torch.Tensor,
    gate_bias: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """h_t = sum_j A_j x_{t-W+j} + b over the W inputs before t;  [s, u]_t = G [x_t, h_t] + c;
    y_t = sigmoid(s_t) h_t + (1 - sigmoid(s_t)) tanh(u_t)

    Every step is one product away from each of the W before it, and all steps are computed at once.

    Args:
        inputs: (batch, steps, groups, channels). `groups` are independent networks side by side, 1 for a plain one.
        history_weight: A, (groups, hidden, window, channels), the oldest input of the window first.
        history_bias: b, (groups, hidden).
        gate_weight: G, (groups, 2 * hidden, channels + hidden): the rows of s, then those of u.
        gate_bias: c, (groups, 2 * hidden).
        initial_state: the `window` inputs before the first, (batch, window, groups, channels); zeros when None.
        output_final_state: whether to return the state after the last step. A sequence given in parts, each with the state that the
            part before it left, gives what the whole gives.

    Returns:
        y (batch, steps, groups, hidden), and the state or None. Differentiable in everything.

    Raises:
        ValueError: shapes that do not fit each other.

    Plain torch operations on any device: differentiable, exportable, compilable. Long windows take a Fourier transform, in float32 at
    least: steps * log(steps) instead of steps * window.
    """
    _check(inputs, history_weight, history_bias, gate_weight, gate_bias, initial_state)
    outputs, state = eager.forward(inputs, history_weight, history_bias, gate_weight, gate_bias, initial_state)
    return outputs, state if output_final_state else None


def _check(inputs, history_weight, history_bias, gate_weight, gate_bias, initial_state) -> None:
    given = [inputs, history_weight, history_bias, gate_weight, gate_bias, initial_state]
    if inputs.ndim == 4 and history_weight.ndim == 4:
        batch, _, groups, channels = inputs.shape
        _, hidden, window, _ = history_weight.shape
        expected = (
            (groups, hidden, window, channels),
            (groups, hidden),
            (groups, 2 * hidden, channels + hidden),
            (groups, 2 * hidden),
            (batch, window, groups, channels),
        )
        fits = all(x is None or tuple(x.shape) == shape for x, shape in zip(given[1:], expected))
        if fits and 0 not in (*inputs.shape, *history_weight.shape):
            return
    shapes = ", ".join(str(None if x is None else tuple(x.shape)) for x in given)
    raise ValueError(
        "`pgn` takes inputs (B, T, G, C), history_weight (G, D, W, C), history_bias (G, D), gate_weight (G, 2D, C + D), gate_bias "
        f"(G, 2D) and initial_state (B, W, G, C) or None, nothing of size 0; not {shapes}"
    )
