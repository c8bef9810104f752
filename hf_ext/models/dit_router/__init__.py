import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_dit_router": ["DynamicTokenRoutingConfig"],
        "image_processing_dit_router": ["DynamicTokenRoutingImageProcessor"],
        "modeling_dit_router": [
            "DynamicTokenRoutingBackbone",
            "DynamicTokenRoutingBackboneOutput",
            "DynamicTokenRoutingForImageClassification",
            "DynamicTokenRoutingImageClassifierOutput",
            "DynamicTokenRoutingModel",
            "DynamicTokenRoutingModelOutput",
            "DynamicTokenRoutingPreTrainedModel",
        ],
    },
)
