"""The selective scan in plain torch, token by token over all channels at once, with a backward that keeps the inputs alone.

Papers: "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752; "Unlocking State-Tracking in Linear RNNs
Through Negative Eigenvalues", arXiv 2411.12537. Reference: automl/unlocking_state_tracking, `mamba_dev` (a modified state-spaces/mamba).

Letters in names of dimensions: S sequences, T tokens, D channels, N numbers of state per channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch

from ..chunks import precision, starting_state, without_autocast


def pieces(
    x: torch.Tensor, starts: torch.Tensor, cu_seqlens: torch.Tensor | None
) -> Iterator[tuple[range, torch.Tensor, slice]]:
    """For each piece to scan on its own: its tokens, the state before them and that state's place."""
    if cu_seqlens is None:
        yield range(x.shape[1]), starts, slice(None)
        return
    for index, borders in enumerate(pairwise(cu_seqlens.tolist())):
        yield range(*borders), starts[index : index + 1], slice(index, index + 1)


def transitions(dt: torch.Tensor, A: torch.Tensor, allow_neg_eigval: bool) -> torch.Tensor:
    """a (..., D, N) of dt (..., D)"""
    a = (dt.unsqueeze(-1) * A).exp()
    return 2 * a - 1 if allow_neg_eigval else a


@without_autocast
def forward(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    allow_neg_eigval: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, final state); shapes as in `selective_scan`. The state is kept in float32 (float64 for float64 inputs)."""
    dtype = precision(x, dt, A, B, C)
    starts = starting_state(x, tuple(A.shape), initial_state, cu_seqlens, dtype)
    like, (x, dt, A, B, C) = x, (tensor.to(dtype) for tensor in (x, dt, A, B, C))
    inputs = dt * x
    outputs, finals = [], []
    for tokens, state, _ in pieces(x, starts, cu_seqlens):
        for t in tokens:
            a = transitions(dt[:, t], A, allow_neg_eigval)
            state = torch.addcmul(inputs[:, t, :, None] * B[:, t, None], a, state)
            outputs.append((state @ C[:, t, :, None]).squeeze(-1))
        finals.append(state)
    return torch.stack(outputs, 1).to(like.dtype), torch.cat(finals).clone()


@without_autocast
def backward(
    grad_y: torch.Tensor,
    grad_final: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    allow_neg_eigval: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, dt, A, B, C and the initial state.

    With g_t the gradient of h_t, that of dt_t A is g_t h_{t-1} exp(dt_t A), twice that for the extended range: it needs the state
    before the token itself, since a_t h_{t-1} is not the derivative there.
    """
    dtype = precision(x, dt, A, B, C)
    starts = starting_state(x, tuple(A.shape), initial_state, cu_seqlens, dtype)
    likes, (x, dt, A, B, C, dy) = (x, dt, A, B, C), (tensor.to(dtype) for tensor in (x, dt, A, B, C, grad_y))
    inputs, dstart, dA = dt * x, grad_final.to(dtype).clone(), torch.zeros_like(A)
    dx, ddt, dB, dC = (torch.zeros_like(tensor) for tensor in (x, dt, B, C))
    for tokens, start, rows in pieces(x, starts, cu_seqlens):
        states = [start]
        for t in tokens:
            a = transitions(dt[:, t], A, allow_neg_eigval)
            states.append(torch.addcmul(inputs[:, t, :, None] * B[:, t, None], a, states[-1]))
        g = dstart[rows]
        for t in reversed(tokens):
            after = states.pop()
            a = transitions(dt[:, t], A, allow_neg_eigval)
            g = torch.addcmul(g, dy[:, t, :, None], C[:, t, None])
            dC[:, t] = (dy[:, t, None] @ after).squeeze(1)
            dB[:, t] = (inputs[:, t, None] @ g).squeeze(1)
            dinput = (g @ B[:, t, :, None]).squeeze(-1)
            dx[:, t] = dinput * dt[:, t]
            dexponent = g * states[-1] * (a + 1 if allow_neg_eigval else a)
            ddt[:, t] = dinput * x[:, t] + (dexponent * A).sum(-1)
            dA += (dexponent * dt[:, t, :, None]).sum(0)
            g = a * g
        dstart[rows] = g
    return *(grad.to(like.dtype) for grad, like in zip((dx, ddt, dA, dB, dC), likes)), dstart


@without_autocast
def step(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    initial_state: torch.Tensor | None,
    allow_neg_eigval: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token (T = 1), as when decoding: a few operations that autograd, export and compilation see through."""
    dtype = precision(x, dt, A, B, C)
    x_, dt_, B_, C_ = (tensor[:, 0].to(dtype) for tensor in (x, dt, B, C))
    state = (dt_ * x_).unsqueeze(-1) * B_.unsqueeze(1)
    if initial_state is not None:
        state = torch.addcmul(state, transitions(dt_, A.to(dtype), allow_neg_eigval), initial_state.to(dtype))
    return (state @ C_.unsqueeze(-1)).mT.to(x.dtype), state
