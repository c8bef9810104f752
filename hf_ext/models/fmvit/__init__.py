import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_fmvit": ["FMViTConfig"],
        "image_processing_fmvit": ["FMViTImageProcessor"],
        "modeling_fmvit": [
            "FMViTBackbone",
            "FMViTForImageClassification",
            "FMViTModel",
            "FMViTPreTrainedModel",
        ],
    },
)
