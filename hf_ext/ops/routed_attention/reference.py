"""The definition: clusters one at a time (arXiv 2003.05997, section 4; google-research/google-research, `routing_transformer/utils.py`)."""

from __future__ import annotations

import torch


def choose(similarity: torch.Tensor, window: int, strided: bool = False) -> list[int]:
    """The `window` positions of largest similarity (tokens,), of equal ones the earlier first, or `window` at equal steps of that order;
    in ascending order."""
    order = sorted(range(len(similarity)), key=lambda i: (-float(similarity[i]), i))
    return sorted(order[:: len(order) // window][:window] if strided else order[:window])


def relative(table: torch.Tensor | None, i: int, j: int) -> torch.Tensor | float:
    """The row of a table (2 M + 1, channels) for the distance j - i, held within M"""
    if table is None:
        return 0.0
    limit = (len(table) - 1) // 2
    return table[max(-limit, min(limit, j - i)) + limit]


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_similarity: torch.Tensor,
    k_similarity: torch.Tensor,
    window: int,
    causal: bool = True,
    strided: bool = False,
    relative_keys: torch.Tensor | None = None,
    relative_values: torch.Tensor | None = None,
) -> torch.Tensor:
    """o_p = sum over the clusters that took p of softmax(q_p . (k + R^K)) (v + R^V) / (their number + 0.01)

    Keys of later rank (with `causal`) and of zero v are seen only where there is nothing else.
    """
    B, H, L, _ = q.shape
    total = torch.zeros_like(v)
    count = v.new_zeros(B, H, L, 1)
    for b in range(B):
        for h in range(H):
            for c in range(q_similarity.shape[-1]):
                targets = choose(q_similarity[b, h, :, c], window, strided)
                sources = choose(k_similarity[b, h, :, c], window, strided)
                for i, p in enumerate(targets):
                    reads = range(window)
                    keys = torch.stack([k[b, h, sources[j]] + relative(relative_keys, i, j) for j in reads])
                    values = torch.stack([v[b, h, sources[j]] + relative(relative_values, i, j) for j in reads])
                    hidden = [(causal and j > i) or not v[b, h, sources[j]].any() for j in reads]
                    weights = (keys @ q[b, h, p]).masked_fill(torch.tensor(hidden), -1e9).softmax(0)
                    total[b, h, p] += weights @ values
                    count[b, h, p] += 1
    return total / (count + 0.01)


def kmeans_reference(
    items: torch.Tensor,
    means: torch.Tensor,
    ema_count: torch.Tensor,
    ema_means: torch.Tensor,
    decay: float = 0.999,
    beta: float = 1e-4,
    epsilon: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Distances, commitment loss, and the centroids, counts and sums after a step of online spherical k-means."""
    B, H, L, _ = items.shape
    C = means.shape[1]
    dist = torch.stack([-items[:, h] @ means[h].T for h in range(H)], 1)
    counts, sums = torch.zeros_like(ema_count), torch.zeros_like(ema_means)
    squares = []
    for b in range(B):
        for h in range(H):
            for p in range(L):
                x, nearest = items[b, h, p], int(dist[b, h, p].argmin())
                squares.append((x - means[h, nearest]).square().mean())
                if x.any():
                    counts[((b * H + h) * L + p) % H, nearest] += (
                        1  # not [h, nearest]: the reference reshapes without a transpose
                    )
                    sums[h, nearest] += x
    new_count = decay * ema_count + (1 - decay) * counts
    new_sums = decay * ema_means + (1 - decay) * sums
    total = new_count.sum(1, keepdim=True)
    smoothed = (new_count + epsilon) / (total + C * epsilon) * total
    return dist, beta * torch.stack(squares).mean(), new_sums / smoothed.unsqueeze(-1), new_count, new_sums
