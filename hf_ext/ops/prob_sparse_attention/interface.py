"""`attn_implementation="prob_sparse"`: what Transformers' attention modules call.

For self-attention among all tokens: ViT, BERT and the like. `module.sampling_factor`, else `config.sampling_factor`, else 5 is the
paper's c. Keys are sampled anew in training mode, and the same ones every time in eval mode, so that results can be repeated. Padding
is left out of samples, means and attention. Cross-attention, where queries and keys differ in number, is `sdpa`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

from . import prob_sparse_attention, sample_keys

SEED = 0


def attention_mask(
    *args: Any, mask_function: Callable = bidirectional_mask_function, **kwargs: Any
) -> torch.Tensor | None:
    """`sdpa`'s mask: bool (batch, 1, queries, keys), or None where nothing is padding.

    Raises:
        ValueError: a mask that lets queries see different keys (causal, sliding window).
    """
    if mask_function is not bidirectional_mask_function:
        raise ValueError(
            'attn_implementation="prob_sparse" is for attention among all tokens: queries that do not attend share one mean of the '
            "values, so a causal or sliding mask cannot hold; use another implementation"
        )
    return sdpa_mask(*args, mask_function=mask_function, **kwargs)


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
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As Transformers' `sdpa_attention_forward`: query (batch, heads, tokens, channels) to (batch, tokens, heads, channels).

    There is no dropout on the weights, as in the authors' code. With `output_attentions` the weights are returned.

    Raises:
        ValueError: causal attention, scores with a bias or a cap, or a mask by query.
    """
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    if causal or kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None:
        raise ValueError(
            'attn_implementation="prob_sparse" is for plain attention among all tokens, not causal, nor with `position_bias` or '
            "`softcap`; use another implementation"
        )
    if query.shape[2] != key.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, False, **kwargs)
    if query.shape[1] != key.shape[1]:  # grouped queries
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    factor = getattr(module, "sampling_factor", None) or getattr(getattr(module, "config", None), "sampling_factor", 5)
    return prob_sparse_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        _samples(query.shape[2], factor, module.training, query.device),
        factor,
        scale=scaling,
        padding_mask=_padding_mask(attention_mask),
        output_weights=bool(kwargs.get("output_attentions")),
    )


def _samples(tokens: int, factor: int, training: bool, device: torch.device) -> torch.Tensor:
    if training:
        return sample_keys(tokens, tokens, factor, device=device)
    return sample_keys(tokens, tokens, factor, torch.Generator().manual_seed(SEED)).to(device)


def _padding_mask(mask: torch.Tensor | None) -> torch.Tensor | None:
    """(batch, tokens) from (batch, 1, queries, keys), the same for all queries because `attention_mask` made it."""
    if mask is None:
        return None
    return mask[:, 0, 0] if mask.dtype == torch.bool else mask[:, 0, 0] > torch.finfo(mask.dtype).min / 2


__all__ = ["attention_forward", "attention_mask"]
