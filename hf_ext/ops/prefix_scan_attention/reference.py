"""The definition of prefix softmax attention: one update per token, in whatever precision the inputs have."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class PrefixState(NamedTuple):
    """What a prefix leaves behind: a = sum of exp(s_i - m) v_i (batch, heads, value channels), c = sum of exp(s_i - m) and m = largest
    scaled score so far, (batch, heads) each. Nothing read yet: 0, 0 and minus infinity."""

    a: torch.Tensor
    c: torch.Tensor
    m: torch.Tensor

    @classmethod
    def empty(cls, batch: int, heads: int, channels: int, dtype: torch.dtype, device: torch.device) -> PrefixState:
        c = torch.zeros(batch, heads, dtype=dtype, device=device)
        return cls(c.unsqueeze(-1).repeat(1, 1, channels), c, torch.full_like(c, -math.inf))


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None = None,
    attention_mask: torch.Tensor | None = None,
    initial_state: PrefixState | None = None,
) -> tuple[torch.Tensor, PrefixState]:
    """o_t = sum_{i<=t} softmax(s_1 ... s_t)_i v_i,  s_i = scale * q . k_i   (arXiv 2405.13956, section 3.1)

    Arguments and shapes as in `prefix_softmax_attention`. The largest score is a constant to the gradient: it cancels.
    """
    B, _, H, D = k.shape
    scores = (q * k).sum(-1) * (D**-0.5 if scale is None else scale)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask.bool().unsqueeze(-1), -math.inf)
    a, c, m = initial_state or PrefixState.empty(B, H, v.shape[-1], v.dtype, v.device)
    outputs = []
    for s, value in zip(scores.unbind(1), v.unbind(1)):
        largest = torch.maximum(m, s.detach())
        finite = largest.clamp(min=torch.finfo(s.dtype).min)
        decay, weight = (m - finite).exp(), (s - finite).exp()
        a, c, m = a * decay.unsqueeze(-1) + value * weight.unsqueeze(-1), c * decay + weight, largest
        outputs.append(a / torch.where(c > 0, c, 1).unsqueeze(-1))
    return torch.stack(outputs, 1), PrefixState(a, c, m)
