"""Prefix softmax attention on a GPU: the chunk form against the token loop, then times beside causal attention of a repeated query.

    python -m tests.gpu.bench_aaren

Exits with 1 if a result is wrong.
"""

from __future__ import annotations

import sys
from functools import partial

import torch

from hf_ext.benchmarks.aaren import sdpa
from hf_ext.ops.prefix_scan_attention import prefix_softmax_attention, reference
from tests.gpu.recurrence import check, exit_without_a_gpu, table

LENGTHS = [2048, 8192, 32768]
CHECKS = [((2, 40, 2, 32), None), ((2, 1000, 2, 64), None), ((1, 65, 3, 128), None)]  # batch, tokens, heads, channels


def draw(batch, tokens, heads, channels, dtype):
    shapes = (heads, channels), (batch, tokens, heads, channels), (batch, tokens, heads, channels)
    return [torch.randn(shape, device="cuda", dtype=dtype).requires_grad_() for shape in shapes]


if __name__ == "__main__":
    exit_without_a_gpu()
    if not check(lambda *x, cu_seqlens=None: prefix_softmax_attention(*x), reference, CHECKS, draw):
        sys.exit(1)
    peers = {"hf_ext": lambda *x: prefix_softmax_attention(*x)[0], "sdpa": lambda *x: sdpa(*x)[0]}
    drawn = [(f"B8 T{tokens} H16 D128", partial(draw, 8, tokens, 16, 128, torch.bfloat16)) for tokens in LENGTHS]
    table("bf16", drawn, peers)
