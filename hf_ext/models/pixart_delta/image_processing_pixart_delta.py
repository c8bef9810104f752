"""The photograph or edge map that controls PixArt-δ: resized to cover the target, cropped at its centre, scaled to [0, 1].

Reference: PixArt-alpha/PixArt-alpha, scripts/interface_controlnet.py (`Resize(min(h, w))`, `CenterCrop([h, w])`, `ToTensor`). The reference
pads with black where an image of another aspect ratio does not cover the target; here it is enlarged until it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


def preprocess_image(images: Any, height: int, width: int) -> torch.Tensor:
    """Images of any size -> (batch, 3, height, width) float32 in [0, 1].

    Args:
        images: a PIL image, an array of shape (H, W), (H, W, C) or (B, H, W, C), a tensor of shape (C, H, W) or (B, C, H, W), or a list
            of those; C is 1 or 3. uint8 counts from 0 to 255, floating point from 0 to 1.

    Raises:
        ValueError: no image, another rank or number of channels, values outside the range, NaN or infinity.
    """
    items = images if isinstance(images, Sequence) else [images]
    if not len(items):
        raise ValueError("No control image was given: the list is empty")
    return torch.cat([_fit(_pixels(item, height, width), height, width) for item in items])


def _pixels(image: Any, height: int, width: int) -> torch.Tensor:
    """(batch, 3, H, W) float32 in [0, 1], PIL images already resized (with PIL's filter, as the reference does)."""
    if isinstance(image, Image.Image):
        size = _covering(image.height, image.width, height, width)
        image = np.array(image.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR))
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image[..., None] if image.ndim == 2 else image).movedim(-1, -3)
    if not isinstance(image, torch.Tensor):
        raise ValueError(f"A control image is a PIL image, an array or a tensor, not a {type(image).__name__}")
    if image.ndim not in (3, 4) or image.shape[-3] not in (1, 3) or not image.numel():
        raise ValueError(
            f"A control image has the shape (C, H, W) or (B, C, H, W) as a tensor, (H, W, C) or (B, H, W, C) as an array, with 1 or 3 "
            f"channels; this one is (.., C, H, W) = {tuple(image.shape)}"
        )
    image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    if not image.isfinite().all() or image.min() < 0 or image.max() > 1:
        raise ValueError("A control image holds finite values from 0 to 1 (or uint8 from 0 to 255)")
    image = image if image.ndim == 4 else image[None]
    return image.expand(-1, 3, -1, -1)


def _covering(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """The smallest size of the same aspect ratio that covers the target."""
    if height * target_width < width * target_height:
        return target_height, max(target_width, int(target_height * width / height))
    return max(target_height, int(target_width * height / width)), target_width


def _fit(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    size = _covering(*pixels.shape[-2:], height, width)
    if size != pixels.shape[-2:]:
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True).clamp(0, 1)
    top, left = round((size[0] - height) / 2), round((size[1] - width) / 2)
    return pixels[..., top : top + height, left : left + width]
