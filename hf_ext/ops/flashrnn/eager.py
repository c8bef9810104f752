"""FlashRNN's cells in plain torch: a loop of one batched matrix product and a few elementwise operations per step.

Paper: "FlashRNN: Optimizing Traditional RNNs on Modern Hardware", arXiv 2412.07752.

What autograd does badly with such a loop is written out: gradients of the weights are one matrix product after the loop instead of one
sum per step, and only pre-activations and states are kept.

Letters: B batch, T tokens, N heads, D channels of a head, S states, P pre-activations, G those with recurrent products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..chunks import without_autocast
from .reference import CELLS, place

Tensors = Sequence[torch.Tensor]


@without_autocast
def forward(
    Wx: torch.Tensor,
    R: torch.Tensor,
    b: torch.Tensor,
    states: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    function: str,
    gradient_recurrent_cut: bool,
    gradient_recurrent_clipval: float | None,
    forward_clipval: float | None,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of tensors of one type: states (S, B, T, N, D), last states (S, B, 1, N, D), and for `backward`, where `save` asks for them,
    pre-activations (N, T, B, P, D). What concerns gradients is read there."""
    cell = CELLS[function]
    B, T, _, N, D = Wx.shape
    pre = (place(Wx, cell.inputs, len(b)) + b).permute(3, 1, 0, 2, 4)
    weights = R.permute(1, 3, 0, 2).flatten(2)  # (N, D in, G * D out)
    state = Wx.new_zeros(len(cell.states), N, B, D) if states is None else states[:, :, 0].transpose(1, 2)
    state, outputs, saved = state.unbind(), [], []
    for t in range(T):
        gates = pre[:, t] + place((state[0] @ weights).unflatten(2, (-1, D)), cell.recurrent, len(b), -2)
        h, *others = cell.step(gates.unbind(2), state)
        if forward_clipval is not None:
            h = h.clamp(-forward_clipval, forward_clipval)
        after = (h, *others)
        if attention_mask is not None:
            real = attention_mask[:, t, None]
            after = tuple(torch.where(real, new, old) for new, old in zip(after, state))
        state = after
        outputs.append(torch.stack(state))
        saved.append(gates)
    outputs = torch.stack(outputs).permute(1, 3, 0, 2, 4).contiguous()  # (T, S, N, B, D) -> (S, B, T, N, D)
    return outputs, outputs[:, :, -1:].clone(), torch.stack(saved, 1) if save else pre.new_empty(0)


