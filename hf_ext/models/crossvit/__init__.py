import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_crossvit": ["CrossVitConfig"],
        "image_processing_crossvit": ["CrossVitImageProcessor"],
        "modeling_crossvit": ["CrossVitForImageClassification", "CrossVitModel", "CrossVitPreTrainedModel"],
    },
)
