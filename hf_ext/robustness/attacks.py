"""Attacks on image classifiers and on their exits.

`pgd`, `pgd_avg`, `pgd_max`: projected gradient steps, as DeepSloth's repository has them (`attacks/PGDs.py`, Sanghyun-Hong/DeepSloth @
c4abaf9c, MIT). `slowdown`: DeepSloth itself (arXiv 2010.02432), which keeps samples from leaving early. `early`: what arXiv 2308.08709
adds, an attack on the mechanism alone: an exit answers wrongly and with confidence while the static network stays right. That paper
published no code; its loss is our definition.

On purpose otherwise than in DeepSloth: a random start is noise around the image for every attack (its `PGD_max` adds the image), and the
ball stays around the given image (its `craft_per_sample_perturb_attack_on_samples` moves it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .classifiers import answers, check_pixels, every_answer, frozen, is_multi_exit

EPSILON, STEP_SIZE, STEPS = 8 / 255, 2 / 255, 10
OnStep = Callable[[int, torch.Tensor], None]
Objective = Callable[[torch.Tensor], torch.Tensor]


def lengths(x: torch.Tensor, p: float) -> torch.Tensor:
    """(B, C, H, W) -> (B, 1, 1, 1)"""
    return x.flatten(1).norm(p, dim=1).view(-1, 1, 1, 1)


def unit(gradient: torch.Tensor, p: float) -> torch.Tensor:
    return gradient / lengths(gradient, p).clamp_min(1e-12)


def within_box(x: torch.Tensor, center: torch.Tensor, epsilon: float) -> torch.Tensor:
    return torch.minimum(torch.maximum(x, center - epsilon), center + epsilon)


def within_ball(x: torch.Tensor, center: torch.Tensor, epsilon: float, p: float) -> torch.Tensor:
    delta = x - center
    return center + delta * (epsilon / lengths(delta, p).clamp_min(epsilon))


# norm -> (which way a gradient says to go, how to get back to what is allowed)
NORMS = {
    "linf": (torch.sign, within_box),
    "l2": (partial(unit, p=2), partial(within_ball, p=2)),
    "l1": (partial(unit, p=1), partial(within_ball, p=1)),
}


@torch.enable_grad()
def ascend(
    objective: Objective,
    images: torch.Tensor,
    start: torch.Tensor,
    norm: str,
    epsilon: float,
    step_size: float,
    steps: int,
    on_step: OnStep | None,
) -> torch.Tensor:
    """Steps up the objective (images -> a number), each back to at most `epsilon` from `images` and into [0, 1].

    `on_step(number of steps done, images)` is called after each.
    """
    if norm not in NORMS:
        raise ValueError(f"`norm` must be one of {', '.join(NORMS)}, not {norm!r}")
    if not (epsilon > 0 and step_size > 0 and steps >= 0):
        raise ValueError(
            f"`epsilon` and `step_size` must be positive and `steps` not negative, not {epsilon}, {step_size}, {steps}"
        )
    direction, project = NORMS[norm]
    adversarial = start
    for step in range(1, steps + 1):
        adversarial = adversarial.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(adversarial), adversarial)
        moved = adversarial.detach() + step_size * direction(gradient)
        adversarial = project(moved, images, epsilon).clamp(0, 1)
        if on_step is not None:
            on_step(step, adversarial)
    return adversarial.detach()


def noisy(images: torch.Tensor, amount: float, generator: torch.Generator | None) -> torch.Tensor:
    noise = torch.rand(
        images.shape, generator=generator, dtype=images.dtype, device=generator.device if generator else None
    )
    return images + (2 * noise.to(images.device) - 1) * amount


def pgd(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilon: float = EPSILON,
    step_size: float = STEP_SIZE,
    steps: int = STEPS,
    norm: str = "linf",
    exit_mode: str = "final",
    random_start: bool = False,
    generator: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Projected gradient ascent of the cross-entropy.

    Args:
        model: any image classifier.
        images: (B, channels, height, width) in [0, 1].
        labels: (B), the right classes.
        epsilon, step_size, steps, norm: the bound, the length of a step and their number; in "linf", "l2" or "l1".
        exit_mode: which answer is attacked: the "final" classifier's, or in "dynamic" mode that of the exit which each sample takes at that
            step.
        random_start: begin at uniform noise of `epsilon` around the images.
        on_step: called with the number of steps done and the images, after each step.

    Returns:
        Images like those given.

    Raises:
        ValueError: images outside [0, 1] or no batch, labels that do not fit, an impossible bound.
    """
    check_pixels(images, labels)
    start = noisy(images, epsilon, generator) if random_start else images
    with frozen(model):
        return ascend(
            lambda x: F.cross_entropy(answers(model, x, exit_mode), labels),
            images, start, norm, epsilon, step_size, steps, on_step,
        )  # fmt: skip


