"""The handwritten digits that scikit-learn ships: 1797 gray images of 8x8."""

from __future__ import annotations

import numpy as np
from PIL import Image


def handwritten_digits(held_out_share: float = 0.2, seed: int = 0) -> tuple[tuple[list[Image.Image], list[int]], ...]:
    """(images, labels) for training, and the same held out: bright strokes on black, 8x8, mode "L"."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = [Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)) for image in data.images]
    order = np.random.default_rng(seed).permutation(len(images))
    border = round(len(order) * (1 - held_out_share))
    return tuple(
        ([images[i] for i in part], [int(data.target[i]) for i in part]) for part in (order[:border], order[border:])
    )
