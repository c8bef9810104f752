"""All steps at once: the sum over earlier inputs is one matrix product over gathered windows, or for long ones a product of spectra.

A window of W inputs for each of T steps costs T * W * C * D multiplications gathered and (T + W) * C * D by its spectra, apart
from the transforms. See `LONG` for where they cross.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from hf_ext.layers.linear import fast_linear

LONG = 32  # the smaller of steps and window from which spectra are faster: as fast forward and 10 times in training, measured


def extend(inputs: torch.Tensor, window: int, state: torch.Tensor | None) -> torch.Tensor:
    """(batch, steps, ...) -> (batch, window + steps, ...): what came before in front, zeros where nothing did."""
    if state is None:
        return F.pad(inputs, (0, 0) * (inputs.ndim - 2) + (window, 0))
    return torch.cat([state.to(inputs.dtype), inputs], 1)


def gather(extended: torch.Tensor, window: int) -> torch.Tensor:
    """(batch, window + steps, groups, channels) -> (batch, steps, groups, window * channels), strictly before each step"""
    return extended[:, :-1].unfold(1, window, 1).transpose(-1, -2).flatten(-2)


def gated_update(hidden: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """sigmoid(s) h + (1 - sigmoid(s)) tanh(u), of gates [s, u]"""
    s, u = gates.chunk(2, -1)
    return torch.lerp(u.tanh(), hidden, s.sigmoid())


def group_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """(..., groups, in), (groups, out, in), (groups, out) -> (..., groups, out)"""
    if weight.shape[0] == 1:
        return fast_linear(x, weight[0], bias[0])
    rows = x.reshape(-1, *x.shape[-2:]).transpose(0, 1)  # (groups, everything else, in)
    return torch.baddbmm(bias.unsqueeze(1), rows, weight.mT).transpose(0, 1).reshape(*x.shape[:-1], -1)


def correlate(extended: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """What `group_linear(gather(...))` gives, by spectra: (batch, window + steps, groups, channels) -> (batch, steps, groups, hidden)"""
    dtype = torch.promote_types(extended.dtype, torch.float32)
    length = extended.shape[1] - 1
    size = fast_length(length)
    # transforms run along the last axis, products over frequencies along the first; (frequencies, groups, batch or hidden, channels)
    signal = torch.fft.rfft(extended[:, :-1].to(dtype).permute(0, 2, 3, 1), size).permute(3, 1, 0, 2)
    filters = torch.fft.rfft(weight.to(dtype).mT, size).permute(3, 0, 1, 2)
    product = (signal @ filters.mH).permute(2, 1, 3, 0)
    hidden = torch.fft.irfft(product, size)[..., : length + 1 - weight.shape[2]]
    return (hidden.permute(0, 3, 1, 2) + bias).to(extended.dtype)


def fast_length(length: int) -> int:
    """The next length from `length` on that is a power of two times 1, 3, 5, 9 or 15."""
    return min(factor << max(-(-length // factor) - 1, 0).bit_length() for factor in (1, 3, 5, 9, 15))


def forward(
    inputs: torch.Tensor,
    history_weight: torch.Tensor,
    history_bias: torch.Tensor,
    gate_weight: torch.Tensor,
    gate_bias: torch.Tensor,
    initial_state: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    window = history_weight.shape[2]
    extended = extend(inputs, window, initial_state)
    if min(window, inputs.shape[1]) < LONG:
        hidden = group_linear(gather(extended, window), history_weight.flatten(2), history_bias)
    else:
        hidden = correlate(extended, history_weight, history_bias)
    gates = group_linear(torch.cat([inputs, hidden], -1), gate_weight, gate_bias)
    return gated_update(hidden, gates), extended[:, -window:]
