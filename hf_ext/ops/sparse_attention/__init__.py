"""Top-k attention that finds a query's keys by product-quantization codes (SPT, arXiv 2312.10365, section 4.1).

`import hf_ext` registers it with Transformers as `attn_implementation="spt_sparse"`; `interface` is what models call.
"""

from __future__ import annotations

import torch

from . import eager
from .codes import product_codes, quantize, quantizer_loss
from .eager import count_matches, select_keys
from .reference import reference

__all__ = [
    "count_matches",
    "product_codes",
    "quantize",
    "quantizer_loss",
    "reference",
    "select_keys",
    "sparse_attention",
]


def sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    codebooks: torch.Tensor | None = None,
    *,
    sparse_coeff: int = 8,
    causal: bool = True,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    logit_clamp: float = 10.0,
    dropout: float = 0.0,
    code_scale: float = 1.0,
) -> torch.Tensor:
    """Each query attends to the keys // sparse_coeff visible keys (at least one) that share most codes with it; of equals, the later.

    Args:
        q: (batch, heads, queries, channels).
        k, v: (batch, kv_heads, keys, channels), `kv_heads` a divisor of `heads`. With fewer queries than keys they are the last ones.
        codebooks: (subspaces, codewords, channels // subspaces); None to choose keys by their true scores, which the codes approximate.
        sparse_coeff: at least 1; 1 keeps every key.
        causal: whether a query sees only keys at its position or before.
        attention_mask: (batch, 1 or heads, queries, keys), bool (True: visible) or added to the scores, whose lowest numbers hide.
        scaling: of the scores; channels ** -0.5 when None.
        logit_clamp: scores are clamped to +- this, before a softmax without subtraction of the maximum; keys beyond get no gradient.
        dropout: of attention weights, 0 to 1.
        code_scale: what q is multiplied by before it is coded, for models that scale it beforehand.

    Returns:
        (batch, heads, queries, channels); zero where a query sees no key. Differentiable in q, k and v; the choice is not.

    Raises:
        ValueError: shapes that do not fit each other, or `sparse_coeff` below 1.

    Memory: weights are formed for some queries at a time, and again in the backward pass, so none are kept.
    """
    _check(q, k, v, codebooks, sparse_coeff)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) if x.shape[1] != q.shape[1] else x for x in (k, v))
    codes = None
    if codebooks is not None:
        small = torch.uint8 if codebooks.shape[1] <= 256 else torch.int32  # compared one subspace at a time
        both = (product_codes(x, codebooks) for x in (q * code_scale, k))
        codes = [x.movedim(-1, 2).to(small).contiguous() for x in both]
    scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
    keep = max(1, k.shape[2] // sparse_coeff)
    return eager.attend(q, k, v, codes, keep, causal, attention_mask, scaling, logit_clamp, dropout)


def _check(q, k, v, codebooks, sparse_coeff) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    fits = q.ndim == k.ndim == v.ndim == 4 and k.shape[:3] == v.shape[:3] and 0 not in (*q.shape, *k.shape, *v.shape)
    if not fits or (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]) or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"q is (batch, heads, queries, channels), k and v (batch, a divisor of heads, keys, channels); got {shapes}"
        )
    if q.shape[2] > k.shape[2]:
        raise ValueError(f"There must be at least as many keys as queries; got {shapes}")
    if sparse_coeff < 1:
        raise ValueError(f"sparse_coeff={sparse_coeff} must be at least 1")
    if codebooks is not None and (codebooks.ndim != 3 or codebooks.shape[0] * codebooks.shape[2] != q.shape[3]):
        raise ValueError(
            f"codebooks are (subspaces, codewords, width) with subspaces * width = channels = {q.shape[3]}; got {tuple(codebooks.shape)}"
        )
