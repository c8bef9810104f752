"""What is left of a classifier's accuracy under each attack: the table of `hf-ext robustness`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers.utils.logging import tqdm

from .attacks import early, pgd, pgd_avg, pgd_max, slowdown
from .classifiers import frozen, is_multi_exit, predictions
from .metrics import efficacy_of, exit_costs

ATTACKS: dict[str, Callable[..., torch.Tensor]] = {
    "pgd": pgd,
    "pgd_dynamic": partial(pgd, exit_mode="dynamic"),
    "pgd_avg": pgd_avg,
    "pgd_max": pgd_max,
    "slowdown": slowdown,
    "early": early,
}
FOR_EXITS = set(ATTACKS) - {"pgd"}


@dataclass
class Line:
    """One attack at one bound.

    Attributes:
        attack, epsilon: "none" and 0 for the images as they are.
        accuracy: of the classifier as it is served, that is with its exits where it has some.
        static_accuracy, mean_exit, mean_cost, efficacy: of a network with exits, else None: the final classifier's accuracy, the mean
            number of the exit taken, the mean cost of a sample over the whole network's, and how much of the work exits save.
    """

    attack: str
    epsilon: float
    accuracy: float
    static_accuracy: float | None = None
    mean_exit: float | None = None
    mean_cost: float | None = None
    efficacy: float | None = None


def robustness_report(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    attacks: Sequence[str] | None = None,
    epsilons: Sequence[float] = (2 / 255, 4 / 255, 8 / 255),
    steps: int = 10,
    batch_size: int = 64,
) -> list[Line]:
    """Accuracy without attack, and under each attack with each bound (l-infinity; steps of a quarter of the bound).

    Args:
        model: an image classifier that takes images in [0, 1].
        images, labels: (N, channels, height, width) in [0, 1], and (N).
        attacks: names in `ATTACKS`; None: all that the model can be attacked with.

    Raises:
        ValueError: an attack that is not known, or one on exits where there are none.
    """
    if attacks is None:
        attacks = [name for name in ATTACKS if is_multi_exit(model) or name not in FOR_EXITS]
    for name in attacks:
        if name not in ATTACKS:
            raise ValueError(f"There is no attack '{name}'; there are {', '.join(ATTACKS)}")
        if name in FOR_EXITS and not is_multi_exit(model):
            raise ValueError(f"'{name}' attacks exits, and {type(model).__name__} has none")
    costs = exit_costs(model, images[:1]) if is_multi_exit(model) else None
    lines = [_line("none", 0.0, model, images, labels, costs)]
    for name, epsilon in tqdm([(name, epsilon) for name in attacks for epsilon in epsilons], desc="attacks"):
        budget = {"epsilon": epsilon, "step_size": epsilon / 4, "steps": steps}
        pairs = zip(images.split(batch_size), labels.split(batch_size))
        adversarial = torch.cat([ATTACKS[name](model, *pair, **budget) for pair in pairs])
        lines.append(_line(name, epsilon, model, adversarial, labels, costs))
    return lines


@torch.no_grad()
def _line(
    attack: str,
    epsilon: float,
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    costs: torch.Tensor | None,
) -> Line:
    static = (predictions(model, images) == labels).float().mean().item()
    if costs is None:
        return Line(attack, epsilon, static)
    with frozen(model):
        served = [model(pixel_values=part, exit_mode="dynamic") for part in images.split(256)]
    index = torch.cat([output.exit_index for output in served])
    right = torch.cat([output.logits.argmax(-1) for output in served]) == labels
    return Line(
        attack,
        epsilon,
        right.float().mean().item(),
        static,
        index.float().mean().item(),
        costs[index.cpu()].mean().item(),
        efficacy_of(index, costs),
    )


__all__ = ["ATTACKS", "Line", "robustness_report"]
