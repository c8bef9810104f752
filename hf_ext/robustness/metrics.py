"""What an attack did: who was fooled, what carried over, when samples left, and what that cost."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop

from .classifiers import every_answer, frozen, predictions

# attention on a CPU is not among what torch counts
FORMULAS = flop_registry | {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop}


class FlopSum(TorchDispatchMode):
    """Counts the FLOPs inside, by torch's own formulas. Torch's `FlopCounterMode` also follows modules, which breaks the gradient of an
    image that a module is given."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket in FORMULAS:
            self.total += FORMULAS[func.overloadpacket](*args, **(kwargs or {}), out_val=output)
        return output


def attack_success(
    model: nn.Module, images: torch.Tensor, adversarial: torch.Tensor, labels: torch.Tensor, exit_mode: str = "final"
) -> float:
    """The share of the images answered rightly whose attacked form is answered wrongly. NaN where none is answered rightly."""
    right = predictions(model, images, exit_mode) == labels
    fooled = right & (predictions(model, adversarial, exit_mode) != labels)
    return share(fooled, right)


def transfer_rate(
    source: nn.Module,
    target: nn.Module,
    images: torch.Tensor,
    adversarial: torch.Tensor,
    labels: torch.Tensor,
    source_mode: str = "final",
    target_mode: str = "final",
) -> float:
    """The share of the images, answered rightly by both networks, whose attacked form fools the source and the target too."""
    pairs = ((source, source_mode), (target, target_mode))
    right = torch.stack([predictions(model, images, mode) == labels for model, mode in pairs]).all(0)
    fooled = torch.stack([predictions(model, adversarial, mode) != labels for model, mode in pairs]).all(0)
    return share(right & fooled, right)


def share(part: torch.Tensor, whole: torch.Tensor) -> float:
    """How many of the true entries of `whole` are true in `part`, from 0 to 1."""
    return part.sum().item() / whole.sum().item() if whole.any() else float("nan")


def early_success(
    model: nn.Module,
    images: torch.Tensor,
    adversarial: torch.Tensor,
    labels: torch.Tensor,
    exit_index: int | torch.Tensor,
) -> dict[str, float]:
    """What `hf_ext.robustness.early` did.

    Returns:
        `success`: the share that leaves at `exit_index` or before with a wrong label while the final classifier answers `labels`.
        `unchanged`: the share whose static answer is still `labels`.
        `mean_exit_before`, `mean_exit_after`: the mean exit taken.
    """
    with frozen(model), torch.no_grad():
        before = model(pixel_values=images, exit_mode="dynamic")
        after = model(pixel_values=adversarial, exit_mode="dynamic")
    same = predictions(model, adversarial) == labels
    wrong = (after.exit_index <= exit_index) & (after.exit_index < model.config.num_exits)
    wrong &= after.logits.argmax(-1) != labels
    return {
        "success": (wrong & same).float().mean().item(),
        "unchanged": same.float().mean().item(),
        "mean_exit_before": before.exit_index.float().mean().item(),
        "mean_exit_after": after.exit_index.float().mean().item(),
    }


