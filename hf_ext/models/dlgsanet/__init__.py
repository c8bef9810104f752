import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_dlgsanet": ["DLGSANetConfig"],
        "image_processing_dlgsanet": ["DLGSANetImageProcessor"],
        "modeling_dlgsanet": ["DLGSANetForImageSuperResolution", "DLGSANetModel", "DLGSANetPreTrainedModel"],
    },
)
