"""Checks that configurations of forecasting models share. Each names the field, what was given and what is allowed."""

from __future__ import annotations

from typing import Any


def check_at_least(config: Any, minimum: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < minimum:
            raise ValueError(f"`{name}` must be at least {minimum}, got {getattr(config, name)}")


def check_transformer(config: Any) -> None:
    """`hidden_act`, `dropout` and `layer_norm_eps`."""
    from transformers.activations import ACT2FN

    if config.hidden_act not in ACT2FN:
        raise ValueError(f"`hidden_act` must be one of {', '.join(ACT2FN)}, got {config.hidden_act!r}")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"`dropout` must be at least 0 and below 1, got {config.dropout}")
    if config.layer_norm_eps <= 0:
        raise ValueError(f"`layer_norm_eps` must be above 0, got {config.layer_norm_eps}")


def check_standardization(config: Any) -> None:
    """`channel_means` and `channel_stds`, which the forecasting pipeline standardises with."""
    means, stds = config.channel_means, config.channel_stds
    if (means is None) != (stds is None) or (means is not None and len(means) != len(stds)):
        raise ValueError(
            f"`channel_means` and `channel_stds` must both be None or of equal length, got {means} and {stds}"
        )
    if stds is not None and not all(std > 0 for std in stds):
        raise ValueError(f"`channel_stds` must all be above 0, got {stds}")
