"""FlashRNN's cells in Triton: all tokens in one kernel, forward and backward, for heads of up to 128 channels.

Paper: arXiv 2412.07752, section 4. A program walks along the tokens with one head of 16 rows of the batch, its states in registers; as
heads never mix, programs never wait for one another. Four matrices of 64 channels stay on the chip over all tokens; larger ones are read
at every step, from the GPU's cache, and beyond 128 channels the torch form serves. What a step needs from memory is read one step ahead.

Products are those of float32, as three of tf32 on the tensor cores. The gradients of R and b are sums over the tokens and the batch after
the kernel.

Letters: B batch, T tokens, N heads, D channels of a head. Tuples of tiles (rows of the batch, channels) hold gates, states or gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..chunks import without_autocast
from . import eager
from .reference import CELLS

WIDEST = 128  # channels of a head
KEPT = 4 * 64 * 64  # recurrent weights of a head that stay on the chip
BB = 16  # rows of the batch: the fewest that tensor cores take


@triton.jit
def load(pointer, place, step, inside, COUNT: tl.constexpr, OTHER: tl.constexpr):
    """A tuple of COUNT tiles, `step` numbers apart, OTHER outside."""
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tl.load(pointer + place, mask=inside, other=OTHER),)
        place += step
    return tiles


@triton.jit
def store(pointer, tiles, place, step, inside, COUNT: tl.constexpr):
    for i in tl.static_range(COUNT):
        tl.store(pointer + place, tiles[i], mask=inside)
        place += step


@triton.jit
def choose(condition, tiles, others, COUNT: tl.constexpr):
    chosen = ()
    for i in tl.static_range(COUNT):
        chosen = chosen + (tl.where(condition, tiles[i], others[i]),)
    return chosen


@triton.jit
def matrix(kept, i: tl.constexpr, R, place, of_matrix, inside, KEEP: tl.constexpr):
    """A gate's recurrent matrix, from what is kept on the chip or from memory"""
    if KEEP:
        return kept[i]
    else:
        return tl.load(R + place + i * of_matrix, mask=inside, other=0.0)


@triton.jit
def clamp(x, limit):
    """NaN stays NaN."""
    return tl.where(x > limit, limit, tl.where(x < -limit, -limit, x))


@triton.jit
def tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def lstm(pre, state):
    i, f, z, o = pre
    c = tl.sigmoid(f) * state[1] + tl.sigmoid(i) * tanh(z)
    return tl.sigmoid(o) * tanh(c), c


@triton.jit
def lstm_backward(pre, before, after, grads):
    i, f, z, o = tl.sigmoid(pre[0]), tl.sigmoid(pre[1]), tanh(pre[2]), tl.sigmoid(pre[3])
    dh, squashed = grads[0], tanh(after[1])
    dc = grads[1] + dh * o * (1 - squashed * squashed)
    gates = dc * z * i * (1 - i), dc * before[1] * f * (1 - f), dc * i * (1 - z * z), dh * squashed * o * (1 - o)
    return gates, (tl.zeros_like(dh), dc * f)


@triton.jit
def gru(pre, state):
    g, r, z, n = pre
    z = tl.sigmoid(z)
    return (z * state[0] + (1 - z) * tanh(n + tl.sigmoid(r) * g),)


@triton.jit
def gru_backward(pre, before, after, grads):
    dh, g, r, z = grads[0], pre[0], tl.sigmoid(pre[1]), tl.sigmoid(pre[2])
    n = tanh(pre[3] + r * g)
    dn = dh * (1 - z) * (1 - n * n)
    return (dn * r, dn * g * r * (1 - r), dh * (before[0] - n) * z * (1 - z), dn), (dh * z,)


@triton.jit
def elman(pre, state):
    return (tanh(pre[0]),)


@triton.jit
def elman_backward(pre, before, after, grads):
    h = tanh(pre[0])
    return (grads[0] * (1 - h * h),), (tl.zeros_like(h),)


