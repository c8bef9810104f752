"""The definition of ProbSparse attention: one query after the other, in whatever precision the inputs have."""

from __future__ import annotations

import math

import torch


def count(factor: int, length: int) -> int:
    """How many queries attend, or keys each query is scored against: factor * ceil(ln length), at most all.

    At least one, so that a sequence of one step works; the authors' code breaks off there.
    """
    return max(1, min(factor * math.ceil(math.log(length)), length))


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    index_sample: torch.Tensor,
    factor: int = 5,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """M_i = max_j q_i k_s(i,j) - sum_j q_i k_s(i,j) / L_K   (arXiv 2012.07436, eq. 4, with the authors' divisor)

    The `count(factor, L_Q)` queries of largest M get softmax(scale q_i K^T) V, all others the mean of V; causal: attention up to
    their own position, and the sum of V up to it. Shapes as in `prob_sparse_attention`; returns o, M and which queries attend, the
    latter two (B, H, L_Q).
    """
    _, Q, _, D = q.shape
    K = k.shape[1]
    scale = D**-0.5 if scale is None else scale
    scores = [torch.einsum("bhd,bjhd->bhj", q[:, i], k[:, index_sample[i]]) for i in range(Q)]
    sparsity = torch.stack([s.amax(-1) - s.sum(-1) / K for s in scores], -1)
    selected = torch.zeros_like(sparsity, dtype=torch.bool)
    selected.scatter_(-1, sparsity.topk(count(factor, Q)).indices, True)
    outputs = []
    for i in range(Q):
        seen = slice(None, i + 1 if is_causal else None)
        weights = torch.einsum("bhd,bjhd->bhj", q[:, i] * scale, k[:, seen]).softmax(-1)
        attended = torch.einsum("bhj,bjhd->bhd", weights, v[:, seen])
        lazy = v[:, seen].sum(1) if is_causal else v.mean(1)
        outputs.append(torch.where(selected[..., i, None], attended, lazy))
    return torch.stack(outputs, 1), sparsity, selected
