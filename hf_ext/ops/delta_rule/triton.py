"""The delta rule in Triton: a recurrent form for short inputs and a chunk form for long ones, both with backward.

Papers: arXiv 2406.06484, section 3; arXiv 2411.12537. Reference: fla-org/flash-linear-attention, `fla/ops/delta_rule`.

On purpose different from the reference:
- float32 is allowed, and the triangular inverse is kept and multiplied in it whatever the inputs' type;
- one kernel carries the state through a head's chunks and writes their errors on the way: the WY factors W and U are never stored;
- what is transposed before a product comes from memory as it is: Triton 3.4 to 3.7 wrongly compile for Hopper GPUs some products of 16-bit
  tiles that were computed or converted in registers and then transposed, so such transposes are products of their own;
- the recurrent backward keeps one vector per token, what the state misses of the value, and runs forward again from those.

The chunk equations and the gradients are those of `eager.py`. Tokens of all sequences lie along one axis; `borders` says where each
sequence starts, so a batch and packed sequences are the same to a kernel.

Letters: C tokens of a chunk, H heads, K key channels, V value channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..tiles import C, Layout, dot, load_as_is, load_rows, store_rows


@triton.jit
def load_column(pointer, first, last, stride, ROWS: tl.constexpr):
    """One number of each of ROWS tokens from `first` on, float32, zeros outside."""
    rows = first + tl.arange(0, ROWS)
    return tl.load(pointer + rows.to(tl.int64) * stride, mask=rows < last, other=0.0).to(tl.float32)


@triton.jit
def recurrent_forward(
    q, k, v, beta, start, o, final, borders, scale,
    H, K, V, BK: tl.constexpr, BV: tl.constexpr, HAS_START: tl.constexpr,
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
        b_q = tl.load(q + row * K + kk, mask=kk < K, other=0.0).to(tl.float32) * scale
        b_k = tl.load(k + row * K + kk, mask=kk < K, other=0.0).to(tl.float32)
        b_v = tl.load(v + row * V + vv, mask=vv < V, other=0.0).to(tl.float32)
        error = tl.load(beta + row).to(tl.float32) * (b_v - tl.sum(b_k[:, None] * state, 0))
        state += b_k[:, None] * error[None, :]
        tl.store(o + row * V + vv, tl.sum(b_q[:, None] * state, 0).to(o.dtype.element_ty), mask=vv < V)
    tl.store(final + place, state, mask=inside)


@triton.jit
def recurrent_backward(
    q, k, v, beta, start, do, dfinal, missed, dvalue, dq, dk, dbeta, dstart, borders, scale, tokens,
    H, K, V, BK: tl.constexpr, BV: tl.constexpr, HAS_START: tl.constexpr,
):  # fmt: skip
    """dq, dk and dbeta get one part per block of value channels, to be summed. `missed` gets v - S^T k, `dvalue` the gradient of v."""
    block, sequence, head = tl.program_id(0), tl.program_id(1) // H, tl.program_id(1) % H
    kk, vv = tl.arange(0, BK), block * BV + tl.arange(0, BV)
    inside = (kk[:, None] < K) & (vv[None, :] < V)
    place = (sequence * H + head).to(tl.int64) * K * V + kk[:, None] * V + vv[None, :]
    first, last = tl.load(borders + sequence), tl.load(borders + sequence + 1)
    part = block.to(tl.int64) * tokens * H
    state = tl.zeros((BK, BV), tl.float32)
    if HAS_START:
        state = tl.load(start + place, mask=inside, other=0.0)
    for t in range(first, last):
        row = t * H + head
        b_k = tl.load(k + row * K + kk, mask=kk < K, other=0.0).to(tl.float32)
        b_v = tl.load(v + row * V + vv, mask=vv < V, other=0.0).to(tl.float32)
        residual = b_v - tl.sum(b_k[:, None] * state, 0)
        tl.store(missed + row * V + vv, residual, mask=vv < V)
        state += b_k[:, None] * (tl.load(beta + row).to(tl.float32) * residual)[None, :]
    tl.debug_barrier()
    dstate = tl.load(dfinal + place, mask=inside, other=0.0)
    for step in range(first, last):
        row = (last - 1 - (step - first)) * H + head
        b_q = tl.load(q + row * K + kk, mask=kk < K, other=0.0).to(tl.float32) * scale
        b_k = tl.load(k + row * K + kk, mask=kk < K, other=0.0).to(tl.float32)
        b_do = tl.load(do + row * V + vv, mask=vv < V, other=0.0).to(tl.float32)
        residual = tl.load(missed + row * V + vv, mask=vv < V, other=0.0)
        size = tl.load(beta + row).to(tl.float32)
        dstate += b_q[:, None] * b_do[None, :]
        derror = tl.sum(dstate * b_k[:, None], 0)
        b_dv = size * derror
        tl.store(dk + (part + row) * K + kk, tl.sum(dstate * (size * residual)[None, :], 1), mask=kk < K)
        tl.store(dbeta + part + row, tl.sum(derror * residual))
        tl.store(dvalue + row * V + vv, b_dv, mask=vv < V)
        dstate -= b_k[:, None] * b_dv[None, :]
    tl.store(dstart + place, dstate, mask=inside)
    tl.debug_barrier()
    state = tl.zeros((BK, BV), tl.float32)
    if HAS_START:
        state = tl.load(start + place, mask=inside, other=0.0)
    for t in range(first, last):
        row = t * H + head
        b_k = tl.load(k + row * K + kk, mask=kk < K, other=0.0).to(tl.float32)
        b_do = tl.load(do + row * V + vv, mask=vv < V, other=0.0).to(tl.float32)
        b_dv = tl.load(dvalue + row * V + vv, mask=vv < V, other=0.0)
        b_dk = tl.load(dk + (part + row) * K + kk, mask=kk < K, other=0.0) - tl.sum(state * b_dv[None, :], 1)
        tl.store(dk + (part + row) * K + kk, b_dk, mask=kk < K)
        residual = tl.load(missed + row * V + vv, mask=vv < V, other=0.0)
        state += b_k[:, None] * (tl.load(beta + row).to(tl.float32) * residual)[None, :]
        tl.store(dq + (part + row) * K + kk, scale * tl.sum(state * b_do[None, :], 1), mask=kk < K)


@triton.jit
def chunk_inverse(k, beta, inverse, starts, ends, H, K, C: tl.constexpr, BK: tl.constexpr):
    """T = (I + tril(diag(beta) K K^T, -1))^-1 row by row, (chunks, H, C, C)"""
    n, head = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(starts + n), tl.load(ends + n)
    rows = tl.arange(0, C)
    products = tl.zeros((C, C), tl.float32)
    for channel in range(0, K, BK):
        b_k = load_rows(k + head * K, first, last, H * K, channel, K, C, BK)
        products += dot(b_k, tl.trans(b_k), k.dtype.element_ty)
    size = load_column(beta + head, first, last, H, C)
    lower = tl.where(rows[:, None] > rows[None, :], size[:, None] * products, 0.0)
    tile = tl.where(rows[:, None] == rows[None, :], 1.0, 0.0)
    for t in range(1, C):
        coefficients = tl.sum(tl.where(rows[:, None] == t, lower, 0.0), 0)  # of the rows above
        row = tl.sum(coefficients[:, None] * tile, 0)
        tile = tl.where(rows[:, None] == t, tile - row[None, :], tile)
    store_rows(inverse + (n * H + head).to(tl.int64) * C * C, tile, 0, C, C, 0, C, C, C)


@triton.jit
def chunk_errors(
    k, v, beta, inverse, start, before, errors, final, chunks, starts, ends,
    H, K, V, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_START: tl.constexpr,
):  # fmt: skip
    """E = T diag(beta) (V - K S) and the state before each chunk, along the chunks of one sequence and head; BK holds all key channels."""
    value, sequence, head = tl.program_id(0) * BV, tl.program_id(1) // H, tl.program_id(1) % H
    kk, vv = tl.arange(0, BK), value + tl.arange(0, BV)
    inside = (kk[:, None] < K) & (vv[None, :] < V)
    place = kk[:, None] * V + vv[None, :]
    state = tl.zeros((BK, BV), tl.float32)
    if HAS_START:
        state = tl.load(start + (sequence * H + head).to(tl.int64) * K * V + place, mask=inside, other=0.0)
    for n in range(tl.load(chunks + sequence), tl.load(chunks + sequence + 1)):
        first, last = tl.load(starts + n), tl.load(ends + n)
        tl.store(before + (n * H + head).to(tl.int64) * K * V + place, state, mask=inside)
        b_k = load_as_is(k + head * K, first, last, H * K, 0, K, C, BK)
        residual = load_rows(v + head * V, first, last, H * V, value, V, C, BV) - dot(b_k, state, k.dtype.element_ty)
        residual *= load_column(beta + head, first, last, H, C)[:, None]
        tile = load_rows(inverse + (n * H + head).to(tl.int64) * C * C, 0, C, C, 0, C, C, C)
        error = dot(tile, residual, tl.float32)
        store_rows(errors + head * V, error, first, tl.minimum(last, first + C), H * V, value, V, C, BV)
        state += dot(tl.trans(b_k), error, k.dtype.element_ty)
    tl.store(final + (sequence * H + head).to(tl.int64) * K * V + place, state, mask=inside)


@triton.jit
def chunk_scores(q, k, first, last, head, H, K, C: tl.constexpr, BK: tl.constexpr, TRANSPOSED: tl.constexpr):
    """tril(Q K^T) of one chunk and head, or its transpose, (C, C)"""
    rows = tl.arange(0, C)
    scores = tl.zeros((C, C), tl.float32)
    for channel in range(0, K, BK):
        b_q = load_rows(q + head * K, first, last, H * K, channel, K, C, BK)
        b_k = load_rows(k + head * K, first, last, H * K, channel, K, C, BK)
        if TRANSPOSED:
            scores += dot(b_k, tl.trans(b_q), q.dtype.element_ty)
        else:
            scores += dot(b_q, tl.trans(b_k), q.dtype.element_ty)
    if TRANSPOSED:
        return tl.where(rows[:, None] <= rows[None, :], scores, 0.0)
    else:
        return tl.where(rows[:, None] >= rows[None, :], scores, 0.0)


@triton.jit
def chunk_output(
    q, k, before, errors, o, starts, ends, scale,
    H, K, V, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    n, value, head = tl.program_id(0), tl.program_id(1) * BV, tl.program_id(2)
    first, last = tl.load(starts + n), tl.load(ends + n)
    before += (n * H + head).to(tl.int64) * K * V
    scores = chunk_scores(q, k, first, last, head, H, K, C, BK, False)
    b_o = dot(scores, load_rows(errors + head * V, first, last, H * V, value, V, C, BV), q.dtype.element_ty)
    for channel in range(0, K, BK):
        b_q = load_rows(q + head * K, first, last, H * K, channel, K, C, BK)
        b_o += dot(b_q, load_rows(before, channel, K, V, value, V, BK, BV), q.dtype.element_ty)
    store_rows(o + head * V, b_o * scale, first, tl.minimum(last, first + C), H * V, value, V, C, BV)


@triton.jit
def chunk_dstates(
    q, k, beta, inverse, do, dfinal, after, dscaled, dstart, chunks, starts, ends, scale,
    H, K, V, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The gradients of the state after each chunk and of diag(beta) (V - K S), backwards along the chunks of one sequence and head."""
    value, sequence, head = tl.program_id(0) * BV, tl.program_id(1) // H, tl.program_id(1) % H
    kk, vv = tl.arange(0, BK), value + tl.arange(0, BV)
    inside = (kk[:, None] < K) & (vv[None, :] < V)
    place = kk[:, None] * V + vv[None, :]
    dstate = tl.load(dfinal + (sequence * H + head).to(tl.int64) * K * V + place, mask=inside, other=0.0)
    begin, stop = tl.load(chunks + sequence), tl.load(chunks + sequence + 1)
    for step in range(begin, stop):
        n = stop - 1 - (step - begin)
        first, last = tl.load(starts + n), tl.load(ends + n)
        tl.store(after + (n * H + head).to(tl.int64) * K * V + place, dstate, mask=inside)
        b_k = load_as_is(k + head * K, first, last, H * K, 0, K, C, BK)
        b_do = load_rows(do + head * V, first, last, H * V, value, V, C, BV) * scale
        scores = chunk_scores(q, k, first, last, head, H, K, C, BK, True)
        derror = dot(scores, b_do, q.dtype.element_ty) + dot(b_k, dstate, k.dtype.element_ty)
        tile = load_rows(inverse + (n * H + head).to(tl.int64) * C * C, 0, C, C, 0, C, C, C)
        b_ds = dot(tl.trans(tile), derror, tl.float32)
        store_rows(dscaled + head * V, b_ds, first, tl.minimum(last, first + C), H * V, value, V, C, BV)
        b_dv = b_ds * load_column(beta + head, first, last, H, C)[:, None]
        b_q = load_as_is(q + head * K, first, last, H * K, 0, K, C, BK)
        dstate += dot(tl.trans(b_q), b_do, q.dtype.element_ty) - dot(tl.trans(b_k), b_dv, k.dtype.element_ty)
    tl.store(dstart + (sequence * H + head).to(tl.int64) * K * V + place, dstate, mask=inside)


