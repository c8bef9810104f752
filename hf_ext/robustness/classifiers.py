"""Classifiers as attacks and measurements see them: images in [0, 1] go in, logits come out, of one classifier or of every exit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class PixelSpace(nn.Module):
    """A classifier that takes images in [0, 1] and normalizes them itself, so that bounds are in units of pixels.

    Args:
        model: an image classifier.
        mean, std: of its image processor, one number for each channel.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.model = model
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.to(next(model.parameters()).device)

    @property
    def config(self) -> Any:
        return self.model.config

    def forward(self, pixel_values: torch.Tensor, **options: Any) -> Any:
        return self.model((pixel_values - self.mean) / self.std, **options)


def is_multi_exit(model: nn.Module) -> bool:
    """Whether a network has exits."""
    return hasattr(getattr(model, "config", None), "num_exits")


def answers(model: nn.Module, images: torch.Tensor, exit_mode: str = "final") -> torch.Tensor:
    """The logits (B, classes) of the final classifier, or in "dynamic" mode of the exit which each sample takes."""
    options = {"exit_mode": exit_mode} if is_multi_exit(model) else {}
    return model(pixel_values=images, **options).logits


def every_answer(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The logits of every classifier, the final one's last; those alone where there is no other."""
    if not is_multi_exit(model):
        return (answers(model, images),)
    output = model(pixel_values=images, exit_mode="all")
    return (*output.exit_logits, output.logits)


@torch.no_grad()
def predictions(
    model: nn.Module, images: torch.Tensor, exit_mode: str = "final", batch_size: int = 256
) -> torch.Tensor:
    """The classes (B) that the network in eval mode answers with."""
    with frozen(model):
        return torch.cat([answers(model, part, exit_mode).argmax(-1) for part in images.split(batch_size)])


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode, with no parameter that asks for a gradient; as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    model.eval()
    try:
        yield model
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training


def check_pixels(images: torch.Tensor, labels: torch.Tensor | None = None) -> None:
    """`ValueError` unless `images` is a batch in [0, 1], and `labels` one class for each."""
    if images.ndim != 4 or 0 in images.shape or not images.is_floating_point():
        raise ValueError(
            f"`images` must be (batch, channels, height, width) of floating-point numbers, not {tuple(images.shape)} of {images.dtype}"
        )
    if not (images.min() >= 0 and images.max() <= 1):  # also false for NaN
        raise ValueError(
            f"`images` must lie in [0, 1], not from {images.min().item():.3g} to {images.max().item():.3g}: "
            "attacks are bounded in pixels, normalization belongs into the model (`PixelSpace`)"
        )
    if labels is not None and (labels.shape != images.shape[:1] or labels.is_floating_point()):
        raise ValueError(f"`labels` must be {len(images)} classes, not {tuple(labels.shape)} of {labels.dtype}")
