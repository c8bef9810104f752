"""The definition."""

from __future__ import annotations

import torch


def reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    size: tuple[int, int],
    eps: float = 1e-6,
) -> torch.Tensor:
    """o_i = sum_j (q_i . k_j) v_j / (sum_j q_i . k_j + eps) + DWC(v)_i;  q = ReLU(query), k = ReLU(key)   (SLAB, eq. 7 and 8)"""
    B, N, heads, d = query.shape
    scores = torch.einsum("bnhd,bmhd->bhnm", query.relu(), key.relu())
    attention = scores / (scores.sum(-1, keepdim=True) + eps)
    out = torch.einsum("bhnm,bmhd->bnhd", attention, value)
    rows = value.permute(0, 2, 3, 1).flatten(0, 1)  # (B * heads, d, M)
    if rows.shape[-1] != N:
        rows = torch.nn.functional.interpolate(rows, size=N, mode="linear", align_corners=False)
    local = torch.nn.functional.conv2d(rows.unflatten(-1, size), weight, bias, padding=weight.shape[-1] // 2, groups=d)
    return out + local.view(B, heads, d, N).permute(0, 3, 1, 2)