@triton.jit
def chunk_gradients(
    q, k, v, beta, do, before, after, errors, dscaled, dq, dk, dbeta, starts, ends, scale,
    H, K, V, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """dq, dk and dbeta of one chunk and head."""
    n, head = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(starts + n), tl.load(ends + n)
    end = tl.minimum(last, first + C)
    q, k, v, do = q + head * K, k + head * K, v + head * V, do + head * V
    errors, dscaled = errors + head * V, dscaled + head * V
    before += (n * H + head).to(tl.int64) * K * V
    after += (n * H + head).to(tl.int64) * K * V
    rows = tl.arange(0, C)
    size = load_column(beta + head, first, last, H, C)
    b_dbeta = tl.zeros((C,), tl.float32)
    dscores, dlower, products = tl.zeros((C, C), tl.float32), tl.zeros((C, C), tl.float32), tl.zeros((C, C), tl.float32)
    dscores_t, dlower_t = tl.zeros((C, C), tl.float32), tl.zeros((C, C), tl.float32)
    for value in range(0, V, BV):
        error = load_rows(errors, first, last, H * V, value, V, C, BV)
        b_ds = load_rows(dscaled, first, last, H * V, value, V, C, BV)
        b_do = load_rows(do, first, last, H * V, value, V, C, BV)
        dscores += dot(b_do, tl.trans(error), q.dtype.element_ty)
        dscores_t += dot(error, tl.trans(b_do), q.dtype.element_ty)
        dlower -= dot(b_ds, tl.trans(error), q.dtype.element_ty)
        dlower_t -= dot(error, tl.trans(b_ds), q.dtype.element_ty)
        b_dbeta += tl.sum(b_ds * load_rows(v, first, last, H * V, value, V, C, BV), 1)
    for channel in range(0, K, BK):
        b_k = load_rows(k, first, last, H * K, channel, K, C, BK)
        products += dot(b_k, tl.trans(b_k), k.dtype.element_ty)
    dscores = tl.where(rows[:, None] >= rows[None, :], dscores * scale, 0.0)
    dscores_t = tl.where(rows[:, None] <= rows[None, :], dscores_t * scale, 0.0)
    dlower = tl.where(rows[:, None] > rows[None, :], dlower, 0.0)
    dlower_t = tl.where(rows[:, None] < rows[None, :], dlower_t, 0.0)
    b_dbeta += tl.sum(dlower * products, 1)
    dproducts = size[:, None] * dlower + size[None, :] * dlower_t
    for channel in range(0, K, BK):
        b_q = load_rows(q, first, last, H * K, channel, K, C, BK)
        b_k = load_rows(k, first, last, H * K, channel, K, C, BK)
        b_dq = dot(dscores, b_k, q.dtype.element_ty)
        b_dk = dot(dscores_t, b_q, q.dtype.element_ty) + dot(dproducts, b_k, k.dtype.element_ty)
        through = tl.zeros((C, BK), tl.float32)  # of dscaled to what was recalled
        for value in range(0, V, BV):
            error = load_rows(errors, first, last, H * V, value, V, C, BV)
            b_ds = load_rows(dscaled, first, last, H * V, value, V, C, BV)
            b_do = load_rows(do, first, last, H * V, value, V, C, BV) * scale
            b_before = tl.trans(load_rows(before, channel, K, V, value, V, BK, BV))
            b_dq += dot(b_do, b_before, q.dtype.element_ty)
            b_dk += dot(error, tl.trans(load_rows(after, channel, K, V, value, V, BK, BV)), k.dtype.element_ty)
            through += dot(b_ds, b_before, k.dtype.element_ty)
        b_dbeta -= tl.sum(through * b_k, 1)
        store_rows(dq + head * K, b_dq, first, end, H * K, channel, K, C, BK)
        store_rows(dk + head * K, b_dk - size[:, None] * through, first, end, H * K, channel, K, C, BK)
    tl.store(
        dbeta + (first + rows).to(tl.int64) * H + head, b_dbeta.to(dbeta.dtype.element_ty), mask=first + rows < end
    )


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    scale: float,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(o, final state); arguments and shapes as in `eager.forward`."""
    q, k, v, beta = (x.contiguous() for x in (q, k, v, beta))
    start = None if initial_state is None else initial_state.float().contiguous()
    layout = Layout(q, k, v, cu_seqlens)
    o = q.new_empty(*q.shape[:3], layout.V)
    final = q.new_empty(layout.state_shape, dtype=torch.float32)
    sizes, BV = (layout.H, layout.K, layout.V), min(32, layout.BV)
    with torch.cuda.device_of(q):  # the current device may be another one
        if layout.short:
            recurrent_forward[(triton.cdiv(layout.V, BV), layout.sequences * layout.H)](
                q, k, v, beta, start, o, final, layout.borders, scale, *sizes, layout.BK, BV, start is not None
            )
        else:
            _, before, errors = _chunk_parts(layout, k, v, beta, start, final)
            chunk_output[(layout.count, triton.cdiv(layout.V, layout.BV), layout.H)](
                q, k, before, errors, o, layout.starts, layout.ends, scale, *sizes, C, min(64, layout.BK), layout.BV
            )
    return o, final


def _chunk_parts(layout, k, v, beta, start, final) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inverses, states before the chunks and errors, which both passes need."""
    inverse = k.new_empty(layout.count, layout.H, C, C, dtype=torch.float32)
    before = k.new_empty(layout.count, *layout.state_shape[1:], dtype=torch.float32)
    errors, BV = torch.empty_like(v, dtype=torch.float32), _value_block(layout, k.dtype)
    chunk_inverse[(layout.count, layout.H)](
        k, beta, inverse, layout.starts, layout.ends, layout.H, layout.K, C, min(64, layout.BK)
    )
    chunk_errors[(triton.cdiv(layout.V, BV), layout.sequences * layout.H)](
        k, v, beta, inverse, start, before, errors, final, layout.chunks, layout.starts, layout.ends,
        layout.H, layout.K, layout.V, C, layout.BK, BV, start is not None,
    )  # fmt: skip
    return inverse, before, errors


def _value_block(layout: Layout, dtype: torch.dtype) -> int:
    """Value channels of a program that carries a state with all key channels: as many as leave room for its tiles."""
    return min(16 if layout.BK > 128 and dtype == torch.float32 else 32, layout.BV)


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
    """Gradients of q, k, v, beta and the initial state; arguments and shapes as in `eager.backward`."""
    q, k, v, beta, do = (x.contiguous() for x in (q, k, v, beta, grad_o))
    start = None if initial_state is None else initial_state.float().contiguous()
    dfinal = grad_final.float().contiguous()
    layout = Layout(q, k, v, cu_seqlens)
    sizes, BV = (layout.H, layout.K, layout.V), _value_block(layout, k.dtype)
    blocks, dstart = triton.cdiv(layout.V, BV), torch.empty_like(dfinal)
    with torch.cuda.device_of(q):  # the current device may be another one
        if layout.short:
            dq, dk, dbeta = (x.new_empty(blocks, *x.shape, dtype=torch.float32) for x in (q, k, beta))
            missed, dv = (torch.empty_like(v, dtype=torch.float32) for _ in range(2))
            recurrent_backward[(blocks, layout.sequences * layout.H)](
                q, k, v, beta, start, do, dfinal, missed, dv, dq, dk, dbeta, dstart, layout.borders, scale, layout.tokens,
                *sizes, layout.BK, BV, start is not None,
            )  # fmt: skip
            dq, dk, dbeta = (x.sum(0) for x in (dq, dk, dbeta))
        else:
            inverse, before, errors = _chunk_parts(layout, k, v, beta, start, torch.empty_like(dfinal))
            after, dscaled = torch.empty_like(before), torch.empty_like(errors)
            chunk_dstates[(blocks, layout.sequences * layout.H)](
                q, k, beta, inverse, do, dfinal, after, dscaled, dstart, layout.chunks, layout.starts, layout.ends, scale,
                *sizes, C, layout.BK, BV, num_stages=2,
            )  # fmt: skip
            dq, dk, dbeta = (torch.empty_like(x) for x in (q, k, beta))
            chunk_gradients[(layout.count, layout.H)](
                q, k, v, beta, do, before, after, errors, dscaled, dq, dk, dbeta, layout.starts, layout.ends, scale,
                *sizes, C, min(32, layout.BK), BV,
            )  # fmt: skip
            dv = dscaled * beta.unsqueeze(-1)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dbeta.to(beta.dtype), dstart
