import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_label_shift_adapter": ["LabelShiftAdapterConfig"],
        "modeling_label_shift_adapter": [
            "Adjustment",
            "LabelShiftAdapter",
            "LabelShiftAdapterForAudioClassification",
            "LabelShiftAdapterForImageClassification",
            "LabelShiftAdapterForSequenceClassification",
            "LabelShiftAdapterPreTrainedModel",
            "adapted_logits",
        ],
    },
)
