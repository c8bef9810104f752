"""The definition, one target at a time.

The authors published no code (shamim-hussain/ssa holds a README); this is the paper's section 4. "source_dropout" is that of
shamim-hussain/tgt (MIT) without its edge channels; where every source is masked, tgt averages them all and this gives zeros.
"""

from __future__ import annotations

import torch

from .settings import SSAConfig
from .sources import choose_sources


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    noise: torch.Tensor,
    settings: SSAConfig,
    causal: bool = False,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
) -> torch.Tensor:
    """o_i = sum over the sources s that i reads and may see of softmax_s(scaling * q_i . k_s) v_s; zero where there are none"""
    B, H, L, _ = q.shape
    k, v = (x.repeat_interleave(H // x.shape[1], 1) for x in (k, v))
    bias = additive(attention_mask, q.new_zeros(B, H, L, L))
    sources = choose_sources(noise, settings, L, B, noise.shape[1] if noise.ndim > 2 else 1)
    if settings.kind == "source_dropout":
        bias = bias.masked_fill(~sources[:, None, None], -torch.inf)
    else:
        sources = (sources if sources.ndim > 1 else sources[None, None]).expand(B, -1, -1)
        sources = sources.repeat_interleave(H // sources.shape[1], 1)  # (B, H, slots)
    scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
    o = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            for i in range(L):
                reads = [
                    int(x) if settings.kind == "source_dropout" else int(sources[b, h, x])
                    for x in slots(settings, L, i)
                ]
                reads = [s for s in reads if bias[b, h, i, s] != -torch.inf and (s <= i or not causal)]
                if reads:
                    scores = scaling * k[b, h, reads] @ q[b, h, i] + bias[b, h, i, reads]
                    o[b, h, i] = scores.softmax(0) @ v[b, h, reads]
    return o


def slots(settings: SSAConfig, L: int, i: int) -> list[int]:
    """The slots that target i reads."""
    if settings.kind == "unbiased":
        return list(range(settings.kept(L)))
    if settings.kind == "source_dropout":
        return list(range(L))
    if settings.kind == "local1d":
        w, t = settings.window_size, i // settings.window_size
        return [s for s in range(L) if t - settings.look_back <= s // w <= t + settings.look_ahead]
    first, _, width = settings.grid_of(L)
    rows, columns = settings.window

    def window(place: int) -> tuple[int, int]:
        y, x = divmod(place - first, width)
        return y // rows, x // columns

    return [s for s in range(L) if i < first or s < first or window(s) == window(i)]


def additive(attention_mask: torch.Tensor | None, zeros: torch.Tensor) -> torch.Tensor:
    """Any form of mask as numbers that are added to the scores, shaped as `zeros`."""
    if attention_mask is None:
        return zeros
    mask = attention_mask if attention_mask.ndim == 4 else attention_mask.bool()[:, None, None]
    return zeros.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else zeros + mask
