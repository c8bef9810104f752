"""`attn_implementation="spt_sparse"`: sparse attention in models of Transformers.

Codebooks are those of the attention module's `quantizer`, which `hf_ext.surgery.spt` adds; without one, keys are chosen by their true
scores. The module's `spt`, or the defaults, says how many. While training, the quantizer's loss is left at the module as `pq_loss`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# bool (batch, 1, queries, keys), or None for causal or all
from transformers.masking_utils import sdpa_mask as attention_mask

from . import quantizer_loss, sparse_attention


@dataclass
class SparseSettings:
    """
    Args:
        sparse_coeff: a query keeps keys // sparse_coeff of them.
        logit_clamp: scores are clamped to +- this.
        dense: attend to all keys, as while the codebooks warm up.
        learn_codes: evaluate the quantizer's loss in training.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """

    sparse_coeff: int = 8
    logit_clamp: float = 10.0
    dense: bool = False
    learn_codes: bool = True

    def __post_init__(self) -> None:
        if self.sparse_coeff < 1:
            raise ValueError(f"sparse_coeff={self.sparse_coeff} must be at least 1")
        if not self.logit_clamp > 0:
            raise ValueError(f"logit_clamp={self.logit_clamp} must be above 0")


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Called as `sdpa_attention_forward`; returns (batch, tokens, heads, channels) and no weights. Cross-attention is `sdpa`."""
    for name in ("softcap", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"`spt_sparse` attention takes no `{name}`; use another attn_implementation")
    settings = getattr(module, "spt", None) or SparseSettings()
    quantizer = getattr(module, "quantizer", None)
    # OPT scales its queries beforehand and says 1.0 here: codes are of the queries as they were
    own = getattr(module, "scaling", None)
    code_scale = 1.0 if own is None or scaling is None else scaling / own
    if quantizer is not None and module.training and settings.learn_codes:
        losses = partial(checkpoint, loss_of_codes, use_reentrant=False, preserve_rng_state=False)
        module.pq_loss = losses(query, key, code_scale, quantizer.weight)
    if settings.dense or getattr(module, "is_cross_attention", False):
        options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options, **kwargs)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    o = sparse_attention(
        query,
        key,
        value,
        None if quantizer is None else quantizer.weight,
        sparse_coeff=settings.sparse_coeff,
        causal=bool(causal) and attention_mask is None,
        attention_mask=attention_mask,
        scaling=scaling,
        logit_clamp=settings.logit_clamp,
        dropout=dropout,
        code_scale=code_scale,
    )
    return o.transpose(1, 2).contiguous(), None


def loss_of_codes(query: torch.Tensor, key: torch.Tensor, scale: float, codebooks: torch.Tensor) -> torch.Tensor:
    return quantizer_loss(query * scale, codebooks) + quantizer_loss(key, codebooks)


__all__ = ["SparseSettings", "attention_forward", "attention_mask"]
