"""The draw: noise, and the sources it picks or the order it brings them into (sections 4.1 and 4.2)."""

from __future__ import annotations

import torch

from .settings import SSAConfig


def draw_noise(
    settings: SSAConfig, batch: int, heads: int, tokens: int, device: torch.device | str | None = None
) -> torch.Tensor:
    """Fresh noise for one layer and step, from torch's global generator: gradient checkpointing replays that one, so the second
    forward pass sees the same sources. Shapes as in `subsampled_attention`."""
    if settings.kind == "source_dropout":
        return torch.rand(batch, tokens, device=device)
    shared = settings.share_heads and settings.share_batch
    lead = () if shared else (1 if settings.share_batch else batch, 1 if settings.share_heads else heads)
    places = (2, *settings.grid_of(tokens)[1:]) if settings.kind == "local2d" else (tokens,)
    return torch.randn(*lead, *places, device=device)


def choose_sources(
    noise: torch.Tensor, settings: SSAConfig, tokens: int, batch: int = 1, heads: int = 1
) -> torch.Tensor:
    """Positions kept (..., num_sources), or all in the order of their slots (..., tokens); for "source_dropout" the mask of those kept.

    Sorting is stable, so that sigma = 0 moves nothing.
    """
    places = (tokens,)
    if settings.kind == "local2d":
        first, height, width = settings.grid_of(tokens)
        places = (2, height, width)
    lead = tuple(noise.shape[: noise.ndim - len(places)])
    if settings.kind == "source_dropout":
        allowed = lead == (batch,)
    else:
        allowed = not lead or (len(lead) == 2 and lead[0] in (1, batch) and lead[1] in (1, heads))
    if tuple(noise.shape[len(lead) :]) != places or not allowed:
        raise ValueError(
            f"noise for kind={settings.kind!r} and {tokens} tokens ends with the axes {places}, with nothing, or "
            f"(batch or 1, heads or 1), in front ({batch} samples for 'source_dropout'); got {tuple(noise.shape)}"
        )
    if settings.kind == "source_dropout":
        return noise >= settings.source_dropout
    if settings.kind == "unbiased":
        return noise.argsort(stable=True)[..., : settings.kept(tokens)]
    if settings.kind == "local1d":
        return shuffle(noise, settings.spread)
    along_rows, along_columns = noise.unbind(-3)
    moved = shuffle(along_rows, settings.spread) + torch.arange(height, device=noise.device)[:, None] * width
    moved = moved.take_along_dim(shuffle(along_columns.mT, settings.spread).mT, -2).flatten(-2) + first
    return torch.cat((torch.arange(first, device=noise.device).expand(*lead, first), moved), -1)


def shuffle(noise: torch.Tensor, sigma: float) -> torch.Tensor:
    """Slots -> places along the last axis: argsort(place + sigma * noise)"""
    places = torch.arange(noise.shape[-1], device=noise.device, dtype=noise.dtype)
    return (places + sigma * noise).argsort(dim=-1, stable=True)
