"""TCNCA: layers of gated attention inside chunks, whose queries and keys come from a stack of dilated convolutions.

Paper: "TCNCA: Temporal Convolution Network with Chunked Attention for Scalable Sequence Processing", arXiv 2312.05605.
Reference: none by the authors. Everything but the convolutions is facebookresearch/mega (arXiv 2209.10655),
`fairseq/modules/moving_average_gated_attention.py` and `models/mega_lm.py`; the convolutions are our own definition, which the
paper's abstract allows.

On purpose different from MEGA:
- a causal model reads a padded text as if it stood alone, wherever the padding stands, so that chunks of a left-padded text begin where
  they would without padding, in parallel and while generating;
- any length works: the last chunk is filled up inside the attention, and a cache goes on from an open chunk of any length;
- rotary biases depend on distances alone and are computed once per distance.
In a bidirectional model the first convolution sees padding as zeros and the later ones what becomes of them, as in MEGA's moving average.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hf_ext.layers.linear import token_linear
from hf_ext.ops.chunked_attention import OpenChunk, chunked_attention, leave_open
from hf_ext.ops.ema_tcn import TCNState, ema_tcn

from .configuration_tcnca import TCNCAConfig


class TCNCACacheLayer(CacheLayerMixin):
    """Of one layer: rings of the convolutions' inputs, and keys and values of the open chunk."""

    is_compileable = False
    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.tcn: TCNState | None = None
        self.chunk: OpenChunk | None = None
        self.tokens = 0

    def store(self, tcn: TCNState, chunk: OpenChunk, tokens: int) -> None:
        self.tcn, self.chunk = tcn, chunk
        self.tokens += tokens
        self.is_initialized = True

    def reset(self) -> None:
        self.__init__()

    def get_seq_length(self) -> int:
        return self.tokens

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.tokens + query_length, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is laid out ahead."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        raise TypeError("A TCNCACache keeps an open chunk and convolutions' inputs; other layers' keys do not go there")

    def _each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if self.tcn is not None:
            self.tcn = TCNState(*map(function, self.tcn))
            self.chunk = OpenChunk(function(self.chunk.keys), function(self.chunk.values))

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._each(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._each(lambda x: x[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each(lambda x: x.repeat_interleave(repeats, 0))


class TCNCACache(Cache):
    """What generation has to keep: of constant size in the number of tokens, unless `chunk_size` is -1."""

    def __init__(self, config: TCNCAConfig):
        super().__init__(layers=[TCNCACacheLayer() for _ in range(config.num_hidden_layers)])


def drop(x: torch.Tensor, rate: float, training: bool, features: bool) -> torch.Tensor:
    """Dropout of x (batch, tokens, channels), of whole channels with `features`"""
    return F.dropout1d(x.mT, rate, training).mT if features else F.dropout(x, rate, training)


class TemporalConvolution(nn.Module):
    """The convolutions of a layer, in the place of MEGA's moving average; (batch, tokens, hidden_size) to the same."""

    def __init__(self, config: TCNCAConfig):
        super().__init__()
        self.options = (config.dilation_factor, config.tcn_activation, config.causal)
        self.weight = nn.Parameter(
            torch.empty(config.depth, config.layers_per_block, config.hidden_size, config.kernel_size)
        )
        self.bias = nn.Parameter(torch.empty(self.weight.shape[:3]))
        self.omega = nn.Parameter(torch.empty(config.hidden_size))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        state: TCNState | None = None,
        output_final_state: bool = False,
    ) -> tuple[torch.Tensor, TCNState | None]:
        """Arguments of `hf_ext.ops.ema_tcn.ema_tcn`"""
        parameters = (self.weight, self.bias, self.omega)
        return ema_tcn(hidden_states, *parameters, *self.options, attention_mask, state, output_final_state)


class RelativeBias(nn.Module):
    """Biases by distance, key minus query, from -(reach - 1) to reach - 1: (2 * reach - 1,)"""

    def __init__(self, config: TCNCAConfig):
        super().__init__()
        self.chunk_size = config.chunk_size
        self.max_positions = config.max_position_embeddings if config.chunk_size < 0 else config.chunk_size
        self.rotary = config.rel_pos_bias == "rotary"
        if self.rotary:
            self.alpha = nn.Parameter(torch.empty(1, config.z_dim))
            self.beta = nn.Parameter(torch.empty(1, config.z_dim))
        else:
            self.rel_pos_bias = nn.Parameter(torch.empty(2 * self.max_positions - 1))

    def forward(self, reach: int) -> torch.Tensor:
        if self.rotary:
            return self.rotate(reach)
        if reach > self.max_positions:
            raise ValueError(
                f"{reach} tokens are more than max_position_embeddings={self.max_positions}, which simple biases serve"
            )
        return self.rel_pos_bias[self.max_positions - reach : self.max_positions + reach - 1]

    def rotate(self, reach: int) -> torch.Tensor:
        """<R_i alpha, R_j beta> = <alpha, R_{j - i} beta> with rotations R in float32"""
        a, b = (x[0].float().chunk(2) for x in (self.alpha, self.beta))
        half = torch.arange(len(a[0]), device=a[0].device)
        angles = torch.arange(1 - reach, reach, device=a[0].device)[:, None] * 10000.0 ** (-half / len(half))
        bias = angles.cos() @ (a[0] * b[0] + a[1] * b[1]) + angles.sin() @ (a[1] * b[0] - a[0] * b[1])
        return bias.to(self.alpha.dtype)


class TCNCAGatedAttention(nn.Module):
    """MEGA's gated attention with convolutions for its moving average (arXiv 2209.10655, equations 7 to 16), residual included."""

    def __init__(self, config: TCNCAConfig, layer_idx: int = 0):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.scaling = config.z_dim**-0.5
        self.num_key_value_groups = 1  # what Transformers' attention functions ask for
        self.is_causal = False  # the mask says it
        self.sizes = (config.hidden_size, config.z_dim + config.v_dim, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.tcn = TemporalConvolution(config)
        self.v_proj = nn.Linear(config.hidden_size, config.v_dim)
        self.mx_proj = nn.Linear(config.hidden_size, sum(self.sizes))
        self.h_proj = nn.Linear(config.v_dim, config.hidden_size)
        self.gamma = nn.Parameter(torch.empty(2, config.z_dim))
        self.beta = nn.Parameter(torch.empty(2, config.z_dim))
        self.rel_pos_bias = RelativeBias(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: TCNCACache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: (batch, tokens, hidden_size).
            attention_mask: (batch, tokens), 0 at padding, which stands behind the tokens where there is a cache.

        Returns:
            The layer's output, shaped as the input, and attention weights (batch, chunks, queries, keys) where the implementation has them.
        """
        config, cache = self.config, None if past_key_values is None else past_key_values.layers[self.layer_idx]
        x = self.norm(hidden_states)
        v = F.silu(token_linear(self.v_proj, x))
        before = None if cache is None else cache.tcn
        mixed, tcn = self.tcn(x, attention_mask, before, cache is not None)
        base = token_linear(self.mx_proj, drop(mixed, config.dropout, self.training, config.feature_dropout))
        u, zr, hx = base.split(self.sizes, -1)
        z, r = F.silu(zr).split((config.z_dim, config.v_dim), -1)
        q, k = (z.unsqueeze(2) * self.gamma + self.beta).unbind(2)
        attended, weights = self.attend(q, k, v, attention_mask, cache, tcn)
        h = F.silu(hx + token_linear(self.h_proj, attended * r))
        h = drop(h, config.dropout, self.training, config.feature_dropout)
        return torch.lerp(hidden_states, h, u.sigmoid()), weights

    def attend(self, q, k, v, attention_mask, cache, tcn):
        config = self.config
        chunk, seen, tokens = None, None, q.shape[1]
        reach = tokens
        if cache is not None:
            chunk, seen = cache.chunk, cache.tcn.seen if cache.tcn is not None else torch.zeros_like(tcn.seen)
            reach += 0 if chunk is None else chunk.keys.shape[1]
            cache.store(tcn, leave_open(k, v, config.chunk_size, seen, tcn.seen - seen, chunk), tokens)
        bias = self.rel_pos_bias(min(reach, config.chunk_size) if config.chunk_size > 0 else reach)
        dropout = config.attention_dropout if self.training else 0.0
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention_forward)

        def softmax(q, k, v, mask):
            return interface(self, q, k, v, mask, scaling=self.scaling, dropout=dropout)

        v = drop(v, config.hidden_dropout, self.training, config.feature_dropout)
        options = (config.chunk_size, config.causal, config.attention_activation, attention_mask, seen, chunk)
        return chunked_attention(q, k, v, bias, *options, softmax, dropout)


class TCNCAFeedForward(nn.Module):
    """MEGA's normalised feed-forward network, residual included."""

    def __init__(self, config: TCNCAConfig):
        super().__init__()
        self.rates, self.features = (config.hidden_dropout, config.dropout), config.feature_dropout
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = F.silu(token_linear(self.fc1, self.norm(hidden_states)))
        x = token_linear(self.fc2, drop(x, self.rates[0], self.training, self.features))
        return hidden_states + drop(x, self.rates[1], self.training, self.features)


class TCNCALayer(GradientCheckpointingLayer):
    def __init__(self, config: TCNCAConfig, layer_idx: int):
        super().__init__()
        self.attention = TCNCAGatedAttention(config, layer_idx)
        self.mlp = TCNCAFeedForward(config) if config.intermediate_size else nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: TCNCACache | None = None,
    ) -> torch.Tensor:
        hidden_states, _ = self.attention(hidden_states, attention_mask, past_key_values)
        return self.mlp(hidden_states)


class TCNCAPreTrainedModel(PreTrainedModel):
    config_class = TCNCAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TCNCALayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _is_stateful = True
    _can_record_outputs = {"hidden_states": TCNCALayer, "attentions": OutputRecorder(TCNCAGatedAttention, index=1)}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, TemporalConvolution):
            bound = self.config.kernel_size**-0.5  # as torch's convolutions
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
            init.normal_(module.omega)
        elif isinstance(module, TCNCAGatedAttention):
            init.normal_(module.gamma, std=std)
            init.zeros_(module.beta)
        elif isinstance(module, RelativeBias):
            for parameter in module.parameters():
                init.normal_(parameter, std=std)
        elif isinstance(module, nn.Embedding):  # MEGA's embeddings are scaled by sqrt(hidden_size)
            init.normal_(module.weight, std=self.config.hidden_size**-0.5)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])


