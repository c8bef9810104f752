"""T2T-ViT, a ViT on progressively merged tokens: "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet"
(arXiv 2101.11986). Reference: yitu-opensource/T2T-ViT @0f63dc95, `models/t2t_vit.py`, Clear BSD.

The Tokens-to-Token module is `hf_ext.layers.tokens_to_token`; the backbone's attention and layers are ViT's of Transformers, with
stochastic depth. Where the port differs on purpose:
- any height and width that are multiples of 16: positions are interpolated as the authors do it between two training sizes;
- the fixed sinusoids and the performer's random features are buffers, not parameters without a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput, ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.vit.modeling_vit import ViTAttention, ViTLayer, ViTMLP
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_ext.layers.drop_path import DropPath, linear_rates
from hf_ext.layers.initialization import init_linear
from hf_ext.layers.inputs import check_images
from hf_ext.layers.linear import token_linear
from hf_ext.layers.positions import interpolate_positions
from hf_ext.layers.tokens import to_map, to_tokens
from hf_ext.layers.tokens_to_token import TokenPerformer, TokensToToken, TokenTransformer

from .configuration_t2t_vit import PATCH_SIZE, T2TViTConfig

TOKEN_LAYERS = {"performer": TokenPerformer, "transformer": TokenTransformer}


@dataclass
class T2TViTModelOutput(ModelOutput):
    """
    Attributes:
        last_hidden_state: (B, 1 + N, D) after the final norm, class token first, patches row by row.
        patch_embeddings: (B, N, D), what the Tokens-to-Token module gives, without positions.
        hidden_states: (B, 1 + N, D), the embedding and the output of each layer.
        attentions: (B, heads, 1 + N, 1 + N) of each layer.
    """

    last_hidden_state: torch.Tensor | None = None
    patch_embeddings: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class T2TViTImageClassifierOutput(T2TViTModelOutput):
    """
    Attributes:
        loss: when labels are given.
        logits: (B, num_labels).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


