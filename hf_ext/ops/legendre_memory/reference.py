"""The definition of the memory: a loop over time, in whatever precision the inputs have."""

from __future__ import annotations

import torch


def reference(
    u: torch.Tensor, A: torch.Tensor, B: torch.Tensor, initial_state: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """m_t = A m_{t-1} + B u_t   (arXiv 2102.11417, equation 19). Shapes as in `legendre_memory`."""
    state = u.new_zeros(u.shape[0], len(A)) if initial_state is None else initial_state
    memories = []
    for value in u.unbind(1):
        state = state @ A.T + value[:, None] * B
        memories.append(state)
    return torch.stack(memories, 1), state
