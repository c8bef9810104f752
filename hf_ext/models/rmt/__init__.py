import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_rmt": ["RMTConfig"],
        "image_processing_rmt": ["RMTImageProcessor"],
        "modeling_rmt": [
            "RMTBackbone",
            "RMTForImageClassification",
            "RMTImageClassifierOutput",
            "RMTModel",
            "RMTPreTrainedModel",
        ],
    },
)