@torch.no_grad()
def exit_costs(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """(exits + 1), in (0, 1]: FLOPs up to and including each exit over those of the whole network with all its exits.

    Args:
        image: one image (1, channels, height, width), or one text's `input_ids` (1, N).
    """
    counts: list[int] = []
    with frozen(model), FlopSum() as counter:
        exits = [module for name, module in model.named_modules() if name.rpartition(".")[0].split(".")[-1] == "exits"]
        hooks = [exit.register_forward_hook(lambda *_: counts.append(counter.total)) for exit in exits]
        try:
            model(image, exit_mode="all")
        finally:
            for hook in hooks:
                hook.remove()
    counts.append(counter.total)
    return torch.tensor(counts, dtype=torch.float64) / counts[-1]


def cumulative_exits(exit_counts: torch.Tensor, total: int) -> torch.Tensor:
    """(classifiers + 1), float64: the share of `total` samples that has left before the first classifier, at it or before, ..., at the
    final one. The last is 1 whatever was counted.

    Args:
        exit_counts: (classifiers) how many samples left at each, the final classifier's last.
    """
    shares = torch.cat([exit_counts.new_zeros(1), exit_counts.cumsum(0)]).double() / total
    shares[-1] = 1
    return shares


def efficacy(exit_counts: torch.Tensor, exit_costs: torch.Tensor, total: int) -> torch.Tensor:
    """The area (a 0-dimensional float64 tensor) under the share of samples that have left, over the relative cost so far: 1 if everything
    left at once, 0 if nothing left before the end (arXiv 2010.02432).

    Args:
        exit_counts: (classifiers) how many samples left at each.
        exit_costs: (classifiers) what it costs to come that far, in any unit; the last is the whole.
    """
    if exit_counts.shape != exit_costs.shape or exit_counts.ndim != 1:
        raise ValueError(
            f"`exit_counts` and `exit_costs` must hold a number for each classifier, not {tuple(exit_counts.shape)} and "
            f"{tuple(exit_costs.shape)}"
        )
    costs = exit_costs.double()
    x = torch.cat([costs.new_zeros(1), costs / costs[-1]])
    return torch.trapezoid(cumulative_exits(exit_counts, total), x)


def efficacy_of(exit_index: torch.Tensor, exit_costs: torch.Tensor) -> float:
    """Efficacy of a batch, from the exit that each sample took."""
    counts = exit_index.bincount(minlength=len(exit_costs)).to(exit_costs.device)
    return efficacy(counts, exit_costs, len(exit_index)).item()


class Threshold(NamedTuple):
    """A confidence threshold; the accuracy with it, over the final classifier's; the mean relative cost of a sample; the efficacy."""

    value: float
    accuracy: float
    final_accuracy: float
    mean_cost: float
    efficacy: float


@torch.no_grad()
def choose_threshold(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    accuracy_drop: float = 0.05,
    thresholds: torch.Tensor | None = None,
    batch_size: int = 256,
) -> Threshold:
    """The threshold of least cost whose accuracy stays above (1 - `accuracy_drop`) of the final classifier's, on validation data.

    Args:
        model: a network with exits.
        accuracy_drop: the relative accuracy drop (RAD) that is accepted; 5 % in the paper.
        thresholds: what is tried; None: 0.05, 0.1, ... 0.95, as DeepSloth does.

    Raises:
        ValueError: no threshold keeps that much accuracy.
    """
    thresholds = torch.linspace(0.05, 0.95, 19) if thresholds is None else thresholds
    costs = exit_costs(model, images[:1])
    with frozen(model):
        parts = [torch.stack(every_answer(model, part)) for part in images.split(batch_size)]
    logits = torch.cat(parts, 1).float()  # (classifiers, samples, classes)
    confidence, right = logits.softmax(-1).amax(-1), logits.argmax(-1) == labels
    final = right[-1].float().mean().item()
    found = None
    for value in thresholds.tolist():
        confident = confidence >= value
        confident[-1] = True
        index = confident.int().argmax(0)
        accuracy = right.gather(0, index[None]).float().mean().item()
        here = Threshold(value, accuracy, final, costs[index.cpu()].mean().item(), efficacy_of(index, costs))
        if accuracy > (1 - accuracy_drop) * final and (found is None or here.mean_cost < found.mean_cost):
            found = here
    if found is None:
        raise ValueError(
            f"No threshold from {thresholds.min():.2f} to {thresholds.max():.2f} keeps {1 - accuracy_drop:.0%} of the final "
            f"classifier's accuracy, {final:.1%}"
        )
    return found


__all__ = [
    "Threshold",
    "attack_success",
    "choose_threshold",
    "cumulative_exits",
    "early_success",
    "efficacy",
    "efficacy_of",
    "exit_costs",
    "share",
    "transfer_rate",
]
