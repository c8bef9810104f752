"""Gated Linear Attention Transformer: a pre-norm decoder whose token mixer is a linear recurrence with a forget gate per key channel.

Paper: "Gated Linear Attention Transformers with Hardware-Efficient Training", arXiv 2312.06635.
Reference: fla-org/flash-linear-attention, `fla/layers/gla.py` and `fla/models/gla`.

Parameter names are the reference's, so the checkpoints under fla-hub load unchanged; those saved before February 2025, whose
`mlp.gate_proj` holds gate and up projection in one matrix, are split on loading. On purpose different:
- the state of a head is kept as (key channels, value channels), once per head of keys where several query heads share one;
- padding is masked instead of packed away: a padded token has key 0 and log gate 0, so it neither writes nor decays the state;
- all windows of hybrid attention layers must be equal, since Transformers makes one mask per kind of layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2CLS
from transformers.cache_utils import Cache, DynamicCache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
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

from hf_ext.ops.gla import gated_linear_attention

from .configuration_gla import GLAConfig

GATE_LOW_RANK_DIM = 16
GATE_LOGIT_NORMALIZER = 16
FEATURE_MAPS = {
    None: nn.Identity,
    "relu": nn.ReLU,
    "sqrelu": ACT2CLS["relu2"],
    "sigmoid": nn.Sigmoid,
    "logsigmoid": nn.LogSigmoid,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "gelu": partial(nn.GELU, approximate="tanh"),
}
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
register_checkpoint_conversion_mapping("gla", [SPLIT_FUSED_GATE], overwrite=True)


class GLACache(DynamicCache):
    """Constant-size states of the GLA layers, and keys and values of hybrid attention layers, for `GLAModel`.

    It counts the tokens seen, which a state does not show and `generate` asks for.
    """

    # `generate` would compile the forward pass for it, and again at each step, since the count changes
    is_compileable = False

    def __init__(self, config: GLAConfig):
        super().__init__(config=config)
        self.seen_tokens = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen_tokens

    def reset(self) -> None:
        super().reset()
        self.seen_tokens = 0


class GLAShortConvolution(nn.Conv1d):
    """Causal depthwise convolution over the tokens of a sequence, then SiLU."""

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
            return F.silu(sum(tap * self.weight[:, 0, -1 - lag] for lag, tap in enumerate(taps))), state
        size = self.kernel_size[0]
        if padding_mask is not None:  # real tokens first, in their order
            order = padding_mask.long().argsort(dim=1, descending=True, stable=True)
            x = x.take_along_dim(order.unsqueeze(-1), 1)
        if state is None:
            state = x.new_zeros(x.shape[0], x.shape[2], size)
        inputs = torch.cat((state.to(x.dtype), x.mT), -1)
        output = F.silu(super().forward(inputs)[..., 1:]).mT
        if padding_mask is None:
            return output, inputs[..., -size:]
        last = padding_mask.sum(1).view(-1, 1, 1) + torch.arange(size, device=x.device)
        return output.take_along_dim(order.argsort(dim=1).unsqueeze(-1), 1), inputs.take_along_dim(last, -1)


class GatedLinearAttention(nn.Module):
    """The GLA token mixer (section 4 of the paper): projections, optional short convolution, recurrence, head norm, output gate."""

    def __init__(self, config: GLAConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.head_k_dim = config.key_dim // config.num_heads
        self.head_v_dim = config.value_dim // config.num_heads
        self.clamp_min = config.clamp_min
        groups = config.num_heads // (config.num_kv_heads or config.num_heads)
        self.channels = (config.key_dim, config.key_dim // groups, config.value_dim // groups)

        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(config.hidden_size, width, bias=False) for width in self.channels
        )
        self.gk_proj = nn.Sequential(
            nn.Linear(config.hidden_size, GATE_LOW_RANK_DIM, bias=False), nn.Linear(GATE_LOW_RANK_DIM, self.channels[1])
        )
        self.q_conv1d, self.k_conv1d, self.v_conv1d = (
            GLAShortConvolution(width, config.conv_size) if config.use_short_conv else None for width in self.channels
        )
        self.feature_map = FEATURE_MAPS[config.feature_map]()
        self.g_proj = nn.Linear(config.hidden_size, config.value_dim, bias=False) if config.use_output_gate else None
        self.norm_name = "g_norm_swish_gate" if config.fuse_norm and config.use_output_gate else "g_norm"
        norm = nn.RMSNorm(self.head_v_dim, eps=config.norm_eps, elementwise_affine=bool(config.elementwise_affine))
        self.add_module(self.norm_name, norm)
        self.o_proj = nn.Linear(config.value_dim, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        cu_seqlens: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, None]:
        cache = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        q, k, v = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        if self.q_conv1d is not None:
            positions = None if cu_seqlens is None else position_ids[0]
            q, k, v = self.convolve((q, k, v), cache, padding_mask, positions)
        g = F.logsigmoid(self.gk_proj(hidden_states)) / GATE_LOGIT_NORMALIZER
        if self.clamp_min is not None:
            g = g.clamp_min(self.clamp_min)

        q, k, g = (x.unflatten(-1, (-1, self.head_k_dim)) for x in (q, k, g))
        q, k = self.feature_map(q), self.feature_map(k)
        v = v.unflatten(-1, (-1, self.head_v_dim))
        if padding_mask is not None:
            real = padding_mask[:, :, None, None].to(k.dtype)
            k, g = k * real, g * real
        o, state = gated_linear_attention(
            q,
            k,
            v,
            g,
            initial_state=None if cache is None else cache.recurrent_states[0],
            output_final_state=cache is not None,
            cu_seqlens=cu_seqlens,
        )
        if cache is not None:
            cache.update_recurrent_state(state)

        o = self.get_submodule(self.norm_name)(o).flatten(2)
        if self.g_proj is not None:
            o = o * F.silu(self.g_proj(hidden_states))
        o = self.o_proj(o)
        return o if padding_mask is None else o * padding_mask.unsqueeze(-1).to(o.dtype), None

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


class GLASoftmaxAttention(nn.Module):
    """Softmax attention with rotary positions, for the layers that a hybrid model names in `config.attn`."""

    def __init__(self, config: GLAConfig, layer_idx: int):
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


class GLAMLP(nn.Module):
    def __init__(self, config: GLAConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.mlp_dim, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.mlp_dim, bias=False)
        self.down_proj = nn.Linear(config.mlp_dim, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class GLABlock(GradientCheckpointingLayer):
    def __init__(self, config: GLAConfig, layer_idx: int):
        super().__init__()
        attention = GLASoftmaxAttention if layer_idx in config.attention_layers else GatedLinearAttention
        self.attn_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attn = attention(config, layer_idx)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = GLAMLP(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        attended, _ = self.attn(self.attn_norm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class GLAPreTrainedModel(PreTrainedModel):
    config_class = GLAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GLABlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _is_stateful = True
    _input_embed_layer = "embeddings"
    _can_record_outputs = {
        "hidden_states": GLABlock,
        "attentions": OutputRecorder(GLASoftmaxAttention, index=1),
    }


class GLAModel(GLAPreTrainedModel):
    """The decoder without a head (arXiv 2312.06635): token ids (batch, tokens) to hidden states (batch, tokens, hidden_size)."""

    def __init__(self, config: GLAConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([GLABlock(config, layer_idx) for layer_idx in range(config.num_hidden_layers)])
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
            past_key_values: a `GLACache` or another cache made from this configuration.
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
            raise ValueError("past_key_values does not know the kinds of layers; make it with GLACache(model.config)")
        if use_cache and past_key_values is None and cu_seqlens is None and not self.training:
            past_key_values = GLACache(self.config)

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
        if isinstance(past_key_values, GLACache):
            past_key_values.seen_tokens += tokens
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


class GLAForCausalLM(GLAPreTrainedModel, GenerationMixin):
    """The language model (arXiv 2312.06635): next-token logits (batch, tokens, vocab_size); with `labels`, their mean cross entropy."""

    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}

    def __init__(self, config: GLAConfig):
        super().__init__(config)
        self.model = GLAModel(config)
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
        Arguments as those of `GLAModel`, and

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
            model_kwargs["past_key_values"] = GLACache(self.config)


__all__ = ["GLACache", "GLAForCausalLM", "GLAModel", "GLAPreTrainedModel"]
