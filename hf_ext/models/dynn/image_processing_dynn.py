"""Image processor of multi-exit classifiers: the Shallow-Deep Networks take pixels in [0, 1], without mean and deviation."""

from __future__ import annotations

from transformers.image_utils import PILImageResampling

from hf_ext.layers.image_processing import PilImageProcessor


class MultiExitImageProcessor(PilImageProcessor):
    """Images (PIL, numpy, torch; 0 to 255) -> `pixel_values` (B, 3, 32, 32) in [0, 1]. Another size goes into `size`.

    A model made with `from_base` keeps the processor of its base.
    """

    do_convert_rgb = True
    do_resize = True
    size = {"height": 32, "width": 32}
    resample = PILImageResampling.BILINEAR
    do_rescale = True


__all__ = ["MultiExitImageProcessor"]
