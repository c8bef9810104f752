"""What the GPU scripts of recurrences share: kernels against the token loop, and a table of times beside peers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from itertools import pairwise

import torch

Tensors = list[torch.Tensor]


def largest_errors(op: Callable, reference: Callable, inputs: Tensors, borders: list[int] | None) -> list[float]:
    """Of the outputs and of each gradient against the loop in float64, over the largest value or 1."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    cu_seqlens = None if borders is None else torch.tensor(borders, device="cuda")
    o, _ = op(*inputs, cu_seqlens=cu_seqlens)
    weight = torch.randn(o.shape, device="cuda")
    spans = [slice(None)] if borders is None else [slice(a, b) for a, b in pairwise(borders)]
    expected = torch.cat([reference(*(x[:, span] for x in exact))[0] for span in spans], 1)
    ours = (o, *torch.autograd.grad((o * weight).sum(), inputs))
    theirs = (expected, *torch.autograd.grad((expected * weight).sum(), exact))
    return [((a - b).abs().max() / b.abs().max().clamp_min(1)).item() for a, b in zip(ours, theirs)]


def check(op: Callable, reference: Callable, cases: Iterable[tuple[tuple, list[int] | None]], draw: Callable) -> bool:
    """Whether every case, arguments of `draw` and borders, stays within its bound in float32 and bfloat16; prints each."""
    good = True
    for dtype, bound in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        for case, borders in cases:
            errors = largest_errors(op, reference, draw(*case, dtype), borders)
            within = max(errors) < bound
            good &= within
            shown = f"{max(errors):.2e}" if within else " ".join(f"{error:.2e}" for error in errors)
            print(f"{'ok   ' if within else 'WRONG'} {dtype} {case} {borders}: {shown} (bound {bound:g})")
    return good


def milliseconds(function: Callable[[], object]) -> float:
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


def table(title: str, shapes: Iterable[tuple[str, Callable[[], Tensors]]], peers: dict[str, Callable]) -> None:
    """Times and peak memory of every peer on every shape, a label and a function that draws the inputs."""
    print(f"\n{torch.cuda.get_device_name()}, {title}, milliseconds forward | forward + backward, peak MiB")
    for label, draw in shapes:
        for name, function in peers.items():
            inputs = draw()

            def train(function=function, inputs=inputs):
                torch.autograd.grad(function(*inputs).sum(), inputs, allow_unused=True)

            with torch.no_grad():
                forward = milliseconds(lambda function=function, inputs=inputs: function(*inputs))
            torch.cuda.reset_peak_memory_stats()
            both = milliseconds(train)
            peak = torch.cuda.max_memory_allocated() / 2**20
            print(f"{label}  {name:>14}  {forward:8.3f} | {both:8.3f}  {peak:8.0f}")


def exit_without_a_gpu() -> None:
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device: nothing was checked and nothing measured")
