"""The definition."""

from __future__ import annotations

import torch


def reference(
    inputs: torch.Tensor,
    history_weight: torch.Tensor,
    history_bias: torch.Tensor,
    gate_weight: torch.Tensor,
    gate_bias: torch.Tensor,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """h_t = sum_j A_j x_{t-W+j} + b;  [s, u]_t = G [x_t, h_t] + c;  y_t = sigmoid(s_t) h_t + (1 - sigmoid(s_t)) tanh(u_t)"""
    batch, steps, groups, channels = inputs.shape
    window = history_weight.shape[2]
    state = inputs.new_zeros(batch, window, groups, channels) if initial_state is None else initial_state
    outputs = []
    for t in range(steps):
        h = torch.einsum("gdwc,bwgc->bgd", history_weight, state) + history_bias
        s, u = (torch.einsum("gdc,bgc->bgd", gate_weight, torch.cat([inputs[:, t], h], -1)) + gate_bias).chunk(2, -1)
        outputs.append(s.sigmoid() * h + (1 - s.sigmoid()) * u.tanh())
        state = torch.cat([state[:, 1:], inputs[:, t : t + 1]], 1)
    return torch.stack(outputs, 1), state
