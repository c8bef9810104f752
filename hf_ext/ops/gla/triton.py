"""Gated linear attention in Triton: a recurrent form for short inputs and a chunk form for long ones, both with backward.

Paper: arXiv 2312.06635. Reference: fla-org/flash-linear-attention, `fla/ops/gla/{fused_recurrent,chunk}.py`.

On purpose different from the reference:
- decays inside a chunk are sums of log gates between two tokens, never differences of running sums: nothing overflows, nothing
  cancels and minus infinity is allowed. Inside a tile of 16 tokens the decays grow token by token.
- query heads that share a head of k, v and g also share its state.
- chunk states are kept in float32 in both passes.

Tokens of all sequences lie along one axis; `borders` says where each sequence starts, so a batch and packed sequences are the
same to a kernel.

Letters: C tokens of a chunk, R tokens of a tile, H heads of k and v, G query heads per head of k, K key channels, V value
channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..tiles import C, Layout, dot, load_rows, store_rows

R = 16


@triton.jit
def log_decay_to_end(g, first, last, stride, channel, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """For each of ROWS tokens the sum of the log gates after it."""
    last = tl.minimum(last, first + ROWS)
    return tl.cumsum(load_rows(g, first + 1, last, stride, channel, channels, ROWS, COLUMNS), 0, reverse=True)


@triton.jit
def recurrent_forward(
    q, k, v, g, start, o, final, borders, scale,
    H, G, K, V, BK: tl.constexpr, BV: tl.constexpr, HAS_START: tl.constexpr,
):  # fmt: skip
    block, sequence, head = tl.program_id(0), tl.program_id(1) // H, tl.program_id(1) % H
    kk, vv = tl.arange(0, BK), block * BV + tl.arange(0, BV)
    inside = (kk[:, None] < K) & (vv[None, :] < V)
    place = (sequence * H + head).to(tl.int64) * K * V + kk[:, None] * V + vv[None, :]
    state = tl.zeros((BK, BV), tl.float32)
    if HAS_START:
        state = tl.load(start + place, mask=inside, other=0.0)
    for t in range(tl.load(borders + sequence), tl.load(borders + sequence + 1)):
        row = t * H + head
        b_k = tl.load(k + row * K + kk, mask=kk < K, other=0.0).to(tl.float32)
        b_g = tl.load(g + row * K + kk, mask=kk < K, other=0.0).to(tl.float32)
        b_v = tl.load(v + row * V + vv, mask=vv < V, other=0.0).to(tl.float32)
        state = tl.exp(b_g)[:, None] * state + b_k[:, None] * b_v[None, :]
        for i in range(G):
            b_q = tl.load(q + (row * G + i) * K + kk, mask=kk < K, other=0.0).to(tl.float32) * scale
            b_o = tl.sum(b_q[:, None] * state, 0)
            tl.store(o + (row * G + i) * V + vv, b_o.to(o.dtype.element_ty), mask=vv < V)
    tl.store(final + place, state, mask=inside)


@triton.jit
def recurrent_backward(
    q, k, v, g, start, do, dfinal, dq, dk, dv, dg, dstart, borders, scale, tokens,
    H, G, K, V, BK: tl.constexpr, BV: tl.constexpr, HAS_START: tl.constexpr,
):  # fmt: skip
    """dq, dk and dg get one part per block of value channels, to be summed."""
    block, sequence, head = tl.program_id(0), tl.program_id(1) // H, tl.program_id(1) % H
    kk, vv = tl.arange(0, BK), block * BV + tl.arange(0, BV)
    inside = (kk[:, None] < K) & (vv[None, :] < V)
    place = (sequence * H + head).to(tl.int64) * K * V + kk[:, None] * V + vv[None, :]
    first, last = tl.load(borders + sequence), tl.load(borders + sequence + 1)
    part = block.to(tl.int64) * tokens * H * K
    state = tl.zeros((BK, BV), tl.float32)
    if HAS_START:
        state = tl.load(start + place, mask=inside, other=0.0)
    for t in range(first, last):
        row = t * H + head
        b_k = tl.load(k + row * K + kk, mask=kk < K, other=0.0).to(tl.float32)
        b_g = tl.load(g + row * K + kk, mask=kk < K, other=0.0).to(tl.float32)
        b_v = tl.load(v + row * V + vv, mask=vv < V, other=0.0).to(tl.float32)
        state = tl.exp(b_g)[:, None] * state + b_k[:, None] * b_v[None, :]
        for i in range(G):
            b_do = tl.load(do + (row * G + i) * V + vv, mask=vv < V, other=0.0).to(tl.float32)
            tl.store(dq + part * G + (row * G + i) * K + kk, scale * tl.sum(b_do[None, :] * state, 1), mask=kk < K)
    tl.debug_barrier()
    dstate = tl.load(dfinal + place, mask=inside, other=0.0)
    b_dg = tl.sum(state * dstate, 1)
    for step in range(first, last):
        row = (last - 1 - (step - first)) * H + head
        b_k = tl.load(k + row * K + kk, mask=kk < K, other=0.0).to(tl.float32)
        b_g = tl.load(g + row * K + kk, mask=kk < K, other=0.0).to(tl.float32)
        b_v = tl.load(v + row * V + vv, mask=vv < V, other=0.0).to(tl.float32)
        for i in range(G):
            b_q = tl.load(q + (row * G + i) * K + kk, mask=kk < K, other=0.0).to(tl.float32)
            b_do = tl.load(do + (row * G + i) * V + vv, mask=vv < V, other=0.0).to(tl.float32)
            b_dq = tl.load(dq + part * G + (row * G + i) * K + kk, mask=kk < K, other=0.0)
            dstate += scale * b_q[:, None] * b_do[None, :]
            b_dg += b_q * b_dq
        b_dk = tl.sum(dstate * b_v[None, :], 1)
        b_dg -= b_k * b_dk
        tl.store(dk + part + row * K + kk, b_dk, mask=kk < K)
        tl.store(dg + part + row * K + kk, b_dg, mask=kk < K)
        tl.store(dv + row * V + vv, tl.sum(dstate * b_k[:, None], 0).to(dv.dtype.element_ty), mask=vv < V)
        dstate *= tl.exp(b_g)[:, None]
    tl.store(dstart + place, dstate, mask=inside)


@triton.jit
def chunk_states(
    k, v, g, start, before, final, chunks, starts, ends,
    H, K, V, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_START: tl.constexpr,
):  # fmt: skip
    """The state before each chunk, (chunks, H, K, V), and after the last one."""
    channel, value = tl.program_id(0) * BK, tl.program_id(1) * BV
    sequence, head = tl.program_id(2) // H, tl.program_id(2) % H
    kk, vv = channel + tl.arange(0, BK), value + tl.arange(0, BV)
    inside = (kk[:, None] < K) & (vv[None, :] < V)
    place = kk[:, None] * V + vv[None, :]
    k, v, g = k + head * K, v + head * V, g + head * K
    state = tl.zeros((BK, BV), tl.float32)
    if HAS_START:
        state = tl.load(start + (sequence * H + head).to(tl.int64) * K * V + place, mask=inside, other=0.0)
    for n in range(tl.load(chunks + sequence), tl.load(chunks + sequence + 1)):
        first, last = tl.load(starts + n), tl.load(ends + n)
        tl.store(before + (n * H + head).to(tl.int64) * K * V + place, state, mask=inside)
        decay = tl.exp(tl.sum(load_rows(g, first, tl.minimum(last, first + C), H * K, channel, K, C, BK), 0))
        b_k = load_rows(k, first, last, H * K, channel, K, C, BK)
        b_k *= tl.exp(log_decay_to_end(g, first, last, H * K, channel, K, C, BK))
        b_v = load_rows(v, first, last, H * V, value, V, C, BV)
        state = decay[:, None] * state + dot(tl.trans(b_k), b_v, k.dtype.element_ty)
    tl.store(final + (sequence * H + head).to(tl.int64) * K * V + place, state, mask=inside)


@triton.jit
def chunk_dstates(
    q, g, do, dfinal, after, dstart, chunks, starts, ends, scale,
    H, G, K, V, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The gradient of the state after each chunk, (chunks, H, K, V), and of the one before the first."""
    channel, value = tl.program_id(0) * BK, tl.program_id(1) * BV
    sequence, head = tl.program_id(2) // H, tl.program_id(2) % H
    kk, vv = channel + tl.arange(0, BK), value + tl.arange(0, BV)
    inside = (kk[:, None] < K) & (vv[None, :] < V)
    place = kk[:, None] * V + vv[None, :]
    g = g + head * K
    dstate = tl.load(dfinal + (sequence * H + head).to(tl.int64) * K * V + place, mask=inside, other=0.0)
    begin, stop = tl.load(chunks + sequence), tl.load(chunks + sequence + 1)
    for step in range(begin, stop):
        n = stop - 1 - (step - begin)
        first, last = tl.load(starts + n), tl.load(ends + n)
        tl.store(after + (n * H + head).to(tl.int64) * K * V + place, dstate, mask=inside)
        b_g = load_rows(g, first, tl.minimum(last, first + C), H * K, channel, K, C, BK)
        dstate *= tl.exp(tl.sum(b_g, 0))[:, None]
        from_start = tl.exp(tl.cumsum(b_g, 0)) * scale
        for i in range(G):
            b_q = load_rows(q + (head * G + i) * K, first, last, H * G * K, channel, K, C, BK) * from_start
            b_do = load_rows(do + (head * G + i) * V, first, last, H * G * V, value, V, C, BV)
            dstate += dot(tl.trans(b_q), b_do, q.dtype.element_ty)
    tl.store(dstart + (sequence * H + head).to(tl.int64) * K * V + place, dstate, mask=inside)