def sinusoids(length: int, width: int) -> torch.Tensor:
    """(1, length, width): sine and cosine, interleaved, of the position over 10000^(2 i / width)."""
    position = torch.arange(length, dtype=torch.float64)[:, None]
    channel = torch.arange(width)
    angle = position / 10000 ** (2 * (channel // 2) / width).double()
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float().unsqueeze(0)


class T2TViTEmbeddings(nn.Module):
    """Class token, merged patches and positions."""

    def __init__(self, config: T2TViTConfig):
        super().__init__()
        self.grid = config.image_size // PATCH_SIZE
        self.tokens_to_token = TokensToToken(
            config,
            TOKEN_LAYERS[config.token_layer],
            config.num_channels,
            config.hidden_size,
            PATCH_SIZE,
            config.token_size,
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.register_buffer("position_embeddings", sinusoids(self.grid**2 + 1, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, channels, H, W) -> (B, 1 + N, D), and the patches alone, without positions: (B, N, D)"""
        height, width = (edge // PATCH_SIZE for edge in pixel_values.shape[2:])
        patches = to_tokens(self.tokens_to_token(pixel_values))
        first, grid = self.position_embeddings.split([1, self.grid**2], dim=1)
        positions = torch.cat([first, interpolate_positions(grid, (height, width))], dim=1)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return self.dropout(tokens + positions), patches


class T2TViTMLP(ViTMLP):
    """ViT's, with dropout between its layers too."""

    def __init__(self, config: T2TViTConfig):
        super().__init__(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation_fn(token_linear(self.fc1, hidden_states)))
        return token_linear(self.fc2, hidden_states)


class T2TViTLayer(ViTLayer):
    """ViT's, with stochastic depth."""

    def __init__(self, config: T2TViTConfig, drop_path_rate: float):
        super().__init__(config)
        self.mlp = T2TViTMLP(config)
        self.attention.scaling = config.attention_scale or self.attention.scaling
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attention, _ = self.attention(self.layernorm_before(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(attention))
        return hidden_states + self.drop_path(self.dropout(self.mlp(self.layernorm_after(hidden_states))))


class T2TViTPreTrainedModel(PreTrainedModel):
    config_class = T2TViTConfig
    base_model_prefix = "t2t_vit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["T2TViTEmbeddings", "T2TViTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": T2TViTLayer, "attentions": ViTAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the reference: truncated normal for linear layers and the class token; sinusoids; orthogonal random features."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init_linear(module, std)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, T2TViTEmbeddings):
            init.trunc_normal_(module.cls_token, std=std)
            init.copy_(module.position_embeddings, sinusoids(*module.position_embeddings.shape[1:]))
        elif isinstance(module, TokenPerformer):
            init.copy_(module.random_features, module.draw_features(*module.random_features.shape))


class T2TViTModel(T2TViTPreTrainedModel):
    """The network without a head.

    Args:
        add_final_norm: `last_hidden_state` goes through the final layer norm.
    """

    def __init__(self, config: T2TViTConfig, add_final_norm: bool = True):
        super().__init__(config)
        self.embeddings = T2TViTEmbeddings(config)
        self.layers = nn.ModuleList(
            T2TViTLayer(config, rate) for rate in linear_rates(config.drop_path_rate, config.num_hidden_layers)
        )
        self.layernorm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if add_final_norm else nn.Identity()
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.tokens_to_token

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> T2TViTModelOutput:
        """
        Args:
            pixel_values: (B, channels, H, W), normalized; H and W are multiples of 16.

        Returns:
            `T2TViTModelOutput` with N = H / 16 * W / 16 patches.

        Raises:
            ValueError: not four axes, another number of channels than `num_channels`, no pixels, or an edge that is no multiple of 16.
        """
        check_images(pixel_values, self.config.num_channels)
        if any(edge % PATCH_SIZE for edge in pixel_values.shape[2:]):
            raise ValueError(
                f"Height and width of `pixel_values` must be multiples of {PATCH_SIZE}, not {tuple(pixel_values.shape[2:])}"
            )
        hidden_states, patches = self.embeddings(pixel_values.to(self.dtype))
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return T2TViTModelOutput(last_hidden_state=self.layernorm(hidden_states), patch_embeddings=patches)


class T2TViTForImageClassification(T2TViTPreTrainedModel):
    """T2T-ViT with a linear head on the class token."""

    def __init__(self, config: T2TViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.t2t_vit = T2TViTModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> T2TViTImageClassifierOutput:
        """
        Args:
            pixel_values: (B, channels, H, W) as for `T2TViTModel`.
            labels: (B,) classes, or (B, num_labels) targets (see `config.problem_type`).

        Returns:
            `T2TViTImageClassifierOutput`.

        Raises:
            ValueError: as for `T2TViTModel`.
        """
        outputs: T2TViTModelOutput = self.t2t_vit(pixel_values, **kwargs)
        logits = self.classifier(outputs.last_hidden_state[:, 0])
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return T2TViTImageClassifierOutput(loss=loss, logits=logits, **outputs)


class T2TViTBackbone(BackboneMixin, T2TViTPreTrainedModel):
    """The patches after the layers in `config.out_features` as maps, all of stride 16."""

    def __init__(self, config: T2TViTConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.t2t_vit = T2TViTModel(config, add_final_norm=False)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """
        Args:
            pixel_values: (B, channels, H, W), normalized; H and W are multiples of 16.

        Returns:
            `feature_maps`, each (B, D, H / 16, W / 16).

        Raises:
            ValueError: as for `T2TViTModel`.
        """
        outputs: T2TViTModelOutput = self.t2t_vit(pixel_values, **kwargs)
        size = tuple(edge // PATCH_SIZE for edge in pixel_values.shape[2:])
        stages = dict(zip(self.stage_names, outputs.hidden_states))
        return BackboneOutput(
            feature_maps=tuple(to_map(stages[name][:, 1:], size) for name in self.out_features),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "T2TViTBackbone",
    "T2TViTForImageClassification",
    "T2TViTImageClassifierOutput",
    "T2TViTModel",
    "T2TViTModelOutput",
    "T2TViTPreTrainedModel",
]
