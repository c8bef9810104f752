"""Informer: a long forecast in one pass, with attention for the few queries that need it.

Paper: "Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting", arXiv:2012.07436.
Reference: https://github.com/zhouhaoyi/Informer2020.

The encoder embeds each step (value, position, calendar), layers of ProbSparse attention alternate with distilling, which halves the
length. The decoder reads the last known steps, then a placeholder for every step of the horizon, and gives the whole horizon at once.

Differences from the reference, on purpose:
- The feed-forward network is two `Linear`s instead of two 1x1 convolutions (the same arithmetic).
- In eval mode the sampled keys come from a fixed seed, so forecasts can be repeated; the reference draws new ones at each call.
- Sinusoids are buffers, as long as the sequences are, and are not saved.
- A single encoder is a stack of one, so one class serves the reference's `Informer` and `InformerStack`.
- Missing values are told apart by `past_observed_mask` and read as 0, the training mean of standardised values. There is no
  calendar where `num_time_features` is 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithCrossAttentions, Seq2SeqModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.vit.modeling_vit import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hf_ext.layers.initialization import init_conv_as_torch
from hf_ext.layers.linear import token_linear
from hf_ext.layers.positions import sinusoid_positions
from hf_ext.layers.post_norm import FeedForward, SelfAttention
from hf_ext.layers.series import check_same_shape, masked_mse
from hf_ext.ops.prob_sparse_attention import prob_sparse_attention, sample_keys

from .configuration_informer import InformerGenerativeConfig

# What the calendar tables look up, in the order of the features, and how many entries each table has
CALENDAR = {"month": 13, "day": 32, "weekday": 7, "hour": 24, "minute": 4}


@dataclass
class InformerGenerativeForPredictionOutput(ModelOutput):
    """
    Args:
        loss: mean squared error, when `future_values` are given.
        prediction_outputs: (batch, prediction_length, num_output_channels), standardised as `past_values` are.
        encoder_last_hidden_state: (batch, steps, hidden_size), what the decoder attends to: the encoders' outputs one after the
            other, each after its final LayerNorm.
        encoder_hidden_states, decoder_hidden_states: the embeddings and the output of each layer, with `output_hidden_states=True`.
        encoder_attentions, decoder_attentions, cross_attentions: per layer (batch, heads, queries, keys), with
            `output_attentions=True`; in ProbSparse layers 1 / keys in the rows of queries that do not attend.
    """

    loss: torch.FloatTensor | None = None
    prediction_outputs: torch.FloatTensor | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    encoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    encoder_attentions: tuple[torch.FloatTensor, ...] | None = None
    decoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    decoder_attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


class InformerGenerativeKeySampler(nn.Module):
    """Draws the keys against which ProbSparse layers score their queries: encoder by encoder, then the decoder's layers.

    The draws of `config.sampling_seed` are buffers, so that they are part of an exported program.
    """

    def __init__(self, config: InformerGenerativeConfig):
        super().__init__()
        decoder_length = config.label_length + config.prediction_length
        encoder_lengths = [length for lengths in config.layer_lengths() for length in lengths]
        self.lengths = encoder_lengths + [decoder_length] * config.num_decoder_layers
        self.factor = config.sampling_factor
        self.seed = config.sampling_seed
        self.enabled = config.attention_type == "prob"
        if self.enabled and self.seed is not None:
            for index, draw in enumerate(self.draw(self.seed)):
                self.register_buffer(f"draw_{index}", draw, persistent=False)

    def draw(self, seed: int | None = None, device: torch.device | str = "cpu") -> list[torch.Tensor]:
        """Per layer (queries, samples). A seed makes them the reference's after `torch.manual_seed(seed)`, on every device."""
        if seed is None:
            return [sample_keys(length, length, self.factor, device=device) for length in self.lengths]
        generator = torch.Generator().manual_seed(seed)
        return [sample_keys(length, length, self.factor, generator).to(device) for length in self.lengths]

    def forward(self, seed: int | None, device: torch.device) -> list[torch.Tensor | None]:
        if not self.enabled:
            return [None] * len(self.lengths)
        if seed is None and self.seed is not None and not self.training:
            return [draw.to(device) for draw in self.buffers()]
        return self.draw(seed, device)


class InformerGenerativeSinusoids(nn.Module):
    """(length, hidden_size): fixed, so not saved; of steps, or of an entry of the calendar."""

    def __init__(self, length: int, hidden_size: int):
        super().__init__()
        self.register_buffer("table", sinusoid_positions(length, hidden_size), persistent=False)

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(index, self.table)


