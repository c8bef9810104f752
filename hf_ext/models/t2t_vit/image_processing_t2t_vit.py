"""Image processor of T2T-ViT: shorter edge 248, centre 224x224 (the authors' crop ratio 0.9), ImageNet statistics."""

from __future__ import annotations

from hf_ext.layers.image_processing import ImageNetImageProcessor


class T2TViTImageProcessor(ImageNetImageProcessor):
    """Images (PIL, numpy, torch; 0 to 255) -> `pixel_values` (B, 3, 224, 224).

    For the model at 384 pixels: `size={"shortest_edge": 426}, crop_size=384`.
    """

    size = {"shortest_edge": 248}


__all__ = ["T2TViTImageProcessor"]
