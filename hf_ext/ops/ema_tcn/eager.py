"""The blocks of convolutions through torch's own convolution, with a written-out backward pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .reference import ACTIVATIONS, padding


def histories(history: torch.Tensor | None, weight: torch.Tensor, dilation_factor: int) -> list[torch.Tensor | None]:
    """The part of a history (batch, places, channels) that belongs to each convolution, in order."""
    depth, layers, _, kernel_size = weight.shape
    if history is None:
        return [None] * (depth * layers)
    return list(history.split([size for size in ring_sizes(depth, layers, kernel_size, dilation_factor)], 1))


def ring_sizes(depth: int, layers: int, kernel_size: int, dilation_factor: int) -> list[int]:
    """How many inputs before the present one each convolution reads."""
    return [(kernel_size - 1) * dilation_factor**block for block in range(depth) for _ in range(layers)]


def extended(x: torch.Tensor, past: torch.Tensor | None, sizes: tuple[int, int]) -> torch.Tensor:
    """x (batch, tokens, channels) with zeros, or what came before it, around it: (batch, channels, tokens + sum(sizes))"""
    x = F.pad(x, (0, 0, *sizes)) if past is None else torch.cat((past, x), 1)
    return x.mT


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    history: torch.Tensor | None,
    dilation_factor: int,
    activation: str,
    causal: bool,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """h after the last block; what went into each convolution and what came out before the activation, (convolutions, batch, tokens,
    channels) each, empty unless `save`."""
    channels, kernel_size = weight.shape[2:]
    pasts = iter(histories(history, weight, dilation_factor))
    h, inputs, pre = x, [], []
    for block, (weights, biases) in enumerate(zip(weight, bias)):
        dilation, y = dilation_factor**block, h
        for w, b in zip(weights, biases):
            inputs.append(y)
            around = extended(y, next(pasts), padding(kernel_size, dilation, causal))
            pre.append(F.conv1d(around, w.unsqueeze(1), b, dilation=dilation, groups=channels).mT)
            y = ACTIVATIONS[activation](pre[-1])
        h = h + y
    if save:
        return h, torch.stack(inputs), torch.stack(pre)
    return h, x.new_empty(0), x.new_empty(0)


def backward(
    grad_h: torch.Tensor,
    weight: torch.Tensor,
    history: torch.Tensor | None,
    inputs: torch.Tensor,
    pre: torch.Tensor,
    dilation_factor: int,
    activation: str,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, weight and bias."""
    depth, layers, channels, kernel_size = weight.shape
    pasts = histories(history, weight, dilation_factor)
    dweight, dbias, dh = torch.empty_like(weight), weight.new_empty(depth, layers, channels), grad_h
    for block in reversed(range(depth)):
        dilation, dy = dilation_factor**block, dh
        sizes = padding(kernel_size, dilation, causal)
        for layer in reversed(range(layers)):
            index = block * layers + layer
            da = (dy * _slope(pre[index], activation)).mT
            around = extended(inputs[index], pasts[index], sizes)
            w = weight[block, layer].unsqueeze(1)
            options = {"dilation": dilation, "groups": channels}
            dweight[block, layer] = torch.nn.grad.conv1d_weight(around, w.shape, da, **options).squeeze(1)
            dbias[block, layer] = da.sum((0, 2))
            dy = torch.nn.grad.conv1d_input(around.shape, w, da, **options).mT[:, sizes[0] : around.shape[2] - sizes[1]]
        dh = dh + dy
    return dh.contiguous(), dweight, dbias


def _slope(x: torch.Tensor, activation: str) -> torch.Tensor | float:
    if activation == "relu":
        return (x > 0).to(x.dtype)
    if activation == "silu":
        return x.sigmoid() * (1 + x * (1 - x.sigmoid()))
    if activation == "gelu":
        return torch.special.ndtr(x) + x * (-0.5 * x.square()).exp() * (0.5 / torch.pi) ** 0.5
    return 1.0
