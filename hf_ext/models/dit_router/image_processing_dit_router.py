"""Image processor of DiT with dynamic token routing: PVTv2's evaluation transform."""

from __future__ import annotations

from hf_ext.layers.image_processing import ImageNetImageProcessor


class DynamicTokenRoutingImageProcessor(ImageNetImageProcessor):
    """Images (PIL, numpy, torch; 0 to 255) -> `pixel_values` (B, 3, 224, 224): shorter edge to 256, bicubic, centre of 224."""

    size = {"shortest_edge": 256}


__all__ = ["DynamicTokenRoutingImageProcessor"]
