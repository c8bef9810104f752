"""Gated linear attention chunk by chunk, in plain torch: nearly all the work is matrix products.

Paper: "Gated Linear Attention Transformers with Hardware-Efficient Training", arXiv 2312.06635, section 4 and appendix C.
Reference: fla-org/flash-linear-attention, `fla/ops/gla/chunk.py`.

On purpose different from the reference: inside a chunk the paper takes tiles of 16 tokens and differences of a running sum of log
gates. Here a chunk is halved again and again: for a query in the right half and a key in the left half the decay between them is
(from the middle to the query) * (from the key to the middle). Both are products of gates, at most 1, so nothing can overflow and
nothing cancels, however strong the gate is (0 included), and every level is one batched matrix product.

Letters in names of dimensions are those of `ops/chunks.py`, and m tokens of half a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..chunks import Chunks, cut, halves, precision, starting_state, without_autocast


def halvings(g: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """For blocks of 2m = 2, 4, ..., C tokens: m, the decay from the middle to each token of the right half, and from each token of
    the left half to the middle, both (L, C/2m, m, K). Last comes m = C with the decays from the chunk's start and to its end."""
    to_token = g.exp()
    from_token = torch.ones_like(to_token)
    m = 1
    while m < g.shape[1]:
        (left, right), (left_rest, _) = halves(to_token, m), halves(from_token, m)
        yield m, right, left_rest
        left_rest *= right[:, :, -1:]
        right *= left[:, :, -1:]
        m *= 2
    yield m, to_token, from_token