@without_autocast
def backward(
    grad_states: torch.Tensor,
    grad_last: torch.Tensor,
    R: torch.Tensor,
    states: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    outputs: torch.Tensor,
    pre: torch.Tensor,
    function: str,
    gradient_recurrent_cut: bool,
    gradient_recurrent_clipval: float | None,
    forward_clipval: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of Wx, R, b and the initial states, all of one type."""
    cell, step_back = CELLS[function], BACKWARD[function]
    S, B, T, N, D = outputs.shape
    start = outputs.new_zeros(S, B, 1, N, D) if states is None else states
    trajectory = torch.cat((start, outputs), 2).permute(2, 0, 3, 1, 4)  # (T + 1, S, N, B, D)
    grad_states = grad_states.permute(2, 0, 3, 1, 4)
    carried = grad_last[:, :, 0].transpose(1, 2).unbind()
    weights = R.transpose(0, 1).flatten(1, 2)  # (N, G * D out, D in)
    dpre = torch.empty_like(pre)
    for t in reversed(range(T)):
        total = tuple(a + b for a, b in zip(carried, grad_states[t]))
        dh = total[0]
        if forward_clipval is not None:
            dh = torch.where(trajectory[t + 1, 0].abs() < forward_clipval, dh, 0)
        gates, carried = step_back(pre[:, t].unbind(2), trajectory[t], trajectory[t + 1], (dh, *total[1:]))
        gates = torch.stack(gates, 2)
        if attention_mask is not None:
            gates = gates * attention_mask[:, t, None, None]
        dh = carried[0]
        if not gradient_recurrent_cut:
            dh = dh + gates[:, :, cell.recurrent].flatten(2) @ weights
        if gradient_recurrent_clipval is not None:
            dh = dh.clamp(-gradient_recurrent_clipval, gradient_recurrent_clipval)
        carried = (dh, *carried[1:])
        if attention_mask is not None:
            carried = tuple(torch.where(attention_mask[:, t, None], a, b) for a, b in zip(carried, total))
        dpre[:, t] = gates
    hidden = trajectory[:-1, 0].transpose(0, 1).flatten(1, 2)  # (N, T * B, D)
    dR = dpre[:, :, :, cell.recurrent].flatten(3).flatten(1, 2).mT @ hidden
    dWx = dpre[:, :, :, cell.inputs].permute(2, 1, 3, 0, 4).contiguous()
    dR = dR.unflatten(1, (-1, D)).transpose(0, 1).contiguous()
    return dWx, dR, dpre.sum((1, 2)).transpose(0, 1).contiguous(), torch.stack(carried).transpose(1, 2).unsqueeze(2)


def lstm_backward(pre: Tensors, before: Tensors, after: Tensors, grads: Tensors) -> tuple[Tensors, Tensors]:
    i, f, z, o = pre[0].sigmoid(), pre[1].sigmoid(), pre[2].tanh(), pre[3].sigmoid()
    (dh, dc), squashed = grads, after[1].tanh()
    dc = dc + dh * o * (1 - squashed.square())
    gates = dc * z * i * (1 - i), dc * before[1] * f * (1 - f), dc * i * (1 - z.square()), dh * squashed * o * (1 - o)
    return gates, (torch.zeros_like(dh), dc * f)


def gru_backward(pre: Tensors, before: Tensors, after: Tensors, grads: Tensors) -> tuple[Tensors, Tensors]:
    (dh,), g, r, z = grads, pre[0], pre[1].sigmoid(), pre[2].sigmoid()
    n = (pre[3] + r * g).tanh()
    dn = dh * (1 - z) * (1 - n.square())
    return (dn * r, dn * g * r * (1 - r), dh * (before[0] - n) * z * (1 - z), dn), (dh * z,)


def elman_backward(pre: Tensors, before: Tensors, after: Tensors, grads: Tensors) -> tuple[Tensors, Tensors]:
    return (grads[0] * (1 - pre[0].tanh().square()),), (torch.zeros_like(grads[0]),)


def slstm_backward(pre: Tensors, before: Tensors, after: Tensors, grads: Tensors) -> tuple[Tensors, Tensors]:
    """The paper takes m for a constant, which is right for a loss on h; here m has its gradient, so that any loss is."""
    (i, f, z, o), (_, c_before, n_before, m_before), (_, c, n, m), (dh, dc, dn, dm) = pre, before, after, grads
    z, o, log_forget = z.tanh(), o.sigmoid(), F.logsigmoid(f) + m_before
    input_gate, forget_gate = (i - m).exp(), (log_forget - m).clamp(max=80).exp()
    dc = dc + dh * o / n
    dn = torch.where(forget_gate * n_before + input_gate < 1, 0, dn - dh * o * c / n.square())
    di, df = (dc * z + dn) * input_gate, (dc * c_before + dn * n_before) * forget_gate
    dm = dm - di - df
    from_input = (n_before == 0) | (i > log_forget)
    di, df = di + torch.where(from_input, dm, 0), df + torch.where(from_input, 0, dm)
    gates = di, df * (1 - f.sigmoid()), dc * input_gate * (1 - z.square()), dh * c / n * o * (1 - o)
    return gates, (torch.zeros_like(dh), dc * forget_gate, dn * forget_gate, df)


BACKWARD = {"lstm": lstm_backward, "gru": gru_backward, "elman": elman_backward, "slstm": slstm_backward}
