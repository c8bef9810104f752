"""Aaren: an encoder whose tokens are not queries. Each layer asks one learned question of every prefix.

Paper: "Attention as an RNN", arXiv:2405.13956. The authors published no code; the layout follows their parameter counts, one more
vector per block than a Transformer encoder layer has.

With its query fixed, softmax attention over a growing prefix is a recurrent network: it keeps a weighted sum of values, the sum of weights
and the largest score. So the same layer is trained in parallel and streams one token at a time (`update`), in constant memory.

Queries, keys and values are three linear layers here instead of one matrix of three parts. Series enter through one linear map per step and
sinusoidal positions; the forecast is one linear map of the last token, as in the encoder-only models of the Time-Series-Library.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, SequenceClassifierOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_ext.layers.linear import token_linear
from hf_ext.layers.positions import sinusoid_positions
from hf_ext.layers.recurrent_decoder import RecurrentCache
from hf_ext.layers.series import check_same_shape, masked_mse
from hf_ext.ops.prefix_scan_attention import PrefixState, prefix_softmax_attention

from .configuration_aaren import AarenConfig


@dataclass
class AarenForPredictionOutput(ModelOutput):
    """
    Args:
        loss: mean squared error, when `future_values` are given.
        prediction_outputs: (batch, prediction_length, variates), the steps after the last one read.
        past_key_values: the state to go on from, with `use_cache=True`.
        hidden_states: the embeddings and the output of each layer, with `output_hidden_states=True`.
    """

    loss: torch.FloatTensor | None = None
    prediction_outputs: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class AarenCache(RecurrentCache):
    """The state of every layer, hidden_size + 2 * heads numbers in float32, however much was read.

    A layer keeps them as one tensor (batch, heads, head channels + 2): the weighted sum, the sum of weights, the largest score.
    """

    def state(self, layer_idx: int) -> PrefixState | None:
        kept = self.layers[layer_idx].recurrent_states[0]
        return None if kept is None else PrefixState(kept[..., :-2], kept[..., -2], kept[..., -1])

    def keep(self, layer_idx: int, state: PrefixState) -> None:
        kept = torch.cat((state.a, state.c.unsqueeze(-1), state.m.unsqueeze(-1)), -1)
        self.layers[layer_idx].update_recurrent_state(kept)

    def reset(self) -> None:
        super().reset()
        for layer_idx, layer in enumerate(self.layers):
            if self.state(layer_idx) is not None:
                layer.recurrent_states[0][..., -1] = -math.inf


class AarenAttention(nn.Module):
    """Softmax attention of a query that all tokens share over each prefix (section 3.2 of the paper)."""

    def __init__(self, config: AarenConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.hidden_size, config.hidden_size, bias=config.use_bias) for _ in range(4)
        )

    def forward(
        self,
        query: torch.Tensor,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: AarenCache | None = None,
    ) -> torch.Tensor:
        q = self.q_proj(query.unsqueeze(0)).view(-1, self.head_dim)
        k, v = (token_linear(layer, hidden_states).unflatten(-1, q.shape) for layer in (self.k_proj, self.v_proj))
        state = None if past_key_values is None else past_key_values.state(self.layer_idx)
        o, state = prefix_softmax_attention(q, k, v, attention_mask=attention_mask, initial_state=state)
        if past_key_values is not None:
            past_key_values.keep(self.layer_idx, state)
        return token_linear(self.o_proj, o.flatten(2))


class AarenLayer(GradientCheckpointingLayer):
    """`nn.TransformerEncoderLayer` with that attention, and its query."""

    def __init__(self, config: AarenConfig, layer_idx: int):
        super().__init__()
        self.norm_first = config.norm_first
        self.query = nn.Parameter(torch.empty(config.hidden_size))
        self.self_attn = AarenAttention(config, layer_idx)
        self.linear1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.use_bias)
        self.activation = ACT2FN[config.hidden_act]
        self.linear2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.use_bias)
        self.norm1, self.norm2 = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=config.use_bias) for _ in range(2)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: AarenCache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        context = (attention_mask, past_key_values)
        if self.norm_first:
            hidden_states = hidden_states + self.attend(self.norm1(hidden_states), *context)
            return hidden_states + self.mlp(self.norm2(hidden_states))
        hidden_states = self.norm1(hidden_states + self.attend(hidden_states, *context))
        return self.norm2(hidden_states + self.mlp(hidden_states))

    def attend(self, hidden_states: torch.Tensor, *context) -> torch.Tensor:
        return self.dropout(self.self_attn(self.query, hidden_states, *context))

    def mlp(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation(token_linear(self.linear1, hidden_states)))
        return self.dropout(token_linear(self.linear2, hidden_states))


class AarenEmbeddings(nn.Module):
    """One token per step: a linear map of the variates, and the step's position."""

    def __init__(self, config: AarenConfig):
        super().__init__()
        self.value_embedding = nn.Linear(config.num_input_channels, config.hidden_size)

    def forward(self, values: torch.Tensor, first: int) -> torch.Tensor:
        tokens = self.value_embedding(values)
        return tokens + sinusoid_positions(tokens.shape[1], tokens.shape[2], tokens.device, first).to(tokens.dtype)


