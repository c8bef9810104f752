"""The op against the token loop and against torch's own layers. float32, one thread.

The authors' kernels need a GPU, and their license keeps their torch loop out of here: the loop is this package's definition of the
same equations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

from hf_ext.layers.flashrnn import FlashRNN
from hf_ext.ops.flashrnn import CELLS, flashrnn, reference

from . import Contest
from .gla import forward, forward_backward

LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU}


def contests(reference_folder: Path | None = None) -> Iterator[Contest]:
    """12 heads of 64 channels at B16 T128 and B1 T256; one head of 768 at B16 T128 as a layer, input projection included."""
    torch.manual_seed(0)
    for function in CELLS:
        for batch, tokens in ((16, 128), (1, 256)):
            inputs = op_inputs(function, batch, tokens, 12, 64)
            for name, run in (("forward", forward), ("forward + backward", forward_backward)):
                ours, peer = (run(partial(hidden, form, function), inputs) for form in (flashrnn, reference))
                yield Contest(
                    f"{function} 12 x 64, batch {batch}, {tokens} tokens, {name}", ours, peer, "token loop", 1
                )
    x = torch.randn(16, 128, 768)
    for function, layer_class in LAYERS.items():
        layer = layer_class(768, 768, batch_first=True)
        own = FlashRNN.from_torch(layer)
        for name, run in (("forward", layer_forward), ("forward + backward", layer_forward_backward)):
            peer = f"nn.{layer_class.__name__}"
            yield Contest(f"{function} 1 x 768, batch 16, 128 tokens, {name}", run(own, x), run(layer, x), peer, 1)


def hidden(form: Callable, function: str, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    states, last = form(*inputs, function=function)
    return states[0], last


def op_inputs(function: str, batch: int, tokens: int, heads: int, channels: int) -> list[torch.Tensor]:
    cell = CELLS[function]
    tensors = (
        torch.randn(batch, tokens, cell.num_inputs, heads, channels),
        torch.randn(cell.num_recurrent, heads, channels, channels) * channels**-0.5,
        torch.randn(cell.pre_activations, heads, channels),
    )
    return [x.requires_grad_() for x in tensors]


def layer_forward(layer: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        layer(x)

    return run


def layer_forward_backward(layer: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        y, _ = layer(x)
        torch.autograd.grad(y.sum(), list(layer.parameters()))

    return run
