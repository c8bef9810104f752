"""FlashRNN models: a pre-norm decoder whose token mixer is a classic recurrent network with one recurrent matrix per head.

Paper: "FlashRNN: Optimizing Traditional RNNs on Modern Hardware", arXiv 2412.07752 (section 5: Llama-style blocks in which one recurrent
layer stands in the place of attention).
Reference: NX-AI/flashrnn, which holds the operator and no model; the layout here is our own, around the decoder of
`hf_ext.layers.recurrent_decoder`.

The states of a layer, a handful of vectors, are all that generation keeps. Padding leaves them as they are, wherever it stands.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.utils.generic import can_return_tuple

from hf_ext.layers.flashrnn import FlashRNN
from hf_ext.layers.recurrent_decoder import (
    RecurrentCache,
    RecurrentForCausalLM,
    RecurrentMixer,
    RecurrentModel,
    RecurrentPreTrainedModel,
)

from .configuration_flashrnn import FlashRNNConfig


class FlashRNNCache(RecurrentCache):
    """States of the recurrent layers, (batch, states, hidden_size) in float32 each, however much was read."""


class FlashRNNMixer(RecurrentMixer):
    """The recurrent layer and a projection that mixes its heads."""

    def __init__(self, config: FlashRNNConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.rnn = FlashRNN(
            config.hidden_size,
            config.hidden_size,
            config.num_heads,
            config.function,
            gradient_recurrent_cut=config.gradient_recurrent_cut,
            gradient_recurrent_clipval=config.gradient_recurrent_clipval,
            forward_clipval=config.forward_clipval,
        )
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        cu_seqlens: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, None]:
        cache = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        state = None
        if cache is not None and cache.recurrent_states[0] is not None:
            state = (
                cache.recurrent_states[0].transpose(0, 1).unsqueeze(1).unbind()
            )  # (B, S, hidden) -> S times (1, B, hidden)
        y, state = self.rnn(hidden_states, state, padding_mask, cu_seqlens)
        if cache is not None:
            cache.update_recurrent_state(
                torch.stack([x[0] for x in state] if isinstance(state, tuple) else [state[0]], 1)
            )
        y = self.o_proj(y)
        return y if padding_mask is None else y * padding_mask.unsqueeze(-1).to(y.dtype), None


class FlashRNNPreTrainedModel(RecurrentPreTrainedModel):
    config_class = FlashRNNConfig
    mixer_class = FlashRNNMixer
    cache_class = FlashRNNCache

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FlashRNN):
            module.reset_parameters()


class FlashRNNModel(FlashRNNPreTrainedModel, RecurrentModel):
    """The decoder without a head (arXiv 2412.07752): token ids (batch, tokens) to hidden states (batch, tokens, hidden_size)."""


class FlashRNNForCausalLM(FlashRNNPreTrainedModel, RecurrentForCausalLM):
    """The language model (arXiv 2412.07752): logits (batch, tokens, vocab_size); with `labels`, their mean cross entropy."""

    decoder_class = FlashRNNModel


class FlashRNNForSequenceClassification(FlashRNNPreTrainedModel):
    """Classes of whole sequences, from the hidden state at the last real token: logits (batch, num_labels)."""

    accepts_loss_kwargs = False  # the losses are means over the batch, so Trainer divides by its accumulation steps

    def __init__(self, config: FlashRNNConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = FlashRNNModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutputWithPast:
        r"""
        Arguments as those of `FlashRNNModel`, and

        Args:
            attention_mask: (batch, tokens), 0 at padding; without it every token is real.
            labels: class indices (batch,), numbers (batch,) where `num_labels` is 1, or 0 and 1 for each class (batch, num_labels) with
                `problem_type="multi_label_classification"`.
        """
        outputs = self.model(input_ids, attention_mask=attention_mask, **kwargs)
        hidden_states = outputs.last_hidden_state
        if attention_mask is None:
            pooled = hidden_states[:, -1]
        else:
            places = torch.arange(hidden_states.shape[1], device=hidden_states.device)
            last = (places * attention_mask[:, -hidden_states.shape[1] :]).argmax(-1)
            pooled = hidden_states.take_along_dim(last[:, None, None], 1).squeeze(1)
        logits = self.score(pooled)
        loss = None
        if labels is not None:
            if self.config.problem_type == "multi_label_classification":
                labels = labels.to(logits.dtype)
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "FlashRNNCache",
    "FlashRNNForCausalLM",
    "FlashRNNForSequenceClassification",
    "FlashRNNModel",
    "FlashRNNPreTrainedModel",
]
