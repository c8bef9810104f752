"""The definition of the delta rule: one step per token, in whatever precision the inputs have."""

from __future__ import annotations

import torch


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T;  o_t = scale * S_t^T q_t   (arXiv 2411.12537, section 2)

    Shapes as in `delta_rule`.
    """
    B, T, H, K = q.shape
    q = q * (K**-0.5 if scale is None else scale)
    state = v.new_zeros(B, H, K, v.shape[-1]) if initial_state is None else initial_state
    outputs = []
    for t in range(T):
        error = v[:, t] - (k[:, t, ..., None] * state).sum(-2)
        state = state + k[:, t, ..., None] * (beta[:, t, :, None] * error)[..., None, :]
        outputs.append((q[:, t, ..., None] * state).sum(-2))
    return torch.stack(outputs, 1), state
