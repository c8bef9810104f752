"""Gated Linear Attention Transformer: a pre-norm decoder whose token mixer is a linear recurrence with a forget gate per key channel.

Paper: "Gated Linear Attention Transformers with Hardware-Efficient Training", arXiv 2312.06635.
Reference: fla-org/flash-linear-attention, `fla/layers/gla.py` and `fla/models/gla`.

Parameter names are the reference's, so the checkpoints under fla-hub load unchanged. On purpose different:
- the state of a head is kept as (key channels, value channels), once per head of keys where several query heads share one;
- padding is masked instead of packed away: a padded token has key 0 and log gate 0, so it neither writes nor decays the state;
- all windows of hybrid attention layers must be equal, since Transformers makes one mask per kind of layer.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2CLS
from transformers.cache_utils import Cache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping

from hf_ext.layers.recurrent_decoder import (
    SPLIT_FUSED_GATE,
    RecurrentCache,
    RecurrentForCausalLM,
    RecurrentMixer,
    RecurrentModel,
    RecurrentPreTrainedModel,
    ShortConvolution,
)
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

register_checkpoint_conversion_mapping("gla", [SPLIT_FUSED_GATE], overwrite=True)


class GLACache(RecurrentCache):
    """Constant-size states of the GLA layers, and keys and values of hybrid attention layers, for `GLAModel`."""


class GatedLinearAttention(RecurrentMixer):
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
            ShortConvolution(width, config.conv_size) if config.use_short_conv else None for width in self.channels
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
            q, k, v = (F.silu(x) for x in self.convolve((q, k, v), cache, padding_mask, positions))
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


class GLAPreTrainedModel(RecurrentPreTrainedModel):
    config_class = GLAConfig
    mixer_class = GatedLinearAttention
    cache_class = GLACache


class GLAModel(GLAPreTrainedModel, RecurrentModel):
    """The decoder without a head (arXiv 2312.06635): token ids (batch, tokens) to hidden states (batch, tokens, hidden_size)."""


class GLAForCausalLM(GLAPreTrainedModel, RecurrentForCausalLM):
    """The language model (arXiv 2312.06635): next-token logits (batch, tokens, vocab_size); with `labels`, their mean cross entropy."""

    decoder_class = GLAModel


__all__ = ["GLACache", "GLAForCausalLM", "GLAModel", "GLAPreTrainedModel"]
