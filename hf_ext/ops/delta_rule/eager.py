"""The delta rule chunk by chunk, in plain torch: nearly all the work is matrix products.

Papers: "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", arXiv 2406.06484, section 3 (the WY form);
"Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues", arXiv 2411.12537 (step sizes up to 2).
Reference: fla-org/flash-linear-attention, `fla/ops/delta_rule`.

What a chunk writes are the errors E = T diag(beta) (V - K S), where S is the state before it and T the inverse of the unit lower
triangular I + tril(diag(beta) K K^T, -1). Its entries are -beta_i k_i^T (I - beta_{i-1} k_{i-1} k_{i-1}^T) ... k_j, so for unit keys
and step sizes in [0, 2] none exceeds 2: the inverse is as tame as the recurrence, and built from inverses of halves it stays so.

On purpose different from the reference: float32 is allowed (and half precision is computed in it), since a rounded inverse loses the
sign alternation that negative eigenvalues are for.

Letters in names of dimensions are those of `ops/chunks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..chunks import Chunks, cut, precision, starting_state, without_autocast

CHUNK_SIZE = 32  # of 16, 32 and 64 the fastest on a CPU with 128 channels


def invert(lower: torch.Tensor) -> torch.Tensor:
    """(L, C, C) -> the inverse of I + its part below the diagonal; C is a power of two.

    [[A, 0], [B, D]]^-1 = [[A^-1, 0], [-D^-1 B A^-1, D^-1]], for blocks of 2, 4, ..., C rows.
    """
    size = lower.shape[-1]
    inverse = torch.ones_like(lower[:, :, :1]).unsqueeze(-1)  # (L, C blocks of one row, 1, 1)
    m = 1
    while m < size:
        blocks = size // (2 * m)
        corner = lower.unflatten(1, (blocks, 2, m)).unflatten(4, (blocks, 2, m))[:, :, 1, :, :, 0]
        corner = corner.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)  # (L, blocks, m, m)
        top, bottom = inverse[:, ::2], inverse[:, 1::2]
        corner = -(bottom @ corner) @ top
        inverse = torch.cat((torch.cat((top, torch.zeros_like(top)), -1), torch.cat((corner, bottom), -1)), 2)
        m *= 2
    return inverse.squeeze(1)


@dataclass
class Folded:
    """The inputs cut into chunks, (L, C, channels), and what every pass computes of them first."""

    chunks: Chunks
    keys_queries: torch.Tensor  # k above scaled q, (L, 2C, K)
    v: torch.Tensor
    beta: torch.Tensor  # (L, C, 1)
    state: torch.Tensor
    products: torch.Tensor  # K K^T
    scores: torch.Tensor  # tril(Q K^T)
    inverse: torch.Tensor

    @property
    def k(self) -> torch.Tensor:
        return self.keys_queries[:, : self.chunks.size]

    @property
    def q(self) -> torch.Tensor:
        return self.keys_queries[:, self.chunks.size :]


def prepare(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    scale: float,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> Folded:
    dtype, heads = precision(q, k, v, beta), k.shape[2]
    chunks = cut(*q.shape[:2], cu_seqlens, CHUNK_SIZE)
    state = starting_state(v, (*k.shape[2:], v.shape[3]), initial_state, cu_seqlens, dtype)
    q, k, v = (chunks.fold(x, heads, dtype).squeeze(2) for x in (q, k, v))
    beta = chunks.fold(beta, heads, dtype)
    keys_queries = torch.cat((k, q * scale), 1)
    products, scores = (keys_queries @ k.mT).split(chunks.size, 1)
    return Folded(chunks, keys_queries, v, beta, state, products, scores.tril(), invert(beta * products))


@without_autocast
def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    scale: float,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(o, final state); shapes as in `delta_rule`. The state is kept in float32 (float64 for float64 inputs)."""
    x = prepare(q, k, v, beta, scale, initial_state, cu_seqlens)
    solve, keys = x.inverse * x.beta.mT, x.k.mT
    outputs = []

    def step(rows: slice, before: torch.Tensor) -> torch.Tensor:
        recalled, read = (x.keys_queries[rows] @ before).split(x.chunks.size, 1)
        errors = solve[rows] @ (x.v[rows] - recalled)
        outputs.append(torch.baddbmm(read, x.scores[rows], errors))
        return torch.baddbmm(before, keys[rows], errors)

    state = x.chunks.walk(x.state, step)
    return x.chunks.unfold(torch.cat(outputs).unsqueeze(2), q, k.shape[2]), state


