"""Image processor of SLAB's image models: the shorter edge to 256 pixels, the 224x224 centre, ImageNet statistics."""

from __future__ import annotations

from hf_ext.layers.image_processing import ImageNetImageProcessor


class SlabImageProcessor(ImageNetImageProcessor):
    """Images (PIL, numpy, torch; 0 to 255) -> `pixel_values` (B, 3, 224, 224).

    For CSWin pass `size={"shortest_edge": 248}` (its crop is 0.9 of the image).
    """

    size = {"shortest_edge": 256}


__all__ = ["SlabImageProcessor"]