@triton.jit
def log_sigmoid(x):
    """log(1 + e) keeps the digits of a small e."""
    e = tl.exp(-tl.abs(x))
    above = 1 + e
    log = tl.where(above == 1, e, tl.log(above) * (e / tl.where(above == 1, 1, above - 1)))
    return tl.where(x > 0, 0, x) - log


@triton.jit
def slstm(pre, state):
    i, f, z, o = pre
    log_forget = log_sigmoid(f) + state[3]
    m = tl.where((state[2] == 0) | (i > log_forget), i, log_forget)
    input_gate, exponent = tl.exp(i - m), log_forget - m
    forget_gate = tl.exp(tl.where(exponent > 80, 80, exponent))
    c = forget_gate * state[1] + input_gate * tanh(z)
    n = forget_gate * state[2] + input_gate
    n = tl.where(n < 1, 1, n)
    return tl.sigmoid(o) * c / n, c, n, m


@triton.jit
def slstm_backward(pre, before, after, grads):
    i, f, z, o = pre[0], pre[1], tanh(pre[2]), tl.sigmoid(pre[3])
    dh, c, n, m = grads[0], after[1], after[2], after[3]
    c_before, n_before = before[1], before[2]
    log_forget = log_sigmoid(f) + before[3]
    input_gate, exponent = tl.exp(i - m), log_forget - m
    forget_gate = tl.exp(tl.where(exponent > 80, 80, exponent))
    dc = grads[1] + dh * o / n
    dn = tl.where(forget_gate * n_before + input_gate < 1, 0, grads[2] - dh * o * c / (n * n))
    di, df = (dc * z + dn) * input_gate, (dc * c_before + dn * n_before) * forget_gate
    dm = grads[3] - di - df
    from_input = (n_before == 0) | (i > log_forget)
    di, df = di + tl.where(from_input, dm, 0), df + tl.where(from_input, 0, dm)
    gates = di, df * (1 - tl.sigmoid(f)), dc * input_gate * (1 - z * z), dh * c / n * o * (1 - o)
    return gates, (tl.zeros_like(dh), dc * forget_gate, dn * forget_gate, df)


STEPS = {
    "lstm": (lstm, lstm_backward),
    "slstm": (slstm, slstm_backward),
    "gru": (gru, gru_backward),
    "elman": (elman, elman_backward),
}


