"""ProbSparse attention in torch operations, for any device, for export and for what the native kernel does not take.

Dimensions: B batch, Q queries, K keys, H heads, D head channels, N sampled keys, R rows of a block.
The authors gather the sampled keys of every query, (B, H, Q, N, D), which fills memory long before anything else does. Here a block
of queries meets all keys in one matrix product, and the sampled scores are picked from it: more arithmetic, of the kind that machines
are good at, in bounded memory.
"""

from __future__ import annotations

import torch

BLOCK_SCORES = 2**22  # scores held at a time: 16 MiB in float32


def measure(
    q_BQHD: torch.Tensor, k_BKHD: torch.Tensor, index_QN: torch.Tensor, key_mask_BK: torch.Tensor | None = None
) -> torch.Tensor:
    """M (B, H, Q), in float32 (float64 for float64); the sum over no sampled key is 0, the maximum minus infinity."""
    B, _, H, _ = q_BQHD.shape
    K = k_BKHD.shape[1]
    dtype = torch.promote_types(q_BQHD.dtype, torch.float32)
    keys_BHDK = k_BKHD.to(dtype).permute(0, 2, 3, 1)
    rows = max(1, BLOCK_SCORES // (B * H * K))
    blocks = []
    for q_BRHD, index_RN in zip(q_BQHD.split(rows, 1), index_QN.split(rows)):
        index_BHRN = index_RN.expand(B, H, -1, -1)
        sampled_BHRN = (q_BRHD.to(dtype).transpose(1, 2) @ keys_BHDK).gather(3, index_BHRN)
        total = sampled_BHRN
        if key_mask_BK is not None:
            hidden_BHRN = ~key_mask_BK[:, index_RN][:, None]
            sampled_BHRN = sampled_BHRN.masked_fill(hidden_BHRN, float("-inf"))
            total = total.masked_fill(hidden_BHRN, 0.0)
        blocks.append(sampled_BHRN.amax(3) - total.sum(3) / K)
    return torch.cat(blocks, 2)
