"""The fast form on any device: the sources of a block of targets are gathered once, then attended to by torch's fused attention.

Letters in names of dimensions: B batch, H heads, L tokens, N blocks, W targets of a block, M sources of a block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .settings import SSAConfig


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sources: torch.Tensor,
    settings: SSAConfig,
    causal: bool,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """o (B, H, L, channels); arguments as in `subsampled_attention`, and what `choose_sources` gave."""
    tokens = q.shape[2]
    if attention_mask is not None and attention_mask.ndim == 2:
        attention_mask = attention_mask.bool()[:, None, None]
    if settings.kind == "source_dropout":
        kept = sources[:, None, None]
        attention_mask = kept if attention_mask is None else merge(kept, attention_mask)
        sources = torch.arange(tokens, device=q.device)

    def read(
        targets: torch.Tensor, slots: torch.Tensor | None = None, real: torch.Tensor | None = None
    ) -> torch.Tensor:
        chosen = sources.unsqueeze(-2) if slots is None else sources[..., slots]  # (..., N, M)
        visible = visibility(targets, chosen, real, causal, attention_mask, q.shape[1])
        return attend(q, k, v, targets, chosen, visible, scaling, dropout)

    if settings.kind == "local1d":
        return read(*windows_1d(settings, tokens, q.device))[:, :, :tokens]
    if settings.kind == "local2d":
        targets, slots, real, places = windows_2d(settings, tokens, q.device)
        o = read(targets, slots, real).index_select(2, places)
        first = tokens - len(places)
        if not first:
            return o
        sources = torch.arange(tokens, device=q.device)
        return torch.cat((read(sources[None, :first]), o), 2)
    return read(torch.arange(tokens, device=q.device)[None])


def windows_1d(
    settings: SSAConfig, tokens: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Targets (N, W) and slots (N, M) of the blocks, and which slots exist (N, M), None for all of them.

    What lies beyond the sequence's ends stands there as its first or last token.
    """
    size = min(settings.window_size, tokens)
    blocks = -(-tokens // size)
    starts = torch.arange(blocks, device=device)[:, None] * size
    slots = starts + torch.arange(-settings.look_back * size, (settings.look_ahead + 1) * size, device=device)
    targets = starts + torch.arange(size, device=device)
    whole = tokens % size == 0 and settings.look_back == settings.look_ahead == 0
    real = None if whole else (slots >= 0) & (slots < tokens)
    return targets.clamp(max=tokens - 1), slots.clamp(0, tokens - 1), real


def windows_2d(
    settings: SSAConfig, tokens: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """As `windows_1d`, and where each token of the grid stands among the targets. Class tokens are the first sources of every window."""
    first, height, width = settings.grid_of(tokens)
    rows, columns = settings.window
    down, right = -(-height // rows), -(-width // columns)
    y = torch.arange(down * rows, device=device).view(down, 1, rows, 1)
    x = torch.arange(right * columns, device=device).view(1, right, 1, columns)
    real = ((y < height) & (x < width)).expand(down, right, rows, columns).reshape(down * right, -1)
    targets = (y.clamp(max=height - 1) * width + x.clamp(max=width - 1) + first).reshape(down * right, -1)
    classes = torch.arange(first, device=device).expand(down * right, first)
    slots = torch.cat((classes, targets), 1)
    ragged = height % rows or width % columns
    real = torch.cat((torch.ones_like(classes, dtype=torch.bool), real), 1) if ragged else None
    y, x = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    window = (y // rows) * right + x // columns
    places = window * (rows * columns) + y % rows * columns + x % columns
    return targets, slots, real, places.flatten()


def visibility(
    targets: torch.Tensor,
    chosen: torch.Tensor,
    real: torch.Tensor | None,
    causal: bool,
    attention_mask: torch.Tensor | None,
    heads: int,
) -> torch.Tensor | None:
    """What targets (N, W) see of chosen sources (..., N, M): (B or 1, H or 1, N, W, M), bool or added to the scores; None for all."""
    chosen = chosen if chosen.ndim == 4 else chosen[None, None]
    if chosen.shape[1] > 1:
        chosen = chosen.repeat_interleave(heads // chosen.shape[1], 1)
    visible = None if real is None else real[None, None, :, None]
    if causal:
        visible = merge(visible, chosen.unsqueeze(3) <= targets[..., None])
    if attention_mask is None:
        return visible
    batch, heads = (max(a, b) for a, b in zip(attention_mask.shape, chosen.shape[:2]))
    b, h = (torch.arange(size, device=targets.device) for size in (batch, heads))
    rows = targets if attention_mask.shape[2] > 1 else torch.zeros_like(targets)
    mask = attention_mask.expand(batch, heads, -1, -1)
    picked = mask[b.view(-1, 1, 1, 1, 1), h.view(-1, 1, 1, 1), rows[..., None], chosen.unsqueeze(3)]
    return picked if visible is None else merge(visible, picked)


def merge(visible: torch.Tensor | None, mask: torch.Tensor) -> torch.Tensor:
    """Both a bool mask and another one, bool or added to the scores"""
    if visible is None:
        return mask
    return visible & mask if mask.dtype == torch.bool else mask.masked_fill(~visible, -torch.inf)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    targets: torch.Tensor,
    chosen: torch.Tensor,
    visible: torch.Tensor | None,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """(B, H, N * W, channels): block by block, targets (N, W) attend to chosen sources (..., N, M)."""
    blocks, groups = len(targets), q.shape[1] // k.shape[1]
    if targets.numel() != q.shape[2] or blocks > 1:
        q = gather(q, targets.flatten())
    q, k, v = blockwise(q, blocks), *(blockwise(gather(x, chosen.flatten(-2)), blocks) for x in (k, v))
    if groups > 1:
        k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    if visible is not None:
        visible = visible.transpose(1, 2)
        if blocks > 1 or len(visible) > 1:
            visible = visible.expand(len(q) // blocks, blocks, -1, -1, -1)
        visible = visible.flatten(0, 1)  # (B * N or 1, H or 1, W, M)
        some = (visible if visible.dtype == torch.bool else visible != -torch.inf).any(-1, keepdim=True)
        # without a source the fused kernels differ (zeros, NaN); such a target reads everything and is blanked after
        visible = visible | ~some if visible.dtype == torch.bool else visible.masked_fill(~some, 0.0)
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout, scale=scaling)
    if visible is not None:
        o = o.masked_fill(~some, 0.0)
    return o.unflatten(0, (-1, blocks)).permute(0, 2, 1, 3, 4).flatten(2, 3) if blocks > 1 else o


def gather(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """(B, H, L, channels) at positions (M,) or (B or 1, H or 1, M): (B, H, M, channels)"""
    if positions.ndim == 1:  # in the memory order (B, L, H, channels), which projections leave and blocks want
        return x.transpose(1, 2).index_select(1, positions).transpose(1, 2)
    return x.take_along_dim(positions.unsqueeze(-1), 2)


def blockwise(x: torch.Tensor, blocks: int) -> torch.Tensor:
    """(B, H, N * M, channels) -> (B * N, H, M, channels)"""
    return x.transpose(1, 2).unflatten(1, (blocks, -1)).flatten(0, 1).transpose(1, 2) if blocks > 1 else x
