"""Image processor of EfficientFormer: shorter edge 248, centre 224x224 (the authors' crop ratio 0.9), ImageNet statistics."""

from __future__ import annotations

from hf_ext.layers.image_processing import ImageNetImageProcessor


class EfficientFormerImageProcessor(ImageNetImageProcessor):
    """Images (PIL, numpy, torch; 0 to 255) -> `pixel_values` (B, 3, 224, 224)."""

    size = {"shortest_edge": 248}


__all__ = ["EfficientFormerImageProcessor"]
