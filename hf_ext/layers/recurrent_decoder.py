"""A pre-norm decoder whose token mixer is a linear recurrence: what the language models of flash-linear-attention have in common.

Reference: fla-org/flash-linear-attention, `fla/models`, `fla/modules`, `fla/layers/attn.py`.

A model of the family is three short classes that name its configuration, mixer and cache. Parameter names are the reference's; checkpoints
saved before February 2025, whose `mlp.gate_proj` holds gate and up projection in one matrix, are split on loading.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.masking_utils import (
    create_causal_mask,
    create_recurrent_attention_mask,
    create_sliding_window_causal_mask,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .recurrent_config import RecurrentLanguageModelConfig

MASKS = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
    "linear_attention": create_recurrent_attention_mask,
}


class SplitFusedGate(ConversionOps):
    """`mlp.gate_proj` of 2I rows, gate above up, becomes `gate_proj` and `up_proj`; checkpoints that have both pass unchanged."""

    supports_many_to_many = True

    @torch.no_grad()
    def convert(self, input_dict: dict[str, Any], **kwargs) -> dict[str, torch.Tensor]:
        weights = {name: x[0] if isinstance(x, list) else x for name, x in input_dict.items()}
        if len(weights) == 1 and "mlp.gate_proj.weight" in weights:
            halves = weights["mlp.gate_proj.weight"].chunk(2)
            weights = dict(zip(("mlp.gate_proj.weight", "mlp.up_proj.weight"), (half.contiguous() for half in halves)))
        return weights

    @property
    def reverse_op(self) -> ConversionOps:
        return self


MLP_WEIGHTS = ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
SPLIT_FUSED_GATE = WeightConverter(MLP_WEIGHTS, MLP_WEIGHTS, [SplitFusedGate()])


class RecurrentCache(DynamicCache):
    """Constant-size states of the recurrent layers, and keys and values of hybrid attention layers, for `RecurrentModel`.

    It counts the tokens seen, which a state does not show and `generate` asks for.
    """

    # `generate` would compile the forward pass for it, and again at each step, since the count changes
    is_compileable = False

    def __init__(self, config: RecurrentLanguageModelConfig):
        super().__init__(config=config)
        self.seen_tokens = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen_tokens

    def reset(self) -> None:
        super().reset()
        self.seen_tokens = 0


class ShortConvolution(nn.Conv1d):
    """Causal depthwise convolution over the tokens of a sequence."""

    def __init__(self, channels: int, kernel_size: int):
        super().__init__(channels, channels, kernel_size, groups=channels, bias=False)

    def forward(
        self,
        x: torch.Tensor,
        state: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            x: (batch, tokens, channels).
            state: the last `kernel_size` inputs before x, (batch, channels, kernel_size); zeros when None.
            padding_mask: (batch, tokens), 0 at tokens that are skipped: the convolution joins the tokens around them.
            positions: (tokens,) place of each token in its packed sequence, for a batch of 1 without state.

        Returns:
            The output, shaped as x, and the state after it.
        """
        if positions is not None:
            taps = (
                F.pad(x, (0, 0, lag, 0))[:, : x.shape[1]] * (positions >= lag)[:, None]
                for lag in range(self.kernel_size[0])
            )
            return sum(tap * self.weight[:, 0, -1 - lag] for lag, tap in enumerate(taps)), state
        size = self.kernel_size[0]
        if padding_mask is not None:  # real tokens first, in their order
            order = padding_mask.long().argsort(dim=1, descending=True, stable=True)
            x = x.take_along_dim(order.unsqueeze(-1), 1)
        if state is None:
            state = x.new_zeros(x.shape[0], x.shape[2], size)
        inputs = torch.cat((state.to(x.dtype), x.mT), -1)
        output = super().forward(inputs)[..., 1:].mT
        if padding_mask is None:
            return output, inputs[..., -size:]
        last = padding_mask.sum(1).view(-1, 1, 1) + torch.arange(size, device=x.device)
        return output.take_along_dim(order.argsort(dim=1).unsqueeze(-1), 1), inputs.take_along_dim(last, -1)


class RecurrentMixer(nn.Module):
    """What the token mixers share: `q_conv1d`, `k_conv1d` and `v_conv1d` over q, k and v of `channels`, their state kept in a cache."""

    channels: tuple[int, int, int]

    def convolve(self, qkv, cache, padding_mask, positions) -> list[torch.Tensor]:
        past = None if cache is None else cache.conv_states[0]
        past = (None, None, None) if past is None else past.split(self.channels, 1)
        convolutions = (self.q_conv1d, self.k_conv1d, self.v_conv1d)
        outputs, states = zip(
            *(conv(x, state, padding_mask, positions) for conv, x, state in zip(convolutions, qkv, past))
        )
        if cache is not None:
            cache.update_conv_state(torch.cat(states, 1))
        return outputs