class AarenPreTrainedModel(PreTrainedModel):
    config_class = AarenConfig
    base_model_prefix = "model"
    main_input_name = "past_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["AarenLayer", "AarenEmbeddings"]
    _skip_keys_device_placement = ["past_key_values"]
    _can_compile_fullgraph = True
    _is_stateful = True
    accepts_loss_kwargs = False  # the losses are means over the batch, so Trainer divides by its accumulation steps
    _can_record_outputs = {"hidden_states": AarenLayer}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AarenLayer):
            init.normal_(module.query, std=self.config.initializer_range)

    def update(self, token: torch.Tensor, past_key_values: AarenCache | None = None) -> ModelOutput:
        """Reads one step of a stream, in time and memory that do not depend on how many came before.

        Args:
            token: values (batch, variates), or for a model without variates an embedded token (batch, hidden_size).
            past_key_values: what the last call returned; None to begin. It is changed in place.

        Returns:
            What `forward` would return for the whole stream so far, its last step that is, with `past_key_values` to go on from.

        Raises:
            ValueError: a token of another shape.
        """
        channels = self.config.num_input_channels or self.config.hidden_size
        if token.ndim != 2 or token.shape[1] != channels:
            raise ValueError(f"a token must be (batch, {channels}), got {tuple(token.shape)}")
        name = "past_values" if self.config.num_input_channels else "inputs_embeds"
        return self(**{name: token.unsqueeze(1)}, past_key_values=past_key_values, use_cache=True)


class AarenModel(AarenPreTrainedModel):
    """The encoder (arXiv:2405.13956): a series (batch, time, variates), or embedded tokens, to hidden states (batch, time, hidden_size)."""

    def __init__(self, config: AarenConfig):
        super().__init__(config)
        self.embeddings = AarenEmbeddings(config) if config.num_input_channels else None
        self.layers = nn.ModuleList([AarenLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)])
        self.norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=config.use_bias)
            if config.norm_first
            else nn.Identity()
        )
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        past_values: torch.Tensor | None = None,
        past_observed_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        past_key_values: AarenCache | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        r"""
        Args:
            past_values: (batch, time, variates). Or give inputs_embeds (batch, time, hidden_size).
            past_observed_mask: (batch, time, variates), 0 at missing values, which are read as zeros.
            attention_mask: (batch, time), 0 at steps that are skipped: the state passes them unchanged.
            past_key_values: an `AarenCache` from earlier steps; it is changed in place.
        """
        if (past_values is None) == (inputs_embeds is None):
            raise ValueError("Give either past_values or inputs_embeds")
        channels = self.config.hidden_size if past_values is None else self.config.num_input_channels
        given = inputs_embeds if past_values is None else past_values
        if given.ndim != 3 or given.shape[2] != channels or 0 in given.shape:
            raise ValueError(f"the input must be (batch, time, {channels}), none of them 0, got {tuple(given.shape)}")
        if attention_mask is not None:
            check_same_shape("attention_mask", attention_mask, given.shape[:2], "(batch, time)")
        if past_key_values is not None and not isinstance(past_key_values, AarenCache):
            raise ValueError(f"past_key_values must be an AarenCache, got {type(past_key_values).__name__}")
        if use_cache and past_key_values is None:
            past_key_values = AarenCache(self.config)
        if inputs_embeds is None:
            check_same_shape("past_observed_mask", past_observed_mask, past_values.shape, "(batch, time, variates)")
            if past_observed_mask is not None:
                past_values = torch.where(past_observed_mask.bool(), past_values, 0.0)
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            inputs_embeds = self.embeddings(past_values, seen)

        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(
                hidden_states, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
            )
        if past_key_values is not None:
            past_key_values.seen_tokens += hidden_states.shape[1]
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


