"""Dualformer: an encoder-decoder that answers a planning task fast (plan alone), slowly (search trace and plan) or as it chooses.

Paper: Dualformer: Controllable Fast and Slow Thinking by Learning with Randomized Reasoning Traces, arXiv 2410.09918; the network is
that of Searchformer, arXiv 2402.14083. Reference: facebookresearch/dualformer.
Blocks are Llama's (RMS norm, SwiGLU, rotary positions), attended to both ways in the encoder; cross-attention reads the encoder's output
without a norm and without positions. On purpose otherwise than in the reference: attention dropout is off in evaluation, channels of a
head that rotate together lie half a head apart (`convert` moves the weights), and keys and values of cross-attention are cached.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bart.modeling_bart import shift_tokens_right
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRotaryEmbedding,
    eager_attention_forward,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_dualformer import DualformerConfig, DualformerStackConfig

MODES = {"fast": "plan_token_id", "slow": "create_token_id", "auto": None}


def rms_norm(config: DualformerStackConfig) -> nn.RMSNorm:
    return nn.RMSNorm(config.hidden_size, config.rms_norm_eps, elementwise_affine=config.norm_affine)


class DualformerSelfAttention(LlamaAttention):
    def __init__(self, config: DualformerStackConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.is_causal = config.is_decoder


class DualformerCrossAttention(LlamaAttention):
    """Queries of the decoder over keys and values of the encoder's output, (batch, prompt, hidden_size of the decoder)."""

    def __init__(self, config: DualformerStackConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.is_causal = False

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        q = self.q_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            cached = past_key_values.cross_attention_cache.layers[self.layer_idx]
            k, v = cached.keys, cached.values
        else:
            k, v = (
                projection(encoder_hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
                for projection in (self.k_proj, self.v_proj)
            )
            if past_key_values is not None:
                k, v = past_key_values.cross_attention_cache.update(k, v, self.layer_idx)
                past_key_values.is_updated[self.layer_idx] = True
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        o, weights = attention_interface(self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.o_proj(o.flatten(2)), weights


class DualformerEncoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: DualformerStackConfig, layer_idx: int):
        super().__init__()
        self.self_attn_norm = rms_norm(config)
        self.self_attn = DualformerSelfAttention(config, layer_idx)
        self.mlp_norm = rms_norm(config)
        self.mlp = LlamaMLP(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        hidden_states = hidden_states + self.self_attn(self.self_attn_norm(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class DualformerDecoderLayer(DualformerEncoderLayer):
    def __init__(self, config: DualformerStackConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.cross_attn_norm = rms_norm(config)
        self.cross_attn = DualformerCrossAttention(config, layer_idx)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        attended, _ = self.self_attn(
            self.self_attn_norm(hidden_states),
            past_key_values=None if past_key_values is None else past_key_values.self_attention_cache,
            **kwargs,
        )
        hidden_states = hidden_states + attended
        attended, _ = self.cross_attn(
            self.cross_attn_norm(hidden_states), encoder_hidden_states, encoder_attention_mask, past_key_values
        )
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class DualformerPreTrainedModel(PreTrainedModel):
    config_class = DualformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over sequences, not over tokens
    _no_split_modules = ["DualformerEncoderLayer", "DualformerDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True


class DualformerStack(DualformerPreTrainedModel):
    """What encoder and decoder share: embedding, rotary positions, layers of `layer_class`, a last norm."""

    layer_class: type[DualformerEncoderLayer]

    def __init__(self, config: DualformerStackConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.layers = nn.ModuleList([self.layer_class(config, index) for index in range(config.num_hidden_layers)])
        self.norm = rms_norm(config)
        self.gradient_checkpointing = False

    def embed(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, seen: int = 0):
        """Embeddings (batch, tokens, hidden_size), positions (1, tokens) after `seen` tokens, and their cosines and sines"""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either token ids or embeddings, to the encoder and to the decoder")
        if input_ids is not None and input_ids.ndim != 2:
            raise ValueError(f"Token ids must be (batch, tokens), got the shape {tuple(input_ids.shape)}")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)[None] + seen
        return hidden_states, positions, self.rotary_emb(hidden_states, positions)


class DualformerEncoder(DualformerStack):
    """Token ids (batch, prompt) -> (batch, prompt, hidden_size of the decoder)"""

    layer_class = DualformerEncoderLayer
    _can_record_outputs = {"hidden_states": DualformerEncoderLayer, "attentions": DualformerSelfAttention}

    def __init__(self, config: DualformerStackConfig, output_size: int, masks_padding: bool):
        super().__init__(config)
        self.masks_padding = masks_padding
        self.output_proj = nn.Linear(config.hidden_size, output_size, bias=False)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        hidden_states, _, position_embeddings = self.embed(input_ids, inputs_embeds)
        attention_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask if self.masks_padding else None,
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_embeddings=position_embeddings, attention_mask=attention_mask)
        return BaseModelOutput(last_hidden_state=self.output_proj(self.norm(hidden_states)))


class DualformerDecoder(DualformerStack):
    """Token ids (batch, tokens) and the encoder's output -> (batch, tokens, hidden_size)"""

    layer_class = DualformerDecoderLayer
    _can_record_outputs = {
        "hidden_states": DualformerDecoderLayer,
        "attentions": OutputRecorder(DualformerSelfAttention, index=1),
        "cross_attentions": OutputRecorder(DualformerCrossAttention, index=1),
    }

    def __init__(self, config: DualformerStackConfig):
        super().__init__(config)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        if use_cache and past_key_values is None and not self.training:
            past_key_values = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        hidden_states, position_ids, position_embeddings = self.embed(input_ids, inputs_embeds, seen)
        attention_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            past_key_values=None if past_key_values is None else past_key_values.self_attention_cache,
            position_ids=position_ids,
        )
        encoder_attention_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=encoder_attention_mask,
            encoder_hidden_states=encoder_hidden_states,
        )
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                encoder_hidden_states,
                encoder_attention_mask,
                past_key_values=past_key_values,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
            )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values
        )


class DualformerModel(DualformerPreTrainedModel):
    """Encoder and decoder without the head: prompts (batch, prompt) and answers (batch, tokens) -> (batch, tokens, hidden_size)."""

    def __init__(self, config: DualformerConfig):
        super().__init__(config)
        self.encoder = DualformerEncoder(config.encoder, config.decoder.hidden_size, config.encoder_padding_mask)
        self.decoder = DualformerDecoder(config.decoder)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.encoder.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqModelOutput:
        r"""
        Args:
            input_ids (batch, prompt) or inputs_embeds (batch, prompt, hidden_size of the encoder): bos, the task, eos.
            attention_mask: (batch, prompt), 0 at padding, which stands behind. Token ids do not tell: bos pads too.
            decoder_input_ids (batch, tokens) or decoder_inputs_embeds: bos, the trace if any, the plan.
            decoder_attention_mask: (batch, tokens), 0 at padding.
            encoder_outputs: what the encoder gave for these prompts earlier.
            past_key_values: keys and values of the answer so far and of the prompt.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
            )
        elif not isinstance(encoder_outputs, BaseModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


class DualformerForConditionalGeneration(DualformerPreTrainedModel, GenerationMixin):
    """Logits (batch, tokens, vocab_size) in float32; with `labels`, the mean over sequences of each sequence's mean cross entropy."""

    def __init__(self, config: DualformerConfig):
        super().__init__(config)
        self.model = DualformerModel(config)
        self.lm_head = nn.Linear(config.decoder.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        return shift_tokens_right(labels, self.config.pad_token_id, self.config.decoder_start_token_id)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        r"""
        Arguments as those of `DualformerModel`, and

        Args:
            labels: (batch, tokens) the answer without bos, -100 at padding; without `decoder_input_ids` these are shifted to serve as them.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_inputs_embeds=decoder_inputs_embeds,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state).float()
        loss = None if labels is None else sequence_mean_loss(logits, labels)
        return Seq2SeqLMOutput(
            loss=loss, logits=logits, **{k: v for k, v in outputs.items() if k != "last_hidden_state"}
        )

    def generate(self, inputs: torch.Tensor | None = None, mode: str | None = None, **kwargs: Any) -> Any:
        """`GenerationMixin.generate` with a mode of answering.

        Args:
            inputs: (batch, prompt) token ids, as `input_ids` would be.
            mode: "fast" forces the answer to open with the plan, "slow" with the first step of a search trace, "auto" forces nothing;
                `generation_config.mode` where it is None, or "auto".
            kwargs: as upstream's.

        Returns:
            (batch, tokens): bos, the forced token if any, and what the model wrote up to eos.

        Raises:
            ValueError: an unknown mode; a mode whose token the configuration does not name; a mode beside `decoder_input_ids`.
        """
        if mode is None:
            config = kwargs.get("generation_config") or self.generation_config
            mode = getattr(config, "mode", None) or "auto"
        if mode not in MODES:
            raise ValueError(f"`mode` must be one of {', '.join(MODES)}, got {mode!r}")
        if MODES[mode] is None:
            return super().generate(inputs, **kwargs)
        if kwargs.get("decoder_input_ids") is not None:
            raise ValueError(
                f"mode={mode!r} opens the answer itself; leave `decoder_input_ids` out or take mode='auto'"
            )
        if (forced := getattr(self.config, MODES[mode])) is None:
            raise ValueError(f"mode={mode!r} needs `config.{MODES[mode]}`, the id of that token in the vocabulary")
        given = next(x for x in (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None)
        opening = torch.tensor([[self.config.decoder_start_token_id, forced]], device=given.device)
        return super().generate(inputs, decoder_input_ids=opening.expand(len(given), -1), **kwargs)


def sequence_mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy averaged over each sequence's own tokens (label not -100), then over sequences: short answers count as much as long."""
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return (losses.sum(1) / (labels != -100).sum(1).clamp_min(1)).mean()


__all__ = ["DualformerForConditionalGeneration", "DualformerModel", "DualformerPreTrainedModel"]
