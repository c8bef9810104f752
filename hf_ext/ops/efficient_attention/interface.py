"""What models of Transformers call under `attn_implementation="linear_elu" | "performer" | "window_global" | "nystrom"`.

Settings come from the model's configuration, where they are saved with it: a dict under the name of the implementation, such as
`config.window_global = {"window": 64, "num_global": 1}`; `SETTINGS` has the defaults. Masks are padding alone, causal or not; others
are refused. Attention weights are not returned and not dropped out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from . import (
    linear_attention,
    nystrom_attention,
    performer_attention,
    random_features,
    window_global_attention,
    window_global_mask,
)

SETTINGS: dict[str, dict[str, Any]] = {
    "linear_elu": {},
    "performer": {"num_features": 256, "seed": 0},
    "window_global": {"window": 64, "num_global": 1},
    "nystrom": {"num_landmarks": 64, "iterations": 0},
}


def linear_elu(q, k, v, mask, causal, scaling) -> torch.Tensor:
    return _last(q, k, causal, lambda q: linear_attention(q, k, v, causal and q.shape[2] > 1, mask))


def performer(q, k, v, mask, causal, scaling, num_features, seed) -> torch.Tensor:
    features = _features(num_features, q.shape[3], seed).to(q.device)
    q = q * (scaling * q.shape[3] ** 0.5)
    return _last(q, k, causal, lambda q: performer_attention(q, k, v, features, causal and q.shape[2] > 1, mask))


def window_global(q, k, v, mask, causal, scaling, window, num_global) -> torch.Tensor:
    if q.shape[2] == k.shape[2]:
        return window_global_attention(q, k, v, window, num_global, causal, mask, scaling)
    _refuse_cross_attention(causal, "window_global")
    allowed = window_global_mask(k.shape[2], window, num_global, causal)[-q.shape[2] :].to(q.device)
    if mask is not None:
        allowed = allowed & mask[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scaling)


def nystrom(q, k, v, mask, causal, scaling, num_landmarks, iterations) -> torch.Tensor:
    if causal or q.shape[2] != k.shape[2]:
        raise ValueError(
            "`nystrom` attention is for encoders: a landmark sees tokens of all places. It is never causal"
        )
    return nystrom_attention(q, k, v, min(num_landmarks, k.shape[2]), mask, iterations, scaling)


def _last(q: torch.Tensor, k: torch.Tensor, causal: bool, attend: Callable) -> torch.Tensor:
    """With a cache the queries are the last tokens: zeros stand for those before, unless there is one query, which sees all keys."""
    new = q.shape[2]
    if not causal or new in (1, k.shape[2]):
        return attend(q)
    return attend(F.pad(q, (0, 0, k.shape[2] - new, 0)))[:, :, -new:]


def _refuse_cross_attention(causal: bool, name: str) -> None:
    if not causal:
        raise ValueError(
            f"`{name}` attention is self-attention; queries and keys are as many, or the last ones of a causal model"
        )


@lru_cache(maxsize=16)
def _features(number: int, channels: int, seed: int) -> torch.Tensor:
    return random_features(number, channels, seed)


def _interface(form: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, None]]:
    name = form.__name__

    def attention_forward(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(
                f"`{name}` attention takes padding masks (batch, tokens), not {tuple(attention_mask.shape)}"
            )
        if refused := [word for word in ("softcap", "position_bias") if kwargs.get(word) is not None]:
            raise ValueError(f"`{name}` attention has no scores to change with `{refused[0]}`")
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
        causal = bool(causal) and not getattr(module, "is_cross_attention", False)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        o = form(query, key, value, attention_mask, causal, scaling, **settings_of(module, name))
        return o.transpose(1, 2).contiguous(), None

    return attention_forward


def settings_of(module: nn.Module, name: str) -> dict[str, Any]:
    """The defaults, with what the module's configuration says on top."""
    own = getattr(getattr(module, "config", None), name, None) or {}
    if unknown := set(own) - set(SETTINGS[name]):
        raise ValueError(f"config.{name} has {sorted(unknown)}; known are {sorted(SETTINGS[name]) or 'no settings'}")
    return SETTINGS[name] | own


linear_elu_forward, performer_forward, window_global_forward, nystrom_forward = map(
    _interface, (linear_elu, performer, window_global, nystrom)
)


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
    """The padding (batch, keys), None without any. Causality is the module's own."""
    if mask_function not in (causal_mask_function, bidirectional_mask_function):
        raise ValueError("This attention has causal and full masks alone, not windows, chunks or packed sequences")
    if (
        mask_function is causal_mask_function
        and isinstance(q_offset, int)
        and q_offset + q_length != kv_length + kv_offset
    ):
        raise ValueError("This attention reads every place of the cache: use a cache that grows, not a static one")
    return None if attention_mask is None else attention_mask[:, -kv_length:].bool()
