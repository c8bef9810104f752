"""Image processor of FMViT: the shorter edge to 256 pixels, the 224x224 centre, ImageNet statistics."""

from __future__ import annotations

from hf_ext.layers.image_processing import ImageNetImageProcessor


class FMViTImageProcessor(ImageNetImageProcessor):
    """Images (PIL, numpy, torch; 0 to 255) -> `pixel_values` (B, 3, 224, 224)."""

    size = {"shortest_edge": 256}


__all__ = ["FMViTImageProcessor"]
