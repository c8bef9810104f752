"""DeltaNet: a pre-norm decoder whose token mixer replaces, token by token, what its state holds under a key.

Papers: "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", arXiv 2406.06484; "Unlocking State-Tracking in Linear
RNNs Through Negative Eigenvalues", arXiv 2411.12537, which doubles the step size (`allow_neg_eigval`).
Reference: fla-org/flash-linear-attention, `fla/layers/delta_net.py` and `fla/models/delta_net`.

Parameter names are the reference's, so the checkpoints under fla-hub load unchanged. On purpose different:
- step sizes are computed in float32 whatever the model's type: rounded ones lose the sign alternation that negative eigenvalues are for;
- padding is masked instead of packed away: a padded token has step size 0, so it leaves the state as it is;
- all windows of hybrid attention layers must be equal, since Transformers makes one mask per kind of layer.
"""

import torch
import torch.nn.functional as F
from torch import nn
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
from hf_ext.ops.delta_rule import delta_rule

from .configuration_deltanet import DeltaNetConfig


def elu_plus_one(x: torch.Tensor) -> torch.Tensor:
    return F.elu(x) + 1


def identity(x: torch.Tensor) -> torch.Tensor:
    return x


QK_ACTIVATIONS = {"silu": F.silu, "relu": F.relu, "elu": elu_plus_one, "identity": identity}

register_checkpoint_conversion_mapping("delta_net", [SPLIT_FUSED_GATE], overwrite=True)


class DeltaNetCache(RecurrentCache):
    """Constant-size states of the DeltaNet layers, and keys and values of hybrid attention layers, for `DeltaNetModel`."""


class DeltaNetMixer(RecurrentMixer):
    """The token mixer: projections, optional short convolution, delta rule, head norm, optional output gate."""

    def __init__(self, config: DeltaNetConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.head_k_dim = config.key_dim // config.num_heads
        self.head_v_dim = config.value_dim // config.num_heads
        self.channels = (config.key_dim, config.key_dim, config.value_dim)
        self.num_heads = config.num_heads
        self.qk_activation = QK_ACTIVATIONS[config.qk_activation]
        self.l2_norm = config.qk_norm == "l2"
        self.beta_range = 2.0 if config.allow_neg_eigval else 1.0
        self.sigmoid = (config.sigmoid_pre_scale, config.sigmoid_scale, config.sigmoid_shift)

        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(config.hidden_size, width, bias=False) for width in self.channels
        )
        self.b_proj = nn.Linear(config.hidden_size, config.num_heads, bias=False) if config.use_beta else None
        self.q_conv1d, self.k_conv1d, self.v_conv1d = (
            ShortConvolution(width, config.conv_size) if config.use_short_conv else None for width in self.channels
        )
        self.g_proj = nn.Linear(config.hidden_size, config.value_dim, bias=False) if config.use_gate else None
        self.o_norm = nn.RMSNorm(self.head_v_dim, eps=config.norm_eps)
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
        q, k = (self.qk_activation(x).unflatten(-1, (-1, self.head_k_dim)) for x in (q, k))
        v = F.silu(v).unflatten(-1, (-1, self.head_v_dim))
        beta = self.step_size(hidden_states)
        if padding_mask is not None:
            beta = beta * padding_mask.unsqueeze(-1)
            # a key that sums to something: the norm of an all-zero one at a padded place would spread NaN
            q, k = (x.masked_fill((padding_mask == 0)[:, :, None, None], 1.0) for x in (q, k))
        if not self.l2_norm:
            q, k = (x / x.sum(-1, keepdim=True) for x in (q, k))
        o, state = delta_rule(
            q,
            k,
            v,
            beta,
            initial_state=None if cache is None else cache.recurrent_states[0],
            output_final_state=cache is not None,
            cu_seqlens=cu_seqlens,
            use_qk_l2norm_in_kernel=self.l2_norm,
        )
        if cache is not None:
            cache.update_recurrent_state(state)

        o = self.o_norm(o).flatten(2)
        if self.g_proj is not None:
            o = o * F.silu(self.g_proj(hidden_states))
        o = self.o_proj(o)
        return o if padding_mask is None else o * padding_mask.unsqueeze(-1).to(o.dtype), None

    def step_size(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """beta (batch, tokens, heads) in float32"""
        if self.b_proj is None:
            return hidden_states.new_full(
                (*hidden_states.shape[:2], self.num_heads), self.beta_range, dtype=torch.float32
            )
        pre_scale, scale, shift = self.sigmoid
        logits = self.b_proj(hidden_states)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return (scale * (pre_scale * logits).sigmoid() + shift) * self.beta_range


class DeltaNetPreTrainedModel(RecurrentPreTrainedModel):
    config_class = DeltaNetConfig
    mixer_class = DeltaNetMixer
    cache_class = DeltaNetCache


class DeltaNetModel(DeltaNetPreTrainedModel, RecurrentModel):
    """The decoder without a head (arXiv 2411.12537): token ids (batch, tokens) to hidden states (batch, tokens, hidden_size)."""


class DeltaNetForCausalLM(DeltaNetPreTrainedModel, RecurrentForCausalLM):
    """The language model (arXiv 2411.12537): next-token logits (batch, tokens, vocab_size); with `labels`, their mean cross entropy."""

    decoder_class = DeltaNetModel


__all__ = ["DeltaNetCache", "DeltaNetForCausalLM", "DeltaNetModel", "DeltaNetPreTrainedModel"]
