"""Instance-aware batch normalisation ("NOTE: Robust Continual Test-time Adaptation Against Temporal Correlation", arXiv 2208.05117)."""

from __future__ import annotations

import torch

from . import eager
from .reference import reference

__all__ = ["instance_aware_normalization", "reference"]


def instance_aware_normalization(
    x: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    k: float = 4.0,
    eps: float = 1e-5,
    skip_threshold: int = 1,
) -> torch.Tensor:
    """Normalises with the given statistics, moved towards an instance's own as far as those lie beyond k standard errors.

    Args:
        x: (batch, channels, *positions).
        mean, var: of the batch norm, (channels,).
        weight, bias: (channels,), or None.
        k: how many standard errors of a mean (or variance) over the positions are taken for chance.
        eps: added to variances.
        skip_threshold: with so many positions or fewer, `mean` and `var` are used as they are.

    Returns:
        The shape and type of `x`. Plain torch operations on any device: differentiable, exportable, compilable.

    Raises:
        ValueError: fewer than two axes, or statistics and parameters that are not one number per channel.
    """
    parts = {"mean": mean, "var": var, "weight": weight, "bias": bias}
    wrong = [name for name, part in parts.items() if part is not None and part.shape != x.shape[1:2]]
    if x.ndim < 2 or wrong:
        raise ValueError(
            f"x must be (batch, channels, ...) and {', '.join(wrong) or 'mean and var'} (channels,), not {tuple(x.shape)} and "
            f"{', '.join(str(tuple(parts[name].shape)) for name in wrong or ('mean', 'var'))}"
        )
    return eager.forward(x, mean, var, weight, bias, k, eps, skip_threshold)