class InformerGenerativeCalendarTables(nn.Module):
    """The sum of a table's entry per calendar feature, fixed or learned."""

    def __init__(self, config: InformerGenerativeConfig):
        super().__init__()
        table = InformerGenerativeSinusoids if config.calendar_embedding == "fixed" else nn.Embedding
        self.names = list(CALENDAR)[: config.num_time_features]
        self.tables = nn.ModuleDict({name: table(CALENDAR[name], config.hidden_size) for name in self.names})

    def forward(self, time_features: torch.Tensor) -> torch.Tensor:
        entries = time_features.long()
        if not torch.compiler.is_compiling():
            self._check(time_features, entries)
        return sum(self.tables[name](entries[..., column]) for column, name in enumerate(self.names))

    def _check(self, time_features: torch.Tensor, entries: torch.Tensor) -> None:
        sizes = entries.new_tensor([CALENDAR[name] for name in self.names])
        if (entries != time_features).any() or ((entries < 0) | (entries >= sizes)).any():
            allowed = ", ".join(f"{name} below {CALENDAR[name]}" for name in self.names)
            raise ValueError(
                f"Time features must be whole numbers, {allowed}; got values from {time_features.min()} to {time_features.max()}"
            )


class InformerGenerativeValueEmbedding(nn.Conv1d):
    """A convolution over three steps, the ends of the series joined. (B, L, V) -> (B, L, D)"""

    def __init__(self, config: InformerGenerativeConfig):
        super().__init__(config.num_input_channels, config.hidden_size, 3, padding=1, padding_mode="circular")

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return super().forward(values.transpose(1, 2)).transpose(1, 2)


class InformerGenerativeEmbeddings(nn.Module):
    """Value, position and calendar of each step, added (appendix B)."""

    def __init__(self, config: InformerGenerativeConfig, length: int):
        super().__init__()
        width = config.hidden_size
        self.value_embedding = InformerGenerativeValueEmbedding(config)
        self.position_embedding = InformerGenerativeSinusoids(length, width)
        self.calendar_embedding = None
        if config.num_time_features:
            linear = config.calendar_embedding == "linear"
            self.calendar_embedding = (
                nn.Linear(config.num_time_features, width) if linear else InformerGenerativeCalendarTables(config)
            )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, values: torch.Tensor, time_features: torch.Tensor | None) -> torch.Tensor:
        hidden_states = self.value_embedding(values) + self.position_embedding.table
        if self.calendar_embedding is not None:
            hidden_states = hidden_states + self.calendar_embedding(time_features)
        return self.dropout(hidden_states)


class InformerGenerativeAttention(SelfAttention):
    """Full attention. With `mix_heads` its result, (heads, time, channels) in memory, is read as (time, heads * channels)."""

    def __init__(self, config: InformerGenerativeConfig, is_causal: bool = False, mix_heads: bool = False):
        super().__init__(config, is_causal)
        self.mix_heads = mix_heads

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        key_value_states = hidden_states if key_value_states is None else key_value_states
        query = token_linear(self.q_proj, hidden_states).unflatten(-1, (-1, self.head_dim))
        key = token_linear(self.k_proj, key_value_states).unflatten(-1, (-1, self.head_dim))
        value = token_linear(self.v_proj, key_value_states).unflatten(-1, (-1, self.head_dim))
        attn_output, attn_weights = self.attend(query, key, value, **kwargs)  # (B, L, heads, head_dim)
        if self.mix_heads:
            attn_output = attn_output.transpose(1, 2)
        attn_output = attn_output.reshape(*hidden_states.shape[:-1], -1)
        return token_linear(self.o_proj, attn_output), attn_weights

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        key_samples: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        return attention_interface(
            self,
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )


