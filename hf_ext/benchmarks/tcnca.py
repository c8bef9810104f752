"""The convolutions against the moving average of MEGA that they replace, and torch's convolution. float32, one thread, 256 channels.

MEGA's moving average is a convolution with a kernel as long as the text, by Fourier transforms. Its kernel is computed before the clock
starts, as MEGA keeps it out of training; a second contest keeps the kernel's transform too, which MEGA does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from hf_ext.ops.chunked_attention import chunked_attention
from hf_ext.ops.ema_tcn import ema_tcn
from hf_ext.reproductions.tcnca import MovingAverage, convolve_with

from . import Contest
from .gla import forward, forward_backward

CHANNELS, KERNEL_SIZE, FACTOR, DEPTH = 256, 17, 8, 4


def contests(reference_folder: Path | None = None) -> Iterator[Contest]:
    """Forward, and forward + backward at 2048 and 8192 tokens; attention at 8192."""
    torch.manual_seed(0)
    weight = torch.randn(DEPTH, 1, CHANNELS, KERNEL_SIZE) * KERNEL_SIZE**-0.5
    bias, omega = torch.randn(DEPTH, 1, CHANNELS), torch.randn(CHANNELS)
    for tokens in (2048, 8192):
        x = torch.randn(1, tokens, CHANNELS)
        kernel = MovingAverage(CHANNELS, 16).kernel(tokens).detach()
        spectrum = torch.fft.rfft(kernel, n=2 * tokens)
        peers = {
            "MEGA's moving average": (fourier, (x, kernel, omega)),
            "the same, transform kept": (partial(fourier_product, spectrum), (x, omega)),
            "torch's conv1d": (torch_convolutions, (x, weight, bias, omega)),
        }
        for name, run in (("forward", forward), ("forward + backward", forward_backward)):
            for peer_name, (peer, peer_inputs) in peers.items():
                ours, theirs = (
                    [t.clone().requires_grad_() for t in ts] for ts in ((x, weight, bias, omega), peer_inputs)
                )
                yield Contest(f"{tokens} tokens, {name}", run(convolutions, ours), run(peer, theirs), peer_name, 1)
    q, k, v = torch.randn(2, 8192, 128), torch.randn(2, 8192, 128), torch.randn(2, 8192, 256)
    yield Contest(
        "attention, 8192 tokens in chunks of 512, forward",
        forward(partial(chunks, 512), [q, k, v, torch.randn(1023)]),
        forward(partial(chunks, -1), [q, k, v, torch.randn(16383)]),
        "attention without chunks",
        1,
    )


def convolutions(*inputs: torch.Tensor) -> tuple[torch.Tensor, None]:
    return ema_tcn(*inputs, FACTOR)


def fourier(x: torch.Tensor, kernel: torch.Tensor, omega: torch.Tensor) -> tuple[torch.Tensor, None]:
    return fourier_product(torch.fft.rfft(kernel, n=2 * x.shape[1]), x, omega)


def fourier_product(spectrum: torch.Tensor, x: torch.Tensor, omega: torch.Tensor) -> tuple[torch.Tensor, None]:
    return F.silu(convolve_with(x, spectrum) + x * omega), None


def torch_convolutions(x, weight, bias, omega) -> tuple[torch.Tensor, None]:
    h = x.mT
    for block, (kernel, offset) in enumerate(zip(weight[:, 0], bias[:, 0])):
        dilation = FACTOR**block
        padded = F.pad(h, ((KERNEL_SIZE - 1) * dilation, 0))
        h = h + F.conv1d(padded, kernel.unsqueeze(1), offset, dilation=dilation, groups=CHANNELS).relu()
    return F.silu(h.mT + x * omega), None


def chunks(chunk_size: int, q, k, v, bias) -> tuple[torch.Tensor, None]:
    return chunked_attention(q, k, v, bias, chunk_size)
