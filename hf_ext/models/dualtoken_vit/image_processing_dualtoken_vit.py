"""Image processor of DualToken-ViT: shorter edge 256, centre 224x224, ImageNet statistics (LightViT's recipe, which the paper follows)."""

from __future__ import annotations

from hf_ext.layers.image_processing import ImageNetImageProcessor


class DualTokenViTImageProcessor(ImageNetImageProcessor):
    """Images (PIL, numpy, torch; 0 to 255) -> `pixel_values` (B, 3, 224, 224)."""

    size = {"shortest_edge": 256}


__all__ = ["DualTokenViTImageProcessor"]
