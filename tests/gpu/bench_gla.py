"""Gated linear attention on a GPU: the Triton kernels against the token loop, then times beside flash-linear-attention and FlashAttention.

    python -m tests.gpu.bench_gla

Exits with 1 if a kernel is wrong. Peers that are not installed are left out. Shapes are those of flash-linear-attention's README.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from itertools import pairwise

import torch
import torch.nn.functional as F

from hf_ext.ops.gla import gated_linear_attention, reference

SHAPES = [
    (8, 1024, 8, 64),
    (4, 2048, 16, 128),
    (8, 2048, 32, 256),
    (4, 4096, 64, 128),
    (1, 8192, 96, 128),
    (2, 16384, 16, 128),
]
CHECKS = [  # batch, tokens, heads, query heads per head, channels, borders, gate strength
    (2, 40, 2, 1, 32, None, 1 / 16),
    (2, 1000, 2, 1, 64, None, 1 / 16),
    (1, 300, 2, 2, 128, [0, 1, 64, 130, 300], 1.0),
    (2, 200, 2, 1, 256, None, 50.0),
]


def draw(batch, tokens, heads, groups, channels, strength, dtype):
    q = torch.randn(batch, tokens, heads * groups, channels, device="cuda", dtype=dtype)
    k, v, g = (torch.randn(batch, tokens, heads, channels, device="cuda", dtype=dtype) for _ in range(3))
    return [x.requires_grad_() for x in (q, k, v, (F.logsigmoid(g.float()) * strength).to(dtype))]


def largest_error(batch, tokens, heads, groups, channels, borders, strength, dtype) -> float:
    """Of outputs and gradients against the loop in float64, over the largest value or 1."""
    inputs = draw(batch, tokens, heads, groups, channels, strength, dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    weight = torch.randn(batch, tokens, heads * groups, channels, device="cuda")
    cu_seqlens = None if borders is None else torch.tensor(borders, device="cuda")
    o, _ = gated_linear_attention(*inputs, cu_seqlens=cu_seqlens)
    spans = [slice(None)] if borders is None else [slice(a, b) for a, b in pairwise(borders)]
    expected = torch.cat([reference(*(x[:, span] for x in exact))[0] for span in spans], 1)
    ours = (o, *torch.autograd.grad((o * weight).sum(), inputs))
    theirs = (expected, *torch.autograd.grad((expected * weight).sum(), exact))
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1)).item() for a, b in zip(ours, theirs))


def check() -> bool:
    good = True
    for dtype, bound in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        for case in CHECKS:
            error = largest_error(*case, dtype)
            good &= error < bound
            print(f"{'ok   ' if error < bound else 'WRONG'} {dtype} {case}: {error:.2e} (bound {bound:g})")
    return good


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


def milliseconds(function) -> float:
    for _ in range(5):
        function()
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def table() -> None:
    print(f"\n{torch.cuda.get_device_name()}, bf16, milliseconds forward | forward + backward, peak MiB")
    for batch, tokens, heads, channels in SHAPES:
        for name, function in peers().items():
            inputs = draw(batch, tokens, heads, 1, channels, 1 / 16, torch.bfloat16)

            def train(function=function, inputs=inputs):
                torch.autograd.grad(function(*inputs).sum(), inputs, allow_unused=True)

            with torch.no_grad():
                forward = milliseconds(lambda function=function, inputs=inputs: function(*inputs))
            torch.cuda.reset_peak_memory_stats()
            both = milliseconds(train)
            peak = torch.cuda.max_memory_allocated() / 2**20
            print(f"B{batch} T{tokens} H{heads} D{channels}  {name:>14}  {forward:8.3f} | {both:8.3f}  {peak:8.0f}")


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device: nothing was checked and nothing measured")
    if not check():
        sys.exit(1)
    table()
