"""STTN: Transformers over road sensors and over time, with a fixed road graph beside them."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_sttn": ["STTNConfig"],
        "modeling_sttn": [
            "STTNForPrediction",
            "STTNForPredictionOutput",
            "STTNModel",
            "STTNModelOutput",
            "STTNPreTrainedModel",
        ],
    },
)