def pgd_avg(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilon: float = EPSILON,
    step_size: float = STEP_SIZE,
    steps: int = STEPS,
    norm: str = "linf",
    random_start: bool = False,
    generator: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """`pgd` on the mean cross-entropy of all exits and the final classifier."""
    check_pixels(images, labels)
    start = noisy(images, epsilon, generator) if random_start else images

    def objective(x: torch.Tensor) -> torch.Tensor:
        logits = every_answer(model, x)
        return sum(F.cross_entropy(one, labels) * (1 / len(logits)) for one in logits)

    with frozen(model):
        return ascend(objective, images, start, norm, epsilon, step_size, steps, on_step)


def pgd_max(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilon: float = EPSILON,
    step_size: float = STEP_SIZE,
    steps: int = STEPS,
    norm: str = "linf",
    random_start: bool = False,
    generator: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """`pgd` against every exit and the final classifier by itself; each sample keeps what raises the sum of all their cross-entropies
    most. `on_step` counts on from one classifier to the next."""
    check_pixels(images, labels)
    start = noisy(images, epsilon, generator) if random_start else images
    worst = most = None
    with frozen(model):
        for index in range(model.config.num_exits + 1 if is_multi_exit(model) else 1):
            watch = on_step and (lambda step, x, done=index * steps: on_step(done + step, x))
            adversarial = ascend(
                lambda x, index=index: F.cross_entropy(every_answer(model, x)[index], labels),
                images, start, norm, epsilon, step_size, steps, watch,
            )  # fmt: skip
            with torch.no_grad():
                logits = every_answer(model, adversarial)
                loss = sum(F.cross_entropy(one, labels, reduction="none") for one in logits)
            if worst is None:
                worst, most = adversarial, loss
            else:
                better = loss > most
                worst, most = torch.where(better.view(-1, 1, 1, 1), adversarial, worst), torch.where(better, loss, most)
    return worst


def uniform_cross_entropy(logits: torch.Tensor) -> torch.Tensor:
    """DeepSloth's loss: the mean over the batch of -sum_k (1 / K) log(p_k + 1e-9), least where the classifier is least sure."""
    return -(logits.softmax(1) + 1e-9).log().mean(1).mean()


def _hesitation(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return sum(uniform_cross_entropy(one) for one in every_answer(model, images)[:-1])


# norm -> DeepSloth's epsilon, step size and number of steps
SLOTH = {"linf": (8 / 255, 0.002, 30), "l2": (1.0, 1.0, 550), "l1": (8.0, 0.5, 250)}


@torch.enable_grad()
def slowdown(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor | None = None,
    *,
    epsilon: float | None = None,
    step_size: float | None = None,
    steps: int | None = None,
    norm: str = "linf",
    start: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """DeepSloth: no exit is confident any more, so every sample goes the whole way. The final classifier's answer is not looked at.

    Args:
        model: a network with exits.
        images: (B, channels, height, width) in [0, 1].
        labels: not used; all attacks are called alike.
        epsilon, step_size, steps: the bound, the first step and the number of steps; None: DeepSloth's.
        norm: "linf" steps by the gradient's sign; "l2" by the gradient, with steps that shorten as a cosine and a bound that shrinks by
            a tenth every 50 steps; "l1" along the hundredth of the pixels whose gradients are largest.
        start: where to begin; None: uniform noise of `step_size` ("linf"), or noise of length `epsilon` around the images.

    Raises:
        ValueError: a network without exits, images outside [0, 1], an unknown norm.
    """
    check_pixels(images)
    epsilon, step_size, steps = _sloth_budget(model, norm, epsilon, step_size, steps)
    with frozen(model):
        if norm == "linf":
            start = noisy(images, step_size, generator) if start is None else start
            return ascend(lambda x: -_hesitation(model, x), images, start, norm, epsilon, step_size, steps, on_step)
        delta = _noise(images, norm, epsilon, generator) if start is None else start - images
        for step in range(steps):
            delta = delta.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(_hesitation(model, (images + delta).clamp(0, 1)), delta)
            delta = _sloth_step(delta.detach(), gradient, norm, epsilon, step_size, step, steps)
            if norm == "l1":
                delta = within_ball((images + delta).clamp(0, 1), images, epsilon, 1) - images
            if on_step is not None:
                on_step(step + 1, (images + delta).clamp(0, 1))
        return (images + delta).clamp(0, 1).detach()


@torch.enable_grad()
def universal_slowdown(
    model: nn.Module,
    batches: Iterable[torch.Tensor],
    *,
    epsilon: float | None = None,
    step_size: float | None = None,
    steps: int | None = None,
    norm: str = "linf",
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """One perturbation (1, channels, height, width) that slows a whole set down: add it to images and clip to [0, 1].

    Args:
        batches: images; `steps` are taken on each batch in turn.

    Raises:
        ValueError: as for `slowdown`, or no batch.
    """
    epsilon, step_size, steps = _sloth_budget(model, norm, epsilon, step_size, steps)
    delta = None
    with frozen(model):
        for images in batches:
            check_pixels(images)
            if delta is None:
                one = torch.zeros_like(images[:1])
                delta = noisy(one, epsilon, generator) if norm == "linf" else _noise(one, norm, epsilon, generator)
            for step in range(steps):
                delta = delta.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(_hesitation(model, (images + delta).clamp(0, 1)), delta)
                delta = _sloth_step(delta.detach(), gradient, norm, epsilon, step_size, step, steps)
    if delta is None:
        raise ValueError("`batches` holds no images")
    return delta


def _sloth_budget(
    model: nn.Module, norm: str, epsilon: float | None, step_size: float | None, steps: int | None
) -> tuple[float, float, int]:
    if not is_multi_exit(model):
        raise ValueError(f"{type(model).__name__} has no exits to keep samples from")
    if norm not in SLOTH:
        raise ValueError(f"`norm` must be one of {', '.join(SLOTH)}, not {norm!r}")
    given = (epsilon, step_size, steps)
    return tuple(usual if value is None else value for value, usual in zip(given, SLOTH[norm]))


def _noise(images: torch.Tensor, norm: str, epsilon: float, generator: torch.Generator | None) -> torch.Tensor:
    """Normal (l2) or Laplacian (l1) noise of length `epsilon`"""
    uniform = noisy(torch.zeros_like(images), 1.0, generator).clamp(-1 + 1e-6, 1 - 1e-6)
    if norm == "l2":
        return epsilon * unit(torch.erfinv(uniform), 2)
    return epsilon * unit(-uniform.sign() * torch.log1p(-uniform.abs()), 1)


def _sloth_step(
    delta: torch.Tensor, gradient: torch.Tensor, norm: str, epsilon: float, step_size: float, step: int, steps: int
) -> torch.Tensor:
    if norm == "linf":
        return (delta - step_size * gradient.sign()).clamp(-epsilon, epsilon)
    zero = torch.zeros_like(delta)
    if norm == "l1":
        magnitudes = gradient.flatten(1).abs()
        largest = magnitudes.kthvalue(max(int(0.99 * magnitudes.shape[1]), 1), keepdim=True).values
        chosen = (magnitudes >= largest).float()
        moves = (gradient.flatten(1).sign() * chosen / chosen.sum(1, keepdim=True)).view_as(gradient)
        return within_ball(delta - step_size * moves, zero, epsilon, 1)
    rate = 0.01 + (step_size - 0.01) * (1 + math.cos(math.pi * step / steps)) / 2
    bound = epsilon * 0.9 ** (step // 50)
    return within_ball(delta - rate * gradient.renorm(2, 0, 1.0), zero, bound, 2)


def early(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor | None = None,
    *,
    exit_index: int | torch.Tensor | None = None,
    target: torch.Tensor | None = None,
    final_weight: float = 1.0,
    epsilon: float = EPSILON,
    step_size: float = STEP_SIZE,
    steps: int = STEPS,
    norm: str = "linf",
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """The attack on the mechanism: an exit is to answer wrongly and with confidence, the static network as before.

    Descends CE(exit, target) + `final_weight` * CE(final, labels).

    Args:
        model: a network with exits.
        labels: (B), what the static network is to go on answering; None: what it answers.
        exit_index: which exit, one for all or (B); None: the one that each image takes unattacked, the last for those that take none.
        target: (B), the wrong classes; None: `early_target`.
        epsilon, step_size, steps, norm, on_step: as for `pgd`.
    """
    if not is_multi_exit(model):
        raise ValueError(f"{type(model).__name__} has no exits to attack")
    check_pixels(images, labels)
    with frozen(model):
        exit_index = exit_taken(model, images) if exit_index is None else _as_exits(model, images, exit_index)
        with torch.no_grad():
            labels = answers(model, images).argmax(-1) if labels is None else labels
        target = early_target(model, images, labels, exit_index) if target is None else target

        def objective(x: torch.Tensor) -> torch.Tensor:
            *exits, final = every_answer(model, x)
            return -(F.cross_entropy(_at(exits, exit_index), target) + final_weight * F.cross_entropy(final, labels))

        return ascend(objective, images, images, norm, epsilon, step_size, steps, on_step)


@torch.no_grad()
def early_target(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, exit_index: int | torch.Tensor
) -> torch.Tensor:
    """(B): the class that the exit finds likeliest among the wrong ones: the runner-up where it is right."""
    with frozen(model):
        logits = _at(every_answer(model, images)[:-1], _as_exits(model, images, exit_index))
    return logits.scatter(1, labels[:, None], float("-inf")).argmax(-1)


@torch.no_grad()
def exit_taken(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """(B): at which exit each image leaves; the last one where it leaves at none."""
    index = model(pixel_values=images, exit_mode="dynamic").exit_index
    return index.clamp_max(model.config.num_exits - 1)


def _as_exits(model: nn.Module, images: torch.Tensor, exit_index: int | torch.Tensor) -> torch.Tensor:
    index = torch.as_tensor(exit_index, device=images.device).expand(len(images))
    if index.min() < 0 or index.max() >= model.config.num_exits:
        raise ValueError(f"`exit_index` must lie in [0, {model.config.num_exits}), not {exit_index}")
    return index


def _at(exits: Iterable[torch.Tensor], exit_index: torch.Tensor) -> torch.Tensor:
    """From logits (B, classes) of each exit those of one exit for each sample."""
    stacked = torch.stack(tuple(exits))
    return stacked[exit_index, torch.arange(stacked.shape[1], device=stacked.device)]


__all__ = ["early", "early_target", "exit_taken", "pgd", "pgd_avg", "pgd_max", "slowdown", "universal_slowdown"]
