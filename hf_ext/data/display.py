"""A known synthetic under-display camera: less light, blur and noise. Experiments of arXiv 2209.11455 in the small run on it."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

LIGHT_RATE = (0.4, 0.3, 0.2)
BLUR_SIGMA = 2.0
NOISE_SIGMA = 0.02


def through_display(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """What a camera sees of images (..., 3, H, W) in [0, 1] through the display; at least 7 pixels along each edge."""
    radius = 6
    taps = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * BLUR_SIGMA**2))
    kernel = (taps / taps.sum()).outer(taps / taps.sum()).expand(3, 1, -1, -1)
    darkened = images.reshape(-1, *images.shape[-3:]) * torch.tensor(LIGHT_RATE).view(3, 1, 1)
    padded = torch.nn.functional.pad(darkened, (radius,) * 4, mode="reflect")
    blurred = torch.nn.functional.conv2d(padded, kernel, groups=3).reshape(images.shape)
    return blurred + NOISE_SIGMA * torch.randn(images.shape, generator=generator)


class DisplayPairs(Dataset):
    """`pixel_values` and `labels` from a data set whose `labels` are clean images: degraded and clean, or with `simulate` clean and
    degraded. Item `i` is the same in every run."""

    def __init__(self, clean: Dataset, simulate: bool = False):
        self.clean, self.simulate = clean, simulate

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        clean = self.clean[index]["labels"]
        degraded = through_display(clean, torch.Generator().manual_seed(index))
        pixel_values, labels = (clean, degraded) if self.simulate else (degraded, clean)
        return {"pixel_values": pixel_values, "labels": labels}
