"""Image processor of RMT: the shorter edge to 256 pixels, the 224x224 centre, ImageNet statistics."""

from __future__ import annotations

from hf_ext.layers.image_processing import ImageNetImageProcessor


class RMTImageProcessor(ImageNetImageProcessor):
    """Images (PIL, numpy, torch; 0 to 255) -> `pixel_values` (B, 3, 224, 224).

    For larger images pass a `crop_size` and the same number as `size={"shortest_edge": ...}`, as the authors do.
    """

    size = {"shortest_edge": 256}


__all__ = ["RMTImageProcessor"]
