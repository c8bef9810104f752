"""Attention inside clusters of content (Routing Transformer, arXiv 2003.05997), and the online k-means that finds them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from . import eager
from .eager import cluster_members
from .reference import kmeans_reference, reference

__all__ = [
    "KMeansStep",
    "cluster_members",
    "commitment_loss",
    "kmeans_reference",
    "kmeans_statistics",
    "kmeans_step",
    "kmeans_update",
    "normalize",
    "reference",
    "routed_attention",
    "similarity",
]


def routed_attention(
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor,
    means: torch.Tensor,
    window: int,
    *,
    causal: bool = True,
    strided: bool = False,
    relative_keys: torch.Tensor | None = None,
    relative_values: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Each centroid takes the `window` positions most similar to it; those attend to each other, and their results are averaged.

    Args:
        q: queries, normalised (`normalize`) and not scaled further: (batch, heads, tokens, channels).
        k: keys likewise; None for keys that are the queries (`share_qk`), which makes `causal` exact. Other keys are chosen apart,
            and `causal` then holds for ranks inside a cluster, not for positions.
        v: values (batch, heads, tokens, value_channels). A position whose values are exactly zero counts as padding and is not seen.
        means: centroids (heads, clusters, channels), or (batch, heads, clusters, channels).
        window: positions that a cluster takes, 1 to tokens.
        causal: whether a query sees only keys of its rank in the cluster or before. It sees itself.
        strided: take every (tokens // window)-th position in order of similarity instead of the first ones.
        relative_keys, relative_values: tables (2 M + 1, channels) of Shaw's relative attention over ranks inside a cluster.
        dropout: of attention weights, 0 to 1.

    Returns:
        (batch, heads, tokens, value_channels): the sum over the clusters that took a position, over their number + 0.01; zero where
        none did. Differentiable in q, k, v and the tables; the choice of positions is not.

    Raises:
        ValueError: shapes that do not fit each other.

    Work is tokens * clusters + clusters * window ** 2 products of channels. All positions take part in the choice: the result at a
    position depends on later ones through who is taken, with `causal` too.
    """
    keys = q if k is None else k
    _check(q, keys, v, means, window, (relative_keys, relative_values))
    q_members = cluster_members(similarity(q, means), window, strided)
    k_members = q_members if k is None else cluster_members(similarity(keys, means), window, strided)
    return eager.attend_members(q, keys, v, q_members, k_members, causal, relative_keys, relative_values, dropout)


def _check(q, k, v, means, window, tables) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, means {tuple(means.shape)}"
    fits = q.ndim == v.ndim == 4 and q.shape == k.shape and q.shape[:3] == v.shape[:3] and 0 not in (*q.shape, *v.shape)
    if not fits or means.ndim not in (3, 4) or means.shape[-3] != q.shape[1] or means.shape[-1] != q.shape[3]:
        raise ValueError(
            "q and k are (batch, heads, tokens, channels), v differs from them in channels alone, means are (heads, clusters, channels); "
            f"got {shapes}"
        )
    if not 1 <= window <= q.shape[2]:
        raise ValueError(f"window={window} must be between 1 and the number of tokens, {q.shape[2]}")
    for table, channels in zip(tables, (q.shape[3], v.shape[3])):
        if table is not None and (table.ndim != 2 or table.shape[0] % 2 == 0 or table.shape[1] != channels):
            raise ValueError(f"a relative table must be (2 M + 1, {channels}); got {tuple(table.shape)}")


def normalize(x: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """Layer norm over channels without weights: items of norm sqrt(channels), zeros stay zeros."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


@torch.no_grad()
def similarity(items: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Dot products of items (batch, heads, tokens, channels) with centroids: (batch, heads, tokens, clusters)"""
    return items @ means.to(items.dtype).mT


class KMeansStep(NamedTuple):
    dist: torch.Tensor
    loss: torch.Tensor
    new_means: torch.Tensor
    new_ema_count: torch.Tensor
    new_ema_means: torch.Tensor


def kmeans_step(
    items: torch.Tensor,
    means: torch.Tensor,
    ema_count: torch.Tensor,
    ema_means: torch.Tensor,
    decay: float = 0.999,
    beta: float = 1e-4,
    epsilon: float = 1e-5,
) -> KMeansStep:
    """One step of online spherical k-means, with exponential moving averages.

    Args:
        items: (batch, heads, tokens, channels), normalised; exactly zero ones are padding and move nothing.
        means, ema_means: (heads, clusters, channels); `ema_count`: (heads, clusters).
        decay, epsilon: of the averages; `epsilon` keeps empty clusters finite.
        beta: weight of the loss.

    Returns:
        Minus the similarities, beta times the commitment loss, and what comes after the step. The loss is formed with the old
        centroids, and its gradient reaches the items only.
    """
    similar = similarity(items, means)
    nearest = similar.argmax(-1)
    loss = beta * commitment_loss(items, means.detach(), nearest).mean()
    return KMeansStep(
        -similar,
        loss,
        *kmeans_update(*kmeans_statistics(items, nearest, means.shape[1]), ema_count, ema_means, decay, epsilon),
    )


def commitment_loss(items: torch.Tensor, means: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
    """(batch,): the mean square of the distance of each sample's items to their nearest centroids (batch, heads, tokens)."""
    heads = torch.arange(means.shape[0], device=means.device)[:, None]
    return (items - means.to(items.dtype)[heads, nearest]).square().mean((1, 2, 3))


@torch.no_grad()
def kmeans_statistics(items: torch.Tensor, nearest: torch.Tensor, clusters: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Number (heads, clusters) and sum (heads, clusters, channels), in float32 or better, of the items nearest to each centroid.

    The numbers are the reference's, which counts by position rather than by head: item (b, h, l) goes to the head that is its place
    in that order, modulo the heads. All heads together count right, and with one head every number does.
    """
    real = items.any(-1)
    chosen = F.one_hot(nearest, clusters) * real.unsqueeze(-1)
    chosen = chosen.to(torch.promote_types(items.dtype, torch.float32))
    return chosen.reshape(-1, *chosen.shape[1::2]).sum(0), torch.einsum(
        "bhlc,bhld->hcd", chosen, items.to(chosen.dtype)
    )


@torch.no_grad()
def kmeans_update(
    count: torch.Tensor,
    total: torch.Tensor,
    ema_count: torch.Tensor,
    ema_means: torch.Tensor,
    decay: float = 0.999,
    epsilon: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centroids, counts and sums after `kmeans_statistics` of a batch. Centroids are not normalised again, as in the reference."""
    ema_count = decay * ema_count + (1 - decay) * count
    ema_means = decay * ema_means + (1 - decay) * total
    everything = ema_count.sum(1, keepdim=True)
    smoothed = (ema_count + epsilon) / (everything + ema_count.shape[1] * epsilon) * everything
    return ema_means / smoothed.unsqueeze(-1), ema_count, ema_means
