import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_wide_attention": ["WideAttentionConfig"],
        "modeling_wide_attention": [
            "WideAttentionForSequenceClassification",
            "WideAttentionForSequencePairClassification",
            "WideAttentionModel",
            "WideAttentionPreTrainedModel",
        ],
    },
)
