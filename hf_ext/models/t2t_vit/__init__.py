import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_t2t_vit": ["T2TViTConfig"],
        "image_processing_t2t_vit": ["T2TViTImageProcessor"],
        "modeling_t2t_vit": [
            "T2TViTBackbone",
            "T2TViTForImageClassification",
            "T2TViTImageClassifierOutput",
            "T2TViTModel",
            "T2TViTModelOutput",
            "T2TViTPreTrainedModel",
        ],
    },
)
