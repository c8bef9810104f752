"""What attention functions for Transformers' `AttentionInterface` share that are for self-attention only."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward


def self_attention(name: str) -> Callable[[Callable], Callable]:
    """For `function(module, query, key, value, attention_mask, causal, ...) -> output or None`, all (batch, heads, tokens, channels).

    What it makes of it is called as Transformers' `sdpa_attention_forward` is, returns (batch, tokens, heads, channels) and no weights, and
    is `sdpa` where the function gives None, with a cache, and in cross-attention, which queries and keys of other numbers show, or the
    module's `is_cross_attention`. `causal` is set where no mask says the same. `name` is that of the implementation, for errors.
    """

    def decorate(function: Callable[..., torch.Tensor | None]) -> Callable[..., tuple[torch.Tensor, None]]:
        @wraps(function)
        def attention_forward(
            module: torch.nn.Module,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: torch.Tensor | None,
            is_causal: bool | None = None,
            **kwargs: Any,
        ) -> tuple[torch.Tensor, None]:
            o = None
            if query.shape[2] == key.shape[2] and not getattr(module, "is_cross_attention", False):
                if kwargs.get("softcap") is not None:
                    raise ValueError(f"`{name}` attention caps no scores (`softcap`); use another attn_implementation")
                causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
                causal = bool(causal) and attention_mask is None
                o = function(module, query, key, value, attention_mask, causal, **kwargs)
            if o is None:
                return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=is_causal, **kwargs)
            return o.transpose(1, 2).contiguous(), None

        return attention_forward

    return decorate
