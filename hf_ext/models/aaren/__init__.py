"""Aaren: a Transformer encoder whose attention is a recurrent network, so a stream is read in constant memory."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_aaren": ["AarenConfig"],
        "modeling_aaren": [
            "AarenCache",
            "AarenForPrediction",
            "AarenForTimeSeriesClassification",
            "AarenModel",
            "AarenPreTrainedModel",
        ],
    },
)
