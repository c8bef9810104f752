import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_dualformer": ["DualformerConfig", "DualformerStackConfig"],
        "modeling_dualformer": ["DualformerForConditionalGeneration", "DualformerModel", "DualformerPreTrainedModel"],
        "tokenization_dualformer": ["DualformerTokenizer"],
    },
)
