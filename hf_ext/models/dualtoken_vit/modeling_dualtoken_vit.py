"""DualToken-ViT, a light image pyramid with position-aware global tokens: "DualToken-ViT: Position-aware Efficient Vision Transformer
with Dual Token Fusion" (arXiv 2309.12424).

The authors published no code and no weights. What the paper fixes is followed; what it leaves open (widths, heads, where the conv
encoder has how much, the weight of the sum) is this project's choice, so the paper's accuracies do not carry over. Stem, patch merging,
neck and bi-dimensional attention are LightViT's, as the paper says: hunto/LightViT @e2452a17, hunto/image_classification_sota
@6f7a70a1, Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.vit.modeling_vit import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hf_ext.layers.convolution import ConvBatchNorm
from hf_ext.layers.drop_path import DropPath, linear_rates
from hf_ext.layers.fusion import FusionMixin
from hf_ext.layers.initialization import init_conv_as_torch, init_linear
from hf_ext.layers.inputs import check_images
from hf_ext.layers.tokens import to_map, to_tokens

from .configuration_dualtoken_vit import DualTokenViTConfig


@dataclass
class DualTokenViTModelOutput(ModelOutput):
    """
    Attributes:
        last_hidden_state: (B, H / 32 * W / 32, hidden_sizes[2]) image tokens after the final norm, row by row.
        pooler_output: (B, neck_dim), the mean over the image tokens after the neck.
        global_tokens: (B, global_grid ** 2, hidden_sizes[2]) after the last block.
        hidden_states: maps (B, C, H, W) after the stem and each stage.
        attentions: (B, heads, image tokens, global tokens) of each block: how image tokens read the global ones.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    global_tokens: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class DualTokenViTImageClassifierOutput(DualTokenViTModelOutput):
    """
    Attributes:
        loss: when labels are given.
        logits: (B, num_labels).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class DualTokenViTPatchEmbed(nn.Module):
    """LightViT's convolutional stem. (B, channels, H, W) -> (B, C, H / 8, W / 8), each halving rounded up"""

    def __init__(self, config: DualTokenViTConfig):
        super().__init__()
        width, narrow = config.hidden_sizes[0], config.hidden_sizes[0] // 2
        act = config.hidden_act
        self.stem = nn.Sequential(
            ConvBatchNorm(config.num_channels, narrow, 3, stride=2, hidden_act=act),
            ConvBatchNorm(narrow, narrow, 3, groups=narrow, hidden_act=act),
            ConvBatchNorm(narrow, narrow, 3, groups=narrow, hidden_act=act),
            ConvBatchNorm(narrow, narrow, 3, stride=2, groups=narrow, hidden_act=act),
        )
        self.proj = nn.Conv2d(narrow, width, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(width, eps=config.merge_norm_eps)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        feature_map = self.proj(self.stem(pixel_values))
        return to_map(self.norm(to_tokens(feature_map)), feature_map.shape[2:])


class DualTokenViTPatchMerging(nn.Module):
    """Halves the map, with a residual from the maximum of each 2x2 window, and widens the global tokens."""

    def __init__(self, config: DualTokenViTConfig, in_width: int, out_width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_width, eps=config.merge_norm_eps)
        self.reduction = nn.Linear(4 * in_width, out_width, bias=False)
        self.res_proj = nn.Linear(in_width, out_width, bias=False)
        self.global_norm = nn.LayerNorm(in_width, eps=config.merge_norm_eps)
        self.global_proj = nn.Linear(in_width, out_width, bias=False)

    def forward(self, feature_map: torch.Tensor, global_tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = feature_map.shape[2:]
        feature_map = nn.functional.pad(feature_map, (0, width % 2, 0, height % 2))
        strongest = nn.functional.max_pool2d(feature_map, 2)
        corners = torch.cat([feature_map[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)], dim=1)
        tokens = self.reduction(self.norm(to_tokens(corners))) + self.res_proj(to_tokens(strongest))
        return to_map(tokens, strongest.shape[2:]), self.global_proj(self.global_norm(global_tokens))


class DualTokenViTConvEncoder(nn.Module):
    """The local branch: a ConvNeXt block. (B, N, C) and the map's size -> (B, N, C)"""

    def __init__(self, config: DualTokenViTConfig, width: int):
        super().__init__()
        intermediate_size = int(width * config.conv_ratio)
        kernel = config.conv_kernel_size
        self.dwconv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.pwconv1 = nn.Linear(width, intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.pwconv2 = nn.Linear(intermediate_size, width)

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        features = self.norm(to_tokens(self.dwconv(to_map(tokens, size))))
        return tokens + self.pwconv2(self.activation_fn(self.pwconv1(features)))


class DualTokenViTAttention(nn.Module):
    """What both attentions share."""

    is_causal = False

    def __init__(self, config: DualTokenViTConfig, width: int, num_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = width // num_heads
        self.scaling = self.head_dim**-0.5

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, C), (B, M, C), (B, M, C) -> (B, N, C) and, from eager attention, the weights (B, heads, N, M)"""
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        heads = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in (query, key, value))
        context, weights = attention_interface(self, *heads, None, scaling=self.scaling, **kwargs)
        return context.flatten(2), weights


class DualTokenViTAggregation(DualTokenViTAttention):
    """Self-attention of the reduced map: what the image says to the global tokens."""

    def __init__(self, config: DualTokenViTConfig, width: int, num_heads: int):
        super().__init__(config, width, num_heads)
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        context, _ = self.attend(*self.qkv(tokens).chunk(3, dim=-1), **kwargs)
        return self.proj(context)


class DualTokenViTBroadcast(DualTokenViTAttention):
    """Attention of image tokens to global tokens."""

    def __init__(self, config: DualTokenViTConfig, width: int, num_heads: int):
        super().__init__(config, width, num_heads)
        self.q = nn.Linear(width, width, bias=config.qkv_bias)
        self.kv = nn.Linear(width, 2 * width, bias=config.qkv_bias)

    def forward(
        self, tokens: torch.Tensor, global_tokens: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.attend(self.q(tokens), *self.kv(global_tokens).chunk(2, dim=-1), **kwargs)


class DualTokenViTGlobalMlp(nn.Module):
    """Transforms each global token by itself."""

    def __init__(self, config: DualTokenViTConfig, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(width, width)

    def forward(self, global_tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(global_tokens)))


class DualTokenViTGlobalMixMlp(nn.Module):
    """Mixes global tokens across the grid, then transforms each with one layer."""

    def __init__(self, config: DualTokenViTConfig, width: int):
        super().__init__()
        self.token_fc1 = nn.Linear(config.global_grid**2, config.global_grid**2)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.token_fc2 = nn.Linear(config.global_grid**2, config.global_grid**2)
        self.fc = nn.Linear(width, width)

    def forward(self, global_tokens: torch.Tensor) -> torch.Tensor:
        mixed = self.token_fc2(self.activation_fn(self.token_fc1(global_tokens.transpose(1, 2))))
        return self.fc(global_tokens + mixed.transpose(1, 2))


GLOBAL_MIXERS = {"mlp": DualTokenViTGlobalMlp, "mix": DualTokenViTGlobalMixMlp}


class DualTokenViTBiDimensionalAttention(nn.Module):
    """LightViT's gates: one for each channel from the mean token, and one for each token."""

    def __init__(self, config: DualTokenViTConfig, width: int):
        super().__init__()
        narrow = width // 4
        self.norm = nn.LayerNorm(width, eps=config.merge_norm_eps)
        self.global_reduce = nn.Linear(width, narrow)
        self.local_reduce = nn.Linear(width, narrow)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.channel_select = nn.Linear(narrow, width)
        self.spatial_select = nn.Linear(2 * narrow, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        normed = self.norm(tokens)
        whole = self.activation_fn(self.global_reduce(normed.mean(1, keepdim=True)))
        local = self.activation_fn(self.local_reduce(normed))
        both = torch.cat([local, whole.expand(-1, local.shape[1], -1)], dim=-1)
        return tokens * self.channel_select(whole).sigmoid() * self.spatial_select(both).sigmoid()


class DualTokenViTMLP(nn.Module):
    def __init__(self, config: DualTokenViTConfig, width: int, ratio: float):
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(int(width * ratio), width)
        self.attn = DualTokenViTBiDimensionalAttention(config, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.attn(self.fc2(self.activation_fn(self.fc1(tokens))))


class DualTokenViTBlock(GradientCheckpointingLayer):
    """A local branch and a branch through the global tokens, summed; then the MLP (figure 2 of the paper)."""

    def __init__(self, config: DualTokenViTConfig, stage: int, drop_path_rate: float):
        super().__init__()
        width, heads = config.hidden_sizes[stage], config.num_attention_heads[stage]
        self.global_grid, self.global_weight = config.global_grid, config.global_weight
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.conv = DualTokenViTConvEncoder(config, width)
        # Step by step down to the resolution of the last stage, which is the grid's for images of 224 pixels
        self.down = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(len(config.depths) - 1 - stage)
        )
        self.pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        self.aggregate = DualTokenViTAggregation(config, width, heads)
        self.global_mlp = GLOBAL_MIXERS[config.global_mixer](config, width)
        self.broadcast = DualTokenViTBroadcast(config, width, heads)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = DualTokenViTMLP(config, width, config.mlp_ratios[stage])
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self,
        tokens: torch.Tensor,
        global_tokens: torch.Tensor,
        size: tuple[int, int],
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, N, C), (B, grid ** 2, C) and the map's size -> both kinds of token, renewed"""
        normed = self.norm1(tokens)
        local = self.conv(normed, size)
        summary = self.summarize(to_map(local, size), **kwargs)
        global_tokens = self.global_weight * self.global_mlp(global_tokens) + (1 - self.global_weight) * summary
        from_global, _ = self.broadcast(normed, global_tokens, **kwargs)
        tokens = tokens + self.drop_path(local + from_global)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens))), global_tokens

    def summarize(self, feature_map: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """(B, C, H, W) -> (B, grid ** 2, C)"""
        for conv in self.down:
            feature_map = self.pool(conv(feature_map))
        size, grid = tuple(feature_map.shape[2:]), (self.global_grid, self.global_grid)
        tokens = self.aggregate(to_tokens(feature_map), **kwargs)
        if size == grid:
            return tokens
        resized = nn.functional.interpolate(to_map(tokens, size), size=grid, mode="bilinear", align_corners=False)
        return to_tokens(resized)


class DualTokenViTStage(nn.Module):
    """(B, C, H, W) and the global tokens -> the same, with the map halved before all stages but the first."""

    def __init__(self, config: DualTokenViTConfig, stage: int, drop_path_rates: list[float]):
        super().__init__()
        widths = config.hidden_sizes[max(stage - 1, 0) : stage + 1]
        self.downsample = DualTokenViTPatchMerging(config, *widths) if stage > 0 else None
        self.blocks = nn.ModuleList(DualTokenViTBlock(config, stage, rate) for rate in drop_path_rates)

    def forward(
        self, feature_map: torch.Tensor, global_tokens: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.downsample is not None:
            feature_map, global_tokens = self.downsample(feature_map, global_tokens)
        size, tokens = tuple(feature_map.shape[2:]), to_tokens(feature_map)
        for block in self.blocks:
            tokens, global_tokens = block(tokens, global_tokens, size, **kwargs)
        return to_map(tokens, size), global_tokens


class DualTokenViTPreTrainedModel(FusionMixin, PreTrainedModel):
    config_class = DualTokenViTConfig
    base_model_prefix = "dualtoken_vit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["DualTokenViTPatchEmbed", "DualTokenViTBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(DualTokenViTStage),
        "attentions": DualTokenViTBroadcast,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Truncated normal for linear layers and global tokens, torch's default for convolutions."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init_linear(module, std)
        elif isinstance(module, nn.Conv2d):
            init_conv_as_torch(module)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, DualTokenViTModel):
            init.trunc_normal_(module.global_tokens, std=std)
        else:
            super()._init_weights(module)


class DualTokenViTModel(DualTokenViTPreTrainedModel):
    """The pyramid, and the neck that pools it.

    Args:
        add_pooling_layer: with the final norm and the neck; without, `last_hidden_state` is not normalized and there is no
            `pooler_output`.
    """

    def __init__(self, config: DualTokenViTConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        widths = config.hidden_sizes
        self.patch_embed = DualTokenViTPatchEmbed(config)
        self.global_tokens = nn.Parameter(torch.zeros(1, config.global_grid**2, widths[0]))
        rates = linear_rates(config.drop_path_rate, sum(config.depths))
        self.stages = nn.ModuleList(
            DualTokenViTStage(config, stage, [rates.pop(0) for _ in range(depth)])
            for stage, depth in enumerate(config.depths)
        )
        self.norm = nn.LayerNorm(widths[-1], eps=config.layer_norm_eps) if add_pooling_layer else nn.Identity()
        self.neck = None
        if add_pooling_layer:
            norm = nn.LayerNorm(config.neck_dim, eps=config.merge_norm_eps)
            self.neck = nn.Sequential(nn.Linear(widths[-1], config.neck_dim), norm, ACT2FN[config.hidden_act])
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embed

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> DualTokenViTModelOutput:
        """
        Args:
            pixel_values: (B, channels, H, W), normalized, of any size.

        Returns:
            `DualTokenViTModelOutput`.

        Raises:
            ValueError: not four axes, another number of channels than `num_channels`, or no pixels.
        """
        check_images(pixel_values, self.config.num_channels)
        feature_map = self.patch_embed(pixel_values.to(self.dtype))
        global_tokens = self.global_tokens.expand(len(feature_map), -1, -1)
        for stage in self.stages:
            feature_map, global_tokens = stage(feature_map, global_tokens, **kwargs)
        tokens = self.norm(to_tokens(feature_map))
        pooled = None if self.neck is None else self.neck(tokens).mean(1)
        return DualTokenViTModelOutput(last_hidden_state=tokens, pooler_output=pooled, global_tokens=global_tokens)


class DualTokenViTForImageClassification(DualTokenViTPreTrainedModel):
    """DualToken-ViT with a linear head on the pooled neck."""

    def __init__(self, config: DualTokenViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.dualtoken_vit = DualTokenViTModel(config)
        self.classifier = nn.Linear(config.neck_dim, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DualTokenViTImageClassifierOutput:
        """
        Args:
            pixel_values: (B, channels, H, W), normalized, of any size.
            labels: (B,) classes, or (B, num_labels) targets (see `config.problem_type`).

        Returns:
            `DualTokenViTImageClassifierOutput`.

        Raises:
            ValueError: as for `DualTokenViTModel`.
        """
        outputs: DualTokenViTModelOutput = self.dualtoken_vit(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return DualTokenViTImageClassifierOutput(loss=loss, logits=logits, **outputs)


class DualTokenViTBackbone(BackboneMixin, DualTokenViTPreTrainedModel):
    """The image tokens after the stages in `config.out_features` as maps, each through a norm of its own; images of any size."""

    def __init__(self, config: DualTokenViTConfig):
        super().__init__(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        self.dualtoken_vit = DualTokenViTModel(config, add_pooling_layer=False)
        self.hidden_states_norms = nn.ModuleDict(
            {
                stage: nn.LayerNorm(channels, eps=config.layer_norm_eps)
                for stage, channels in zip(self.out_features, self.channels)
            }
        )
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """
        Args:
            pixel_values: (B, channels, H, W), normalized, of any size.

        Returns:
            `feature_maps`, (B, C, H / stride, W / stride) with strides 8 ("stem", "stage1"), 16 and 32, rounded up.

        Raises:
            ValueError: as for `DualTokenViTModel`.
        """
        outputs: DualTokenViTModelOutput = self.dualtoken_vit(pixel_values, **kwargs)
        stages = dict(zip(self.stage_names, outputs.hidden_states))
        return BackboneOutput(
            feature_maps=tuple(self.normalize(name, stages[name]) for name in self.out_features),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def normalize(self, name: str, feature_map: torch.Tensor) -> torch.Tensor:
        return to_map(self.hidden_states_norms[name](to_tokens(feature_map)), feature_map.shape[2:])


__all__ = [
    "DualTokenViTBackbone",
    "DualTokenViTForImageClassification",
    "DualTokenViTImageClassifierOutput",
    "DualTokenViTModel",
    "DualTokenViTModelOutput",
    "DualTokenViTPreTrainedModel",
]
