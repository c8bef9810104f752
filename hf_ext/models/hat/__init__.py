import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_hat": ["HatConfig"],
        "image_processing_hat": ["HatImageProcessor"],
        "modeling_hat": ["HatForImageSuperResolution", "HatModel", "HatPreTrainedModel"],
    },
)
