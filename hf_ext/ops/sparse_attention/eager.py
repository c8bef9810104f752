"""The torch form: some queries at a time against all keys that they may see, as masked dense products; no weights are kept.

Letters: B batch, H heads, Q queries of a chunk, N keys, M subspaces.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**18  # scores that are formed at a time


def attend(q, k, v, codes, keep, causal, mask, scaling, logit_clamp, dropout) -> torch.Tensor:
    """As `sparse_attention`, with the codes (queries', keys'), each (B, H, M, tokens), or None, and the number of keys to keep."""
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    step = max(1, min(queries, CHUNK_ELEMENTS // (batch * heads * keys)))
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    outputs = []
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        seen = max(keep, keys - queries + stop) if causal else keys
        arguments = (
            q[:, :, start:stop],
            k[:, :, :seen],
            v[:, :, :seen],
            None if codes is None else (codes[0][..., start:stop], codes[1][..., :seen]),
            keep,
            keys - queries + start if causal else None,
            None if mask is None else mask[:, :, start:stop, :seen],
            scaling,
            logit_clamp,
            dropout,
        )
        if differentiable:
            outputs.append(checkpoint(_attend_chunk, *arguments, use_reentrant=False, preserve_rng_state=dropout > 0))
        else:
            outputs.append(_attend_chunk(*arguments))
    return torch.cat(outputs, 2)


def _attend_chunk(q, k, v, codes, keep, first, mask, scaling, logit_clamp, dropout) -> torch.Tensor:
    """`first`: position of the first query, or None where all keys are visible"""
    scores = q @ k.mT * scaling  # (B, H, Q, N)
    bias = None
    visible = torch.ones((), dtype=torch.bool, device=q.device)
    if first is not None:
        visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(first)
    if mask is not None and mask.dtype == torch.bool:
        visible = visible & mask
    elif mask is not None:
        visible = visible & (mask > torch.finfo(mask.dtype).min / 2)
        bias = mask
    rank = scores.detach() if codes is None else count_matches(*codes)
    positions, matches = select_keys(rank, visible, keep)
    chosen = torch.zeros(scores.shape, dtype=torch.bool, device=q.device).scatter_(-1, positions, matches >= 0)
    if bias is not None:
        scores = scores + bias
    weights = scores.clamp(-logit_clamp, logit_clamp).exp() * chosen
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)
    return F.dropout(weights, dropout) @ v if dropout else weights @ v


def count_matches(q_codes: torch.Tensor, k_codes: torch.Tensor) -> torch.Tensor:
    """Equal codes of queries (..., subspaces, queries) and keys (..., subspaces, keys): (..., queries, keys), uint8"""
    pairs = zip(q_codes.unbind(-2), k_codes.unbind(-2))
    return sum((a.unsqueeze(-1) == b.unsqueeze(-2)).to(torch.uint8) for a, b in pairs)


@torch.no_grad()
def select_keys(rank: torch.Tensor, visible: torch.Tensor, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `keep` visible keys of highest rank for each query, the later of equals.

    Args:
        rank: (..., queries, keys); integers from 0, or real scores (whose ties are broken anyhow).
        visible: bool, broadcastable to it.

    Returns:
        Their positions (..., queries, min(keep, keys)), best first, and their ranks as floats: -1 where there are too few visible keys;
        for scores 0 otherwise.
    """
    keys = rank.shape[-1]
    keep = min(keep, keys)
    if rank.is_floating_point():
        best = rank.masked_fill(~visible, -torch.inf).topk(keep)
        return best.indices, (best.values != -torch.inf).to(rank.dtype) - 1
    # matches * keys + position: exact in float32 up to 2 ** 24
    wide = torch.float32 if 256 * keys < 2**24 else torch.float64
    unique = rank.to(wide).mul_(keys).add_(torch.arange(keys, device=rank.device, dtype=wide))
    best = unique.masked_fill_(~visible, -1.0).topk(keep)
    return best.indices, torch.where(best.values < 0, best.values, (best.values / keys).floor())