@triton.jit
def chunk_scores(
    q, k, g, scores, starts, ends, scale,
    H, G, K, C: tl.constexpr, R: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One R x R tile of scale * q_i k_j exp(log decay from j to i), (chunks, H*G, C, C); tiles above the diagonal stay zero."""
    n, i, j = tl.program_id(0), tl.program_id(1) // (C // R), tl.program_id(1) % (C // R)
    query_head = tl.program_id(2)
    head = query_head // G
    start, last = tl.load(starts + n), tl.load(ends + n)
    if (j > i) | (start + i * R >= last):
        return
    q, k, g = q + query_head * K, k + head * K, g + head * K
    rows, kk = tl.arange(0, R), tl.arange(0, BK)
    if i == j:
        tile = tl.zeros((R, R), tl.float32)
        keys = tl.zeros((R, BK), tl.float32)
        for t in range(R):
            token = (start + i * R + t).to(tl.int64)
            present = kk < tl.where(token < last, K, 0)
            b_q = tl.load(q + token * H * G * K + kk, mask=present, other=0.0).to(tl.float32)
            b_k = tl.load(k + token * H * K + kk, mask=present, other=0.0).to(tl.float32)
            b_g = tl.load(g + token * H * K + kk, mask=present, other=0.0).to(tl.float32)
            keys = tl.where(rows[:, None] == t, b_k[None, :], keys * tl.exp(b_g)[None, :])
            tile = tl.where(rows[:, None] == t, tl.sum(keys * b_q[None, :], 1)[None, :], tile)
    else:
        rest = log_decay_to_end(g, start + j * R, last, H * K, 0, K, R, BK)
        for between in range(j + 1, i):
            rest += tl.sum(load_rows(g, start + between * R, last, H * K, 0, K, R, BK), 0)[None, :]
        b_k = load_rows(k, start + j * R, last, H * K, 0, K, R, BK) * tl.exp(rest)
        to_token = tl.cumsum(load_rows(g, start + i * R, last, H * K, 0, K, R, BK), 0)
        b_q = load_rows(q, start + i * R, last, H * G * K, 0, K, R, BK) * tl.exp(to_token)
        tile = dot(b_q, tl.trans(b_k), q.dtype.element_ty)
    target = (
        scores + (n * H * G + query_head).to(tl.int64) * C * C + (i * R + rows[:, None]) * C + j * R + rows[None, :]
    )
    tl.store(target, tile * scale)


@triton.jit
def chunk_output(
    q, v, g, before, scores, o, starts, ends, scale,
    H, G, K, V, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    n, value, query_head = tl.program_id(0), tl.program_id(1) * BV, tl.program_id(2)
    head = query_head // G
    first, last = tl.load(starts + n), tl.load(ends + n)
    before += (n * H + head).to(tl.int64) * K * V
    b_o = tl.zeros((C, BV), tl.float32)
    for channel in range(0, K, BK):
        b_q = load_rows(q + query_head * K, first, last, H * G * K, channel, K, C, BK)
        b_q *= tl.exp(tl.cumsum(load_rows(g + head * K, first, last, H * K, channel, K, C, BK), 0)) * scale
        b_o += dot(b_q, load_rows(before, channel, K, V, value, V, BK, BV), q.dtype.element_ty)
    tile = load_rows(scores + (n * H * G + query_head).to(tl.int64) * C * C, 0, C, C, 0, C, C, C)
    b_o += dot(tile, load_rows(v + head * V, first, last, H * V, value, V, C, BV), q.dtype.element_ty)
    store_rows(o + query_head * V, b_o, first, tl.minimum(last, first + C), H * G * V, value, V, C, BV)


@triton.jit
def chunk_dscores(
    v, do, dscores, starts, ends,
    H, G, V, C: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    n, query_head = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(starts + n), tl.load(ends + n)
    tile = tl.zeros((C, C), tl.float32)
    for value in range(0, V, BV):
        b_do = load_rows(do + query_head * V, first, tl.minimum(last, first + C), H * G * V, value, V, C, BV)
        b_v = load_rows(v + query_head // G * V, first, tl.minimum(last, first + C), H * V, value, V, C, BV)
        tile += dot(b_do, tl.trans(b_v), v.dtype.element_ty)
    store_rows(dscores + (n * H * G + query_head).to(tl.int64) * C * C, tile, 0, C, C, 0, C, C, C)


@triton.jit
def chunk_dv(
    k, g, do, scores, after, dv, starts, ends,
    H, G, K, V, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    n, value, head = tl.program_id(0), tl.program_id(1) * BV, tl.program_id(2)
    first, last = tl.load(starts + n), tl.load(ends + n)
    after += (n * H + head).to(tl.int64) * K * V
    b_dv = tl.zeros((C, BV), tl.float32)
    for i in range(G):
        tile = load_rows(scores + (n * H * G + head * G + i).to(tl.int64) * C * C, 0, C, C, 0, C, C, C)
        b_do = load_rows(do + (head * G + i) * V, first, tl.minimum(last, first + C), H * G * V, value, V, C, BV)
        b_dv += dot(tl.trans(tile), b_do, k.dtype.element_ty)
    for channel in range(0, K, BK):
        b_k = load_rows(k + head * K, first, last, H * K, channel, K, C, BK)
        b_k *= tl.exp(log_decay_to_end(g + head * K, first, last, H * K, channel, K, C, BK))
        b_dv += dot(b_k, load_rows(after, channel, K, V, value, V, BK, BV), k.dtype.element_ty)
    store_rows(dv + head * V, b_dv, first, tl.minimum(last, first + C), H * V, value, V, C, BV)


@triton.jit
def chunk_dq(
    q, k, g, do, before, dscores, dq, starts, ends, scale,
    H, G, K, V, C: tl.constexpr, R: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """One tile of R queries: from the keys of its chunk, and from the state before it."""
    n, i, query_head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = query_head // G
    start, last = tl.load(starts + n), tl.load(ends + n)
    first = start + i * R
    if first >= last:
        return
    k, g = k + head * K, g + head * K
    before += (n * H + head).to(tl.int64) * K * V
    dscores += (n * H * G + query_head).to(tl.int64) * C * C + i * R * C
    rows, kk = tl.arange(0, R), tl.arange(0, BK)
    b_dq = tl.zeros((R, BK), tl.float32)
    passed = tl.zeros((BK,), tl.float32)
    for step in range(0, i):
        j = i - 1 - step
        rest = log_decay_to_end(g, start + j * R, last, H * K, 0, K, R, BK) + passed[None, :]
        b_k = load_rows(k, start + j * R, last, H * K, 0, K, R, BK) * tl.exp(rest)
        b_dq += dot(load_rows(dscores, 0, R, C, j * R, C, R, R), b_k, q.dtype.element_ty)
        passed += tl.sum(load_rows(g, start + j * R, last, H * K, 0, K, R, BK), 0)
    inter = tl.zeros((R, BK), tl.float32)
    for value in range(0, V, BV):
        b_do = load_rows(do + query_head * V, first, last, H * G * V, value, V, R, BV)
        inter += dot(b_do, tl.trans(load_rows(before, 0, K, V, value, V, BK, BV)), q.dtype.element_ty)
    b_dq += inter * tl.exp(passed)[None, :]
    b_dq *= tl.exp(tl.cumsum(load_rows(g, first, last, H * K, 0, K, R, BK), 0))
    keys = tl.zeros((R, BK), tl.float32)
    for t in range(R):
        token = (first + t).to(tl.int64)
        present = kk < tl.where(token < last, K, 0)
        b_k = tl.load(k + token * H * K + kk, mask=present, other=0.0).to(tl.float32)
        b_g = tl.load(g + token * H * K + kk, mask=present, other=0.0).to(tl.float32)
        keys = tl.where(rows[:, None] == t, b_k[None, :], keys * tl.exp(b_g)[None, :])
        gradient = tl.load(dscores + t * C + i * R + rows)
        b_dq += tl.where(rows[:, None] == t, tl.sum(gradient[:, None] * keys, 0)[None, :], 0.0)
    store_rows(dq + query_head * K, b_dq * scale, first, tl.minimum(last, start + C), H * G * K, 0, K, R, BK)


@triton.jit
def chunk_dk(
    q, k, v, g, after, dscores, dk, flow, starts, ends, scale,
    H, G, K, V, C: tl.constexpr, R: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """One tile of R keys: from the queries of its chunk, and through the state after it. `flow` gets the sum of k times the latter."""
    n, j, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start, last = tl.load(starts + n), tl.load(ends + n)
    first = start + j * R
    if first >= last:
        return
    last = tl.minimum(last, start + C)
    k, v, g = k + head * K, v + head * V, g + head * K
    after += (n * H + head).to(tl.int64) * K * V
    rows, kk = tl.arange(0, R), tl.arange(0, BK)
    b_dk = tl.zeros((R, BK), tl.float32)
    passed = tl.zeros((BK,), tl.float32)
    for i in range(j + 1, C // R):
        b_g = load_rows(g, start + i * R, last, H * K, 0, K, R, BK)
        to_token = tl.exp(tl.cumsum(b_g, 0) + passed[None, :]) * scale
        for h in range(G):
            b_q = load_rows(q + (head * G + h) * K, start + i * R, last, H * G * K, 0, K, R, BK) * to_token
            tile = dscores + (n * H * G + head * G + h).to(tl.int64) * C * C + i * R * C
            b_dk += dot(tl.trans(load_rows(tile, 0, R, C, j * R, C, R, R)), b_q, q.dtype.element_ty)
        passed += tl.sum(b_g, 0)
    inter = tl.zeros((R, BK), tl.float32)
    for value in range(0, V, BV):
        b_v = load_rows(v, first, last, H * V, value, V, R, BV)
        inter += dot(b_v, tl.trans(load_rows(after, 0, K, V, value, V, BK, BV)), q.dtype.element_ty)
    rest = tl.exp(log_decay_to_end(g, first, last, H * K, 0, K, R, BK))
    inter *= tl.exp(passed)[None, :] * rest
    b_dk = b_dk * rest + inter
    b_k = load_rows(k, first, last, H * K, 0, K, R, BK)
    tl.store(flow + ((n * (C // R) + j) * H + head).to(tl.int64) * K + kk, tl.sum(b_k * inter, 0), mask=kk < K)
    for h in range(G):
        queries = tl.zeros((R, BK), tl.float32)
        tile = dscores + (n * H * G + head * G + h).to(tl.int64) * C * C + j * R * C + j * R
        for step in range(R):
            t = R - 1 - step
            token = (first + t).to(tl.int64)
            b_q = tl.load(
                q + token * H * G * K + (head * G + h) * K + kk, mask=kk < tl.where(token < last, K, 0), other=0.0
            )
            following = kk < tl.where((t < R - 1) & (token + 1 < last), K, 0)
            b_g = tl.load(g + (token + 1) * H * K + kk, mask=following, other=0.0)
            queries *= tl.exp(b_g.to(tl.float32))[None, :]
            queries = tl.where(rows[:, None] == t, b_q.to(tl.float32)[None, :] * scale, queries)
            gradient = tl.load(tile + rows * C + t)
            b_dk += tl.where(rows[:, None] == t, tl.sum(gradient[:, None] * queries, 0)[None, :], 0.0)
    store_rows(dk + head * K, b_dk, first, last, H * K, 0, K, R, BK)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    scale: float,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(o, final state); arguments and shapes as in `eager.forward`."""
    q, k, v, g = (x.contiguous() for x in (q, k, v, g))
    start = None if initial_state is None else initial_state.float().contiguous()
    layout = Layout(q, k, v, cu_seqlens)
    o = q.new_empty(*q.shape[:3], layout.V)
    final = q.new_empty(layout.state_shape, dtype=torch.float32)
    with torch.cuda.device_of(q):  # the current device may be another one
        if layout.short:
            BV = min(32, layout.BV)
            recurrent_forward[(triton.cdiv(layout.V, BV), layout.sequences * layout.H)](
                q, k, v, g, start, o, final, layout.borders, scale,
                layout.H, layout.G, layout.K, layout.V, layout.BK, BV, start is not None,
            )  # fmt: skip
        else:
            before, scores = _chunk_parts(layout, q, k, v, g, scale, start, final)
            chunk_output[(layout.count, triton.cdiv(layout.V, layout.BV), layout.H * layout.G)](
                q, v, g, before, scores, o, layout.starts, layout.ends, scale,
                layout.H, layout.G, layout.K, layout.V, C, min(64, layout.BK), layout.BV,
            )  # fmt: skip
    return o, final


def _chunk_parts(layout, q, k, v, g, scale, start, final) -> tuple[torch.Tensor, torch.Tensor]:
    """States before the chunks and scores within them, which both passes need."""
    before = q.new_empty(layout.count, *layout.state_shape[1:], dtype=torch.float32)
    scores = q.new_zeros(layout.count, layout.H * layout.G, C, C, dtype=torch.float32)
    BK = min(64, layout.BK)
    chunk_states[layout.blocks(BK)](
        k, v, g, start, before, final, layout.chunks, layout.starts, layout.ends,
        layout.H, layout.K, layout.V, C, BK, layout.BV, start is not None,
    )  # fmt: skip
    chunk_scores[(layout.count, (C // R) ** 2, layout.H * layout.G)](
        q, k, g, scores, layout.starts, layout.ends, scale, layout.H, layout.G, layout.K, C, R, layout.BK
    )
    return before, scores


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
    """Gradients of q, k, v, g and the initial state; arguments and shapes as in `eager.backward`."""
    q, k, v, g, do = (x.contiguous() for x in (q, k, v, g, grad_o))
    start = None if initial_state is None else initial_state.float().contiguous()
    dfinal = grad_final.float().contiguous()
    layout = Layout(q, k, v, cu_seqlens)
    dv, dstart = torch.empty_like(v), torch.empty_like(dfinal)
    with torch.cuda.device_of(q):  # the current device may be another one
        if layout.short:
            BV = min(32, layout.BV)
            blocks = triton.cdiv(layout.V, BV)
            dq, dk, dg = (x.new_empty(blocks, *x.shape, dtype=torch.float32) for x in (q, k, g))
            recurrent_backward[(blocks, layout.sequences * layout.H)](
                q, k, v, g, start, do, dfinal, dq, dk, dv, dg, dstart, layout.borders, scale, layout.tokens,
                layout.H, layout.G, layout.K, layout.V, layout.BK, BV, start is not None,
            )  # fmt: skip
            dq, dk, dg = (x.sum(0) for x in (dq, dk, dg))
        else:
            dq, dk, dg = _chunk_gradients(layout, q, k, v, g, do, scale, start, dfinal, dv, dstart)
    return dq.to(q.dtype), dk.to(k.dtype), dv, dg.to(g.dtype), dstart


def _chunk_gradients(layout, q, k, v, g, do, scale, start, dfinal, dv, dstart):
    sizes = (layout.H, layout.G, layout.K, layout.V)
    before, scores = _chunk_parts(layout, q, k, v, g, scale, start, torch.empty_like(dfinal))
    after, dscores = torch.empty_like(before), torch.empty_like(scores)
    BK, tiles = min(64, layout.BK), C // R
    chunk_dstates[layout.blocks(BK)](
        q, g, do, dfinal, after, dstart, layout.chunks, layout.starts, layout.ends, scale, *sizes, C, BK, layout.BV
    )
    chunk_dscores[(layout.count, layout.H * layout.G)](
        v, do, dscores, layout.starts, layout.ends, layout.H, layout.G, layout.V, C, layout.BV
    )
    chunk_dv[(layout.count, triton.cdiv(layout.V, layout.BV), layout.H)](
        k, g, do, scores, after, dv, layout.starts, layout.ends, *sizes, C, BK, layout.BV
    )
    dq, dk = torch.empty_like(q, dtype=torch.float32), torch.empty_like(k, dtype=torch.float32)
    flow = q.new_zeros(layout.count, tiles, layout.H, layout.K, dtype=torch.float32)
    BV = min(32, layout.BV)
    chunk_dq[(layout.count, tiles, layout.H * layout.G)](
        q, k, g, do, before, dscores, dq, layout.starts, layout.ends, scale, *sizes, C, R, layout.BK, BV
    )
    chunk_dk[(layout.count, tiles, layout.H)](
        q, k, v, g, after, dscores, dk, flow, layout.starts, layout.ends, scale, *sizes, C, R, layout.BK, BV
    )

    # dg_t = sum of q dq - k dk from t to the end of its chunk + rowsum(S_end D_end), as in eager.backward
    token = torch.arange(layout.tokens, device=q.device)
    chunk = torch.searchsorted(layout.starts, token, right=True) - 1
    slot = chunk * C + token - layout.starts[chunk]
    heads = (layout.H, layout.K)
    difference = (q.float() * dq).view(-1, layout.H, layout.G, layout.K).sum(2) - (k.float() * dk).view(-1, *heads)
    gates = g.float().view(-1, *heads)
    placed = q.new_zeros(2, layout.count * C, *heads, dtype=torch.float32)
    placed[:, slot] = torch.stack((difference, gates))
    difference, gates = placed.unflatten(1, (-1, C))
    through = gates.sum(1).exp() * (before * after).sum(-1) + flow.sum(1)
    dg = difference.flip(1).cumsum(1).flip(1) + through.unsqueeze(1)
    return dq, dk, dg.flatten(0, 1)[slot].view(g.shape)
