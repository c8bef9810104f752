"""`attn_implementation="ssa"`: what Transformers' attention modules call.

Settings come from the module (`module.ssa`, an `SSAConfig`), else from its configuration (`config.ssa`, a dict, which is saved with
the model), else they are the paper's. Self-attention in training is subsampled; eval mode (unless `when="always"`), decoding with a cache
and cross-attention are `sdpa`.
"""

from __future__ import annotations

from typing import Any

import torch

# bool (batch, 1, queries, keys), or None for causal or all
from transformers.masking_utils import sdpa_mask as attention_mask

from ..self_attention import self_attention
from . import SSAConfig, subsampled_attention
from .eager import merge


def settings_of(module: torch.nn.Module) -> SSAConfig:
    own = getattr(module, "ssa", None) or getattr(getattr(module, "config", None), "ssa", None) or {}
    return own if isinstance(own, SSAConfig) else SSAConfig(**own)


@self_attention("ssa")
def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    causal: bool,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor | None:
    """A mask is bool or added to the scores; `position_bias` (batch or 1, heads, tokens, tokens) is picked at the same sources."""
    settings = settings_of(module)
    if not module.training and settings.when == "training":
        return None
    if position_bias is not None:
        attention_mask = add_bias(attention_mask, position_bias)
    options = {"causal": causal, "attention_mask": attention_mask, "scaling": scaling, "dropout": dropout}
    return subsampled_attention(query, key, value, None, settings, **options)[0]


def add_bias(mask: torch.Tensor | None, bias: torch.Tensor) -> torch.Tensor:
    if mask is None:
        return bias
    return merge(mask, bias) if mask.dtype == torch.bool else mask + bias


__all__ = ["attention_forward", "attention_mask", "settings_of"]
