"""What forecasting models share: the level and scale of a window, losses over what was observed, checks of shapes.

Series are (batch, time, variates). A mask is 1 where a value was observed; what stands under a 0, NaN included, is never read.
"""

from __future__ import annotations

import torch

SCALE_EPS = 1e-5  # added to the variance of a window; part of the trained functions, like the references' literal


def standardize_window(
    values: torch.Tensor, observed: torch.Tensor | None = None, enabled: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Standardised values with zeros where nothing was observed, loc, scale; the latter two are (batch, 1, variates).

    The "window standardisation" of Non-stationary Transformers: mean and sqrt(population variance + SCALE_EPS) of each variate over
    its observed entries. The level is a constant to the gradient, the scale is not. A variate without any observation gets 0 and
    sqrt(SCALE_EPS). With `enabled=False` loc is 0 and scale 1.
    """
    count = values.shape[1]
    if observed is not None:
        observed = observed.bool()
        count = observed.sum(1, keepdim=True).clamp_min(1)
        values = torch.where(observed, values, 0.0)
    if not enabled:
        zero = torch.zeros_like(values[:, :1])
        return values, zero, zero + 1
    loc = (values.sum(1, keepdim=True) / count).detach()
    centred = values - loc if observed is None else torch.where(observed, values - loc, 0.0)
    scale = (centred.square().sum(1, keepdim=True) / count + SCALE_EPS).sqrt()
    return centred / scale, loc, scale


def masked_mse(predicted: torch.Tensor, target: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error over the entries that count (all without `counted`), 0 where none does; the others are not read."""
    if counted is None:
        return torch.nn.functional.mse_loss(predicted, target)
    error = torch.where(counted, predicted - target, 0.0)
    return error.square().sum() / counted.sum().clamp_min(1)


def masked_mae(predicted: torch.Tensor, target: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """Mean absolute error over the entries that count (all without `counted`), 0 where none does; the others are not read."""
    if counted is None:
        return torch.nn.functional.l1_loss(predicted, target)
    error = torch.where(counted, predicted - target, 0.0)
    return error.abs().sum() / counted.sum().clamp_min(1)


def check_same_shape(name: str, given: torch.Tensor | None, expected: tuple[int, ...], meaning: str) -> None:
    """`ValueError` unless `given` is None or has the shape `expected`, which `meaning` puts into words."""
    if given is not None and tuple(given.shape) != tuple(expected):
        raise ValueError(f"`{name}` must be {meaning} = {tuple(expected)}, got {tuple(given.shape)}")
