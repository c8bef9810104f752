"""The survey's building blocks, and which leaves of its taxonomy have an entry."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from hf_ext.layers.mixture_of_experts import load_balance, mixture_of_experts
from hf_ext.layers.reversible import reversible
from hf_ext.ops.efficient_attention import (
    linear_attention,
    linformer_attention,
    nystrom_attention,
    performer_attention,
    window_global_attention,
    window_global_mask,
)
from tests.golden_calls.taxonomies import covered
from tests.goldens import call_arguments


def run(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    return covered(case) if "leaves" in case["arguments"] else blocks(**call_arguments(case))


def blocks(
    q, k, v, proj_k, proj_v, random_features, x1, x2, mlp_in, mlp_out, gate, experts,
    window, num_global, num_landmarks, top_k,
) -> dict[str, torch.Tensor]:  # fmt: skip
    y1, y2 = reversible(
        x1,
        x2,
        [(lambda t: (t @ t.mT * t.shape[-1] ** -0.5).softmax(-1) @ t, lambda t: F.gelu(t @ mlp_in.T) @ mlp_out.T)],
    )
    logits = x1 @ gate.T
    return {
        "linear_attention": linear_attention(q, k, v),
        "linear_attention_causal": linear_attention(q, k, v, causal=True),
        "linformer": linformer_attention(q, k, v, proj_k, proj_v),
        "performer": performer_attention(q, k, v, random_features),
        "window_global_mask": window_global_mask(q.shape[2], window, num_global),
        "window_global": window_global_attention(q, k, v, window, num_global),
        "nystrom": nystrom_attention(q, k, v, num_landmarks),
        "reversible_1": y1,
        "reversible_2": y2,
        "moe": mixture_of_experts(x1, logits, [lambda t, e=e: t @ e for e in experts], top_k),
        "load_balance": load_balance(logits),
    }
