"""Encoders of few wide layers or many narrow ones, with ten kinds of attention.

Paper: "Wide Attention Is The Way Forward For Transformers?", arXiv:2210.00640. The authors published no code; the kinds of attention
and the tasks are those of Long Range Arena, https://github.com/google-research/long-range-arena, which this port is held against.

Differences from the reference, on purpose:
- The global projections of its "longformer", whose result it discards, and the sorting of its "sinkhorn", which has no effect there, are
  left out (`reference_quirks=False` has the sorting).
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_ext.layers.linear import token_linear
from hf_ext.layers.positions import sinusoid_positions

from .attention import ATTENTIONS, Attention, LinformerAttention, SynthesizerAttention
from .configuration_wide_attention import WideAttentionConfig


@dataclass
class SequencePairClassifierOutput(ModelOutput):
    """
    Args:
        loss: when `labels` are given.
        logits: (batch, num_labels).
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


class WideAttentionEmbeddings(nn.Module):
    def __init__(self, config: WideAttentionConfig):
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.pooling == "cls":
            self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        if config.learned_positions:
            self.position_embeddings = nn.Parameter(torch.empty(1, config.num_positions, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, hidden_size) -> the same with positions, and with the class token in front where there is one"""
        if self.config.pooling == "cls":
            inputs_embeds = torch.cat((self.cls_token.expand(len(inputs_embeds), -1, -1), inputs_embeds), 1)
        length = inputs_embeds.shape[1]
        if self.config.learned_positions:
            positions = self.position_embeddings[:, :length]
        else:
            positions = sinusoid_positions(length, self.config.hidden_size, inputs_embeds.device).to(
                inputs_embeds.dtype
            )
        return self.dropout(inputs_embeds + positions)


class WideAttentionMLP(nn.Module):
    def __init__(self, config: WideAttentionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = nn.functional.gelu(token_linear(self.fc1, hidden_states), approximate="tanh")
        return self.dropout(token_linear(self.fc2, self.dropout(hidden_states)))


class WideAttentionLayer(GradientCheckpointingLayer):
    """Attention and the feed-forward network, each on normalised states and added to what came in."""

    def __init__(self, config: WideAttentionConfig, layer_idx: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ATTENTIONS[config.attention_type](config, layer_idx)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = WideAttentionMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        attn_output, _ = self.attention(self.attention_norm(hidden_states), mask, **kwargs)
        hidden_states = hidden_states + self.dropout(attn_output)
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class WideAttentionPreTrainedModel(PreTrainedModel):
    config: WideAttentionConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["WideAttentionEmbeddings", "WideAttentionLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_set_attn_implementation_cached_value = (
        True  # upstream's guess is misled by "Attention" in the names of other modules
    )
    accepts_loss_kwargs = False  # the loss is a mean over the batch, so Trainer divides by its accumulation steps
    _can_record_outputs = {"hidden_states": WideAttentionLayer, "attentions": Attention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Flax's defaults: uniform of Glorot in linear layers, small normal numbers in embeddings and learned logits."""
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.normal_(module.bias, std=1e-6)
        elif isinstance(module, WideAttentionEmbeddings):
            init.normal_(module.word_embeddings.weight, std=self.config.initializer_range)
            for name in ("cls_token", "position_embeddings"):
                if hasattr(module, name):
                    init.normal_(getattr(module, name), std=self.config.initializer_range)
        elif isinstance(module, LinformerAttention):
            init.normal_(module.projection, std=self.config.num_positions**-0.5)
        elif isinstance(module, SynthesizerAttention):
            for name, parameter in module.named_parameters(recurse=False):
                init.normal_(parameter, std=1.0 if name == "random" else self.config.synthesizer_rank**-0.25)
        else:
            super()._init_weights(module)


class WideAttentionModel(WideAttentionPreTrainedModel):
    """The encoder. `pooler_output` is what a classifier reads: the class token, or the mean, sum or row of all tokens."""

    def __init__(self, config: WideAttentionConfig):
        super().__init__(config)
        self.embeddings = WideAttentionEmbeddings(config)
        self.layers = nn.ModuleList([WideAttentionLayer(config, index) for index in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            input_ids: (batch, tokens), at most `max_position_embeddings` tokens.
            attention_mask: (batch, tokens), nonzero at real tokens; where `input_ids` are not `pad_token_id` when None.
            inputs_embeds: (batch, tokens, hidden_size) instead of `input_ids`.

        `last_hidden_state` is (batch, tokens + 1, hidden_size) with a class token, (batch, tokens, hidden_size) without.

        Raises:
            ValueError: both or none of the inputs, one of another rank or empty or too long, a mask of another shape, a length that
                the blocks of the attention cannot be cut from.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either `input_ids` or `inputs_embeds`")
        given = input_ids if inputs_embeds is None else inputs_embeds
        if (
            given.ndim != (2 if inputs_embeds is None else 3)
            or not 1 <= given.shape[1] <= self.config.max_position_embeddings
        ):
            raise ValueError(
                f"Inputs are (batch, tokens) with 1 to `max_position_embeddings` = {self.config.max_position_embeddings} tokens, "
                f"got {tuple(given.shape)}"
            )
        if attention_mask is not None and attention_mask.shape != given.shape[:2]:
            raise ValueError(
                f"`attention_mask` must be (batch, tokens) = {tuple(given.shape[:2])}, got {tuple(attention_mask.shape)}"
            )
        if inputs_embeds is None:
            inputs_embeds = self.embeddings.word_embeddings(input_ids)
        if attention_mask is None and input_ids is not None and self.config.pad_token_id is not None:
            attention_mask = input_ids != self.config.pad_token_id
        hidden_states = self.embeddings(inputs_embeds)
        mask = self._token_mask(attention_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states, pooler_output=self._pool(hidden_states, mask)
        )

    def _token_mask(self, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """True at real tokens; the class token is as real as the first one. None where all are."""
        if attention_mask is None or (not torch.compiler.is_compiling() and attention_mask.all()):
            return None
        mask = attention_mask.bool()
        return torch.cat((mask[:, :1], mask), 1) if self.config.pooling == "cls" else mask

    def _pool(self, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if self.config.pooling == "cls":
            return hidden_states[:, 0]
        if mask is not None and not self.config.reference_quirks:
            hidden_states = hidden_states * mask[..., None]
            if self.config.pooling == "mean":
                return hidden_states.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
        if self.config.pooling == "flatten":
            missing = self.config.num_positions - hidden_states.shape[1]
            return nn.functional.pad(hidden_states, (0, 0, 0, missing)).flatten(1)
        return hidden_states.mean(1) if self.config.pooling == "mean" else hidden_states.sum(1)


def _pooled_size(config: WideAttentionConfig) -> int:
    return config.hidden_size * (config.num_positions if config.pooling == "flatten" else 1)


class WideAttentionClassifier(nn.Module):
    """A hidden layer and the logits; "sinkhorn" has none in the reference."""

    def __init__(self, config: WideAttentionConfig):
        super().__init__()
        size = _pooled_size(config)
        if config.attention_type != "sinkhorn":
            self.dense = nn.Linear(size, config.intermediate_size)
            size = config.intermediate_size
        self.out_proj = nn.Linear(size, config.num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self.dense(pooled).relu() if hasattr(self, "dense") else pooled)


class WideAttentionForSequenceClassification(WideAttentionPreTrainedModel):
    """Classifies a sequence.

    ```python
    >>> from hf_ext.models.wide_attention import WideAttentionConfig, WideAttentionForSequenceClassification

    >>> model = WideAttentionForSequenceClassification(WideAttentionConfig.from_preset("text-1x48")).eval()
    >>> model(torch.randint(1, 257, (2, 100))).logits.shape
    torch.Size([2, 2])
    ```
    """

    def __init__(self, config: WideAttentionConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = WideAttentionModel(config)
        self.classifier = WideAttentionClassifier(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        Args:
            input_ids, attention_mask, inputs_embeds: as in `WideAttentionModel`.
            labels: (batch,) classes, or values for one label.
        """
        outputs = self.model(input_ids, attention_mask, inputs_embeds, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class WideAttentionForSequencePairClassification(WideAttentionPreTrainedModel):
    """Classifies two sequences, encoded apart by one encoder: document matching in Long Range Arena."""

    def __init__(self, config: WideAttentionConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = WideAttentionModel(config)
        self.dense1 = nn.Linear(4 * _pooled_size(config), config.intermediate_size)
        self.dense2 = nn.Linear(config.intermediate_size, config.intermediate_size // 2)
        self.out_proj = nn.Linear(config.intermediate_size // 2, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pair_input_ids: torch.Tensor | None = None,
        pair_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequencePairClassifierOutput:
        r"""
        Args:
            input_ids, attention_mask: the first sequences, as in `WideAttentionModel`.
            pair_input_ids, pair_attention_mask: the second ones; their length may differ.
            labels: (batch,) classes.

        Raises:
            ValueError: no second sequences, or not as many as first ones.
        """
        if pair_input_ids is None or len(pair_input_ids) != len(input_ids):
            given = None if pair_input_ids is None else tuple(pair_input_ids.shape)
            raise ValueError(f"`pair_input_ids` must hold a second sequence for each of {len(input_ids)}, got {given}")
        first = self.model(input_ids, attention_mask, **kwargs).pooler_output
        second = self.model(pair_input_ids, pair_attention_mask, **kwargs).pooler_output
        pooled = torch.cat((first, second, first * second, first - second), -1)
        logits = self.out_proj(self.dense2(self.dense1(pooled).relu()).relu())
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return SequencePairClassifierOutput(loss=loss, logits=logits)


__all__ = [
    "SequencePairClassifierOutput",
    "WideAttentionForSequenceClassification",
    "WideAttentionForSequencePairClassification",
    "WideAttentionModel",
    "WideAttentionPreTrainedModel",
]
