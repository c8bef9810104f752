"""`torch.library` registration of recurrences whose state is a matrix per head.

Such an op takes q, k, v, one more tensor x per token (a gate, a step size), a scale, an initial state and borders of packed sequences, and
gives the outputs and the final state. Its forms are modules with `forward` and `backward`: `eager` for every device, and one of Triton
kernels that serves CUDA tensors, imported on a GPU call alone.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch.library import CustomOpDef

from .chunks import precision
from .two_forms import for_export, gpu_form


def register(name: str, eager: ModuleType, cpu_forward: Callable | None = None) -> CustomOpDef:
    """Registers `hf_ext::NAME` with its backward, its fake kernels and its CUDA form, the module `triton` beside `eager`.

    `cpu_forward` takes the place of `eager.forward` for CPU tensors.
    """
    forward = torch.library.custom_op(f"hf_ext::{name}", eager.forward, mutates_args=())
    if cpu_forward is not None:
        forward.register_kernel("cpu")(cpu_forward)
    backward = torch.library.custom_op(f"hf_ext::{name}_backward", eager.backward, mutates_args=())

    @forward.register_kernel("cuda")
    def _(q, k, v, x, scale, initial_state, cu_seqlens):
        return gpu_form(eager, (q, k, v, x)).forward(q, k, v, x, scale, initial_state, cu_seqlens)

    @backward.register_kernel("cuda")
    def _(grad_o, grad_final, q, k, v, x, scale, initial_state, cu_seqlens):
        return gpu_form(eager, (q, k, v, x)).backward(grad_o, grad_final, q, k, v, x, scale, initial_state, cu_seqlens)

    @forward.register_fake
    def _(q, k, v, x, scale, initial_state, cu_seqlens):
        sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        final_state = v.new_empty(sequences, k.shape[2], k.shape[3], v.shape[3], dtype=precision(q, k, v, x))
        return q.new_empty(*q.shape[:3], v.shape[3]), final_state

    @backward.register_fake
    def _(grad_o, grad_final, q, k, v, x, scale, initial_state, cu_seqlens):
        grads = (torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (q, k, v, x))
        return *grads, torch.empty_like(grad_final)

    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.scale, initial_state, cu_seqlens = inputs
        ctx.save_for_backward(*tensors, initial_state, cu_seqlens)

    def differentiate(ctx, grad_o, grad_final):
        q, k, v, x, initial_state, cu_seqlens = ctx.saved_tensors
        *grads, grad_start = backward(grad_o, grad_final, q, k, v, x, ctx.scale, initial_state, cu_seqlens)
        grad_start = None if initial_state is None else grad_start.to(initial_state.dtype)
        return *grads, None, grad_start, None

    forward.register_autograd(differentiate, setup_context=setup_context)
    return forward


def unrolls(q: torch.Tensor, cu_seqlens: torch.Tensor | None) -> bool:
    """Whether to lay the op out as plain torch operations; packed sequences cannot be."""
    return cu_seqlens is None and for_export(q.shape[1])
