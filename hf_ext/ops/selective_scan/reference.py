"""The definition of the selective scan: one step per token, in whatever precision the inputs have."""

from __future__ import annotations

import torch


def reference(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    allow_neg_eigval: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """h_t = a_t h_{t-1} + dt_t x_t B_t;  y_t = h_t C_t;  a_t = exp(dt_t A), or 2 exp(dt_t A) - 1   (arXiv 2312.00752, 2411.12537)

    Shapes as in `selective_scan`.
    """
    state = x.new_zeros(x.shape[0], *A.shape) if initial_state is None else initial_state
    outputs = []
    for t in range(x.shape[1]):
        a = (dt[:, t, :, None] * A).exp()
        if allow_neg_eigval:
            a = 2 * a - 1
        state = a * state + (dt[:, t] * x[:, t])[..., None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(-1))
    return torch.stack(outputs, 1), state
