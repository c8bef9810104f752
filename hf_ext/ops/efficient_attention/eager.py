"""The fast forms in plain torch, on any device: time and memory linear in the number of tokens.

Letters in names of dimensions: B batch, H heads, N tokens, D channels, F features, C tokens of a chunk, m landmarks. A mask is (B, N), True
at real tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..chunks import CHUNK_SIZE, without_autocast
from ..subsampled_attention.eager import attend


@without_autocast
def kernel_attention(
    queries: torch.Tensor, keys: torch.Tensor, v: torch.Tensor, causal: bool, mask: torch.Tensor | None
) -> torch.Tensor:
    """sum_j (queries_i . keys_j) v_j / sum_j (queries_i . keys_j), of features (B, H, N, F) that are not negative

    A causal sum goes chunk by chunk: what came before the chunk is one (F, D + 1) matrix.
    """
    if mask is not None:
        keys = keys * mask[:, None, :, None]
    sums = torch.cat((v.to(keys.dtype), torch.ones_like(keys[..., :1])), -1)  # the last column adds the weights up
    o = _causal(queries, keys, sums) if causal else queries @ (keys.mT @ sums)
    weights = o[..., -1:].clamp_min(torch.finfo(o.dtype).tiny)  # 0 where nothing real is seen
    return (o[..., :-1] / weights).to(v.dtype)


def _causal(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    length = queries.shape[2]
    size = min(CHUNK_SIZE, length)
    q, k, v = (F.pad(x, (0, 0, 0, -length % size)).unflatten(2, (-1, size)) for x in (queries, keys, values))
    states = (k.mT @ v).cumsum(2)
    before = F.pad(states[:, :, :-1], (0, 0, 0, 0, 1, 0))
    return ((q @ k.mT).tril() @ v + q @ before).flatten(2, 3)[:, :, :length]


def elu_features(x: torch.Tensor) -> torch.Tensor:
    """elu(x) + 1, in float32 at least"""
    return F.elu(x.to(torch.promote_types(x.dtype, torch.float32))) + 1


def exponential_features(x: torch.Tensor, features: torch.Tensor, of_queries: bool) -> torch.Tensor:
    """exp(W x' - |x'|^2 / 2) but for a factor that cancels: the largest exponent, of a query, or of all keys of a head"""
    x = x.to(torch.promote_types(x.dtype, torch.float32)) * x.shape[-1] ** -0.25
    exponents = x @ features.to(x).T - x.square().sum(-1, keepdim=True) / 2
    return (exponents - exponents.detach().amax(-1 if of_queries else (-2, -1), keepdim=True)).exp()


def window_global(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: int,
    num_global: int,
    causal: bool,
    mask: torch.Tensor | None,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """Blocks of queries read their own and the neighbouring blocks and the global tokens; global tokens read everything."""
    length, device = q.shape[2], q.device
    size = max(window, 16)
    blocks = -(-length // size)
    targets = torch.arange(blocks * size, device=device).view(blocks, size)
    first = torch.arange(blocks, device=device)[:, None] * size
    near = first + torch.arange(-size, size if causal else 2 * size, device=device)
    everywhere = torch.arange(num_global, device=device).expand(blocks, -1)
    chosen = torch.cat((everywhere, near.clamp(0, length - 1)), 1)
    real = (near >= num_global) & (near < length)  # a global token is there once
    i, j = targets[:, :, None], near[:, None]
    close = real[:, None] & ((i - j).abs() <= window)
    shared = everywhere[:, None].expand(-1, size, -1)
    visible = torch.cat((torch.ones_like(shared, dtype=torch.bool), close), -1)
    o = _read(q, k, v, targets.clamp(max=length - 1), chosen, visible, causal, mask, scaling, dropout)[:, :, :length]
    if num_global:
        rows = torch.arange(num_global, device=device)[None]
        columns = torch.arange(length, device=device)[None]
        visible = torch.ones(1, num_global, length, dtype=torch.bool, device=device)
        o = torch.cat((_read(q, k, v, rows, columns, visible, causal, mask, scaling, dropout), o[:, :, num_global:]), 2)
    return o


def _read(q, k, v, targets, chosen, visible, causal, mask, scaling, dropout) -> torch.Tensor:
    """Targets (blocks, W) over chosen places (blocks, M), of which `visible` (blocks, W, M)"""
    if causal:
        visible = visible & (chosen[:, None] <= targets[:, :, None])
    visible = visible[None, None]
    if mask is not None:
        visible = visible & mask[:, chosen][:, None, :, None]
    return attend(q, k, v, targets, chosen, visible, scaling, dropout)


def segment_means(x: torch.Tensor, number: int, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Means (B, H, m, D) over `number` runs of neighbours as equal as can be, of real tokens; and which have any (B, m)"""
    runs = torch.arange(x.shape[2], device=x.device) * number // x.shape[2]
    places = F.one_hot(runs, number).T.to(x.dtype)  # (m, N)
    if mask is None:
        return (places / places.sum(1, keepdim=True)) @ x, None
    places = places * mask[:, None].to(x.dtype)  # (B, m, N)
    counts = places.sum(-1, keepdim=True)
    return (places / counts.clamp_min(1))[:, None] @ x, counts[..., 0] > 0


def nystrom(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_landmarks: int,
    mask: torch.Tensor | None,
    iterations: int,
    scaling: float,
) -> torch.Tensor:
    (ql, some), (kl, _) = (segment_means(x, num_landmarks, mask) for x in (q, k))

    def weights(a: torch.Tensor, b: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        scores = (a @ b.mT * scaling).float()
        return scores.softmax(-1) if seen is None else scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)

    left, middle, right = weights(q, kl, some), weights(ql, kl, some), weights(ql, k, mask)
    if some is not None:  # landmarks without tokens take part in nothing
        middle = middle * some[:, None, :, None]
    inverse = pseudo_inverse(middle, iterations) if iterations else torch.linalg.pinv(middle)
    return (left @ inverse @ (right @ v.float())).to(v.dtype)


def pseudo_inverse(x: torch.Tensor, iterations: int) -> torch.Tensor:
    """Z <- Z (13 I - X Z (15 I - X Z (7 I - X Z))) / 4   (arXiv 2102.03902, eq. 14)"""
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    z = x.mT / (x.abs().sum(-2).amax(-1)[..., None, None] * x.abs().sum(-1).amax(-1)[..., None, None])
    for _ in range(iterations):
        xz = x @ z
        z = z @ (13 * eye - xz @ (15 * eye - xz @ (7 * eye - xz))) / 4
    return z
