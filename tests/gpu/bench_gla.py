"""Gated linear attention on a GPU: the Triton kernels against the token loop, then times beside flash-linear-attention and FlashAttention.

    python -m tests.gpu.bench_gla

Exits with 1 if a kernel is wrong. Peers that are not installed are left out. Shapes are those of flash-linear-attention's README.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from hf_ext.ops.gla import gated_linear_attention, reference
from tests.gpu.recurrence import check, exit_without_a_gpu, table

SHAPES = [
    (8, 1024, 8, 64),
    (4, 2048, 16, 128),
    (8, 2048, 32, 256),
    (4, 4096, 64, 128),
    (1, 8192, 96, 128),
    (2, 16384, 16, 128),
]
CHECKS = [  # batch, tokens, heads, query heads per head, channels, gate strength; borders
    ((2, 40, 2, 1, 32, 1 / 16), None),
    ((2, 1000, 2, 1, 64, 1 / 16), None),
    ((1, 300, 2, 2, 128, 1.0), [0, 1, 64, 130, 300]),
    ((2, 200, 2, 1, 256, 50.0), None),
]


def draw(batch, tokens, heads, groups, channels, strength, dtype):
    q = torch.randn(batch, tokens, heads * groups, channels, device="cuda", dtype=dtype)
    k, v, g = (torch.randn(batch, tokens, heads, channels, device="cuda", dtype=dtype) for _ in range(3))
    return [x.requires_grad_() for x in (q, k, v, (F.logsigmoid(g.float()) * strength).to(dtype))]


def peers() -> dict:
    found = {"hf_ext": lambda q, k, v, g: gated_linear_attention(q, k, v, g)[0]}
    if find_spec("fla"):
        from fla.ops.gla import chunk_gla

        found["fla"] = lambda q, k, v, g: chunk_gla(q, k, v, g)[0]
    if find_spec("flash_attn"):
        from flash_attn import flash_attn_func

        found["FlashAttention"] = lambda q, k, v, g: flash_attn_func(q, k, v, causal=True)
    found["sdpa"] = lambda q, k, v, g: F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True
    )
    return found


if __name__ == "__main__":
    exit_without_a_gpu()
    if not check(gated_linear_attention, reference, CHECKS, draw):
        sys.exit(1)
    drawn = [
        (
            f"B{batch} T{tokens} H{heads} D{channels}",
            partial(draw, batch, tokens, heads, 1, channels, 1 / 16, torch.bfloat16),
        )
        for batch, tokens, heads, channels in SHAPES
    ]
    table("bf16", drawn, peers())
