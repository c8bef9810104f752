"""All chunks at once, softmax through an attention interface of Transformers; and new tokens after those of an open chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .reference import elementwise

# q, k, v (batch, 1, tokens, channels) and an additive mask -> output (batch, tokens, 1, channels), weights or None
Softmax = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


@dataclass
class OpenChunk:
    """Keys and values of the chunk that is not full yet.

    Attributes:
        keys, values: (batch, places, channels); place s holds the s-th token of the chunk, and something else from its end on.
    """

    keys: torch.Tensor
    values: torch.Tensor


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, None]:
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2), None


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    hidden: torch.Tensor | None,
    count: torch.Tensor | int,
    activation: str,
    softmax: Softmax,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows of queries (N, T, channels) over rows of keys (N, S, channels); bias, hidden and count broadcast to (N, T, S)."""
    if activation == "softmax":
        mask = bias if hidden is None else bias.masked_fill(hidden, torch.finfo(bias.dtype).min)
        mask = mask.view(-1, 1, *mask.shape[-2:])
        o, weights = softmax(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), mask)
        return o.squeeze(2), None if weights is None else weights.squeeze(1)
    weights = elementwise(q @ k.mT / count + bias, activation)
    if hidden is not None:
        weights = weights.masked_fill(hidden, 0.0)
    return F.dropout(weights, dropout) @ v, weights


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    chunk_size: int,
    causal: bool,
    activation: str,
    attention_mask: torch.Tensor | None,
    softmax: Softmax,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    batch, length = q.shape[:2]
    size = chunk_size if 0 < chunk_size < length else length
    missing = -length % size
    real = None if attention_mask is None else F.pad(attention_mask.bool(), (0, missing)).reshape(-1, 1, size)
    inside = None
    if missing:
        q, k, v = (F.pad(x, (0, 0, 0, missing)) for x in (q, k, v))
        if not causal:  # otherwise no query sees what fills up the last chunk
            inside = torch.arange(length + missing, device=q.device) < length
            inside = inside.expand(batch, -1).reshape(-1, 1, size)
            real = inside if real is None else real
    q, k, v = (x.reshape(-1, size, x.shape[2]) for x in (q, k, v))
    middle = bias.shape[0] // 2
    bias = bias[middle - size + 1 : middle + size].unfold(0, size, 1).flip(0)  # row i, column j: the distance j - i
    places = torch.arange(size, device=q.device)
    hidden = places > places[:, None] if causal else None
    count = (places + 1).unsqueeze(1) if causal else size
    if real is not None:
        if not causal:
            count = real.sum(2, keepdim=True).clamp(min=1)
        visible = (
            real | ~real.any(2, keepdim=True) if activation == "softmax" else real
        )  # MEGA leaves a chunk of padding as it is
        visible = visible if inside is None else visible & inside
        hidden = ~visible if hidden is None else hidden | ~visible
    o, weights = attend(q, k, v, bias, hidden, count, activation, softmax, dropout)
    o = o.reshape(batch, length + missing, -1)[:, :length]
    return o, None if weights is None else weights.unflatten(0, (batch, -1))


def proceed(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    chunk_size: int,
    activation: str,
    seen: torch.Tensor,
    real: torch.Tensor,
    chunk: OpenChunk,
    softmax: Softmax,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """New tokens, `real` (batch,) of them no padding, after `seen` (batch,) ones, of which the open chunk is left."""
    places = chunk.keys.shape[1]
    start = _start(seen, chunk_size)
    old = start[:, None] + torch.arange(places, device=q.device)
    queries = seen[:, None] + torch.arange(q.shape[1], device=q.device)
    keys = torch.cat((old, queries), 1).unsqueeze(1)
    valid = torch.cat((old < seen[:, None], queries < (seen + real)[:, None]), 1).unsqueeze(1)
    queries = queries.unsqueeze(2)
    hidden = ~valid | (keys > queries) | (keys < _start(queries, chunk_size))
    middle = bias.shape[0] // 2
    bias = bias[(keys - queries).clamp(-middle, middle) + middle]
    count = queries - _start(queries, chunk_size) + 1
    k, v = torch.cat((chunk.keys, k), 1), torch.cat((chunk.values, v), 1)
    return attend(q, k, v, bias, hidden, count, activation, softmax, dropout)


def leave_open(
    k: torch.Tensor, v: torch.Tensor, chunk_size: int, seen: torch.Tensor, real: torch.Tensor, chunk: OpenChunk | None
) -> OpenChunk:
    """The open chunk after `real` of the new keys and values; never more than `chunk_size` places."""
    if chunk is None:
        chunk = OpenChunk(k[:, :0], v[:, :0])
    places, tokens = chunk.keys.shape[1], k.shape[1]
    size = min(chunk_size, places + tokens) if chunk_size > 0 else places + tokens
    before, after = _start(seen, chunk_size), _start(seen + real, chunk_size)
    position = after[:, None] + torch.arange(size, device=k.device)
    index = torch.where(position < seen[:, None], position - before[:, None], places + position - seen[:, None])
    index = index.clamp(max=places + tokens - 1).unsqueeze(-1)
    return OpenChunk(
        torch.cat((chunk.keys, k), 1).take_along_dim(index, 1),
        torch.cat((chunk.values, v), 1).take_along_dim(index, 1),
    )


def _start(position: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """Where the chunk of a position begins"""
    return position // chunk_size * chunk_size if chunk_size > 0 else torch.zeros_like(position)
