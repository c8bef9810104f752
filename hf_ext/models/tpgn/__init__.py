"""TPGN: a forecaster on the parallel gated network (PGN), which reads all earlier steps at once where an RNN goes step by step."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_tpgn": ["TPGNConfig"],
        "modeling_tpgn": [
            "PGNLayer",
            "TPGNForPrediction",
            "TPGNForPredictionOutput",
            "TPGNModel",
            "TPGNModelOutput",
            "TPGNPreTrainedModel",
        ],
    },
)
