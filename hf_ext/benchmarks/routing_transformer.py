"""One routing head against full causal attention, as texts get longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from hf_ext.ops.routed_attention import normalize, routed_attention

from . import Contest

CHANNELS, WINDOW = 64, 512


def contests(reference: Path | None = None) -> Iterator[Contest]:
    """Batch 1, one head of 64 channels, clusters of 512 tokens, one cluster for each 512 tokens; float32, one thread."""
    for tokens in (1024, 4096, 16384):
        q, v, means = head(tokens)
        for name, run in (("forward", forward), ("forward + backward", forward_backward)):
            yield Contest(
                f"routing head, {tokens} tokens, {name}",
                run(lambda q, v, means=means: routed_attention(q, None, v, means, WINDOW), q, v),
                run(lambda q, v: F.scaled_dot_product_attention(q, q, v, is_causal=True), q, v),
                "torch's SDPA, causal",
                threads=1,
            )


def head(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, v = (torch.randn(1, 1, tokens, CHANNELS, generator=generator) for _ in range(2))
    means = normalize(torch.randn(1, tokens // WINDOW, CHANNELS, generator=generator))
    return normalize(q).requires_grad_(), v.requires_grad_(), means


def forward(attend: Callable, q: torch.Tensor, v: torch.Tensor) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        attend(q, v)

    return run


def forward_backward(attend: Callable, q: torch.Tensor, v: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        torch.autograd.grad(attend(q, v).sum(), (q, v))

    return run
