"""Image processors on PIL and numpy: torchvision is not needed, and an image that cannot be right is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling


class PilImageProcessor(PilBackend):
    """Transformers' PIL backend, which also refuses images without pixels and images with NaN or infinite values.

    In RGB mode (`do_convert_rgb`) gray images get three equal channels, and transparency is composited onto white.
    """

    model_input_names = ["pixel_values"]

    def process_image(self, image: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        shape = getattr(image, "shape", None) or getattr(image, "size", None)
        if shape is not None and 0 in tuple(shape):
            raise ValueError(f"The image holds no pixels: its shape is {tuple(shape)}")
        image = super().process_image(image, *args, **kwargs)
        if np.issubdtype(image.dtype, np.floating) and not np.isfinite(image).all():
            raise ValueError("The image holds NaN or infinite values")
        return image


class RestorationImageProcessor(PilImageProcessor):
    """RGB in [0, 1] and nothing else: images (PIL, numpy, torch; 0 to 255) -> `pixel_values` (B, 3, H, W).

    Images of one call have one size, or `return_tensors` is left out. For a model with one channel set
    `do_convert_rgb=False`; for arrays that are in [0, 1] already, `do_rescale=False`.
    """

    do_rescale = True
    do_convert_rgb = True


class ImageNetImageProcessor(PilImageProcessor):
    """What ImageNet classifiers are evaluated with: resize the shorter edge (bicubic), cut out the centre, normalize.

    Subclasses set `size` and, where it is not 224, `crop_size`.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 256}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
