import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_dwformer": ["DWFormerConfig"],
        "configuration_mpgnet": ["MPGNetConfig"],
        "image_processing_dwformer": ["DWFormerImageProcessor"],
        "modeling_dwformer": ["DWFormerForImageRestoration", "DWFormerPreTrainedModel"],
        "modeling_mpgnet": ["MPGNetDiscriminator", "MPGNetModel", "MPGNetPreTrainedModel"],
    },
)
