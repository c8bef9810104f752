"""Sizes that PixArt-α and PixArt-δ publish.

Diffusers models keep their configuration in the model class, so a preset is a dict of its constructor's arguments:
`PixArtTransformer2DModel(**PRESETS["1024-ms"])`, `PixArtControlNetModel(**PRESETS["controlnet"])`.
"""

from typing import Any

_XL_2: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "num_layers": 28,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 8,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
}

PRESETS: dict[str, dict[str, Any]] = {
    # PixArt-XL/2 by resolution; interpolation_scale is the reference's `lewei_scale`, and at 256 px upstream's default is wrong
    "256": {**_XL_2, "sample_size": 32, "interpolation_scale": 0.5, "use_additional_conditions": False},
    "512": {**_XL_2, "sample_size": 64, "interpolation_scale": 1.0, "use_additional_conditions": False},
    "1024-ms": {**_XL_2, "sample_size": 128, "interpolation_scale": 2.0, "use_additional_conditions": True},
    # The trainable copies of the first 13 blocks (section 4)
    "controlnet": {"num_layers": 13, "num_attention_heads": 16, "attention_head_dim": 72, "cross_attention_dim": 1152},
}
