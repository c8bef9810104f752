"""Multi-exit networks: a case serves a batch at several thresholds, runs the attacks, or measures efficacy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hf_ext.convert import convert_checkpoint
from hf_ext.robustness import cumulative_exits, early, early_target, efficacy, pgd, pgd_avg, pgd_max, slowdown
from hf_ext.robustness.attacks import uniform_cross_entropy
from tests.goldens import call_arguments


def run(case: dict[str, Any]) -> Any:
    call = call_arguments(case)
    runs: dict[str, Callable[..., Any]] = {
        "exit_counts": run_efficacy,
        "epsilon": run_attacks,
        "pixel_values": run_exits,
    }
    return next(function for name, function in runs.items() if name in call)(case, **call)


def run_efficacy(case: dict[str, Any], exit_counts: torch.Tensor, exit_costs: torch.Tensor, total: int) -> Any:
    return {
        "cumulative": cumulative_exits(exit_counts, total),
        "efficacy": efficacy(exit_counts, exit_costs, total),
    }


@torch.no_grad()
def run_exits(case: dict[str, Any], pixel_values: torch.Tensor, thresholds: list[float] = (), **options: Any) -> Any:
    model = convert_checkpoint(case["method"], case["state_dict"], case["arguments"])
    everything = model(pixel_values, exit_mode="all")
    output = {"logits": everything.logits, "exit_logits": everything.exit_logits}
    for index, threshold in enumerate(thresholds):
        served = model(pixel_values, exit_mode="dynamic", threshold=threshold, **options)
        output[f"exit_index.{index}"] = served.exit_index
        output[f"selected_logits.{index}"] = served.logits
    return output


def run_attacks(
    case: dict[str, Any],
    pixel_values: torch.Tensor,
    labels: torch.Tensor,
    slowdown_start: torch.Tensor,
    epsilon: float,
    step_size: float,
    steps: int,
    exit_index: int = 0,
    final_weight: float = 1.0,
) -> Any:
    model = convert_checkpoint(case["method"], case["state_dict"], case["arguments"])
    budget = {"epsilon": epsilon, "step_size": step_size, "steps": steps}
    with torch.no_grad():
        exits = model(pixel_values, exit_mode="all").exit_logits
    return {
        "pgd": pgd(model, pixel_values, labels, **budget),
        "pgd_avg": pgd_avg(model, pixel_values, labels, **budget),
        "pgd_max": pgd_max(model, pixel_values, labels, **budget),
        "slowdown": slowdown(model, pixel_values, start=slowdown_start, **budget),
        "early": early(model, pixel_values, labels, exit_index=exit_index, final_weight=final_weight, **budget),
        "early_target": early_target(model, pixel_values, labels, exit_index),
        "uniform_cross_entropy": torch.stack([uniform_cross_entropy(x) for x in exits]),
    }
