"""The delta rule and the selective scan on a GPU: the Triton kernels against the token loop, then the delta rule's times beside
flash-linear-attention, in bf16 and in fp32.

    python -m tests.gpu.bench_deltanet

Exits with 1 if a kernel is wrong. Peers that are not installed are left out; flash-linear-attention's chunk form refuses float32. Shapes
are those of the spec, and one token after a long context, as in decoding.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from hf_ext.ops.delta_rule import delta_rule, reference
from hf_ext.ops.selective_scan import reference as scan_reference
from hf_ext.ops.selective_scan import selective_scan
from tests.gpu.recurrence import check, exit_without_a_gpu, table

SHAPES = [(4, 2048, 16, 128), (1, 8192, 96, 128), (2, 16384, 16, 128)]
CHECKS = [  # batch, tokens, heads, channels, step size or None for (0, 2); borders
    ((2, 40, 2, 32, None), None),
    ((2, 1000, 2, 64, None), None),
    ((1, 300, 2, 128, None), [0, 1, 64, 130, 300]),
    ((2, 200, 2, 256, 2.0), None),
]


def draw(batch, tokens, heads, channels, step, dtype):
    q, k = (F.normalize(torch.randn(batch, tokens, heads, channels, device="cuda"), dim=-1).to(dtype) for _ in range(2))
    v = torch.randn(batch, tokens, heads, channels, device="cuda", dtype=dtype)
    beta = 2 * torch.rand(batch, tokens, heads, device="cuda")
    beta = beta if step is None else torch.full_like(beta, step)
    return [x.requires_grad_() for x in (q, k, v, beta.to(dtype))]


SCANS = [((2, 40, 32, 16), None), ((1, 1000, 64, 16), None)]  # batch, tokens, channels, state size; no borders


def draw_scan(batch, tokens, channels, states, dtype):
    x, dt = (torch.randn(batch, tokens, channels, device="cuda") for _ in range(2))
    B, C = (torch.randn(batch, tokens, states, device="cuda") for _ in range(2))
    A = -torch.arange(1.0, states + 1, device="cuda").repeat(channels, 1)
    return [tensor.to(dtype).requires_grad_() for tensor in (x, F.softplus(dt), A, B, C)]


def signed(scan, *inputs, cu_seqlens=None):
    return scan(*inputs, allow_neg_eigval=True)


def peers(dtype: torch.dtype, tokens: int) -> dict:
    found = {"hf_ext": lambda q, k, v, beta: delta_rule(q, k, v, beta)[0]}
    if find_spec("fla") and (dtype != torch.float32 or tokens == 1):
        from fla.ops.delta_rule import chunk_delta_rule, fused_recurrent_delta_rule

        theirs = fused_recurrent_delta_rule if tokens == 1 else chunk_delta_rule
        found["fla"] = lambda q, k, v, beta: theirs(q, k, v, beta)[0]
    return found


if __name__ == "__main__":
    exit_without_a_gpu()
    good = check(delta_rule, reference, CHECKS, draw)
    if not check(partial(signed, selective_scan), partial(signed, scan_reference), SCANS, draw_scan) or not good:
        sys.exit(1)
    for dtype in (torch.bfloat16, torch.float32):
        for batch, tokens, heads, channels in (*SHAPES, (64, 1, 16, 128)):
            drawn = partial(draw, batch, tokens, heads, channels, None, dtype)
            table(str(dtype), [(f"B{batch} T{tokens} H{heads} D{channels}", drawn)], peers(dtype, tokens))
