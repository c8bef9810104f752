"""Recurrent networks with one recurrent matrix per head (arXiv 2412.07752) as a function: Elman, LSTM, GRU and sLSTM."""

from __future__ import annotations

import torch

from ..chunks import check_borders, precision
from ..two_forms import for_export, register
from . import eager
from .reference import CELLS, reference

__all__ = ["CELLS", "flashrnn", "reference"]


def flashrnn(
    Wx: torch.Tensor,
    R: torch.Tensor,
    b: torch.Tensor,
    states: torch.Tensor | None = None,
    function: str = "lstm",
    attention_mask: torch.Tensor | None = None,
    gradient_recurrent_cut: bool = False,
    gradient_recurrent_clipval: float | None = None,
    forward_clipval: float | None = None,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """states_t = cell(Wx_t + R h_{t-1} + b, states_{t-1}), head by head (arXiv 2412.07752, section 2).

    | function | gates in Wx | gates with R | biases | states |
    |---|---|---|---|---|
    | lstm | i, f, z, o | i, f, z, o | i, f, z, o | h, c |
    | slstm | i, f, z, o | i, f, z, o | i, f, z, o | h, c, n, m |
    | gru | r, z, n | g, r, z | g, r, z, n | h |
    | elman | one | one | one | h |

    Args:
        Wx: inputs after their projection, (batch, tokens, gates, heads, channels).
        R: recurrent weights (gates, heads, channels out, channels in).
        b: biases (gates, heads, channels).
        states: to start from, (states, batch, 1, heads, channels); zeros when None.
        function: "lstm", "slstm", "gru" or "elman".
        attention_mask: (batch, tokens), 0 at tokens that leave the states as they are.
        gradient_recurrent_cut: no gradient through R h_{t-1} to h_{t-1}; R, b and Wx keep theirs.
        gradient_recurrent_clipval: bound on each entry of the gradient that a step hands to the hidden state before it.
        forward_clipval: bound on the entries of h.
        cu_seqlens: (sequences + 1,) integers, the borders 0 ... tokens of sequences packed along `tokens` in a batch of 1; `states` and
            the last states then have `sequences` in the place of the batch. Excludes `attention_mask`.

    Returns:
        The states after each token, (states, batch, tokens, heads, channels), in the type of Wx, and after the last one,
        (states, batch, 1, heads, channels), in float32 (float64 for float64 inputs). h is the first. Differentiable in Wx, R, b, states.

    Raises:
        ValueError: shapes that do not fit each other or the function; bounds that are not positive.

    Computes in float32 (float64 for float64 inputs): by one kernel each for forward and backward, C++ on a CPU and Triton on a GPU for
    heads of up to 128 channels; without a compiler or Triton, for wider heads and float64 on a GPU, and on other devices, by a loop of
    torch operations.
    """
    sequences = check_borders(Wx, cu_seqlens)
    _check(Wx, R, b, states, function, attention_mask, sequences, gradient_recurrent_clipval, forward_clipval)
    if cu_seqlens is not None:
        if attention_mask is not None:
            raise ValueError("Give cu_seqlens or attention_mask, not both")
        lengths = cu_seqlens.long().diff()
        real = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        rows = Wx.new_zeros(*real.shape, *Wx.shape[2:]).masked_scatter(real[:, :, None, None, None], Wx)
        options = (gradient_recurrent_cut, gradient_recurrent_clipval, forward_clipval)
        outputs, last = flashrnn(rows, R, b, states, function, real, *options)
        return outputs[:, real].unsqueeze(1), last
    dtype = precision(Wx, R, b)
    inputs = [None if x is None else x.to(dtype) for x in (Wx, R, b, states)]
    mask = None if attention_mask is None else attention_mask.bool()
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    forward = eager.forward if for_export(Wx.shape[1]) else _forward
    outputs, last, _ = forward(
        *inputs, mask, function, gradient_recurrent_cut, gradient_recurrent_clipval, forward_clipval, save
    )
    return outputs.to(Wx.dtype), last


def _check(Wx, R, b, states, function, attention_mask, sequences, *bounds) -> None:
    if function not in CELLS:
        raise ValueError(f"function must be one of {', '.join(CELLS)}; got {function!r}")
    cell = CELLS[function]
    if Wx.ndim != 5 or 0 in Wx.shape:
        raise ValueError(
            f"Wx must be (batch, tokens, gates, heads, channels) with nothing of size 0; got {tuple(Wx.shape)}"
        )
    batch, tokens, _, heads, channels = Wx.shape
    expected = {
        "Wx": (Wx, (batch, tokens, cell.num_inputs, heads, channels)),
        "R": (R, (cell.num_recurrent, heads, channels, channels)),
        "b": (b, (cell.pre_activations, heads, channels)),
        "states": (states, (len(cell.states), sequences, 1, heads, channels)),
        "attention_mask": (attention_mask, (batch, tokens)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} of a {function} must be {shape} beside Wx {tuple(Wx.shape)}; got {tuple(tensor.shape)}"
            )
    for name, bound in zip(("gradient_recurrent_clipval", "forward_clipval"), bounds):
        if bound is not None and not bound > 0:
            raise ValueError(f"{name} must be above 0, or None; got {bound}")


_forward, _backward = register("flashrnn", eager)


@_forward.register_fake
def _(Wx, R, b, states, attention_mask, function, cut, gradient_clip, forward_clip, save):
    batch, tokens, _, heads, channels = Wx.shape
    size = len(CELLS[function].states)
    pre = (heads, tokens, batch, b.shape[0], channels) if save else (0,)
    outputs = Wx.new_empty(size, batch, tokens, heads, channels)
    return outputs, Wx.new_empty(size, batch, 1, heads, channels), Wx.new_empty(pre)


@_backward.register_fake
def _(grad_states, grad_last, R, states, attention_mask, outputs, pre, function, cut, gradient_clip, forward_clip):
    _, batch, tokens, heads, channels = outputs.shape
    dWx = outputs.new_empty(batch, tokens, CELLS[function].num_inputs, heads, channels)
    return dWx, R.new_empty(R.shape), R.new_empty(pre.shape[3], heads, channels), outputs.new_empty(grad_last.shape)


def _setup_context(ctx, inputs, output) -> None:
    _, R, _, states, attention_mask, *ctx.options, _ = inputs
    outputs, _, pre = output
    ctx.save_for_backward(R, states, attention_mask, outputs, pre)
    ctx.mark_non_differentiable(pre)
    ctx.set_materialize_grads(False)  # zeros for `pre` would cost as much time as a good part of the backward pass


def _differentiate(ctx, grad_outputs, grad_last, _):
    R, states, attention_mask, outputs, pre = ctx.saved_tensors
    grad_outputs = torch.zeros_like(outputs) if grad_outputs is None else grad_outputs
    grad_last = torch.zeros_like(outputs[:, :, :1]) if grad_last is None else grad_last
    *grads, grad_start = _backward(grad_outputs, grad_last, R, states, attention_mask, outputs, pre, *ctx.options)
    return *grads, None if states is None else grad_start, *[None] * 6


_forward.register_autograd(_differentiate, setup_context=_setup_context)