@triton.jit
def forward_steps(
    Wx, weights, b, start, mask, outputs, last, pre,
    clip, B, T, D, of_token, of_states, of_start, of_matrix,
    STEP: tl.constexpr, STATES: tl.constexpr, GATES: tl.constexpr, RECURRENT: tl.constexpr, FIRST: tl.constexpr,
    SAVE: tl.constexpr, KEEP: tl.constexpr, BB: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """`of_*` count the numbers of a token (N D), of a state in `outputs` and in `start`, and of a gate in
    `weights` (N D D). Of the GATES gates the first RECURRENT have recurrent products, those from FIRST on have inputs.
    """
    head = tl.program_id(0).to(tl.int64)
    rows = (tl.program_id(1).to(tl.int64) * BB + tl.arange(0, BB))[:, None]
    columns, inner = tl.arange(0, BD)[None, :], tl.arange(0, BD)[:, None]
    lanes, inside = head * D + columns, (rows < B) & (columns < D)
    square = (head * D + columns) * D + inner  # transposed: (channels in, channels out)
    inside_square = (inner < D) & (columns < D)
    INPUTS: tl.constexpr = GATES - FIRST
    of_inputs = INPUTS * of_token
    kept = load(weights, square, of_matrix, inside_square, RECURRENT if KEEP else 0, 0.0)
    biases = load(b, lanes, of_token, columns < D, GATES, 0.0)
    state = load(start, rows * of_token + lanes, of_start, inside, STATES, 1.0)  # 1 outside: no normaliser is 0
    x = load(Wx, rows * T * of_inputs + lanes, of_token, inside, INPUTS, 0.0)
    for t in range(T):
        token = rows * T + t
        following = load(Wx, (rows * T + tl.minimum(t + 1, T - 1)) * of_inputs + lanes, of_token, inside, INPUTS, 0.0)
        gates = ()
        for i in tl.static_range(GATES):
            gate = biases[i]
            if i >= FIRST:
                gate += x[i - FIRST]
            if i < RECURRENT:
                weight = matrix(kept, i, weights, square, of_matrix, inside_square, KEEP)
                gate += tl.dot(state[0], weight, input_precision="tf32x3")
            gates = gates + (gate,)
        if SAVE:
            store(pre, gates, ((head * T + t) * B + rows) * (GATES * D) + columns, D, inside, GATES)
        after = STEP(gates, state)
        if clip is not None:
            after = (clamp(after[0], clip),) + after[1:]
        if mask is not None:
            after = choose(tl.load(mask + token, mask=rows < B, other=0) != 0, after, state, STATES)
        state, x = after, following
        store(outputs, state, token * of_token + lanes, of_states, inside, STATES)
    store(last, state, rows * of_token + lanes, of_start, inside, STATES)


@triton.jit
def load_step(
    pre, grad_states, outputs, start, t, head, rows, columns, inside,
    B, T, D, of_token, of_states, of_start, STATES: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """Gates, outer gradients and the states before token t; states are 1 outside."""
    lanes, token, first = head * D + columns, rows * T + t, t == 0
    gates = load(pre, ((head * T + t) * B + rows) * (GATES * D) + columns, D, inside, GATES, 0.0)
    given = load(grad_states, token * of_token + lanes, of_states, inside, STATES, 0.0)
    place = tl.where(first, rows, token - 1) * of_token + lanes
    before = load(tl.where(first, start, outputs), place, tl.where(first, of_start, of_states), inside, STATES, 1.0)
    return gates, given, before


@triton.jit
def backward_steps(
    grad_states, grad_last, weights, start, mask, outputs, pre, dpre, dstart,
    clip, gradient_clip, B, T, D, of_token, of_states, of_start, of_matrix,
    STEP: tl.constexpr, STATES: tl.constexpr, GATES: tl.constexpr, RECURRENT: tl.constexpr,
    CUT: tl.constexpr, KEEP: tl.constexpr, BB: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradients of the gates, (B, T, GATES, N, D), and of the initial states; other arguments as in `forward_steps`."""
    head = tl.program_id(0).to(tl.int64)
    rows = (tl.program_id(1).to(tl.int64) * BB + tl.arange(0, BB))[:, None]
    columns, outer = tl.arange(0, BD)[None, :], tl.arange(0, BD)[:, None]
    lanes, inside = head * D + columns, (rows < B) & (columns < D)
    square, inside_square = (head * D + outer) * D + columns, (outer < D) & (columns < D)
    kept = load(weights, square, of_matrix, inside_square, RECURRENT if KEEP else 0, 0.0)
    grads = load(grad_last, rows * of_token + lanes, of_start, inside, STATES, 0.0)
    after = load(outputs, (rows * T + (T - 1)) * of_token + lanes, of_states, inside, STATES, 1.0)
    gates, given, before = load_step(
        pre, grad_states, outputs, start, T - 1, head, rows, columns, inside,
        B, T, D, of_token, of_states, of_start, STATES, GATES,
    )  # fmt: skip
    for step in range(T):
        t = T - 1 - step
        token = rows * T + t
        following = load_step(
            pre, grad_states, outputs, start, tl.maximum(t - 1, 0), head, rows, columns, inside,
            B, T, D, of_token, of_states, of_start, STATES, GATES,
        )  # fmt: skip
        total = ()
        for i in tl.static_range(STATES):
            total = total + (grads[i] + given[i],)
        dh = total[0]
        if clip is not None:
            dh = tl.where(tl.abs(after[0]) < clip, dh, 0)
        dgates, grads = STEP(gates, before, after, (dh,) + total[1:])
        if mask is not None:
            real = tl.load(mask + token, mask=rows < B, other=0) != 0
            dgates = choose(real, dgates, (0.0,) * GATES, GATES)
        dh = grads[0]
        if not CUT:
            for i in tl.static_range(RECURRENT):
                weight = matrix(kept, i, weights, square, of_matrix, inside_square, KEEP)
                dh = tl.dot(dgates[i], weight, dh, input_precision="tf32x3")
        if gradient_clip is not None:
            dh = clamp(dh, gradient_clip)
        grads = (dh,) + grads[1:]
        if mask is not None:
            grads = choose(real, grads, total, STATES)
        store(dpre, dgates, token * (GATES * of_token) + lanes, of_token, inside, GATES)
        after = before
        gates, given, before = following
    store(dstart, grads, rows * of_token + lanes, of_start, inside, STATES)


def launch(name: str, B: int, T: int, N: int, D: int) -> tuple[tuple[int, int], tuple[int, ...], dict[str, Any]]:
    """Of both kernels: the grid, the sizes in the middle of their arguments, and options."""
    cell, BD = CELLS[name], max(16, triton.next_power_of_2(D))
    options = {
        "STATES": len(cell.states),
        "GATES": cell.pre_activations,
        "RECURRENT": cell.num_recurrent,
        "KEEP": cell.num_recurrent * BD**2 <= KEPT,
        "BB": BB,
        "BD": BD,
        "num_warps": 4 if BD < 64 else 8,
        "num_stages": 1,
    }
    return (N, triton.cdiv(B, BB)), (B, T, D, N * D, B * T * N * D, B * N * D, N * D * D), options


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
    """Arguments, shapes and results as in `eager.forward`."""
    B, T, _, N, D = Wx.shape
    if D > WIDEST:
        options = (function, gradient_recurrent_cut, gradient_recurrent_clipval, forward_clipval, save)
        return eager.forward(Wx, R, b, states, attention_mask, *options)
    cell = CELLS[function]
    S, P = len(cell.states), cell.pre_activations
    start = Wx.new_zeros(S, B, 1, N, D) if states is None else states.contiguous()
    mask = None if attention_mask is None else attention_mask.contiguous()
    outputs, last = Wx.new_empty(S, B, T, N, D), torch.empty_like(start)
    pre = Wx.new_empty((N, T, B, P, D) if save else 0)
    grid, sizes, options = launch(function, B, T, N, D)
    with torch.cuda.device_of(Wx):  # the current device may be another one
        forward_steps[grid](
            Wx.contiguous(), R.contiguous(), b.contiguous(), start, mask, outputs, last, pre, forward_clipval, *sizes,
            STEP=STEPS[function][0], FIRST=cell.inputs.start, SAVE=save, **options,
        )  # fmt: skip
    return outputs, last, pre


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
    """Arguments, shapes and results as in `eager.backward`."""
    S, B, T, N, D = outputs.shape
    if D > WIDEST:
        options = (function, gradient_recurrent_cut, gradient_recurrent_clipval, forward_clipval)
        return eager.backward(grad_states, grad_last, R, states, attention_mask, outputs, pre, *options)
    cell = CELLS[function]
    start = outputs.new_zeros(S, B, 1, N, D) if states is None else states.contiguous()
    mask = None if attention_mask is None else attention_mask.contiguous()
    dpre, dstart = outputs.new_empty(B, T, cell.pre_activations, N, D), torch.empty_like(start)
    grid, sizes, options = launch(function, B, T, N, D)
    with torch.cuda.device_of(outputs):  # the current device may be another one
        backward_steps[grid](
            grad_states.contiguous(), grad_last.contiguous(), R.contiguous(), start, mask, outputs.contiguous(),
            pre.contiguous(), dpre, dstart, forward_clipval, gradient_recurrent_clipval, *sizes,
            STEP=STEPS[function][1], CUT=gradient_recurrent_cut, **options,
        )  # fmt: skip
    hidden = torch.cat((start[0], outputs[0, :, :-1]), 1).flatten(0, 1)  # before each token
    gates = dpre[:, :, cell.recurrent].flatten(0, 1).unbind(1)
    dR = torch.stack([torch.einsum("tni,tnj->nij", gate, hidden) for gate in gates])
    return dpre[:, :, cell.inputs].contiguous(), dR, dpre.sum((0, 1)), dstart
