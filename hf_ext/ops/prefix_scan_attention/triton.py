"""Prefix softmax attention in Triton: one kernel walks the chunks of a sequence and head forwards, one walks them back.

Paper: "Attention as an RNN", arXiv 2405.13956. The equations, and why nothing overflows, are those of `eager.py`. Keys and values of any
floating type are read as they are, and sums are kept in float32; a key is read once for each block of value channels, a value once.

Letters: C tokens of a chunk, H heads, K key channels, V value channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..tiles import C, load_rows, store_rows


@triton.jit
def exp_of_difference(x, y):
    """exp(x - y), 0 where x is minus infinity, even if y is too"""
    return tl.where(x == float("-inf"), 0.0, tl.exp(x - y))


@triton.jit
def product(a, b, EXACT: tl.constexpr):
    """A product of float32 tiles; without EXACT, for values that were rounded to 16 bits before, in tf32."""
    if EXACT:
        return tl.dot(a, b, input_precision="ieee")
    else:
        return tl.dot(a, b, input_precision="tf32")


@triton.jit
def scan_forward(
    q, k, v, mask, a_start, c_start, m_start, o, a, c, m, scores, normalizers, scale,
    T, H, K, V, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_START: tl.constexpr, SAVE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    place, value = tl.program_id(0), tl.program_id(1) * BV
    batch, head = (place // H).to(tl.int64), place % H
    rows, channels = tl.arange(0, C), value + tl.arange(0, BV)
    k, v, o = k + (batch * T * H + head) * K, v + (batch * T * H + head) * V, o + (batch * T * H + head) * V
    scores, normalizers = scores + batch * T * H + head, normalizers + batch * T * H + head
    weighted, total, largest = tl.zeros((BV,), tl.float32), 0.0, float("-inf")
    if HAS_START:
        weighted = tl.load(a_start + place.to(tl.int64) * V + channels, mask=channels < V, other=0.0)
        total, largest = tl.load(c_start + place), tl.load(m_start + place)
    for first in range(0, T, C):
        tokens = first + rows
        counts = tokens < T
        if HAS_MASK:
            counts = counts & (tl.load(mask + batch * T + tokens, mask=counts, other=0) != 0)
        s = tl.zeros((C,), tl.float32)
        for channel in range(0, K, BK):
            columns = channel + tl.arange(0, BK)
            b_q = tl.load(q + head * K + columns, mask=columns < K, other=0.0).to(tl.float32)
            s += tl.sum(load_rows(k, first, T, H * K, channel, K, C, BK) * b_q[None, :], 1)
        s = tl.where(counts, s * scale, float("-inf"))
        prefixes = tl.where(rows[:, None] >= rows[None, :], s[None, :], float("-inf"))
        peaks = tl.maximum(largest, tl.max(prefixes, 1))
        decay = exp_of_difference(largest, peaks)
        weights = exp_of_difference(prefixes, peaks[:, None])
        sums = tl.sum(weights, 1) + total * decay
        b_v = load_rows(v, first, T, H * V, value, V, C, BV)
        b_o = product(weights, b_v, EXACT) + decay[:, None] * weighted[None, :]
        store_rows(o, b_o / tl.where(sums > 0, sums, 1.0)[:, None], first, T, H * V, value, V, C, BV)
        if SAVE:
            once = tokens < tl.where(tl.program_id(1) == 0, T, 0)
            tl.store(scores + tokens.to(tl.int64) * H, s, mask=once)
            tl.store(normalizers + tokens.to(tl.int64) * H, peaks + tl.log(sums), mask=once)
        weighted = tl.sum(tl.where(rows[:, None] == C - 1, b_o, 0.0), 0)
        total = tl.sum(tl.where(rows == C - 1, sums, 0.0))
        largest = tl.max(peaks)
    tl.store(a + place.to(tl.int64) * V + channels, weighted, mask=channels < V)
    if tl.program_id(1) == 0:
        tl.store(c + place, total)
        tl.store(m + place, largest)


@triton.jit
def scan_backward(
    v, grad_o, later_start, dot_start, scores, normalizers, dots, m_start, dv, ds, da, dc,
    size, T, H, V, C: tl.constexpr, BV: tl.constexpr, HAS_START: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dv, and the gradient of the scaled scores in one part per block of value channels, to be summed."""
    place, value = tl.program_id(0), tl.program_id(1) * BV
    batch, head = (place // H).to(tl.int64), place % H
    rows, channels = tl.arange(0, C), value + tl.arange(0, BV)
    row = batch * T * H + head
    v, grad_o, dv = v + row * V, grad_o + row * V, dv + row * V
    scores, normalizers, dots = scores + row, normalizers + row, dots + row
    ds += tl.program_id(1).to(tl.int64) * size + row
    later = tl.load(later_start + place.to(tl.int64) * V + channels, mask=channels < V, other=0.0)
    later_dot = tl.load(dot_start + place)
    for step in range(0, tl.cdiv(T, C)):
        first = (tl.cdiv(T, C) - 1 - step) * C
        tokens = first + rows
        inside, at = tokens < T, tokens.to(tl.int64) * H
        s = tl.load(scores + at, mask=inside, other=float("-inf"))
        L = tl.load(normalizers + at, mask=inside, other=float("inf"))
        end = tl.load(normalizers + (tl.minimum(first + C, T) - 1).to(tl.int64) * H)
        dot = tl.load(dots + at, mask=inside, other=0.0)
        lower = (rows[:, None] >= rows[None, :]) & inside[:, None]
        weights = tl.where(lower, exp_of_difference(s[None, :], L[:, None]), 0.0)
        to_end = exp_of_difference(s, end)
        b_do = load_rows(grad_o, first, T, H * V, value, V, C, BV)
        sums = product(tl.trans(weights), b_do, EXACT) + to_end[:, None] * later[None, :]
        store_rows(dv, sums, first, T, H * V, value, V, C, BV)
        part = tl.sum(sums * load_rows(v, first, T, H * V, value, V, C, BV), 1)
        if tl.program_id(1) == 0:
            part -= tl.sum(weights * dot[:, None], 0) + to_end * later_dot
        tl.store(ds + at, part, mask=inside)
        start = float("-inf")
        if HAS_START:
            start = tl.load(m_start + place)
        if first > 0:
            start = tl.load(normalizers + (first - 1).to(tl.int64) * H)
        to_start = tl.where(inside, exp_of_difference(start, L), 0.0)
        across = exp_of_difference(start, end)
        later = tl.sum(to_start[:, None] * b_do, 0) + across * later
        later_dot = tl.sum(to_start * dot) + across * later_dot
    if HAS_START:
        tl.store(da + place.to(tl.int64) * V + channels, later, mask=channels < V)
        if tl.program_id(1) == 0:
            tl.store(dc + place, -later_dot)


@triton.jit
def key_gradients(
    q, k, ds, dq, dk, scale, parts, size, B, T, H, K, C: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dk, and dq in one part per chunk, to be summed."""
    first, place, channel = tl.program_id(0) * C, tl.program_id(1), tl.program_id(2) * BK
    batch, head = (place // H).to(tl.int64), place % H
    row = batch * T * H + head
    tokens, columns = first + tl.arange(0, C), channel + tl.arange(0, BK)
    slope = tl.zeros((C,), tl.float32)
    ds += row + tokens.to(tl.int64) * H
    for _ in range(0, parts):
        slope += tl.load(ds, mask=tokens < T, other=0.0)
        ds += size
    slope *= scale
    b_q = tl.load(q + head * K + columns, mask=columns < K, other=0.0).to(tl.float32)
    b_k = load_rows(k + row * K, first, T, H * K, channel, K, C, BK)
    store_rows(dk + row * K, slope[:, None] * b_q[None, :], first, T, H * K, channel, K, C, BK)
    where = (tl.program_id(0).to(tl.int64) * B * H + place) * K + columns
    tl.store(dq + where, tl.sum(slope[:, None] * b_k, 0), mask=columns < K)


def blocks(channels: int) -> tuple[int, int]:
    """(channels of a block, number of blocks)"""
    size = min(64, max(16, triton.next_power_of_2(channels)))
    return size, triton.cdiv(channels, size)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attention_mask: torch.Tensor | None,
    a: torch.Tensor | None,
    c: torch.Tensor | None,
    m: torch.Tensor | None,
    scale: float,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Arguments and results as in `eager.forward`, of any floating types; states, scores and normalisers in float32."""
    q, k, v = (x.contiguous() for x in (q, k, v))
    start = [None if x is None else x.float().contiguous() for x in (a, c, m)]
    mask = None if attention_mask is None else attention_mask.contiguous()
    (B, T, H, K), V = k.shape, v.shape[3]
    (BK, _), (BV, count) = blocks(K), blocks(V)
    o = torch.empty_like(v)
    last = [v.new_empty(shape, dtype=torch.float32) for shape in ((B, H, V), (B, H), (B, H))]
    saved = [v.new_empty((B, T, H) if save else (0,), dtype=torch.float32) for _ in range(2)]
    with torch.cuda.device_of(k):  # the current device may be another one
        scan_forward[(B * H, count)](
            q, k, v, mask, *start, o, *last, *saved, scale, T, H, K, V, C, BK, BV,
            mask is not None, a is not None, save, v.dtype == torch.float32,
        )  # fmt: skip
    return o, *last, *saved


def backward(
    grad_o: torch.Tensor,
    grad_a: torch.Tensor,
    grad_c: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    m: torch.Tensor | None,
    output: torch.Tensor,
    last_c: torch.Tensor,
    scores: torch.Tensor,
    normalizers: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Arguments and results as in `eager.backward`; gradients in the type of what they belong to."""
    grad_o, q, k, v = (x.contiguous() for x in (grad_o, q, k, v))
    m = None if m is None else m.float().contiguous()
    (B, T, H, K), V = k.shape, v.shape[3]
    (BK, key_blocks), (BV, count) = blocks(K), blocks(V)
    dots = (grad_o.float() * output).sum(-1)
    later, later_dot = last_c.unsqueeze(-1) * grad_a.float(), -last_c * grad_c.float()
    dv, dk = torch.empty_like(v), torch.empty_like(k)
    ds = dots.new_empty(count, B, T, H)
    dq = dots.new_empty(triton.cdiv(T, C), B, H, K)
    da, dc = torch.zeros_like(later), torch.zeros_like(later_dot)
    with torch.cuda.device_of(k):
        scan_backward[(B * H, count)](
            v, grad_o, later, later_dot, scores, normalizers, dots, m, dv, ds, da, dc,
            B * T * H, T, H, V, C, BV, m is not None, v.dtype == torch.float32,
        )  # fmt: skip
        key_gradients[(triton.cdiv(T, C), B * H, key_blocks)](
            q, k, ds, dq, dk, scale, count, B * T * H, B, T, H, K, C, BK
        )
    return dq.sum((0, 1)).to(q.dtype), dk, dv, da, dc