def block_product(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """(L, blocks, m, G, K), (L, blocks, m, K) -> (L, blocks, m, G, m)"""
    return (keys @ queries.flatten(2, 3).mT).mT.unflatten(2, queries.shape[2:4])


def grow(scores: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """Joins neighbouring (m, G, m) blocks of the score matrix to (2m, G, 2m): [[left, 0], [block, right]]"""
    left, right = scores[:, ::2], scores[:, 1::2]
    return torch.cat((torch.cat((left, torch.zeros_like(block)), -1), torch.cat((block, right), -1)), 2)


def scan(
    chunks: Chunks, decay: torch.Tensor, update: torch.Tensor, state: torch.Tensor, backwards: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """state -> decay * state + update along the chunks of each sequence: (the state before each update, the last one).

    decay (L, K), update (L, K, V), state (sequences, H, K, V).
    """
    before = []

    def step(rows: slice, state: torch.Tensor) -> torch.Tensor:
        before.append(state)
        return torch.addcmul(update[rows], decay[rows].unsqueeze(-1), state)

    state = chunks.walk(state, step, backwards)
    return torch.cat(before[:: -1 if backwards else 1]), state


def prepare(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    scale: float,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> tuple[Chunks, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The chunks, scaled q (L, C, G, K), k (L, C, K), v (L, C, V), g (L, C, K) and the state to start from (sequences, H, K, V)."""
    dtype, heads = precision(q, k, v, g), k.shape[2]
    chunks = cut(*q.shape[:2], cu_seqlens)
    state = starting_state(v, (*k.shape[2:], v.shape[3]), initial_state, cu_seqlens, dtype)
    q = chunks.fold(q, heads, dtype) * scale
    return chunks, q, *(chunks.fold(x, heads, dtype).squeeze(2) for x in (k, v, g)), state


@without_autocast
def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    scale: float,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(o, final state); shapes as in `gated_linear_attention`. The state is kept in float32 (float64 for float64 inputs)."""
    chunks, q_, k_, v_, g_, state = prepare(q, k, v, g, scale, initial_state, cu_seqlens)
    C, G = q_.shape[1:3]

    scores = (q_ * k_.unsqueeze(2)).sum(-1)[:, :, None, :, None]  # (L, C blocks of one token, 1, G, 1)
    for m, to_token, from_token in halvings(g_):
        if m < C:
            queries = halves(q_, m)[1] * to_token.unsqueeze(3)
            scores = grow(scores, block_product(queries, halves(k_, m)[0] * from_token))
    scores, queries = scores.flatten(1, 3), (q_ * to_token.unsqueeze(2)).flatten(1, 2)
    decay, keys = to_token[:, -1].unsqueeze(-1), (k_ * from_token).mT
    outputs = []

    def step(rows: slice, before: torch.Tensor) -> torch.Tensor:
        outputs.append((scores[rows] @ v_[rows]).baddbmm_(queries[rows], before))
        return (decay[rows] * before).baddbmm_(keys[rows], v_[rows])

    state = chunks.walk(state, step)
    return chunks.unfold(torch.cat(outputs).unflatten(1, (C, G)), q, k.shape[2]), state


@without_autocast
def backward(
    grad_o: torch.Tensor,
    grad_final: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    scale: float,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v, g and the initial state. With D the gradient of the state (arXiv 2312.06635, appendix C):

    dq_t = scale S_t do_t;  dk_t = D_t v_t;  dv_t = D_t^T k_t;  dg_t = sum_{i>=t} (q_i dq_i - k_i dk_i) + rowsum(S_end D_end), the
    sum taken to the end of the chunk. Chunk states are computed again, so nothing but the inputs is kept from the forward pass.
    """
    chunks, q_, k_, v_, g_, state = prepare(q, k, v, g, scale, initial_state, cu_seqlens)
    L, C, G, K = q_.shape
    do = chunks.fold(grad_o, k.shape[2], q_.dtype).view(L, C * G, -1)

    dscores = (do @ v_.mT).view(L, C, G, C)
    diagonal = dscores.diagonal(dim1=1, dim2=3).mT.unsqueeze(-1)  # (L, C, G, 1)
    dq = diagonal * k_.unsqueeze(2)
    dk = (diagonal * q_).sum(2)
    scores = (q_ * k_.unsqueeze(2)).sum(-1)[:, :, None, :, None]
    for m, to_token, from_token in halvings(g_):
        if m == C:
            break
        query_decay = to_token.unsqueeze(3)
        queries, keys = halves(q_, m)[1] * query_decay, halves(k_, m)[0] * from_token
        scores = grow(scores, block_product(queries, keys))
        blocks = C // (2 * m)
        dblock = dscores.view(L, blocks, 2, m, G, blocks, 2, m)[:, :, 1, :, :, :, 0].diagonal(dim1=1, dim2=4)
        dblock = dblock.permute(0, 4, 1, 2, 3).reshape(L * blocks, m * G, m)
        dqueries = dblock @ keys.reshape(L * blocks, m, K)
        dkeys = dblock.mT @ queries.reshape(L * blocks, m * G, K)
        halves(dq, m)[1].addcmul_(dqueries.view(queries.shape), query_decay)
        halves(dk, m)[0].addcmul_(dkeys.view(keys.shape), from_token)

    from_start, to_end = to_token.unsqueeze(2), from_token
    decay, queries, keys = to_token[:, -1], (q_ * from_start).view(L, C * G, K), k_ * to_end
    before, _ = scan(chunks, decay, keys.mT @ v_, state)
    after, dstart = scan(chunks, decay, queries.mT @ do, grad_final.to(q_.dtype), backwards=True)

    dv = scores.view(L, C * G, C).mT @ do + keys @ after
    dq += (do @ before.mT).view(q_.shape) * from_start
    dkeys = (v_ @ after.mT) * to_end
    dk += dkeys
    flow = (q_ * dq).sum(2) - k_ * dk
    through = decay * (before * after).sum(-1) + (k_ * dkeys).sum(1)  # rowsum(S_end D_end)
    dg = flow.flip(1).cumsum(1).flip(1) + through.unsqueeze(1)

    dq *= scale
    grads = (
        chunks.unfold(grad.view(L, C, -1, grad.shape[-1]), x, k.shape[2])
        for grad, x in ((dq, q), (dk, k), (dv, v), (dg, g))
    )
    return *grads, dstart


@without_autocast
def step(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, scale: float, initial_state: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token (T = 1), as when decoding: a few operations that autograd, export and compilation see through."""
    dtype = precision(q, k, v, g)
    q_, k_, v_, g_ = (x[:, 0].to(dtype) for x in (q, k, v, g))
    state = k_.unsqueeze(-1) * v_.unsqueeze(-2)
    if initial_state is not None:
        state = torch.addcmul(state, g_.exp().unsqueeze(-1), initial_state.to(dtype))
    o = (q_ * scale).unflatten(1, (k.shape[2], -1)) @ state  # (B, H, G, K) @ (B, H, K, V)
    return o.flatten(1, 2).unsqueeze(1).to(q.dtype), state
