"""The fast form on any device: torch's fused attention, once for each length that occurs.

On a GPU in half precision all sequences go through torch's one kernel for packed sequences.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scale: float,
    is_causal: bool,
    dropout: float,
) -> torch.Tensor:
    """o (T, H, V); arguments as in `varlen_attention`."""
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] == v.shape[-1] and not dropout:
        return _one_kernel(q, k, v, cu_seqlens, scale, is_causal)
    borders = cu_seqlens.tolist()
    starts: dict[int, list[int]] = {}
    for start, stop in itertools.pairwise(borders):
        if stop > start:
            starts.setdefault(stop - start, []).append(start)
    if len(starts) == 1:  # sequences of one length lie behind each other
        return _attend(*(x.unflatten(0, (-1, *starts)) for x in (q, k, v)), scale, is_causal, dropout).flatten(0, 1)
    o = [(q.new_empty(0, q.shape[1], v.shape[2]), q.new_empty(0, dtype=torch.long))]
    for length, begins in starts.items():
        if len(begins) == 1:
            rows = slice(begins[0], begins[0] + length)
            part = [x[None, rows] for x in (q, k, v)]
            places = torch.arange(rows.start, rows.stop, device=q.device)
        else:
            places = (torch.tensor(begins)[:, None] + torch.arange(length)).flatten().to(q.device)
            part = [x[places].unflatten(0, (-1, length)) for x in (q, k, v)]
        o.append((_attend(*part, scale, is_causal, dropout).flatten(0, 1), places))
    values, places = (torch.cat(parts) for parts in zip(*o))
    return torch.empty_like(values).index_copy(0, places, values)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, is_causal: bool, dropout: float
) -> torch.Tensor:
    """Sequences of one length, (sequences, length, heads, channels)"""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    o = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale, is_causal=is_causal, enable_gqa=grouped)
    return o.transpose(1, 2)


def _one_kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, scale: float, is_causal: bool
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    borders = cu_seqlens.to(q.device, torch.int32)
    longest = int(cu_seqlens.diff().max())
    grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    return varlen_attn(
        q,
        k,
        v,
        borders,
        borders,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0) if is_causal else (-1, -1),
        **grouped,
    )
