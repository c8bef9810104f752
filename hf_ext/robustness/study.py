"""The studies of arXiv 2308.08709: does what fools one kind of network fool the other, and which kind costs an attacker less."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers.utils.logging import tqdm

from .attacks import pgd, pgd_avg, pgd_max
from .classifiers import predictions
from .metrics import FlopSum, share

MODES = {"static": "final", "dynamic": "dynamic"}


@dataclass(frozen=True)
class Attack:
    """`craft(model, images, labels, on_step=...)` against the `source`, "static" or "dynamic"."""

    source: str
    craft: Callable[..., torch.Tensor]


ATTACKS: dict[str, Attack] = {
    "pgd on the static network": Attack("static", pgd),
    "pgd on the exit taken": Attack("dynamic", partial(pgd, exit_mode="dynamic")),
    "pgd_avg": Attack("dynamic", pgd_avg),
    "pgd_max": Attack("dynamic", pgd_max),
}


def transfer_study(
    static: nn.Module,
    dynamic: nn.Module,
    loader: Iterable[tuple[torch.Tensor, torch.Tensor] | Mapping[str, torch.Tensor]],
    attacks: Mapping[str, Attack] = ATTACKS,
) -> dict[str, dict[str, float]]:
    """Attacks each network and asks the other (RQ1).

    Args:
        static: a classifier; the final classifier of a network with exits counts as one, so this may be `dynamic` itself.
        dynamic: a network with exits, served with its own threshold.
        loader: batches of images in [0, 1] and labels, as pairs or as dicts of `pixel_values` and `labels`.
        attacks: name -> `Attack`.

    Returns:
        For "clean" the accuracy of both. For each attack: `attack_success` on its source, the share of the images that the source answers
        rightly; `transfer` to the other network, the share of the images that both answer rightly which fools both; `transfer_of_fooled`,
        the same among those that fool the source; `steps`, the mean number of steps until the source was fooled.
    """
    models = {"static": static, "dynamic": dynamic}
    clean: dict[str, list[torch.Tensor]] = {name: [] for name in models}
    fooled = {name: {key: [] for key in (*models, "steps")} for name in attacks}
    for batch in tqdm(loader, desc="attacks"):
        images, labels = (batch["pixel_values"], batch["labels"]) if isinstance(batch, Mapping) else batch
        for kind, model in models.items():
            clean[kind].append(predictions(model, images, MODES[kind]) == labels)
        for name, attack in attacks.items():
            steps, adversarial = steps_until_fooled(
                attack.craft, models[attack.source], images, labels, MODES[attack.source]
            )
            fooled[name]["steps"].append(steps)
            for kind, model in models.items():
                fooled[name][kind].append(predictions(model, adversarial, MODES[kind]) != labels)
    right = {kind: torch.cat(parts) for kind, parts in clean.items()}
    table = {"clean": {kind: part.float().mean().item() for kind, part in right.items()}}
    both = right["static"] & right["dynamic"]
    for name, attack in attacks.items():
        at = {key: torch.cat(parts) for key, parts in fooled[name].items()}
        source, other = at[attack.source], at["dynamic" if attack.source == "static" else "static"]
        counted = at["steps"][right[attack.source] & (at["steps"] > 0)]
        table[name] = {
            "attack_success": share(source & right[attack.source], right[attack.source]),
            "transfer": share(source & other & both, both),
            "transfer_of_fooled": share(source & other & both, source & both),
            "steps": counted.float().mean().item(),
        }
    return table


def steps_until_fooled(
    craft: Callable[..., torch.Tensor],
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    exit_mode: str = "final",
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B): after how many steps the model first answered wrongly, 0 where it never did; and the attacked images."""
    first = torch.zeros_like(labels)

    def look(step: int, adversarial: torch.Tensor) -> None:
        wrong = predictions(model, adversarial, exit_mode) != labels
        first[wrong & (first == 0)] = step

    return first, craft(model, images, labels, on_step=look)


def attack_cost(
    craft: Callable[..., torch.Tensor],
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    exit_mode: str = "final",
) -> dict[str, float]:
    """What an attack costs per image (RQ2).

    Returns:
        `seconds` and `gflops` (forward and backward) of the whole attack; `steps`, the mean number of steps until the images that were
        answered rightly are not, and `gflops_until_fooled`, so many steps' share; `fooled`, the share of those images for which that
        happens.
    """
    start = time.perf_counter()
    craft(model, images, labels)
    seconds = time.perf_counter() - start
    taken: list[int] = []
    with FlopSum() as counter:
        craft(model, images, labels, on_step=lambda step, _: taken.append(step))
    right = predictions(model, images, exit_mode) == labels
    steps, _ = steps_until_fooled(craft, model, images, labels, exit_mode)
    counted = steps[right & (steps > 0)].float()
    gflops, mean = counter.total / len(images) / 1e9, counted.mean().item()
    return {
        "seconds": seconds / len(images),
        "gflops": gflops,
        "gflops_until_fooled": gflops * mean / len(taken),
        "steps": mean,
        "fooled": len(counted) / max(int(right.sum()), 1),
    }


__all__ = ["ATTACKS", "Attack", "attack_cost", "steps_until_fooled", "transfer_study"]
