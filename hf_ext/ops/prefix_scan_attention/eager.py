"""Prefix softmax attention chunk by chunk, in plain torch: a triangle of weights inside a chunk, a state from chunk to chunk.

Paper: "Attention as an RNN", arXiv 2405.13956. The paper scans with log2(tokens) rounds over everything; on a CPU that is no faster than
the loop over tokens, and on any device it moves more memory than this.

Backward works with the logarithm L_t of the normaliser of each prefix. It never falls with t, so every factor exp(L_t - L_u) with t <= u,
and every weight exp(s_i - L_t) with i <= t, is at most 1: nothing overflows, whatever the scores are.

Letters: B batch, T tokens, C tokens of a chunk, H heads, D key channels, V value channels.
"""

from __future__ import annotations

import math

import torch

from ..chunks import without_autocast

CHUNK_SIZE = 64


def exp_of_difference(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """exp(x - y), 0 where x is minus infinity, even if y is too"""
    return torch.where(x == -math.inf, 0.0, (x - y).exp())


@without_autocast
def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attention_mask: torch.Tensor | None,
    a: torch.Tensor | None,
    c: torch.Tensor | None,
    m: torch.Tensor | None,
    scale: float,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of tensors of one type: outputs (B, T, H, V), the state a (B, H, V), c and m (B, H), and where `save` asks for them scores
    and log normalisers, (B, T, H) each."""
    B, _, H, _ = k.shape
    scores = (k * q).sum(-1) * scale
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask.unsqueeze(-1), -math.inf)
    if a is None:
        a, c, m = v.new_zeros(B, H, v.shape[3]), v.new_zeros(B, H), v.new_full((B, H), -math.inf)
    after = torch.ones(CHUNK_SIZE, CHUNK_SIZE, dtype=torch.bool, device=k.device).triu(1)
    outputs, normalizers = [], []
    for s, values in zip(scores.transpose(1, 2).split(CHUNK_SIZE, 2), v.transpose(1, 2).split(CHUNK_SIZE, 2)):
        prefixes = s.unsqueeze(-2).masked_fill(after[: s.shape[2], : s.shape[2]], -math.inf)  # (B, H, C, C)
        largest = torch.maximum(m.unsqueeze(-1), prefixes.amax(-1))
        decay = exp_of_difference(m.unsqueeze(-1), largest)
        weights = exp_of_difference(prefixes, largest.unsqueeze(-1))
        sums = torch.addcmul(weights.sum(-1), c.unsqueeze(-1), decay)
        weighted = weights @ values + a.unsqueeze(-2) * decay.unsqueeze(-1)
        outputs.append(weighted / torch.where(sums > 0, sums, 1).unsqueeze(-1))
        normalizers.append(largest + sums.log())
        a, c, m = weighted[:, :, -1], sums[:, :, -1], largest[:, :, -1]
    output = torch.cat(outputs, 2).transpose(1, 2).contiguous()
    empty = scores.new_empty(0)
    saved = (scores, torch.cat(normalizers, 2).transpose(1, 2).contiguous()) if save else (empty, empty.clone())
    return output, a.contiguous(), c.contiguous(), m.contiguous(), *saved


@without_autocast
def backward(
    grad_o: torch.Tensor,
    grad_a: torch.Tensor,
    grad_c: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    m: torch.Tensor | None,
    output: torch.Tensor,
    last_c: torch.Tensor,
    scores: torch.Tensor,
    normalizers: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v and of the initial a and c (zeros of their shape where there was no initial state), all of one type."""
    later = (
        last_c.unsqueeze(-1) * grad_a
    )  # sum over later tokens of exp(L_t - L_u) grad_u, in units of the chunk's last L
    later_dot = -last_c * grad_c  # the same of grad_u . o_u
    chunks = [x.transpose(1, 2).split(CHUNK_SIZE, 2) for x in (scores, normalizers, v, grad_o, output)]
    before = [None if m is None else m, *(L[:, :, -1] for L in chunks[1][:-1])]
    dv, ds = [], []
    for s, L, values, grads, o, start in reversed(list(zip(*chunks, before))):
        weights = exp_of_difference(s.unsqueeze(-2), L.unsqueeze(-1)).tril()
        to_end = exp_of_difference(s, L[:, :, -1:])
        dots = (grads * o).sum(-1)
        sums = weights.mT @ grads + to_end.unsqueeze(-1) * later.unsqueeze(-2)
        dv.append(sums)
        ds.append(
            (sums * values).sum(-1) - (weights.mT @ dots.unsqueeze(-1)).squeeze(-1) - to_end * later_dot.unsqueeze(-1)
        )
        if start is not None:
            to_start, across = (exp_of_difference(start.unsqueeze(-1), x) for x in (L, L[:, :, -1:]))
            later = (to_start.unsqueeze(-2) @ grads).squeeze(-2) + across * later
            later_dot = (to_start * dots).sum(-1) + across.squeeze(-1) * later_dot
    if m is None:
        later, later_dot = torch.zeros_like(later), torch.zeros_like(later_dot)
    ds = torch.cat(ds[::-1], 2).transpose(1, 2) * scale
    dv = torch.cat(dv[::-1], 2).transpose(1, 2).contiguous()
    return torch.einsum("bth,bthd->hd", ds, k), ds.unsqueeze(-1) * q, dv, later, -later_dot
