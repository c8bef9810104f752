"""TCNCA: MEGA's gated attention over chunks, fed by a temporal convolution network instead of a moving average."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_tcnca": ["TCNCAConfig"],
        "modeling_tcnca": [
            "TCNCACache",
            "TCNCAForCausalLM",
            "TCNCAForSequenceClassification",
            "TCNCAGatedAttention",
            "TCNCAModel",
            "TCNCAPreTrainedModel",
            "TemporalConvolution",
        ],
    },
)
