import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_efficientformer": ["EfficientFormerConfig"],
        "image_processing_efficientformer": ["EfficientFormerImageProcessor"],
        "modeling_efficientformer": [
            "EfficientFormerBackbone",
            "EfficientFormerForImageClassification",
            "EfficientFormerForImageClassificationWithTeacher",
            "EfficientFormerImageClassifierOutput",
            "EfficientFormerModel",
            "EfficientFormerPreTrainedModel",
        ],
    },
)
