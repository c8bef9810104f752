"""ProbSparse attention's measure in Triton: each sampled key row is gathered, dotted with its query and forgotten.

What is written is M (batch, heads, queries) and nothing else.

Letters: Q queries, K keys, H heads, D head channels, N sampled keys; R queries of a program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

R = 32


@triton.jit
def measure_rows(
    q, k, index, mask, out,
    q_batch, q_row, q_head, k_batch, k_row, k_head,
    Q, K, H, N, D: tl.constexpr, BD: tl.constexpr, R: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    rows, channels = tl.program_id(1) * R + tl.arange(0, R), tl.arange(0, BD)
    inside = rows < Q
    there = inside[:, None] & (channels < D)[None, :]
    place = batch * q_batch + rows[:, None].to(tl.int64) * q_row + head * q_head
    query = tl.load(q + place + channels[None, :], mask=there, other=0.0).to(tl.float32)
    largest = tl.full((R,), float("-inf"), tl.float32)
    total = tl.zeros((R,), tl.float32)
    for sample in range(N):
        key = tl.load(index + rows.to(tl.int64) * N + sample, mask=inside, other=0)
        place = batch * k_batch + key[:, None] * k_row + head * k_head
        score = tl.sum(query * tl.load(k + place + channels[None, :], mask=there, other=0.0).to(tl.float32), 1)
        if MASKED:
            shown = tl.load(mask + batch * K + key, mask=inside, other=0) != 0
            largest = tl.maximum(largest, tl.where(shown, score, float("-inf")))
            total += tl.where(shown, score, 0.0)
        else:
            largest = tl.maximum(largest, score)
            total += score
    tl.store(out + tl.program_id(0).to(tl.int64) * Q + rows, largest - total / K, mask=inside)


def measure(
    q: torch.Tensor, k: torch.Tensor, index: torch.Tensor, key_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """As `eager.measure`, in float32."""
    B, Q, H, D = q.shape
    q, k = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k))
    index = index.long().contiguous()
    out = torch.empty(B, H, Q, dtype=torch.float32, device=q.device)
    mask = out if key_mask is None else key_mask.to(torch.uint8).contiguous()
    with torch.cuda.device_of(q):  # the current device may be another one
        measure_rows[B * H, triton.cdiv(Q, R)](
            q, k, index, mask, out,
            *q.stride()[:3], *k.stride()[:3],
            Q, k.shape[1], H, index.shape[1], D, triton.next_power_of_2(D), R, key_mask is not None,
        )  # fmt: skip
    return out
