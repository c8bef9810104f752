"""Distributions of labels: how far one is shifted, how to draw, estimate and correct for one. All are (K,), positive, of sum 1."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

FLOOR = 1e-8  # of a source distribution: a class that never occurred
ESTIMATE_FLOOR = (
    1e-4  # of a running estimate, or a tenth of the mean share: a class that was not predicted so far may still come
)
BALANCED = 1.1  # up to this ratio of the most to the least frequent class, a source counts as balanced
TAIL_RATIO = 100.0  # of the long tail that stands for a balanced source


def as_distribution(counts: torch.Tensor, num_labels: int | None = None) -> torch.Tensor:
    """Counts or probabilities of classes as a distribution, in float32.

    Raises:
        ValueError: not one number per class, negative or infinite numbers, or a sum of 0.
    """
    counts = torch.as_tensor(counts)
    if counts.ndim != 1 or counts.numel() < 2 or num_labels not in (None, counts.numel()):
        raise ValueError(
            f"A label distribution has one axis with {num_labels or '2 or more'} classes, not shape {tuple(counts.shape)}"
        )
    counts = counts.to(torch.float32)
    if not (counts.isfinite().all() and (counts >= 0).all() and counts.sum() > 0):
        raise ValueError(
            f"A label distribution needs finite numbers of 0 or more whose sum is positive, not {counts.tolist()}"
        )
    p = (counts / counts.sum()).clamp_min(FLOOR)
    return p / p.sum()


def label_counts(labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    """How often each class occurs in `labels`, (K,)."""
    return torch.bincount(torch.as_tensor(labels).flatten(), minlength=num_labels)


def long_tail(num_labels: int, ratio: float) -> torch.Tensor:
    """The distribution whose class k has a share of ratio^(-k / (K - 1)): the first is `ratio` times as frequent as the last."""
    tail = ratio ** (-torch.arange(num_labels) / (num_labels - 1))
    return tail / tail.sum()


def is_balanced(source: torch.Tensor) -> torch.Tensor:
    return source.max() <= BALANCED * source.min()


def mapping_vector(source: torch.Tensor) -> torch.Tensor:
    """(K,): from 1 for the most frequent class down to -1 for the least frequent, in equal steps; equal classes keep their order."""
    m = torch.empty_like(source)
    m[source.argsort(descending=True, stable=True)] = torch.linspace(1, -1, source.numel(), device=source.device)
    return m


def mapping_of_balanced(num_labels: int) -> torch.Tensor:
    """(K,): the same steps over a random order of the classes, always the same one."""
    ranks = np.random.default_rng(0).permutation(num_labels)
    return torch.tensor([1 - 2 * int(rank) / (num_labels - 1) for rank in ranks], dtype=torch.float32)


def imbalance_degree(mapping: torch.Tensor, distribution: torch.Tensor) -> torch.Tensor:
    """The scalar in [-1, 1] that the adapter is told: 0 for equal classes, positive where the source's frequent classes prevail."""
    return (mapping * distribution).sum(-1)


def sampled_distribution(source: torch.Tensor, exponent: float | torch.Tensor) -> torch.Tensor:
    """Proportional to source^exponent: 1 gives the source, 0 equal classes, -1 the source's inverse."""
    return (exponent * source.log()).softmax(-1)


def training_distribution(source: torch.Tensor, mapping: torch.Tensor) -> torch.Tensor:
    """What training takes powers of: the source, or where that is balanced a long tail along the mapping vector."""
    tail = (mapping * (np.log(TAIL_RATIO) / 2)).softmax(-1)
    return torch.where(is_balanced(source), tail, source)


def generalized_logit_adjusted_loss(
    logits: torch.Tensor, labels: torch.Tensor, source: torch.Tensor, target: torch.Tensor, tau: float = 1.0
) -> torch.Tensor:
    """cross_entropy(logits + tau (log source - log target), labels), for samples whose labels follow `source`.

    Where it is least, with tau = 1, the logits are those of p(y | x) under the label distribution `target`.

    Args:
        logits: (B, K), for `target`.
        labels: (B,) classes; -100 is left out.
        source, target: (K,).
    """
    shift = source.float().log() - target.float().log()
    return F.cross_entropy(logits.float() + tau * shift, labels)


def prior_correction(logits: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """logits + log target - log source: what Bayes' rule makes of a classifier trained under `source` when only the labels'
    distribution is another one, `target`. (B, K), (K,), (K,) -> (B, K)"""
    return logits + (target.float().log() - source.float().log()).to(logits.dtype)


def expectation_maximization(
    log_posteriors: torch.Tensor, source: torch.Tensor, max_steps: int = 100, tolerance: float = 1e-6
) -> torch.Tensor:
    """The label distribution under which a batch is most likely (Saerens, Latinne and Decaestecker, 2002).

    Args:
        log_posteriors: (B, K) logits or log probabilities of the classes under `source`.
        source: (K,).

    Returns:
        (K,), after `max_steps` or when no share moved by `tolerance`.
    """
    estimate = source
    for _ in range(max_steps):
        previous, estimate = estimate, prior_correction(log_posteriors, source, estimate).softmax(-1).mean(0)
        estimate = estimate.clamp_min(FLOOR)
        if (estimate - previous).abs().max() <= tolerance:
            break
    return estimate / estimate.sum()


def moved_distribution(distribution: torch.Tensor, newest: torch.Tensor, momentum: float) -> torch.Tensor:
    """(1 - momentum) distribution + momentum newest, no share below 1e-4 (0.1 / K for many classes)."""
    floor = min(ESTIMATE_FLOOR, 0.1 / distribution.numel())
    moved = ((1 - momentum) * distribution + momentum * newest).clamp_min(floor)
    return moved / moved.sum()


__all__ = [
    "as_distribution",
    "expectation_maximization",
    "generalized_logit_adjusted_loss",
    "imbalance_degree",
    "is_balanced",
    "label_counts",
    "long_tail",
    "mapping_of_balanced",
    "mapping_vector",
    "moved_distribution",
    "prior_correction",
    "sampled_distribution",
    "training_distribution",
]
