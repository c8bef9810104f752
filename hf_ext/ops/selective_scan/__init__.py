"""The selective scan of Mamba (arXiv 2312.00752) as a function, its eigenvalues in [0, 1] or in [-1, 1] (arXiv 2411.12537)."""

from __future__ import annotations

from types import ModuleType

import torch

from ..chunks import check_borders, check_state, flat_borders, precision, starting_state
from ..matrix_state import unrolls
from ..native import load_native
from ..two_forms import gpu_form
from . import eager
from .reference import reference

__all__ = ["reference", "selective_scan"]


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    allow_neg_eigval: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """h_t = a_t h_{t-1} + dt_t x_t B_t;  y_t = h_t C_t;  a_t = exp(dt_t A), or 2 exp(dt_t A) - 1   (arXiv 2312.00752, 2411.12537)

    Args:
        x: inputs (batch, tokens, channels).
        dt: time steps, at least 0: (batch, tokens, channels). A step of 0 leaves the state as it is.
        A: negative rates (channels, state_size).
        B, C: what a token writes and reads, (batch, tokens, state_size).
        initial_state: (sequences, channels, state_size), zeros when None. `sequences` is the batch, or the number of packed ones.
        output_final_state: whether to return the state after the last token.
        cu_seqlens: (sequences + 1,) integers, the borders of sequences packed along `tokens` in a batch of 1:
            0 ... tokens.
        allow_neg_eigval: whether a_t is 2 exp(dt_t A) - 1, in (-1, 1], instead of exp(dt_t A), in (0, 1].

    Returns:
        y (batch, tokens, channels) in the type of x, without Mamba's skip `D x` and gate, and the final state in float32 (float64
        for float64 inputs) or None. Differentiable in all tensors but `cu_seqlens`.

    Raises:
        ValueError: shapes that do not fit each other.

    Computes in float32 (float64 for float64 inputs) on any device, with memory linear in `tokens`. On a CPU a C++ form serves where there
    is a compiler, on CUDA a Triton form where Triton is installed, a loop over the tokens elsewhere.
    """
    _check(x, dt, A, B, C, initial_state, cu_seqlens)
    if cu_seqlens is None and x.shape[1] == 1:
        y, final_state = eager.step(x, dt, A, B, C, initial_state, allow_neg_eigval)
    elif unrolls(x, cu_seqlens):
        y, final_state = eager.forward(x, dt, A, B, C, initial_state, None, allow_neg_eigval)
    else:
        y, final_state = _forward(x, dt, A, B, C, initial_state, cu_seqlens, allow_neg_eigval)
    return y, final_state if output_final_state else None


def _check(x, dt, A, B, C, initial_state, cu_seqlens) -> None:
    shapes = ", ".join(
        f"{name} {tuple(tensor.shape)}" for name, tensor in zip(("x", "dt", "A", "B", "C"), (x, dt, A, B, C))
    )
    if any(tensor.ndim != 3 for tensor in (x, dt, B, C)) or A.ndim != 2:
        raise ValueError(
            "x and dt are (batch, tokens, channels), B and C (batch, tokens, state_size), A (channels, state_size); "
            f"got {shapes}"
        )
    if x.shape != dt.shape or B.shape != C.shape or B.shape[:2] != x.shape[:2] or A.shape != (x.shape[2], B.shape[2]):
        raise ValueError(
            "x and dt share one shape (batch, tokens, channels), B and C one (batch, tokens, state_size), and A is "
            f"(channels, state_size); got {shapes}"
        )
    if 0 in x.shape or 0 in B.shape:
        raise ValueError(f"no dimension may be 0; got {shapes}")
    expected = (check_borders(x, cu_seqlens), *A.shape)
    check_state(expected, "sequences, channels, state_size", initial_state)


def _native(tensors: tuple[torch.Tensor, ...]) -> ModuleType | None:
    """The C++ form, where it serves these tensors."""
    single = precision(*tensors) == torch.float32 and tensors[0].device.type == "cpu"
    return load_native("selective_scan") if single else None


def _flat(x, dt, A, B, C, initial_state, cu_seqlens) -> tuple[torch.Tensor, ...]:
    """What the C++ form takes: float32, tokens of all sequences along one axis, their borders, and the states to start from."""
    start = starting_state(x, tuple(A.shape), initial_state, cu_seqlens, torch.float32)
    borders = flat_borders(x, cu_seqlens)
    x, dt, B, C = (tensor.flatten(0, 1) for tensor in (x, dt, B, C))
    return *(tensor.float().contiguous() for tensor in (x, dt, A, B, C)), borders, start.contiguous()


def _run_forward(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    allow_neg_eigval: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    if (native := _native((x, dt, A, B, C))) is None:
        return eager.forward(x, dt, A, B, C, initial_state, cu_seqlens, allow_neg_eigval)
    y, final_state = native.forward(*_flat(x, dt, A, B, C, initial_state, cu_seqlens), allow_neg_eigval)
    return y.view(x.shape).to(x.dtype), final_state


def _run_backward(
    grad_y: torch.Tensor,
    grad_final: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    allow_neg_eigval: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    tensors = (x, dt, A, B, C)
    if (native := _native(tensors)) is None:
        return eager.backward(grad_y, grad_final, *tensors, initial_state, cu_seqlens, allow_neg_eigval)
    grad_y = grad_y.flatten(0, 1).float().contiguous()
    flat = _flat(*tensors, initial_state, cu_seqlens)
    *grads, dstart = native.backward(grad_y, grad_final.float().contiguous(), *flat, allow_neg_eigval)
    return *(grad.view(tensor.shape).to(tensor.dtype) for grad, tensor in zip(grads, tensors)), dstart


_forward = torch.library.custom_op("hf_ext::selective_scan", _run_forward, mutates_args=())
_backward = torch.library.custom_op("hf_ext::selective_scan_backward", _run_backward, mutates_args=())


@_forward.register_kernel("cuda")
def _(x, dt, A, B, C, initial_state, cu_seqlens, allow_neg_eigval):
    form = gpu_form(eager, (x, dt, A, B, C))
    return form.forward(x, dt, A, B, C, initial_state, cu_seqlens, allow_neg_eigval)


@_backward.register_kernel("cuda")
def _(grad_y, grad_final, x, dt, A, B, C, initial_state, cu_seqlens, allow_neg_eigval):
    form = gpu_form(eager, (x, dt, A, B, C))
    return form.backward(grad_y, grad_final, x, dt, A, B, C, initial_state, cu_seqlens, allow_neg_eigval)


@_forward.register_fake
def _(x, dt, A, B, C, initial_state, cu_seqlens, allow_neg_eigval):
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    final_state = x.new_empty(sequences, *A.shape, dtype=precision(x, dt, A, B, C))
    return torch.empty_like(x, memory_format=torch.contiguous_format), final_state


@_backward.register_fake
def _(grad_y, grad_final, x, dt, A, B, C, initial_state, cu_seqlens, allow_neg_eigval):
    grads = (torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (x, dt, A, B, C))
    return *grads, torch.empty_like(grad_final)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.allow_neg_eigval = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad_y, grad_final):
    *tensors, initial_state, cu_seqlens = ctx.saved_tensors
    grads = _backward(grad_y, grad_final, *tensors, initial_state, cu_seqlens, ctx.allow_neg_eigval)
    grad_start = None if initial_state is None else grads[-1].to(initial_state.dtype)
    return *grads[:-1], grad_start, None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
