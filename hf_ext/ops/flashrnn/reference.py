"""The definition of FlashRNN's cells: one step per token, in whatever precision the inputs have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


def lstm(pre: Sequence[torch.Tensor], state: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """c = sigmoid(f) c' + sigmoid(i) tanh(z);  h = sigmoid(o) tanh(c)"""
    (i, f, z, o), (_, c) = pre, state
    c = f.sigmoid() * c + i.sigmoid() * z.tanh()
    return o.sigmoid() * c.tanh(), c


def gru(pre: Sequence[torch.Tensor], state: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """h = sigmoid(z) h' + (1 - sigmoid(z)) tanh(n + sigmoid(r) g), where g is recurrent alone and n comes from the input alone"""
    (g, r, z, n), (h,) = pre, state
    z = z.sigmoid()
    return (z * h + (1 - z) * (n + r.sigmoid() * g).tanh(),)


def elman(pre: Sequence[torch.Tensor], state: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """h = tanh(x)"""
    return (pre[0].tanh(),)


def slstm(pre: Sequence[torch.Tensor], state: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """c and its normaliser n are kept relative to exp(m), m the running maximum of the log gates; h = sigmoid(o) c / n"""
    (i, f, z, o), (_, c, n, m) = pre, state
    log_forget = F.logsigmoid(f) + m
    m = torch.where(n == 0, i, torch.maximum(i, log_forget))
    input_gate = (i - m).exp()
    # where n is 0, at the first step, the forget gate meets zeros: it need only be finite
    forget_gate = (log_forget - m).clamp(max=80).exp()
    c = forget_gate * c + input_gate * z.tanh()
    n = (forget_gate * n + input_gate).clamp(min=1)
    return o.sigmoid() * c / n, c, n, m


@dataclass(frozen=True)
class Cell:
    """A cell, its states, and what its pre-activations (one per bias) are made of: which of them get inputs, which recurrent products."""

    step: Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]
    states: str
    pre_activations: int
    inputs: slice
    recurrent: slice

    @property
    def num_inputs(self) -> int:
        return self.inputs.stop - self.inputs.start

    @property
    def num_recurrent(self) -> int:
        return self.recurrent.stop - self.recurrent.start


CELLS = {
    "lstm": Cell(lstm, "hc", 4, slice(0, 4), slice(0, 4)),
    "slstm": Cell(slstm, "hcnm", 4, slice(0, 4), slice(0, 4)),
    "gru": Cell(gru, "h", 4, slice(1, 4), slice(0, 3)),
    "elman": Cell(elman, "h", 1, slice(0, 1), slice(0, 1)),
}


def place(x: torch.Tensor, among: slice, size: int, axis: int = -3) -> torch.Tensor:
    """x among `size` gates, which lie along `axis`, counted from the end; zeros elsewhere"""
    return F.pad(x, (0, 0) * (-1 - axis) + (among.start, size - among.stop))


def reference(
    Wx: torch.Tensor,
    R: torch.Tensor,
    b: torch.Tensor,
    states: torch.Tensor | None = None,
    function: str = "lstm",
    attention_mask: torch.Tensor | None = None,
    gradient_recurrent_cut: bool = False,
    gradient_recurrent_clipval: float | None = None,
    forward_clipval: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """pre = Wx_t + R h_{t-1} + b per head;  states_t = cell(pre, states_{t-1})   (arXiv 2412.07752, section 2)

    Arguments and shapes as in `flashrnn`.
    """
    cell = CELLS[function]
    B, T, _, N, D = Wx.shape
    if states is None:
        states = Wx.new_zeros(len(cell.states), B, 1, N, D)
    state, outputs = states[:, :, 0], []
    for t in range(T):
        before = state
        if gradient_recurrent_clipval is not None:
            before = torch.cat((clip_gradient(state[:1], gradient_recurrent_clipval), state[1:]))
        h = before[0].detach() if gradient_recurrent_cut else before[0]
        recurrent = torch.einsum("gnij,bnj->bgni", R, h)
        pre = place(Wx[:, t], cell.inputs, len(b)) + place(recurrent, cell.recurrent, len(b)) + b
        h, *others = cell.step(pre.unbind(1), before)
        if forward_clipval is not None:
            h = h.clamp(-forward_clipval, forward_clipval)
        after = torch.stack((h, *others))
        if attention_mask is not None:
            after = torch.where(attention_mask[:, t, None, None].bool(), after, state)
        state = after
        outputs.append(state)
    return torch.stack(outputs, 2), state.unsqueeze(2)


def clip_gradient(x: torch.Tensor, limit: float) -> torch.Tensor:
    """x, whose gradient is held within -limit ... limit."""
    x = x.view_as(x)
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient.clamp(-limit, limit))
    return x
