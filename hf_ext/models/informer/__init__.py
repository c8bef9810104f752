"""Informer as its paper has it: ProbSparse attention, distilling, and a decoder that forecasts a whole horizon at once.

Transformers' own `informer` is another model: probabilistic, autoregressive, with lagged values.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_informer": ["InformerGenerativeConfig"],
        "modeling_informer": [
            "InformerGenerativeForPrediction",
            "InformerGenerativeForPredictionOutput",
            "InformerGenerativeModel",
            "InformerGenerativePreTrainedModel",
        ],
    },
)