class HybridSoftmaxAttention(nn.Module):
    """Softmax attention with rotary positions, for the layers that a hybrid model names in `config.attn`."""

    def __init__(self, config: RecurrentLanguageModelConfig, layer_idx: int):
        super().__init__()
        spec = config.attention_layers[layer_idx]
        heads, kv_heads = spec["num_heads"], spec["num_kv_heads"] or spec["num_heads"]
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // heads
        self.num_key_value_groups = heads // kv_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.rope_theta = spec["rope_theta"]
        self.sliding_window = spec["window_size"]
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=spec["qkv_bias"])
        self.k_proj = nn.Linear(config.hidden_size, kv_heads * self.head_dim, bias=spec["qkv_bias"])
        self.v_proj = nn.Linear(config.hidden_size, kv_heads * self.head_dim, bias=spec["qkv_bias"])
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def rotation(self, position_ids: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, (batch, tokens, head_dim)"""
        exponents = torch.arange(0, self.head_dim, 2, device=like.device, dtype=torch.float32) / self.head_dim
        angles = (position_ids[..., None] * self.rope_theta**-exponents).repeat(1, 1, 2)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        q, k, v = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, *self.rotation(position_ids, q))
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        o, weights = attend(
            self, q, k, v, attention_mask, scaling=self.scaling, sliding_window=self.sliding_window, **kwargs
        )
        o = self.o_proj(o.flatten(2))
        return o if padding_mask is None else o * padding_mask.unsqueeze(-1).to(o.dtype), weights


class GatedMLP(nn.Module):
    def __init__(self, config: RecurrentLanguageModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.mlp_dim, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.mlp_dim, bias=False)
        self.down_proj = nn.Linear(config.mlp_dim, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class RecurrentBlock(GradientCheckpointingLayer):
    def __init__(self, config: RecurrentLanguageModelConfig, layer_idx: int, mixer_class: type[RecurrentMixer]):
        super().__init__()
        mixer = HybridSoftmaxAttention if layer_idx in config.attention_layers else mixer_class
        self.attn_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attn = mixer(config, layer_idx)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = GatedMLP(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        attended, _ = self.attn(self.attn_norm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class RecurrentPreTrainedModel(PreTrainedModel):
    """Subclasses name `config_class`, `mixer_class` and `cache_class`."""

    mixer_class: type[RecurrentMixer]
    cache_class: type[RecurrentCache] = RecurrentCache

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RecurrentBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _is_stateful = True
    _input_embed_layer = "embeddings"
    _can_record_outputs = {
        "hidden_states": RecurrentBlock,
        "attentions": OutputRecorder(HybridSoftmaxAttention, index=1),
    }


class RecurrentModel(RecurrentPreTrainedModel):
    """The decoder without a head: token ids (batch, tokens) to hidden states (batch, tokens, hidden_size)."""

    def __init__(self, config: RecurrentLanguageModelConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            [RecurrentBlock(config, layer_idx, self.mixer_class) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        cu_seqlens: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        r"""
        Args:
            input_ids (batch, tokens) or inputs_embeds (batch, tokens, hidden_size).
            attention_mask: (batch, tokens), 0 at padding, which may stand left, right or between: padded tokens leave the
                states as they are, and a layer's attention output is exactly 0 there.
            position_ids: (batch, tokens); read by hybrid attention layers alone.
            past_key_values: a cache of the class `cache_class` or another made from this configuration.
            cu_seqlens: (sequences + 1,) borders of sequences packed in a batch of 1; `cu_seq_lens_q` of Transformers'
                collators is taken too. Excludes a cache.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embeddings(input_ids)
        if cu_seqlens is None:
            cu_seqlens = kwargs.get("cu_seq_lens_q")
        if cu_seqlens is not None and past_key_values is not None:
            raise ValueError("Packed sequences (cu_seqlens) cannot continue a cache; give one of the two")
        if past_key_values is not None and len(past_key_values.layers) != self.config.num_hidden_layers:
            raise ValueError(
                f"past_key_values does not know the kinds of layers; make it with {self.cache_class.__name__}(model.config)"
            )
        if use_cache and past_key_values is None and cu_seqlens is None and not self.training:
            past_key_values = self.cache_class(self.config)

        tokens = inputs_embeds.shape[1]
        if cu_seqlens is not None:
            starts = cu_seqlens[:-1].repeat_interleave(cu_seqlens.diff(), output_size=tokens)
            position_ids = (torch.arange(tokens, device=inputs_embeds.device) - starts).unsqueeze(0)
        elif position_ids is None and self.config.attention_layers:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = (torch.arange(tokens, device=inputs_embeds.device) + seen).unsqueeze(0)

        masks = attention_mask
        if not isinstance(masks, dict):
            arguments = {
                "config": self.config,
                "inputs_embeds": inputs_embeds,
                "attention_mask": attention_mask,
                "past_key_values": past_key_values,
                "position_ids": position_ids,
            }
            masks = {kind: MASKS[kind](**arguments) for kind in {"linear_attention", *self.config.layer_types}}

        hidden_states = inputs_embeds
        for kind, layer in zip(self.config.layer_types, self.layers):
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[kind],
                padding_mask=masks.get("linear_attention"),
                position_ids=position_ids,
                past_key_values=past_key_values,
                cu_seqlens=cu_seqlens,
                **kwargs,
            )
        if isinstance(past_key_values, RecurrentCache):
            past_key_values.seen_tokens += tokens
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


class RecurrentForCausalLM(RecurrentPreTrainedModel, GenerationMixin):
    """The language model around `decoder_class`: logits (batch, tokens, vocab_size); with `labels`, their mean cross entropy."""

    decoder_class: type[RecurrentModel]

    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}

    def __init__(self, config: RecurrentLanguageModelConfig):
        super().__init__(config)
        self.model = self.decoder_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        r"""
        Arguments as those of `RecurrentModel`, and

        Args:
            labels: (batch, tokens) token ids, -100 where there is no loss; shifted inside.
            logits_to_keep: positions to compute logits for: the last so many, 0 for all, or a tensor of indices.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            if self.config.use_l2warp:
                penalty = 0.5e-4 * logits.max(-1).values.square().mean()
                loss = loss + penalty - penalty.detach()
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs) -> None:
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        if given is None and cache is not None and all(cache.is_linear):  # dynamic or static: states are the same
            model_kwargs["past_key_values"] = self.cache_class(self.config)
