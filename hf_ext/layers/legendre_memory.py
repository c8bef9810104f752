"""Legendre Memory Units as a layer, with ReLU or with spiking neurons.

Papers: "Parallelizing Legendre Memory Unit Training", arXiv 2102.11417; "LMUFormer", arXiv 2402.04882, section 3.
Reference: zeyuliu1037/LMUFormer @5debadda, `src/blocks/lmu_cell.py`. There the length is fixed; here it is free, and what is read in pieces
(the reference's `forward_recurrent`, which for spikes is another function) equals what is read at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hf_ext.ops.legendre_memory import impulse_response, legendre_memory, state_space

from .linear import token_linear
from .streaming import NormActivation, SpikingNeurons, StreamCache, StreamLayer, TokenBatchNorm, name_states


class LegendreMemory(StreamLayer):
    """m_t = A m_{t-1} + B u_t: a signal (batch, time, 1) to memories (batch, time, memory_size), in float32 or more.

    Nothing here is learned. A, B and the first `length` impulse responses are buffers that are not saved.
    """

    def __init__(self, memory_size: int, theta: float, length: int = 128):
        super().__init__()
        self.memory_size, self.theta, self.length = memory_size, theta, length
        for name, value in self.constants().items():
            self.register_buffer(name, value, persistent=False)

    def constants(self, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        A, B = state_space(self.memory_size, self.theta, dtype)
        return {"A": A, "B": B, "response": impulse_response(A, B, self.length)}

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        """The system in half precision would be another one, so `half()` and `bfloat16()` leave it in float32."""
        before = self.A.dtype
        super()._apply(fn, recurse)
        if self.A.dtype != before:
            device, dtype = self.A.device, torch.promote_types(self.A.dtype, torch.float32)
            for name, value in self.constants(dtype).items():
                setattr(self, name, value.to(device))
        return self

    def forward(self, u: torch.Tensor, cache: StreamCache | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        state = self.remembered(cache)
        if not u.shape[1]:
            return u.new_empty(len(u), 0, self.memory_size), state
        memories, state = legendre_memory(u.squeeze(-1), self.A, self.B, state, self.response)
        self.remember(cache, state)
        return memories, state

    def extra_repr(self) -> str:
        return f"memory_size={self.memory_size}, theta={self.theta}"


class LegendreMemoryCell(nn.Module):
    """u = f(W_u x);  m = memory of u;  h = f(W_h [m; x]), f ReLU and m as it is, or with `neurons` norm and neuron after each.

    Args:
        input_size, hidden_size, memory_size: channels of x, h and m.
        theta: steps that the memory looks back.
        neurons: makes a layer of spiking neurons (the class itself, for instance); None for ReLU.
        length: sequences up to this long need not compute their impulse responses anew.
        norm_eps: epsilon of the norms before neurons.

    `forward` takes x (batch, time, input_size) and a `StreamCache` or None, and gives h (batch, time, hidden_size) and m after the last
    step (batch, memory_size).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        memory_size: int,
        theta: float,
        neurons: Callable[[], SpikingNeurons] | None = None,
        length: int = 128,
        norm_eps: float = 1e-5,
    ):
        super().__init__()

        def activation(width: int, plain: nn.Module) -> NormActivation:
            if neurons is None:
                return NormActivation(nn.Identity(), plain)
            return NormActivation(TokenBatchNorm(width, eps=norm_eps), neurons())

        self.u_proj = nn.Linear(input_size, 1)
        self.u_activation = activation(1, nn.ReLU())
        self.memory = LegendreMemory(memory_size, theta, length)
        self.m_activation = activation(memory_size, nn.Identity())
        self.h_proj = nn.Linear(memory_size + input_size, hidden_size)
        self.h_activation = activation(hidden_size, nn.ReLU())
        name_states(self)

    def forward(
        self, hidden_states: torch.Tensor, cache: StreamCache | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        u = self.u_activation(self.u_proj(hidden_states), cache)
        memories, state = self.memory(u, cache)
        memories = self.m_activation(memories.to(hidden_states.dtype), cache)
        h = token_linear(self.h_proj, torch.cat((memories, hidden_states), -1))
        return self.h_activation(h, cache), state
