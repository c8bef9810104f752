"""The selective scan in Triton, token by token with the states of a block of channels in registers, forward and backward.

Papers: arXiv 2312.00752; arXiv 2411.12537. Reference: automl/unlocking_state_tracking, `mamba_dev` (a modified state-spaces/mamba), which
compiles its CUDA kernel once per range of eigenvalues; here the range is two numbers, a = FACTOR * exp(dt A) - SHIFT.

The backward pass writes the state before every token to memory, N float32 numbers per number of x. Tokens of all sequences lie along one
axis; `borders` says where each sequence starts, so a batch and packed sequences are the same to a kernel.

Letters: D channels, N numbers of state per channel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..chunks import flat_borders, starting_state

BD = 16


@triton.jit
def scan_forward(
    x, dt, A, B, C, start, y, final, borders,
    D, N, FACTOR: tl.constexpr, SHIFT: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    sequence, dd, nn = tl.program_id(1), tl.program_id(0) * BD + tl.arange(0, BD), tl.arange(0, BN)
    inside = (dd[:, None] < D) & (nn[None, :] < N)
    place = dd[:, None] * N + nn[None, :]
    rates = tl.load(A + place, mask=inside, other=0.0).to(tl.float32)
    state = tl.load(start + sequence.to(tl.int64) * D * N + place, mask=inside, other=0.0)
    for t in range(tl.load(borders + sequence), tl.load(borders + sequence + 1)):
        b_x = tl.load(x + t * D + dd, mask=dd < D, other=0.0).to(tl.float32)
        b_dt = tl.load(dt + t * D + dd, mask=dd < D, other=0.0).to(tl.float32)
        b_B = tl.load(B + t * N + nn, mask=nn < N, other=0.0).to(tl.float32)
        b_C = tl.load(C + t * N + nn, mask=nn < N, other=0.0).to(tl.float32)
        state = (FACTOR * tl.exp(b_dt[:, None] * rates) - SHIFT) * state + (b_dt * b_x)[:, None] * b_B[None, :]
        tl.store(y + t * D + dd, tl.sum(state * b_C[None, :], 1).to(y.dtype.element_ty), mask=dd < D)
    tl.store(final + sequence.to(tl.int64) * D * N + place, state, mask=inside)


@triton.jit
def scan_backward(
    x, dt, A, B, C, start, dy, dfinal, states, dx, ddt, dA, dB, dC, dstart, borders, tokens,
    D, N, FACTOR: tl.constexpr, SHIFT: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dB and dC get one part per block of channels, dA one per sequence, to be summed."""
    block, sequence, nn = tl.program_id(0), tl.program_id(1), tl.arange(0, BN)
    dd = block * BD + tl.arange(0, BD)
    inside = (dd[:, None] < D) & (nn[None, :] < N)
    place = dd[:, None] * N + nn[None, :]
    offset = sequence.to(tl.int64) * D * N
    first, last = tl.load(borders + sequence), tl.load(borders + sequence + 1)
    rates = tl.load(A + place, mask=inside, other=0.0).to(tl.float32)
    state = tl.load(start + offset + place, mask=inside, other=0.0)
    for t in range(first, last):
        tl.store(states + t * D * N + place, state, mask=inside)
        b_x = tl.load(x + t * D + dd, mask=dd < D, other=0.0).to(tl.float32)
        b_dt = tl.load(dt + t * D + dd, mask=dd < D, other=0.0).to(tl.float32)
        b_B = tl.load(B + t * N + nn, mask=nn < N, other=0.0).to(tl.float32)
        state = (FACTOR * tl.exp(b_dt[:, None] * rates) - SHIFT) * state + (b_dt * b_x)[:, None] * b_B[None, :]
    tl.debug_barrier()
    g = tl.load(dfinal + offset + place, mask=inside, other=0.0)
    b_dA = tl.zeros((BD, BN), tl.float32)
    part = block.to(tl.int64) * tokens * N
    for step in range(first, last):
        t = last - 1 - (step - first)
        b_x = tl.load(x + t * D + dd, mask=dd < D, other=0.0).to(tl.float32)
        b_dt = tl.load(dt + t * D + dd, mask=dd < D, other=0.0).to(tl.float32)
        b_dy = tl.load(dy + t * D + dd, mask=dd < D, other=0.0).to(tl.float32)
        b_B = tl.load(B + t * N + nn, mask=nn < N, other=0.0).to(tl.float32)
        b_C = tl.load(C + t * N + nn, mask=nn < N, other=0.0).to(tl.float32)
        before = tl.load(states + t * D * N + place, mask=inside, other=0.0)
        grown = FACTOR * tl.exp(b_dt[:, None] * rates)  # also the derivative with respect to dt A
        g += b_dy[:, None] * b_C[None, :]
        tl.store(dC + part + t * N + nn, tl.sum(b_dy[:, None] * state, 0), mask=nn < N)
        tl.store(dB + part + t * N + nn, tl.sum((b_dt * b_x)[:, None] * g, 0), mask=nn < N)
        dinput = tl.sum(g * b_B[None, :], 1)
        dexponent = g * before * grown
        b_dA += dexponent * b_dt[:, None]
        tl.store(dx + t * D + dd, (dinput * b_dt).to(dx.dtype.element_ty), mask=dd < D)
        b_ddt = dinput * b_x + tl.sum(dexponent * rates, 1)
        tl.store(ddt + t * D + dd, b_ddt.to(ddt.dtype.element_ty), mask=dd < D)
        g *= grown - SHIFT
        state = before
    tl.store(dA + offset + place, b_dA, mask=inside)
    tl.store(dstart + offset + place, g, mask=inside)


