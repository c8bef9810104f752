"""The definitions, with the whole score matrix: s = 1 / sqrt(D); q, k, v are (B, H, N, D)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def normalized(scores: torch.Tensor, v: torch.Tensor, causal: bool = False) -> torch.Tensor:
    """o_i = sum_j a_ij v_j / sum_j a_ij, causal: over j <= i"""
    scores = scores.tril() if causal else scores
    return scores @ v / scores.sum(-1, keepdim=True)


def linear_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False) -> torch.Tensor:
    """a_ij = phi(q_i) . phi(k_j), phi(x) = elu(x) + 1   (Linear Transformer, arXiv 2006.16236, eq. 5, 7)"""
    return normalized((F.elu(q) + 1) @ (F.elu(k) + 1).mT, v, causal)


def performer_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, features: torch.Tensor, causal: bool = False
) -> torch.Tensor:
    """a_ij = phi(q_i) . phi(k_j), phi(x) = exp(W x' - |x'|^2 / 2) / sqrt(m), x' = x / D^(1/4)   (Performer, arXiv 2009.14794, lemma 1)"""

    def phi(x: torch.Tensor) -> torch.Tensor:
        x = x * x.shape[-1] ** -0.25
        return (x @ features.T - x.square().sum(-1, keepdim=True) / 2).exp() * len(features) ** -0.5

    return normalized(phi(q) @ phi(k).mT, v, causal)


def linformer_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_projection: torch.Tensor, value_projection: torch.Tensor
) -> torch.Tensor:
    """softmax(q (E k)^T s) (F v)   (Linformer, arXiv 2006.04768, eq. 7)"""
    return (q @ (key_projection @ k).mT * q.shape[-1] ** -0.5).softmax(-1) @ (value_projection @ v)


def window_global_mask(length: int, window: int, num_global: int, causal: bool = False) -> torch.Tensor:
    """(N, N) True where i may see j: |i - j| <= window, or i or j among the first `num_global`   (Longformer, arXiv 2004.05150)"""
    i = torch.arange(length)
    row, column = i[:, None], i
    allowed = ((row - column).abs() <= window) | (row < num_global) | (column < num_global)
    return allowed & (column <= row) if causal else allowed


def window_global_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, num_global: int = 0, causal: bool = False
) -> torch.Tensor:
    allowed = window_global_mask(q.shape[2], window, num_global, causal).to(q.device)
    return (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~allowed, -torch.inf).softmax(-1) @ v


def nystrom_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_landmarks: int) -> torch.Tensor:
    """softmax(q kl^T s) pinv(softmax(ql kl^T s)) softmax(ql k^T s) v, ql and kl means of N / m neighbours   (arXiv 2102.03902, eq. 13)"""
    scale = q.shape[-1] ** -0.5
    ql, kl = (x.unflatten(2, (num_landmarks, -1)).mean(3) for x in (q, k))
    left, middle, right = ((a @ b.mT * scale).softmax(-1) for a, b in ((q, kl), (ql, kl), (ql, k)))
    return left @ torch.linalg.pinv(middle) @ (right @ v)
