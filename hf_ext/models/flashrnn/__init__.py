"""FlashRNN: language models and sequence classifiers whose token mixer is an LSTM, sLSTM, GRU or Elman network with heads."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "configuration_flashrnn": ["FlashRNNConfig"],
        "modeling_flashrnn": [
            "FlashRNNCache",
            "FlashRNNForCausalLM",
            "FlashRNNForSequenceClassification",
            "FlashRNNModel",
            "FlashRNNPreTrainedModel",
        ],
    },
)
