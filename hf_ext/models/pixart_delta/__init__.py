"""PixArt-δ: ControlNet-Transformer, HED edges and LCM sampling for PixArt-α (arXiv 2401.05252)."""

import lazy_loader as lazy

_own, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_pixart_delta": ["PRESETS"],
        "image_processing_pixart_delta": ["preprocess_image"],
        "modeling_pixart_delta": [
            "PixArtControlNetModel",
            "PixArtControlNetOutput",
            "PixArtControlNetTransformer2DModel",
            "PixArtHEDDetector",
            "PixArtHEDOutput",
        ],
        "scheduling_pixart_delta": ["lcm_scheduler", "lcm_timesteps"],
    },
)
__all__ = [*__all__, "PixArtAlphaControlNetPipeline"]


def __getattr__(name: str):
    # The catalogue looks here for every class of the method; pipelines live in their own folder.
    if name == "PixArtAlphaControlNetPipeline":
        from hf_ext.pipelines.pixart_delta import PixArtAlphaControlNetPipeline

        return PixArtAlphaControlNetPipeline
    return _own(name)
