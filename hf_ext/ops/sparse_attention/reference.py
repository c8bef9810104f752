"""The definition, one query at a time.

ytgui/SPT-proto's CUDA lookup is approximate and lets rows with too few keys count key 0 many times; this is the exact top-k that it
approximates, with what is missing masked.
"""

from __future__ import annotations

import torch

from .codes import product_codes


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    codebooks: torch.Tensor,
    sparse_coeff: int = 8,
    visible: torch.Tensor | None = None,
    logit_clamp: float = 10.0,
) -> torch.Tensor:
    """o_i = sum_j a_ij v_j over the keys // sparse_coeff keys j that share most codes with i; a = softmax(clamp(q_i . k_j / sqrt(d)))

    `visible` (batch, heads, queries, keys) says which keys a query may see; j <= i when None. As many keys and heads as queries.
    """
    B, H, L, d = q.shape
    if visible is None:
        visible = torch.ones(L, L, dtype=torch.bool).tril().expand(B, H, L, L)
    q_codes, k_codes = product_codes(q, codebooks), product_codes(k, codebooks)
    o = torch.zeros_like(v)
    for b in range(B):
        for h in range(H):
            for i in range(L):
                matches = (q_codes[b, h, i] == k_codes[b, h]).sum(-1).tolist()
                seen = [j for j in range(L) if visible[b, h, i, j]]
                kept = sorted(seen, key=lambda j, m=matches: (m[j], j), reverse=True)[: max(1, L // sparse_coeff)]
                if kept:
                    scores = (k[b, h, kept] @ q[b, h, i] * d**-0.5).clamp(-logit_clamp, logit_clamp)
                    o[b, h, i] = scores.softmax(0) @ v[b, h, kept]
    return o
