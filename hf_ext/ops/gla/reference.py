"""The definition of gated linear attention: one step per token, in whatever precision the inputs have."""

from __future__ import annotations

import torch


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T;  o_t = scale * S_t^T q_t   (arXiv 2312.06635, eq. 3)

    Shapes as in `gated_linear_attention`; several query heads may share one head of k, v and g.
    """
    B, T, query_heads, K = q.shape
    heads, V = v.shape[2:]
    q = q.reshape(B, T, heads, query_heads // heads, K) * (K**-0.5 if scale is None else scale)
    state = v.new_zeros(B, heads, K, V) if initial_state is None else initial_state
    outputs = []
    for t in range(T):
        state = g[:, t].exp()[..., None] * state + k[:, t, ..., None] * v[:, t, :, None, :]
        outputs.append((q[:, t, ..., None] * state[:, :, None]).sum(-2))
    return torch.stack(outputs, 1).reshape(B, T, query_heads, V), state
