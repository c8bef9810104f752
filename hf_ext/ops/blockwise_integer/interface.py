"""What models of Transformers call under `attn_implementation="bct_eager"`: attention on blockwise integers (BCT).

scores = Q(q k^T scaling), weights = Q(softmax(scores + mask)), both in blocks along the keys. A causal model's queries do not see the
later keys of their block in the scores' common shift either; with a cache it gives what it gives without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import eager_mask as attention_mask

from . import rounded

__all__ = ["Rounding", "attention_forward", "attention_mask"]


@dataclass(frozen=True)
class Rounding:
    """Q with its settings; `bits` None leaves everything as it is."""

    bits: int | None = 8
    block: int = 64

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.bits is None else rounded(x, self.bits, self.block)


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as Transformers' interface has it: query (batch, heads, tokens, channels) -> (batch, tokens, heads, channels), weights.

    `module.rounding` holds the settings, where a quantized model has put them; 8 bits in blocks of 64 otherwise.
    """
    if s_aux is not None:
        raise ValueError(
            "Attention sinks have no form in blockwise integers: load the model with quantize_attention=False"
        )
    rounding = getattr(module, "rounding", None) or Rounding()
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(2, 3) * scaling
    if position_bias is not None:
        scores = scores + position_bias
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None and getattr(module, "is_causal", False):
        scores = scores.masked_fill(attention_mask < torch.finfo(scores.dtype).min / 2, 0)
    scores = rounding(scores)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = rounding(scores.softmax(-1, dtype=torch.float32).to(value.dtype))
    weights = nn.functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights
