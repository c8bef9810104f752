"""The Tokens-to-Token module: "Tokens-to-Token ViT" (arXiv 2101.11986), section 3.1.

Overlapping patches are cut out three times ("soft split"), and after each of the first two cuts the tokens attend to each other.
References: yitu-opensource/T2T-ViT @0f63dc95, `models/t2t_vit.py`; IBM/CrossViT @3f7ab77c, `models/t2t/t2t.py` (patches of 12).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit.modeling_vit import eager_attention_forward

from .linear import token_linear

# patch size -> (kernel, stride, padding) of the three soft splits
SOFT_SPLITS = {12: ((7, 4, 2), (3, 3, 1), (3, 1, 1)), 16: ((7, 4, 2), (3, 2, 1), (3, 2, 1))}


class TokenLayer(GradientCheckpointingLayer):
    """A transformer layer with one head that narrows (B, N, width) to (B, N, token_width): the value is the residual."""

    dropout_rate = 0.0

    def __init__(self, config: PreTrainedConfig, width: int, token_width: int, qkv_bias: bool):
        super().__init__()
        self.config = config
        self.layernorm_before = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, token_width, bias=qkv_bias)
        self.k_proj = nn.Linear(width, token_width, bias=qkv_bias)
        self.v_proj = nn.Linear(width, token_width, bias=qkv_bias)
        self.o_proj = nn.Linear(token_width, token_width)
        self.layernorm_after = nn.LayerNorm(token_width)
        self.fc1 = nn.Linear(token_width, token_width)
        self.activation_fn = nn.GELU()
        self.fc2 = nn.Linear(token_width, token_width)
        self.dropout = nn.Dropout(self.dropout_rate)

    def mix(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        raise TypeError(f"{type(self).__name__} does not say how tokens attend to each other")

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        normed = self.layernorm_before(tokens)
        query, key, value = (token_linear(layer, normed) for layer in (self.q_proj, self.k_proj, self.v_proj))
        tokens = value + self.dropout(token_linear(self.o_proj, self.mix(query, key, value)))
        hidden_states = self.activation_fn(token_linear(self.fc1, self.layernorm_after(tokens)))
        return tokens + self.dropout(token_linear(self.fc2, hidden_states))


class TokenTransformer(TokenLayer):
    """Softmax attention; its scale comes from the width of the input, not of the head."""

    is_causal = False

    def __init__(self, config: PreTrainedConfig, width: int, token_width: int):
        super().__init__(config, width, token_width, qkv_bias=False)
        self.scaling = width**-0.5

    def mix(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        context, _ = attention_interface(
            self, query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1), None, scaling=self.scaling
        )
        return context.flatten(2)


class TokenPerformer(TokenLayer):
    """Linear attention with positive random features (Performer, arXiv 2009.14794), in float32."""

    dropout_rate = 0.1

    def __init__(self, config: PreTrainedConfig, width: int, token_width: int):
        super().__init__(config, width, token_width, qkv_bias=True)
        self.register_buffer("random_features", self.draw_features(token_width // 2, token_width))

    @staticmethod
    def draw_features(count: int, width: int) -> torch.Tensor:
        """(count, width): orthogonal rows of length sqrt(count)."""
        return nn.init.orthogonal_(torch.empty(count, width)) * count**0.5

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """phi(x) = exp(W x - |x|^2 / 2) / sqrt(m)"""
        x, random_features = x.float(), self.random_features.float()
        return torch.exp(x @ random_features.t() - x.square().sum(-1, keepdim=True) / 2) * len(random_features) ** -0.5

    def mix(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        query, key = self.features(query), self.features(key)  # (B, N, m)
        normalizer = query @ key.sum(1).unsqueeze(-1) + 1e-8  # (B, N, 1)
        return (query @ (key.transpose(1, 2) @ value.float()) / normalizer).to(value.dtype)


class TokensToToken(nn.Module):
    """Image (B, channels, H, W) -> map of tokens (B, hidden_size, H / patch, W / patch).

    Args:
        layer_class: `TokenTransformer` or `TokenPerformer`.
        patch_size: 12 or 16, which H and W are multiples of.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        layer_class: type[TokenLayer],
        num_channels: int,
        hidden_size: int,
        patch_size: int,
        token_width: int = 64,
    ):
        super().__init__()
        self.soft_splits = SOFT_SPLITS[patch_size]
        kernels = [kernel**2 for kernel, _, _ in self.soft_splits]
        self.layers = nn.ModuleList(
            [
                layer_class(config, num_channels * kernels[0], token_width),
                layer_class(config, token_width * kernels[1], token_width),
            ]
        )
        self.projection = nn.Linear(token_width * kernels[2], hidden_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for layer, (kernel, stride, padding) in zip((*self.layers, self.projection), self.soft_splits):
            size = [(edge + 2 * padding - kernel) // stride + 1 for edge in images.shape[2:]]
            tokens = nn.functional.unfold(images, kernel, stride=stride, padding=padding).transpose(1, 2)
            images = layer(tokens).transpose(1, 2).unflatten(2, size)
        return images
