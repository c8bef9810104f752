"""Image processor of Next-ViT: the shorter edge to 256 pixels, the 224x224 centre, ImageNet statistics."""

from __future__ import annotations

from hf_ext.layers.image_processing import ImageNetImageProcessor


class NextViTImageProcessor(ImageNetImageProcessor):
    """Images (PIL, numpy, torch; 0 to 255) -> `pixel_values` (B, 3, 224, 224).

    For the 384 models pass `size={"shortest_edge": 438}, crop_size={"height": 384, "width": 384}`.
    """

    size = {"shortest_edge": 256}


__all__ = ["NextViTImageProcessor"]
