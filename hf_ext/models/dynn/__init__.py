import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_dynn": ["MultiExitConfig", "MultiExitTextConfig"],
        "image_processing_dynn": ["MultiExitImageProcessor"],
        "modeling_dynn": [
            "MultiExitForImageClassification",
            "MultiExitForSequenceClassification",
            "MultiExitOutput",
            "MultiExitPreTrainedModel",
        ],
    },
)