def _launch(A: torch.Tensor, sequences: int, allow_neg_eigval: bool) -> tuple[tuple[int, int], tuple]:
    """The grid, and the sizes that end both kernels' arguments."""
    D, N = A.shape
    sizes = (D, N, 2.0 if allow_neg_eigval else 1.0, 1.0 if allow_neg_eigval else 0.0, BD, triton.next_power_of_2(N))
    return (triton.cdiv(D, BD), sequences), sizes


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
    """(y, final state); arguments and shapes as in `eager.forward`."""
    start = starting_state(x, tuple(A.shape), initial_state, cu_seqlens, torch.float32).contiguous()
    x, dt, A, B, C = (tensor.contiguous() for tensor in (x, dt, A, B, C))
    y, final = torch.empty_like(x), torch.empty_like(start)
    grid, sizes = _launch(A, len(start), allow_neg_eigval)
    with torch.cuda.device_of(x):  # the current device may be another one
        scan_forward[grid](x, dt, A, B, C, start, y, final, flat_borders(x, cu_seqlens), *sizes)
    return y, final


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
    """Gradients of x, dt, A, B, C and the initial state; arguments and shapes as in `eager.backward`."""
    start = starting_state(x, tuple(A.shape), initial_state, cu_seqlens, torch.float32).contiguous()
    x, dt, A, B, C, dy = (tensor.contiguous() for tensor in (x, dt, A, B, C, grad_y))
    grid, sizes = _launch(A, len(start), allow_neg_eigval)
    dfinal, dstart = grad_final.float().contiguous(), torch.empty_like(start)
    states = start.new_empty(*x.shape, A.shape[1])
    dx, ddt, dA = torch.empty_like(x), torch.empty_like(dt), torch.empty_like(start)
    dB, dC = (start.new_empty(grid[0], *B.shape) for _ in range(2))
    with torch.cuda.device_of(x):  # the current device may be another one
        scan_backward[grid](
            x, dt, A, B, C, start, dy, dfinal, states, dx, ddt, dA, dB, dC, dstart, flat_borders(x, cu_seqlens),
            x.shape[0] * x.shape[1], *sizes,
        )  # fmt: skip
    return dx, ddt, dA.sum(0).to(A.dtype), dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype), dstart
