import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_nextvit": ["NextViTConfig"],
        "image_processing_nextvit": ["NextViTImageProcessor"],
        "modeling_nextvit": [
            "NextViTBackbone",
            "NextViTForImageClassification",
            "NextViTModel",
            "NextViTPreTrainedModel",
        ],
    },
)
