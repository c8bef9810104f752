"""`attn_implementation="routing"`: routed attention in models of Transformers, which have no centroids of their own.

Each forward pass finds the centroids of its own keys, by a few steps of spherical k-means for every sample and head, so nothing is
learned or stored and any checkpoint loads. Inside a cluster it is the model's own attention: its scores, mask and positions.
`config.routing`, a dict of `RoutingSettings`, is saved with the model. Decoding with a cache and cross-attention are `sdpa`.

With a causal mask no later token is attended to, but who is taken depends on all tokens of a parallel pass, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import (
    sdpa_mask as attention_mask,
)  # bool (batch, 1, queries, keys), or None for causal or all

from ..self_attention import self_attention
from . import cluster_members, normalize, similarity
from .eager import gather


@dataclass
class RoutingSettings:
    """
    Args:
        num_clusters: clusters; the square root of the number of tokens when None (section 4 of the paper).
        window: tokens that a cluster takes; so many that the clusters hold every token once when None.
        iterations: steps of k-means in each pass, from evenly spaced tokens.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """

    num_clusters: int | None = None
    window: int | None = None
    iterations: int = 2

    def __post_init__(self) -> None:
        for name in ("num_clusters", "window"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1, or None")
        if self.iterations < 0:
            raise ValueError(f"iterations={self.iterations} must be at least 0")

    def sizes(self, tokens: int) -> tuple[int, int]:
        """(clusters, window) for so many tokens."""
        clusters = min(self.num_clusters or max(1, round(tokens**0.5)), tokens)
        return clusters, min(self.window or -(-tokens // clusters), tokens)


@self_attention("routing")
def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    causal: bool,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """A token that several clusters take gets the mean of their results, among those in which it sees a key; without any it gets zeros."""
    if position_bias is not None:
        raise ValueError("`routing` attention takes no `position_bias`; use another attn_implementation")
    key, value = (repeat_kv(x, query.shape[1] // key.shape[1]) for x in (key, value))
    settings = RoutingSettings(**(getattr(getattr(module, "config", None), "routing", None) or {}))
    clusters, window = settings.sizes(query.shape[2])
    hidden = never_seen(attention_mask)
    items = normalize(key)
    if hidden is not None:
        items = items.masked_fill(hidden[:, None, :, None], 0.0)
    means = find_centroids(items, clusters, settings.iterations)
    rows = cluster_members(similarity(normalize(query), means), window, hidden=hidden)
    columns = cluster_members(similarity(items, means), window, hidden=hidden)
    visible = visibility(rows, columns, causal, attention_mask)
    return attend_clusters(query, key, value, rows, columns, visible, scaling, dropout)


def never_seen(mask: torch.Tensor | None) -> torch.Tensor | None:
    """(batch, tokens), True at tokens that no query sees"""
    if mask is None:
        return None
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return ~seen.any(2).any(1)


@torch.no_grad()
def find_centroids(items: torch.Tensor, clusters: int, iterations: int) -> torch.Tensor:
    """(batch, heads, clusters, channels): spherical k-means of normalised items; zero ones are left out."""
    length = items.shape[2]
    means = items[:, :, torch.arange(clusters, device=items.device) * length // clusters]
    for _ in range(iterations):
        chosen = F.one_hot(similarity(items, means).argmax(-1), clusters).to(items.dtype)
        means = normalize(chosen.mT @ items)
    return means


def visibility(
    rows: torch.Tensor, columns: torch.Tensor, causal: bool, mask: torch.Tensor | None
) -> torch.Tensor | None:
    """What queries at `rows` see of keys at `columns`, both (B, H, C, W): (B, H, C, W, W), bool or added to the scores; None for all"""
    if causal:
        return columns.unsqueeze(3) <= rows.unsqueeze(4)
    if mask is None:
        return None
    batch, heads = rows.shape[:2]
    b, h = (torch.arange(size, device=rows.device) for size in (batch, heads))
    mask = mask.expand(batch, heads, -1, -1)
    targets = rows if mask.shape[2] > 1 else torch.zeros_like(rows)
    return mask[b.view(-1, 1, 1, 1, 1), h.view(-1, 1, 1, 1), targets.unsqueeze(4), columns.unsqueeze(3)]


def attend_clusters(q, k, v, rows, columns, visible, scaling, dropout) -> torch.Tensor:
    """(B, H, L, channels)"""
    clusters, window = rows.shape[2:]
    flat = rows.flatten(2)
    parts = [gather(q, flat), *(gather(x, columns.flatten(2)) for x in (k, v))]
    parts = [x.unflatten(2, (clusters, window)).flatten(0, 1) for x in parts]  # (B * H, C, W, channels)
    some = v.new_ones(()).expand_as(flat)
    if visible is not None:
        visible = visible.flatten(0, 1)
        any_key = (visible if visible.dtype == torch.bool else visible > torch.finfo(visible.dtype).min / 2).any(-1)
        visible = (
            visible | ~any_key.unsqueeze(-1)
            if visible.dtype == torch.bool
            else visible.masked_fill(~any_key.unsqueeze(-1), 0.0)
        )
        some = any_key.view(*rows.shape[:2], -1).to(v.dtype)
    o = F.scaled_dot_product_attention(*parts, attn_mask=visible, dropout_p=dropout, scale=scaling)
    o = o.unflatten(0, rows.shape[:2]).flatten(2, 3) * some.unsqueeze(-1)
    total = torch.zeros_like(v).scatter_add(2, flat.unsqueeze(-1).expand_as(o), o)
    count = v.new_zeros(v.shape[:3]).scatter_add(2, flat, some)
    return total / count.clamp(min=1).unsqueeze(-1)


__all__ = ["RoutingSettings", "attention_forward", "attention_mask"]
