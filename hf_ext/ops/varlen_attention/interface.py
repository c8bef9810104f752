"""What models of Transformers call under `attn_implementation="bytetransformer"`.

Alone it leaves out the padding inside attention, for encoders and for the prompt of a causal model; `hf_ext.surgery.bytetransformer`
leaves it out in whole encoders. Where there is nothing to leave out (no padding, a cache, a window) it is upstream's "sdpa".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

from . import varlen_attention
from .packing import Packing


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as Transformers' interface has it: query (batch, heads, tokens, channels) -> (batch, tokens, heads, channels).

    With `packing` the batch is one row of packed tokens, each of which sees its whole sequence. A mask (batch, tokens) marks padding,
    where the result is zero.
    """
    if packing is not None:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return varlen_attention(q, k, v, packing.cu_seqlens, scaling, False, dropout)[None], None
    if attention_mask is None or attention_mask.ndim == 4:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    packing = Packing.of(attention_mask)
    q, k, v = (packing.pack(x.transpose(1, 2)) for x in (query, key, value))
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    return packing.unpack(varlen_attention(q, k, v, packing.cu_seqlens, scaling, is_causal, dropout)), None


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor | None:
    """The padding (batch, tokens) where there is some that can be left out; upstream's mask of four dimensions otherwise."""
    full = mask_function in (causal_mask_function, bidirectional_mask_function)
    whole = attention_mask is not None and q_length == kv_length == attention_mask.shape[1]
    if full and whole and not torch.compiler.is_compiling() and not attention_mask.all():
        return attention_mask.bool()
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        **kwargs,
    )
