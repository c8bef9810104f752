"""The post-norm Transformer layer of the Informer family of forecasters (thuml/Time-Series-Library, `layers/Transformer_EncDec.py`).

Its configuration has hidden_size, num_attention_heads, intermediate_size, hidden_act, dropout and layer_norm_eps. The feed-forward
network is two `Linear`s where the authors have two 1x1 convolutions: the same arithmetic.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit.modeling_vit import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from hf_ext.layers.dropout import Dropout
from hf_ext.layers.linear import token_linear


class SelfAttention(nn.Module):
    """Softmax attention through Transformers' interface. A head is `hidden_size // num_attention_heads` wide; where that leaves a
    remainder, queries, keys and values are narrower than `hidden_size`, as the authors' are."""

    def __init__(self, config, is_causal: bool = False):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.attention_dropout = config.dropout
        self.scaling = self.head_dim**-0.5
        self.is_causal = is_causal

        inner_size = config.num_attention_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner_size)
        self.k_proj = nn.Linear(config.hidden_size, inner_size)
        self.v_proj = nn.Linear(config.hidden_size, inner_size)
        self.o_proj = nn.Linear(inner_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states = token_linear(self.q_proj, hidden_states).view(hidden_shape).transpose(1, 2)
        key_states = token_linear(self.k_proj, hidden_states).view(hidden_shape).transpose(1, 2)
        value_states = token_linear(self.v_proj, hidden_states).view(hidden_shape).transpose(1, 2)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return token_linear(self.o_proj, attn_output.reshape(*input_shape, -1)), attn_weights


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation_fn(token_linear(self.fc1, hidden_states)))
        return self.dropout(token_linear(self.fc2, hidden_states))


class PostNormLayer(GradientCheckpointingLayer):
    """Attention, then the feed-forward network; each is added to what came in, and the sum is normalised."""

    def __init__(self, config, is_causal: bool = False):
        super().__init__()
        self.attention = SelfAttention(config, is_causal)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = FeedForward(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attn_output, _ = self.attention(hidden_states, attention_mask, **kwargs)
        hidden_states = self.attention_norm(hidden_states + self.dropout(attn_output))
        return self.mlp_norm(hidden_states + self.mlp(hidden_states))
