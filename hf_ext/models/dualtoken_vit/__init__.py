import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_dualtoken_vit": ["DualTokenViTConfig"],
        "image_processing_dualtoken_vit": ["DualTokenViTImageProcessor"],
        "modeling_dualtoken_vit": [
            "DualTokenViTBackbone",
            "DualTokenViTForImageClassification",
            "DualTokenViTImageClassifierOutput",
            "DualTokenViTModel",
            "DualTokenViTModelOutput",
            "DualTokenViTPreTrainedModel",
        ],
    },
)
