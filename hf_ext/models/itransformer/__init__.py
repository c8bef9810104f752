"""iTransformer: a Transformer encoder whose tokens are whole variates."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_itransformer": ["ITransformerConfig"],
        "modeling_itransformer": [
            "ITransformerForPrediction",
            "ITransformerForPredictionOutput",
            "ITransformerForReconstruction",
            "ITransformerForReconstructionOutput",
            "ITransformerForTimeSeriesClassification",
            "ITransformerModel",
            "ITransformerModelOutput",
            "ITransformerPreTrainedModel",
        ],
    },
)
