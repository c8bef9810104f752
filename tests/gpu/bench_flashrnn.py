"""FlashRNN's op on a GPU: the Triton kernels (up to 128 channels) and the torch form against the token loop, then times beside the
loop and, with one head, cuDNN.

    python -m tests.gpu.bench_flashrnn

Exits with 1 if a result is wrong. Shapes are the paper's: hidden size 768, batch 16, 1024 tokens. Layers beside cuDNN's include the input
projection.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
from torch import nn

from hf_ext.layers.flashrnn import FlashRNN
from hf_ext.ops.flashrnn import CELLS, flashrnn, reference
from tests.gpu.recurrence import check, exit_without_a_gpu, table

HEADS = [(12, 64), (6, 128), (3, 256), (1, 768)]
CHECKS = [((17, 50, 3, 33), None), ((2, 200, 4, 64), None), ((1, 300, 1, 128), None)]  # batch, tokens, heads, channels


def draw(function, batch, tokens, heads, channels, dtype):
    cell = CELLS[function]
    tensors = (
        torch.randn(batch, tokens, cell.num_inputs, heads, channels, device="cuda"),
        torch.randn(cell.num_recurrent, heads, channels, channels, device="cuda") * channels**-0.5,
        torch.randn(cell.pre_activations, heads, channels, device="cuda"),
    )
    return [x.to(dtype).requires_grad_() for x in tensors]


def without_borders(form, function, *inputs, cu_seqlens=None):
    return form(*inputs, function=function)


def layers() -> dict:
    found = {}
    for name, layer in {
        "cuDNN LSTM": nn.LSTM(768, 768, batch_first=True),
        "cuDNN GRU": nn.GRU(768, 768, batch_first=True),
    }.items():
        found[f"hf_ext {name[-4:].strip()}"] = FlashRNN.from_torch(layer).cuda()
        found[name] = layer.cuda()
    return {name: lambda x, layer=layer: layer(x)[0] for name, layer in found.items()}


if __name__ == "__main__":
    exit_without_a_gpu()
    forms = {f: [partial(without_borders, form, f) for form in (flashrnn, reference)] for f in CELLS}
    if not all([check(*forms[function], CHECKS, partial(draw, function)) for function in CELLS]):
        sys.exit(1)
    table(
        "one layer, fp32",
        [("B16 T1024 768", lambda: [torch.randn(16, 1024, 768, device="cuda").requires_grad_()])],
        layers(),
    )
    for function, (ours, _) in forms.items():
        drawn = [(f"{n} x {d}", partial(draw, function, 16, 1024, n, d, torch.bfloat16)) for n, d in HEADS]
        table(f"{function}, bf16, B16 T1024", drawn, {"hf_ext": lambda *x, ours=ours: ours(*x)[0][0]})
    for function, (_, loop) in forms.items():
        drawn = [("12 x 64", partial(draw, function, 16, 1024, 12, 64, torch.bfloat16))]
        table(f"{function}, bf16, B16 T1024", drawn, {"token loop": lambda *x, loop=loop: loop(*x)[0][0]})
