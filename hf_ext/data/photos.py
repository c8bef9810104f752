"""Photographs that scikit-learn and scikit-image ship, pairs for super-resolution made from them, and how results are measured."""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

PHOTOGRAPHS = {
    "china": ("sklearn.datasets.images", "china.jpg"),
    "flower": ("sklearn.datasets.images", "flower.jpg"),
    "astronaut": ("skimage.data", "astronaut.png"),
    "brick": ("skimage.data", "brick.png"),
    "camera": ("skimage.data", "camera.png"),
    "cat": ("skimage.data", "chelsea.png"),
    "coffee": ("skimage.data", "coffee.png"),
    "coins": ("skimage.data", "coins.png"),
    "grass": ("skimage.data", "grass.png"),
    "gravel": ("skimage.data", "gravel.png"),
    "motorcycle": ("skimage.data", "motorcycle_left.png"),
    "rocket": ("skimage.data", "rocket.jpg"),
}
HELD_OUT = "flower"  # what small models are measured on
NOT_TRAINED_ON = (HELD_OUT, "china")


def photograph(name: str) -> Image.Image:
    """One of `PHOTOGRAPHS`, in RGB."""
    if name not in PHOTOGRAPHS:
        raise ValueError(f"There is no photograph {name!r}; there are: {', '.join(PHOTOGRAPHS)}")
    package, file = PHOTOGRAPHS[name]
    with as_file(files(package).joinpath(file)) as path, Image.open(path) as image:
        return image.convert("RGB")


def degrade(image: Image.Image, scale: int) -> tuple[Image.Image, Image.Image]:
    """(low, high): the image cut to a multiple of `scale` at the right and the bottom, and its bicubic reduction."""
    high = image.crop((0, 0, image.width // scale * scale, image.height // scale * scale))
    return high.resize((high.width // scale, high.height // scale), Image.Resampling.BICUBIC), high


class SuperResolutionCrops(Dataset):
    """Random crops of image pairs, flipped and turned at random: `pixel_values` (3, size, size) and `labels` in [0, 1].

    Item `i` is the same in every run, so that an interrupted training goes on where it was.

    Args:
        images: high-resolution images, all larger than a crop.
        scale: factor between the two sizes.
        size: edge of a low-resolution crop.
        length: number of items.
    """

    def __init__(self, images: list[Image.Image], scale: int, size: int, length: int, seed: int = 0):
        pairs = [degrade(image, scale) for image in images]
        self.pairs = [[torch.from_numpy(np.array(image)).movedim(-1, 0) for image in pair] for pair in pairs]
        self.areas = np.array([low.width * low.height for low, _ in pairs], dtype=float)
        self.scale, self.size, self.length, self.seed = scale, size, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = np.random.default_rng((self.seed, index))
        low, high = self.pairs[generator.choice(len(self.pairs), p=self.areas / self.areas.sum())]
        top, left = (int(generator.integers(edge - self.size + 1)) for edge in low.shape[1:])
        turns, flip = int(generator.integers(4)), bool(generator.integers(2))
        crops = (
            image[:, top * k : (top + self.size) * k, left * k : (left + self.size) * k]
            for image, k in ((low, 1), (high, self.scale))
        )
        crops = (crop.rot90(turns, (1, 2)) for crop in crops)
        crops = (crop.flip(2) if flip else crop for crop in crops)
        pixel_values, labels = (crop.float() / 255 for crop in crops)
        return {"pixel_values": pixel_values, "labels": labels}


def luma(image: Image.Image) -> np.ndarray:
    """(H, W): Y of BT.601 in studio range, 16 to 235, as super-resolution papers measure it."""
    return np.asarray(image.convert("RGB"), dtype=np.float64) @ (65.481, 128.553, 24.966) / 255 + 16


def psnr_y(image: Image.Image, truth: Image.Image, border: int = 0) -> float:
    """Peak signal-to-noise ratio of Y in dB, `border` pixels left out on each side."""
    if image.size != truth.size:
        raise ValueError(f"The images differ in size: {image.size} and {truth.size}")
    inner = slice(border, -border or None)
    error = (luma(image) - luma(truth))[inner, inner]
    return float(10 * np.log10(255**2 / np.mean(error**2)))
