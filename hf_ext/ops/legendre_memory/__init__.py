"""The memory of Legendre Memory Units (arXiv 2102.11417): a fixed linear system that holds the last theta steps of a signal."""

from __future__ import annotations

import torch

from ..chunks import check_state, precision, without_autocast
from .eager import convolve, impulse_response
from .reference import reference

__all__ = ["impulse_response", "legendre_memory", "reference", "state_space"]


def state_space(
    memory_size: int, theta: float, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """A (memory_size, memory_size) and B (memory_size,) of the memory over a window of `theta` steps.

    Of the continuous system, with i and j from 0, a_ij = (2i + 1) / theta * (-1 if i < j else (-1)^(i - j + 1)) and
    b_i = (2i + 1) / theta * (-1)^i; discretised with zero-order hold and a step of 1, in float64, then rounded to `dtype`.
    """
    i = torch.arange(memory_size, dtype=torch.float64, device="cpu")
    rate = (2 * i + 1) / theta
    sign = 1 - 2 * (i % 2)
    continuous = torch.zeros(memory_size + 1, memory_size + 1, dtype=torch.float64, device="cpu")
    continuous[:-1, :-1] = rate[:, None] * torch.where(i[:, None] < i, -1.0, -sign[:, None] * sign)
    continuous[:-1, -1] = rate * sign
    discrete = torch.linalg.matrix_exp(continuous)
    return discrete[:-1, :-1].to(dtype).contiguous(), discrete[:-1, -1].to(dtype).contiguous()


def legendre_memory(
    u: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    response: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """m_t = A m_{t-1} + B u_t   (arXiv 2102.11417, equations 19 and 24)

    Args:
        u: one signal per item, (batch, time).
        A: (memory, memory).
        B: (memory,).
        initial_state: m before the first step, (batch, memory). With it the steps are taken one by one; from nothing, all at once.
        response: `impulse_response(A, B, time)` or a longer one, if it is at hand.

    Returns:
        m after every step (batch, time, memory), and after the last one (batch, memory), in float32 (float64 for a float64 u).
        Differentiable in everything, A and B through `response` where it is not given.

    Raises:
        ValueError: shapes that do not fit each other.

    Plain torch operations on any device: exportable, compilable. A sequence costs time * time * memory multiplications, or
    time * log(time) * memory for long ones; a step costs memory * memory.
    """
    if u.ndim != 2 or 0 in u.shape or A.ndim != 2 or A.shape != (len(B), len(B)):
        shapes = ", ".join(str(tuple(x.shape)) for x in (u, A, B))
        raise ValueError(
            f"u must be (batch, time) with nothing of size 0, A (memory, memory), B (memory,); got {shapes}"
        )
    check_state((u.shape[0], len(B)), "batch, memory", initial_state)
    dtype = precision(u)
    tensors = (None if x is None else x.to(dtype) for x in (u, A, B, initial_state, response))
    return _forward(*tensors)


@without_autocast
def _forward(u, A, B, initial_state, response) -> tuple[torch.Tensor, torch.Tensor]:
    if initial_state is not None:
        return reference(u, A, B, initial_state)
    length = u.shape[1]
    if response is None or len(response) < length:
        response = impulse_response(A, B, length)
    memories = convolve(u, response[:length])
    return memories, memories[:, -1]
