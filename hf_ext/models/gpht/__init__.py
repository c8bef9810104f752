"""GPHT: a hierarchy of causal Transformers over tokens of any series, which forecasts any horizon by rolling on."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_gpht": ["GPHTConfig"],
        "modeling_gpht": [
            "GPHTForPrediction",
            "GPHTForPredictionOutput",
            "GPHTModel",
            "GPHTModelOutput",
            "GPHTPreTrainedModel",
        ],
    },
)
