"""Stochastically subsampled self-attention, SSA (arXiv 2306.01705): a training step attends to a random part of the sources.

`import hf_ext` registers it with Transformers, so that `from_pretrained(..., attn_implementation="ssa")` trains models of other hands
with it; `interface` is what they call.
"""

from __future__ import annotations

import torch

from . import eager
from .reference import reference
from .settings import SSAConfig
from .sources import choose_sources, draw_noise

__all__ = ["SSAConfig", "choose_sources", "draw_noise", "reference", "subsampled_attention"]


def subsampled_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    noise: torch.Tensor | None = None,
    settings: SSAConfig | None = None,
    *,
    causal: bool = False,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention over the sources (positions of k and v) that a random draw leaves to each target (position of q).

    Args:
        q: (batch, heads, tokens, channels).
        k, v: (batch, kv_heads, tokens, channels), `kv_heads` a divisor of `heads`.
        noise: the draw, as `draw_noise` gives it; drawn here, from torch's global generator, when None. Normal numbers (tokens,),
            for "local2d" (2, height, width), for "source_dropout" uniform ones (batch, tokens). Draws that heads or samples do
            not share have two more axes in front, (batch or 1, kv_heads or 1).
        settings: what is drawn and who reads it; the paper's unbiased draw of a quarter of the sources when None.
        causal: whether a target sees only sources at its own place or before it. Places are those before any shuffling.
        attention_mask: (batch, tokens), nonzero at sources that may be seen, or (batch or 1, heads or 1, tokens or 1, tokens),
            True there, or floating point and added to the scores.
        scaling: factor on the scores; channels ** -0.5 when None.
        dropout: of attention weights, 0 to 1.

    Returns:
        o (batch, heads, tokens, channels), and the sources: positions kept ("unbiased"), or all of them in the order of their
        slots ("local1d", "local2d"), or for "source_dropout" a mask (batch, tokens), True at those kept. A target that sees no
        source gets zeros (section 4 leaves it open). Differentiable in q, k, v and a floating-point mask.

    Raises:
        ValueError: shapes that do not fit each other or the settings.

    Gathers and `scaled_dot_product_attention` only, so it runs, exports and compiles wherever that does. Memory and products shrink
    by the ratio, with a window by tokens / ((look_back + 1 + look_ahead) * window_size).
    """
    settings = SSAConfig() if settings is None else settings
    check(q, k, v, attention_mask)
    batch, heads, tokens, _ = k.shape
    if noise is None:
        noise = draw_noise(settings, batch, heads, tokens, q.device)
    sources = choose_sources(noise, settings, tokens, batch, heads)
    scaling = q.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return eager.forward(q, k, v, sources, settings, causal, attention_mask, scaling, dropout), sources


def check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise ValueError(f"q, k and v have four dimensions (batch, heads, tokens, channels); got {shapes}")
    same = q.shape[0] == k.shape[0] and q.shape[2:] == k.shape[2:] and k.shape[:3] == v.shape[:3]
    if not same or 0 in q.shape or 0 in v.shape or q.shape[1] % k.shape[1]:
        raise ValueError(
            "self-attention has q, k and v of one batch and length, no dimension 0, q and k of the same channels, and for q as many "
            f"heads as k and v or a multiple; got {shapes}"
        )
    if attention_mask is not None:
        allowed = ((1, q.shape[0]), (1, q.shape[1]), (1, q.shape[2]), (q.shape[2],))
        shape = tuple(attention_mask.shape)
        fits = shape == (q.shape[0], q.shape[2]) or (
            len(shape) == 4 and all(size in sizes for size, sizes in zip(shape, allowed))
        )
        if not fits:
            raise ValueError(
                f"attention_mask must be (batch, tokens) or (batch or 1, heads or 1, tokens or 1, tokens); got {shape} with {shapes}"
            )