class TCNCAModel(TCNCAPreTrainedModel):
    """The layers without a head (arXiv 2312.05605): token ids (batch, tokens) to hidden states (batch, tokens, hidden_size)."""

    def __init__(self, config: TCNCAConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([TCNCALayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, config.final_norm_affine)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        r"""
        Args:
            input_ids (batch, tokens) or inputs_embeds (batch, tokens, hidden_size), before their factor sqrt(hidden_size).
            attention_mask: (batch, tokens), or with those of the cache; 0 at padding, where the output is 0. In a causal model padding,
                wherever it stands, changes nothing.
            past_key_values: a `TCNCACache`; causal models only.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if inputs_embeds.ndim != 3 or 0 in inputs_embeds.shape:
            raise ValueError(
                f"sequences must be (batch, tokens) and hold something; embedded they are {tuple(inputs_embeds.shape)}"
            )
        if past_key_values is not None and not isinstance(past_key_values, TCNCACache):
            raise ValueError(
                f"past_key_values must be made with TCNCACache(model.config); got a {type(past_key_values).__name__}"
            )
        if past_key_values is not None and not self.config.causal:
            raise ValueError("A cache is of use to causal models only; this one has causal=False")
        if use_cache and past_key_values is None and self.config.causal and not self.training:
            past_key_values = TCNCACache(self.config)

        hidden_states = inputs_embeds * self.config.hidden_size**0.5
        mask, order = self.padding(attention_mask, hidden_states)
        if mask is not None:
            hidden_states = hidden_states * mask.unsqueeze(-1).to(hidden_states.dtype)
        if order is not None:
            hidden_states, mask = hidden_states.take_along_dim(order.unsqueeze(-1), 1), mask.take_along_dim(order, 1)
        hidden_states = drop(hidden_states, self.config.dropout, self.training, self.config.feature_dropout)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=mask, past_key_values=past_key_values)
        hidden_states = self.norm(hidden_states)
        if mask is not None:
            hidden_states = hidden_states * mask.unsqueeze(-1).to(hidden_states.dtype)
        if order is not None:
            hidden_states = hidden_states.take_along_dim(order.argsort(dim=1).unsqueeze(-1), 1)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)

    def padding(
        self, attention_mask: torch.Tensor | None, hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The mask of the new tokens (batch, tokens), and for causal models the order that brings padding behind them."""
        if attention_mask is None:
            return None, None
        batch, tokens = hidden_states.shape[:2]
        if attention_mask.ndim != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < tokens:
            raise ValueError(
                f"attention_mask must be (batch, tokens) = {(batch, tokens)}, or longer with a cache; got {tuple(attention_mask.shape)}"
            )
        mask = attention_mask[:, -tokens:]
        if not torch.compiler.is_compiling() and bool(mask.all()):
            return None, None
        return mask, mask.long().argsort(dim=1, descending=True, stable=True) if self.config.causal else None


class TCNCAForCausalLM(TCNCAPreTrainedModel, GenerationMixin):
    """The language model (arXiv 2312.05605): logits (batch, tokens, vocab_size); with `labels`, their mean cross entropy."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: TCNCAConfig):
        if not config.causal:
            raise ValueError("A language model needs causal=True; got a configuration with causal=False")
        super().__init__(config)
        self.model = TCNCAModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        r"""
        Arguments as those of `TCNCAModel`, and

        Args:
            labels: (batch, tokens) token ids, -100 where there is no loss; shifted inside.
            logits_to_keep: positions to compute logits for: the last so many, 0 for all, or a tensor of indices.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args, **kwargs
    ) -> None:
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        if given is None and model_kwargs.get("past_key_values") is not None:
            model_kwargs["past_key_values"] = TCNCACache(self.config)


class TCNCAForSequenceClassification(TCNCAPreTrainedModel):
    """Classes of whole sequences, from the mean hidden state of the real tokens, as MEGA does on LRA: logits (batch, num_labels)."""

    accepts_loss_kwargs = False  # the losses are means over the batch, so Trainer divides by its accumulation steps

    def __init__(self, config: TCNCAConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = TCNCAModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutputWithPast:
        r"""
        Args:
            input_ids (batch, tokens) or inputs_embeds (batch, tokens, hidden_size), before their factor sqrt(hidden_size).
            attention_mask: (batch, tokens), 0 at padding, which the mean leaves out.
            labels: class indices (batch,), numbers (batch,) where `num_labels` is 1, or 0 and 1 for each class (batch, num_labels) with
                `problem_type="multi_label_classification"`.
        """
        kwargs |= {"use_cache": False}
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs)
        hidden_states = outputs.last_hidden_state
        if attention_mask is None:
            pooled = hidden_states.mean(1)
        else:
            pooled = hidden_states.sum(1) / attention_mask.sum(1, keepdim=True).clamp(min=1).to(hidden_states.dtype)
        logits = self.score(pooled)
        loss = None
        if labels is not None:
            if self.config.problem_type == "multi_label_classification":
                labels = labels.to(logits.dtype)
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "TCNCACache",
    "TCNCAForCausalLM",
    "TCNCAForSequenceClassification",
    "TCNCAGatedAttention",
    "TCNCAModel",
    "TCNCAPreTrainedModel",
    "TemporalConvolution",
]
