"""The fast form on any device: gather what each cluster takes, attend densely inside it, scatter back.

Letters in names of dimensions: B batch, H heads, L tokens, C clusters, W positions of a cluster, D channels, n queries of m keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

EMPTY = 1e-2  # added to the number of clusters that took a position, as in the reference


def cluster_members(
    similarity: torch.Tensor, window: int, strided: bool = False, hidden: torch.Tensor | None = None
) -> torch.Tensor:
    """(B, H, L, C) -> (B, H, C, W): the positions that each cluster takes, ascending. Hidden ones (B, L) are taken last.

    Of equal similarities the earlier position is taken, as `tf.math.top_k` does and `torch.topk` does not promise: equal tokens
    without absolute positions are exactly equally similar. A threshold and a running count do it without a full sort.
    """
    similarity = similarity.mT
    length = similarity.shape[-1]
    if hidden is not None:
        similarity = similarity.masked_fill(hidden[:, None, None], -torch.inf)
    if strided:
        order = similarity.argsort(dim=-1, descending=True, stable=True)
        real = length - hidden.sum(1).view(-1, 1, 1, 1) if hidden is not None else order.new_tensor(length)
        steps = torch.arange(window, device=order.device) * (real // window).clamp(min=1)
        return order.take_along_dim(steps.expand(*order.shape[:-1], window), -1).sort(-1).values
    if window == length:
        return torch.arange(length, device=similarity.device).expand(*similarity.shape[:-1], length)
    threshold = similarity.topk(window, sorted=False).values.amin(-1, keepdim=True)
    above, tied = similarity > threshold, similarity == threshold
    missing = window - above.sum(-1, keepdim=True)
    taken = above | (tied & (tied.cumsum(-1) <= missing))
    slots = torch.where(taken, taken.cumsum(-1) - 1, window)  # what is not taken goes to a slot that is cut off
    positions = torch.arange(length, device=similarity.device).expand_as(slots)
    return positions.new_zeros(*slots.shape[:-1], window + 1).scatter(-1, slots, positions)[..., :window]


def attend_members(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_members: torch.Tensor,
    k_members: torch.Tensor,
    causal: bool,
    relative_keys: torch.Tensor | None,
    relative_values: torch.Tensor | None,
    dropout: float,
) -> torch.Tensor:
    """(B, H, L, D): each cluster's queries attend to its keys, causally in their order; a position gets the mean over its clusters."""
    clusters, window = q_members.shape[2:]
    hidden = (v == 0).all(-1)
    rows, columns = q_members.flatten(2), k_members.flatten(2)
    queries = gather(q, rows).unflatten(2, (clusters, window))
    keys, values = (gather(x, columns).unflatten(2, (clusters, window)) for x in (k, v))
    hidden = hidden.gather(2, columns).unflatten(2, (clusters, 1, window))  # (B, H, C, 1, W)
    if causal:
        hidden = hidden | torch.ones(window, window, dtype=torch.bool, device=q.device).triu(1)
    o = attend(queries, keys, values, hidden, relative_keys, relative_values, dropout).flatten(2, 3)
    total = torch.zeros_like(v).scatter_add(2, rows.unsqueeze(-1).expand_as(o), o.to(v.dtype))
    count = v.new_zeros(v.shape[:3]).scatter_add(2, rows, v.new_ones(()).expand_as(rows))
    return total / (count.unsqueeze(-1) + EMPTY)