class AarenHeadModel(AarenPreTrainedModel):
    """A linear map of the last token that was read."""

    def __init__(self, config: AarenConfig, outputs: int):
        super().__init__(config)
        if not config.num_input_channels:
            raise ValueError(f"{type(self).__name__} reads a series: `num_input_channels` must be at least 1, got 0")
        self.model = AarenModel(config)
        self.head = nn.Linear(config.hidden_size, outputs)
        self.post_init()

    def read(
        self, past_values: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs
    ) -> tuple[BaseModelOutputWithPast, torch.Tensor]:
        """What the encoder gives, and the head of it at the last step that counts, (batch, outputs)."""
        outputs = self.model(past_values, attention_mask=attention_mask, **kwargs)
        last = outputs.last_hidden_state[:, -1]
        if attention_mask is not None:
            places = (torch.arange(past_values.shape[1], device=last.device) * attention_mask).argmax(-1)
            last = outputs.last_hidden_state.take_along_dim(places[:, None, None], 1).squeeze(1)
        return outputs, self.head(last)


class AarenForPrediction(AarenHeadModel):
    """Forecasts from the last step read: (batch, time, variates) -> (batch, prediction_length, variates)."""

    def __init__(self, config: AarenConfig):
        super().__init__(config, config.prediction_length * config.num_input_channels)

    @can_return_tuple
    def forward(
        self,
        past_values: torch.Tensor,
        past_observed_mask: torch.Tensor | None = None,
        future_values: torch.Tensor | None = None,
        future_observed_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> AarenForPredictionOutput:
        r"""
        Arguments as those of `AarenModel`, and

        Args:
            future_values: (batch, prediction_length, variates), for the loss.
            future_observed_mask: of the same shape, 0 where there is no value to be held to.
        """
        outputs, forecast = self.read(past_values, attention_mask, past_observed_mask=past_observed_mask, **kwargs)
        forecast = forecast.unflatten(-1, (self.config.prediction_length, self.config.num_input_channels))
        loss = None
        if future_values is not None:
            meaning = "(batch, prediction_length, variates)"
            check_same_shape("future_values", future_values, forecast.shape, meaning)
            check_same_shape("future_observed_mask", future_observed_mask, forecast.shape, meaning)
            counted = None if future_observed_mask is None else future_observed_mask.bool()
            loss = masked_mse(forecast, future_values, counted)
        return AarenForPredictionOutput(
            loss=loss,
            prediction_outputs=forecast,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )


class AarenForTimeSeriesClassification(AarenHeadModel):
    """Classes of series, from the last step read: (batch, time, variates) -> logits (batch, num_labels)."""

    def __init__(self, config: AarenConfig):
        super().__init__(config, config.num_labels)
        self.loss_type = "ForSequenceClassification"

    @can_return_tuple
    def forward(
        self,
        past_values: torch.Tensor,
        past_observed_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutputWithPast:
        r"""
        Arguments as those of `AarenModel`, and

        Args:
            labels: class indices (batch,), or numbers (batch,) where `num_labels` is 1.
        """
        outputs, logits = self.read(past_values, attention_mask, past_observed_mask=past_observed_mask, **kwargs)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
        )


__all__ = [
    "AarenCache",
    "AarenForPrediction",
    "AarenForTimeSeriesClassification",
    "AarenModel",
    "AarenPreTrainedModel",
]
