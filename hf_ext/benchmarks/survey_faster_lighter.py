"""From which length on each attention is faster than torch's SDPA: the whole input, four heads of 64 channels, batch 1, one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from hf_ext.ops.efficient_attention import (
    linear_attention,
    linformer_attention,
    nystrom_attention,
    performer_attention,
    random_features,
    window_global_attention,
)

from . import Contest

HEADS, CHANNELS, RANK = 4, 64, 128
LENGTHS = (512, 2048, 4096)
CAUSAL = {  # peer: causal SDPA
    "causal linear": lambda q, k, v, **x: linear_attention(q, k, v, causal=True),
    "causal window of 128": lambda q, k, v, **x: window_global_attention(q, k, v, 128, causal=True),
}
FORMS: dict[str, Callable[..., torch.Tensor]] = {
    "linear": lambda q, k, v, **x: linear_attention(q, k, v),
    "Performer, 128 features": lambda q, k, v, features, **x: performer_attention(q, k, v, features),
    "Linformer, rank 128": lambda q, k, v, projection, **x: linformer_attention(q, k, v, projection, projection),
    "window of 128, one global": lambda q, k, v, **x: window_global_attention(q, k, v, 128, 1),
    "Nyström, 64 landmarks": lambda q, k, v, **x: nystrom_attention(q, k, v, 64, iterations=6),
    **CAUSAL,
}


def contests(reference: Path | None = None) -> Iterator[Contest]:
    for length in LENGTHS:
        for name in FORMS:
            yield contest(name, length)


def contest(name: str, length: int) -> Contest:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, HEADS, length, CHANNELS, generator=generator).unbind()
    extras = {
        "features": random_features(RANK, CHANNELS),
        "projection": torch.randn(RANK, length, generator=generator) * length**-0.5,
    }

    def ours() -> torch.Tensor:
        with torch.inference_mode():
            return FORMS[name](q, k, v, **extras)

    def peer() -> torch.Tensor:
        with torch.inference_mode():
            return F.scaled_dot_product_attention(q, k, v, is_causal=name in CAUSAL)

    return Contest(f"{name}, {length} tokens", ours, peer, "torch's SDPA", threads=1)