def gather(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """(B, H, L, D), (B, H, W) -> (B, H, W, D)"""
    return x.gather(2, positions.unsqueeze(-1).expand(*positions.shape, x.shape[-1]))


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    hidden: torch.Tensor,
    relative_keys: torch.Tensor | None = None,
    relative_values: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(q . (k + R^K)) (v + R^V), Shaw's relative attention, of unscaled q (..., n, D), which are the last n of the m keys.

    `hidden` (..., n or 1, m) is True where a key is not seen; who sees none sees all alike. Tables are (2 M + 1, D), rows for the
    distances -M to M, and distances beyond count as M.
    """
    n, m = q.shape[-2], k.shape[-2]
    masked = max(-1e9, torch.finfo(q.dtype).min)
    if relative_keys is None and relative_values is None:
        bias = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, masked)
        parts = (x.flatten(0, -4) for x in (q, k, v))  # fused kernels take four axes
        o = F.scaled_dot_product_attention(*parts, attn_mask=bias.flatten(0, -4), dropout_p=dropout, scale=1.0)
        return o.view(*q.shape[:-1], -1)
    scores = q @ k.mT
    if relative_keys is not None:
        scores = scores + from_distances(q @ by_distance(relative_keys, n, m).T, m)
    weights = F.dropout(scores.masked_fill(hidden, masked).softmax(-1), dropout)
    o = weights @ v
    if relative_values is not None:
        o = o + to_distances(weights) @ by_distance(relative_values, n, m)
    return o


def by_distance(table: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Rows of the table for the distances 1 - m, ..., n of n queries that end m keys: (m + n, D), the last row for symmetry only"""
    limit = (table.shape[0] - 1) // 2
    return table[torch.arange(1 - m, n + 1, device=table.device).clamp(-limit, limit) + limit]


def from_distances(x: torch.Tensor, m: int) -> torch.Tensor:
    """(..., n, m + n), entry s of row i for the distance s + 1 - m -> (..., n, m), entry j for the distance j - i - (m - n).

    A skewed view: entry (i, j) stands at i * (m + n) + j + n - 1 - i of the flattened rows.
    """
    n = x.shape[-2]
    flat = x.flatten(-2)[..., n - 1 : n - 1 + n * (m + n - 1)]
    return flat.unflatten(-1, (n, m + n - 1))[..., :m]


def to_distances(x: torch.Tensor) -> torch.Tensor:
    """(..., n, m) -> (..., n, m + n): undoes `from_distances`, with zeros at the distances that a row has not"""
    n, m = x.shape[-2:]
    flat = F.pad(F.pad(x, (0, n - 1)).flatten(-2), (n - 1, 1))
    return flat.unflatten(-1, (n, m + n))


def attend_members_last(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_members: torch.Tensor,
    k_members: torch.Tensor,
    relative_keys: torch.Tensor | None,
    relative_values: torch.Tensor | None,
) -> torch.Tensor:
    """`attend_members`, causal, for the last n positions only: q (B, H, n, D), everything else of all L positions."""
    n, length = q.shape[2], k.shape[2]
    places = torch.arange(length - n, length, device=q.device)
    matches = q_members.unsqueeze(3) == places[:, None]  # (B, H, C, n, W)
    member, rank = matches.any(-1), matches.long().argmax(-1)  # (B, H, C, n)
    clusters, window = k_members.shape[2:]
    columns = k_members.flatten(2)
    keys, values = (gather(x, columns).unflatten(2, (clusters, window)) for x in (k, v))
    distance = torch.arange(window, device=q.device) - rank.unsqueeze(-1)  # (B, H, C, n, W)
    hidden = (values == 0).all(-1).unsqueeze(3) | (distance > 0)
    o = attend_at(q.unsqueeze(2), keys, values, hidden, distance, relative_keys, relative_values)
    member = member.unsqueeze(-1).to(o.dtype)
    return (o * member).sum(2) / (member.sum(2) + EMPTY)


def attend_at(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    hidden: torch.Tensor,
    distance: torch.Tensor,
    relative_keys: torch.Tensor | None,
    relative_values: torch.Tensor | None,
) -> torch.Tensor:
    """`attend` where distances (..., n, m) are given: a step of decoding, whose queries are few."""
    scores = q @ k.mT
    if relative_keys is not None:
        limit = (relative_keys.shape[0] - 1) // 2
        rows = distance.clamp(-limit, limit).add(limit).expand_as(scores)
        scores = scores + (q @ relative_keys.T).expand(*scores.shape[:-1], -1).gather(-1, rows)
    weights = scores.masked_fill(hidden, max(-1e9, torch.finfo(scores.dtype).min)).softmax(-1)
    o = weights @ v
    if relative_values is not None:
        limit = (relative_values.shape[0] - 1) // 2
        rows = distance.clamp(-limit, limit).add(limit).expand_as(weights)
        o = o + weights.new_zeros(*weights.shape[:-1], 2 * limit + 1).scatter_add(-1, rows, weights) @ relative_values
    return o
