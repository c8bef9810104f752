"""LMUFormer: keyword spotting with a Legendre memory in the place of attention, with spiking neurons or without."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_lmuformer": ["LMUFormerConfig"],
        "feature_extraction_lmuformer": ["LMUFormerFeatureExtractor"],
        "modeling_lmuformer": ["LMUFormerForAudioClassification", "LMUFormerModel", "LMUFormerPreTrainedModel"],
    },
)