@without_autocast
def backward(
    grad_o: torch.Tensor,
    grad_final: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    scale: float,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v, beta and the initial state.

    A chunk is E = T diag(beta) R, R = V - K S, O = Q S + tril(Q K^T) E, S' = S + K^T E. Errors and chunk states are computed again, so
    nothing but the inputs is kept from the forward pass.
    """
    x = prepare(q, k, v, beta, scale, initial_state, cu_seqlens)
    do = x.chunks.fold(grad_o, k.shape[2], x.v.dtype).squeeze(2)
    solve, keys, queries = x.inverse * x.beta.mT, x.k.mT, x.q.mT

    passed = []

    def step(rows: slice, before: torch.Tensor) -> torch.Tensor:
        residual = torch.baddbmm(x.v[rows], x.k[rows], before, alpha=-1)
        error = solve[rows] @ residual
        passed.append((before, residual, error))
        return torch.baddbmm(before, keys[rows], error)

    x.chunks.walk(x.state, step)
    before, residual, error = (torch.cat(parts) for parts in zip(*passed))

    score_errors, returned = x.scores.mT @ do, []

    def step_back(rows: slice, dafter: torch.Tensor) -> torch.Tensor:
        dscaled = x.inverse[rows].mT @ torch.baddbmm(score_errors[rows], x.k[rows], dafter)  # gradient of diag(beta) R
        dv = x.beta[rows] * dscaled
        returned.append((dafter, dscaled, dv))
        return torch.baddbmm(dafter, queries[rows], do[rows]).baddbmm_(keys[rows], dv, alpha=-1)

    dstart = x.chunks.walk(grad_final.to(x.v.dtype), step_back, backwards=True)
    dafter, dscaled, dv = (torch.cat(parts[::-1]) for parts in zip(*returned))

    dscores = (do @ error.mT).tril()
    dlower = (dscaled @ error.mT).tril(-1).neg_()
    dproducts = x.beta * dlower
    dq = (do @ before.mT).baddbmm_(dscores, x.k) * scale
    dk = (error @ dafter.mT).baddbmm_(dv, before.mT, alpha=-1)
    dk.baddbmm_(dproducts + dproducts.mT, x.k).baddbmm_(dscores.mT, x.q)
    dbeta = (dscaled * residual).sum(-1, keepdim=True) + (dlower * x.products).sum(-1, keepdim=True)

    grads = (x.chunks.unfold(grad.unsqueeze(2), like, k.shape[2]) for grad, like in ((dq, q), (dk, k), (dv, v)))
    return *grads, x.chunks.unfold(dbeta, beta, k.shape[2]), dstart


@without_autocast
def step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    scale: float,
    initial_state: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token (T = 1), as when decoding: a few operations that autograd, export and compilation see through."""
    dtype = precision(q, k, v, beta)
    q_, k_, error = (x[:, 0].to(dtype).unsqueeze(-2) for x in (q, k, v))  # (B, H, 1, channels)
    if initial_state is not None:
        state = initial_state.to(dtype)
        error = error - k_ @ state
    update = k_.mT * (beta[:, 0, :, None, None].to(dtype) * error)
    state = update if initial_state is None else state + update
    return ((q_ * scale) @ state).transpose(1, 2).to(q.dtype), state
