"""Image processor of DWFormer: RGB in [0, 1] and nothing else. The model pads by itself."""

from __future__ import annotations

from hf_ext.layers.image_processing import RestorationImageProcessor


class DWFormerImageProcessor(RestorationImageProcessor):
    """Images (PIL, numpy, torch; 0 to 255) -> `pixel_values` (B, 3, H, W) in [0, 1]."""


__all__ = ["DWFormerImageProcessor"]