class InformerGenerativeProbSparseAttention(InformerGenerativeAttention):
    """ProbSparse self-attention (section 3.2), without dropout on its weights."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        key_samples: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return prob_sparse_attention(
            query,
            key,
            value,
            key_samples,
            self.config.sampling_factor,
            self.is_causal,
            self.scaling,
            output_weights=bool(kwargs.get("output_attentions", self.config.output_attentions)),
        )


SELF_ATTENTION = {"prob": InformerGenerativeProbSparseAttention, "full": InformerGenerativeAttention}


class InformerGenerativeEncoderLayer(GradientCheckpointingLayer):
    """A post-norm block: self-attention, then the feed-forward network."""

    def __init__(self, config: InformerGenerativeConfig):
        super().__init__()
        self.self_attn = SELF_ATTENTION[config.attention_type](config)
        self.self_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = FeedForward(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, hidden_states: torch.Tensor, key_samples: torch.Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        attn_output, _ = self.self_attn(hidden_states, key_samples=key_samples, **kwargs)
        hidden_states = self.self_attn_norm(hidden_states + self.dropout(attn_output))
        return self.mlp_norm(hidden_states + self.mlp(hidden_states))


class InformerGenerativeDistilling(nn.Module):
    """Halves the length, rounding up: convolution over three steps, the ends joined, BatchNorm, ELU, max pooling (eq. 5).

    Upstream's `InformerConvLayer` is recomputed under gradient checkpointing, which updates BatchNorm's statistics twice.
    """

    def __init__(self, config: InformerGenerativeConfig):
        super().__init__()
        self.conv = nn.Conv1d(config.hidden_size, config.hidden_size, 3, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm1d(config.hidden_size)
        self.activation_fn = nn.ELU()
        self.pool = nn.MaxPool1d(3, stride=2, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv(hidden_states.transpose(1, 2))  # (B, L, D) -> (B, D, L)
        return self.pool(self.activation_fn(self.norm(hidden_states))).transpose(1, 2)  # -> (B, ceil(L / 2), D)


class InformerGenerativeDecoderLayer(GradientCheckpointingLayer):
    """A post-norm block: causal self-attention, full attention to the encoder's output, feed-forward network."""

    def __init__(self, config: InformerGenerativeConfig):
        super().__init__()
        self.self_attn = SELF_ATTENTION[config.attention_type](config, is_causal=True, mix_heads=config.mix_heads)
        self.self_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attn = InformerGenerativeAttention(config)
        self.cross_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = FeedForward(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        key_samples: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attn_output, _ = self.self_attn(hidden_states, attention_mask=attention_mask, key_samples=key_samples, **kwargs)
        hidden_states = self.self_attn_norm(hidden_states + self.dropout(attn_output))
        attn_output, _ = self.cross_attn(hidden_states, encoder_hidden_states, **kwargs)
        hidden_states = self.cross_attn_norm(hidden_states + self.dropout(attn_output))
        return self.mlp_norm(hidden_states + self.mlp(hidden_states))


class InformerGenerativePreTrainedModel(PreTrainedModel):
    config: InformerGenerativeConfig
    base_model_prefix = "model"
    main_input_name = "past_values"
    input_modalities = ("time",)
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "InformerGenerativeEmbeddings",
        "InformerGenerativeEncoderLayer",
        "InformerGenerativeDistilling",
        "InformerGenerativeDecoderLayer",
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, so Trainer divides by its accumulation steps

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation, save for the value embeddings, as in the reference."""
        if isinstance(module, InformerGenerativeValueEmbedding):
            init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="leaky_relu")
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, InformerGenerativeSinusoids):
            init.copy_(module.table, sinusoid_positions(*module.table.shape))
        elif isinstance(module, InformerGenerativeKeySampler):
            for buffer, draw in zip(module.buffers(), module.draw(module.seed)):
                init.copy_(buffer, draw)
        elif isinstance(module, (nn.Linear, nn.Conv1d)):
            init_conv_as_torch(module)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        else:
            super()._init_weights(module)


class InformerGenerativeEncoderBranch(nn.Module):
    """One encoder: its layers with distilling between them, and a final LayerNorm."""

    def __init__(self, config: InformerGenerativeConfig, depth: int):
        super().__init__()
        self.layers = nn.ModuleList([InformerGenerativeEncoderLayer(config) for _ in range(depth)])
        self.distilling = nn.ModuleList(
            [InformerGenerativeDistilling(config) if config.distil else nn.Identity() for _ in range(depth - 1)]
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_samples: list[torch.Tensor | None],
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        for layer, distil, samples in zip(self.layers, (*self.distilling, nn.Identity()), key_samples):
            hidden_states = distil(layer(hidden_states, samples, **kwargs))
        return self.layernorm(hidden_states)


class InformerGenerativeEncoder(InformerGenerativePreTrainedModel):
    """One encoder, or several on ever shorter ends of the input, their outputs one after the other (InformerStack)."""

    _can_record_outputs = {
        "hidden_states": InformerGenerativeEncoderLayer,
        "attentions": InformerGenerativeAttention,
    }

    def __init__(self, config: InformerGenerativeConfig):
        super().__init__(config)
        self.embeddings = InformerGenerativeEmbeddings(config, config.context_length)
        self.branches = nn.ModuleList([InformerGenerativeEncoderBranch(config, d) for d in config.encoder_depths])
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        values: torch.Tensor,
        time_features: torch.Tensor | None,
        key_samples: list[torch.Tensor | None],
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        hidden_states = self.embeddings(values, time_features)
        samples = iter(key_samples)
        outputs = [
            branch(hidden_states[:, -(values.shape[1] // 2**index) :], [next(samples) for _ in branch.layers], **kwargs)
            for index, branch in enumerate(self.branches)
        ]
        return BaseModelOutput(last_hidden_state=torch.cat(outputs, 1))


class InformerGenerativeDecoder(InformerGenerativePreTrainedModel):
    """Reads known steps and placeholders for the horizon, attends to the encoder's output (section 3.4)."""

    _can_record_outputs = {
        "hidden_states": InformerGenerativeDecoderLayer,
        "attentions": OutputRecorder(InformerGenerativeAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(InformerGenerativeAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: InformerGenerativeConfig):
        super().__init__(config)
        self.embeddings = InformerGenerativeEmbeddings(config, config.label_length + config.prediction_length)
        self.layers = nn.ModuleList([InformerGenerativeDecoderLayer(config) for _ in range(config.num_decoder_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        values: torch.Tensor,
        time_features: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor,
        key_samples: list[torch.Tensor | None],
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithCrossAttentions:
        hidden_states = self.embeddings(values, time_features)
        attention_mask = None
        if self.config.attention_type == "full":
            attention_mask = create_causal_mask(self.config, hidden_states, attention_mask=None, past_key_values=None)
        for layer, samples in zip(self.layers, key_samples):
            hidden_states = layer(hidden_states, encoder_hidden_states, samples, attention_mask, **kwargs)
        return BaseModelOutputWithCrossAttentions(last_hidden_state=self.layernorm(hidden_states))


class InformerGenerativeModel(InformerGenerativePreTrainedModel):
    """Encoder and decoder, without the head."""

    def __init__(self, config: InformerGenerativeConfig):
        super().__init__(config)
        self.key_sampler = InformerGenerativeKeySampler(config)
        self.encoder = InformerGenerativeEncoder(config)
        self.decoder = InformerGenerativeDecoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        past_values: torch.Tensor,
        past_time_features: torch.Tensor | None = None,
        future_time_features: torch.Tensor | None = None,
        past_observed_mask: torch.Tensor | None = None,
        sampling_seed: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput:
        r"""
        Args:
            past_values: (batch, context_length, num_input_channels), standardised with the mean and standard deviation of the
                training data. Never written to.
            past_time_features: (batch, context_length, num_time_features), the calendar of those steps; see
                `config.calendar_embedding` for what it holds. Needed unless `num_time_features` is 0.
            future_time_features: (batch, prediction_length, num_time_features), the calendar of the steps to forecast.
            past_observed_mask: the shape of `past_values`, 1 where a value was observed and 0 where it is missing. What stands in
                `past_values` under a 0 does not matter, NaN included; the model sees 0 there.
            sampling_seed: seed of the keys that ProbSparse layers sample. By default they are those of `config.sampling_seed` in
                eval mode, and new ones from torch's global generator in training mode.

        Returns:
            `last_hidden_state` is (batch, label_length + prediction_length, hidden_size), the decoder's.

        Raises:
            ValueError: a tensor of another shape, or no calendar for a model that was made for one.
        """
        config = self.config
        self._check_shapes(past_values, past_time_features, future_time_features, past_observed_mask)
        dtype = self.decoder.layernorm.weight.dtype  # 8-bit loading does not change that of a LayerNorm
        if past_observed_mask is not None:
            past_values = torch.where(past_observed_mask.bool(), past_values, 0)
        past_values = past_values.to(dtype)
        if config.num_time_features and config.calendar_embedding == "linear":
            past_time_features, future_time_features = past_time_features.to(dtype), future_time_features.to(dtype)
        samples = self.key_sampler(sampling_seed, past_values.device)

        encoder_outputs = self.encoder(
            past_values, past_time_features, samples[: sum(config.encoder_depths)], return_dict=True, **kwargs
        )
        known = config.context_length - config.label_length
        horizon = past_values.new_full((1, 1, 1), config.decoder_fill)
        horizon = horizon.expand(past_values.shape[0], config.prediction_length, config.num_input_channels)
        time_features = None
        if config.num_time_features:
            time_features = torch.cat([past_time_features[:, known:], future_time_features], dim=1)
        decoder_outputs = self.decoder(
            torch.cat([past_values[:, known:], horizon], dim=1),
            time_features,
            encoder_outputs.last_hidden_state,
            samples[sum(config.encoder_depths) :],
            return_dict=True,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )

    def _check_shapes(
        self,
        past_values: torch.Tensor,
        past_time_features: torch.Tensor | None,
        future_time_features: torch.Tensor | None,
        observed: torch.Tensor | None,
    ) -> None:
        config = self.config
        expected = (config.context_length, config.num_input_channels)
        if past_values.ndim != 3 or past_values.shape[1:] != expected:
            raise ValueError(
                f"`past_values` must be (batch, context_length, num_input_channels) = (batch, {expected[0]}, {expected[1]}), "
                f"got {tuple(past_values.shape)}"
            )
        check_same_shape("past_observed_mask", observed, past_values.shape, "of the shape of `past_values`")
        for name, given, steps in (
            ("past_time_features", past_time_features, config.context_length),
            ("future_time_features", future_time_features, config.prediction_length),
        ):
            if given is None and config.num_time_features:
                raise ValueError(
                    f"`{name}` is missing: this model reads {config.num_time_features} calendar features of each step "
                    "(`hf_ext.data.time_series.calendar_features` makes them)"
                )
            if config.num_time_features:
                shape = (past_values.shape[0], steps, config.num_time_features)
                check_same_shape(name, given, shape, "(batch, steps, num_time_features)")


class InformerGenerativeForPrediction(InformerGenerativePreTrainedModel):
    """Forecasts `prediction_length` steps in one pass: a linear map from each of the decoder's steps (section 3.4).

    ```python
    >>> from hf_ext.models.informer import InformerGenerativeConfig, InformerGenerativeForPrediction

    >>> config = InformerGenerativeConfig.from_preset("etth1-24", num_time_features=0)
    >>> model = InformerGenerativeForPrediction(config).eval()
    >>> model(past_values=torch.randn(2, 48, 7)).prediction_outputs.shape
    torch.Size([2, 24, 7])
    ```
    """

    def __init__(self, config: InformerGenerativeConfig):
        super().__init__(config)
        self.model = InformerGenerativeModel(config)
        self.head = nn.Linear(config.hidden_size, config.num_output_channels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        past_values: torch.Tensor,
        past_time_features: torch.Tensor | None = None,
        future_time_features: torch.Tensor | None = None,
        past_observed_mask: torch.Tensor | None = None,
        future_values: torch.Tensor | None = None,
        future_observed_mask: torch.Tensor | None = None,
        sampling_seed: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> InformerGenerativeForPredictionOutput:
        r"""
        Args:
            past_values, past_time_features, future_time_features, past_observed_mask, sampling_seed: as in
                `InformerGenerativeModel`.
            future_values: (batch, prediction_length, num_input_channels) or only the last num_output_channels of them. With
                them the loss is the mean squared error of the channels that are forecast.
            future_observed_mask: same shape, 0 where a future value is missing and does not count in the loss.

        Raises:
            ValueError: a tensor of another shape, or no calendar for a model that was made for one.
        """
        outputs = self.model(
            past_values, past_time_features, future_time_features, past_observed_mask, sampling_seed, **kwargs
        )
        predictions = self.head(outputs.last_hidden_state[:, -self.config.prediction_length :])
        loss = None if future_values is None else self._loss(predictions, future_values, future_observed_mask)
        return InformerGenerativeForPredictionOutput(
            loss=loss,
            prediction_outputs=predictions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
        )

    def _loss(
        self, predictions: torch.Tensor, future_values: torch.Tensor, observed: torch.Tensor | None
    ) -> torch.Tensor:
        channels = self.config.num_output_channels
        meaning = "(batch, prediction_length, num_output_channels)"
        check_same_shape("future_values", future_values[..., -channels:], predictions.shape, meaning)
        check_same_shape("future_observed_mask", observed, future_values.shape, "of the shape of `future_values`")
        counted = None if observed is None else observed[..., -channels:].bool()
        return masked_mse(predictions, future_values[..., -channels:], counted)


__all__ = [
    "InformerGenerativeForPrediction",
    "InformerGenerativeForPredictionOutput",
    "InformerGenerativeModel",
    "InformerGenerativePreTrainedModel",
]
