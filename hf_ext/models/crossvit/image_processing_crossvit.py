"""Image processor of CrossViT: the authors' evaluation transform (IBM/CrossViT, `datasets.py`)."""

from __future__ import annotations

import numpy as np
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, SizeDict

from hf_ext.layers.image_processing import PilImageProcessor


class CrossVitImageProcessor(PilImageProcessor):
    """Images (PIL, numpy, torch; 0 to 255) -> `pixel_values` (B, 3, 240, 240).

    Bicubic resize of the shorter side to int(240 * 256 / 224) = 274, centre crop of 240, rescale by 1/255, ImageNet mean and
    standard deviation. For the 384 models pass `size={"shortest_edge": 466}, crop_size={"height": 408, "width": 408}`.
    """

    do_convert_rgb = True
    do_resize = True
    size = {"shortest_edge": 274}
    default_to_square = False
    resample = PILImageResampling.BICUBIC
    do_center_crop = True
    crop_size = {"height": 240, "width": 240}
    do_rescale = True
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs) -> np.ndarray:
        """As torchvision, whose offset is rounded; Transformers' own is one pixel off for every other odd margin."""
        margins = [edge - wanted for edge, wanted in zip(image.shape[-2:], (size.height, size.width))]
        if min(margins) < 0:
            return super().center_crop(image, size, **kwargs)
        top, left = (round(margin / 2) for margin in margins)
        return image[..., top : top + size.height, left : left + size.width]


__all__ = ["CrossVitImageProcessor"]
