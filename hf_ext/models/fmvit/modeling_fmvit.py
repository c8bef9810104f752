"""FMViT, a convolution and transformer hybrid whose parallel branches fuse for deployment: "FMViT: A multiple-frequency mixing Vision
Transformer" (arXiv 2311.05707).

No author code exists (the announced repository holds a README). What the paper fixes are the blocks' names and purposes: convolutional
fusion block, multi-group re-parameterization, gMLP, lightweight re-parameterized attention, multi-frequency block. Their exact form
here is this package's definition, on top of Next-ViT's published blocks; no figure of the paper can be expected of it.

Keys and values are normalised per pooling factor: each channel's BatchNorm sees the one map that the channel is used on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.vit.modeling_vit import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_ext.layers.convolution import ConvBatchNorm, ConvStem, PointwiseConv2d, patch_embedding
from hf_ext.layers.drop_path import DropPath, linear_rates
from hf_ext.layers.fusion import (
    FusionMixin,
    fuse_batchnorm_before,
    fuse_conv_batchnorm,
    fuse_parallel_convs,
    identity_conv,
    output_rows,
)
from hf_ext.layers.initialization import init_linear
from hf_ext.layers.linear import token_linear
from hf_ext.layers.maps import as_map, as_tokens
from hf_ext.layers.pyramid import PyramidBackboneMixin, PyramidClassifierMixin, PyramidEncoder, PyramidStage
from hf_ext.layers.widths import make_divisible, split_width

from .configuration_fmvit import FMViTConfig


class FMViTMultiGroupConv(nn.Module):
    """Convolutions with different numbers of groups, and where asked for a 1x1 convolution and the input itself, each with
    BatchNorm, summed. `fuse()` makes one convolution of them. (B, in, H, W) -> (B, out, H, W)"""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: Sequence[int],
        eps: float,
        point_groups: int | None = None,
        identity: bool = False,
    ):
        super().__init__()
        kinds = [(kernel_size, g) for g in groups] + ([] if point_groups is None else [(1, point_groups)])
        self.branches = nn.ModuleList(
            ConvBatchNorm(in_channels, out_channels, size, groups=g, eps=eps) for size, g in kinds
        )
        self.identity = nn.BatchNorm2d(in_channels, eps=eps) if identity else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        output = sum(branch(hidden_states) for branch in self.branches)
        return output if self.identity is None else output + self.identity(hidden_states)

    def fuse(self) -> nn.Module:
        convs = [branch.conv for branch in self.branches]  # the branches are folded already
        if self.identity is not None:
            norm = self.identity
            convs.append(fuse_conv_batchnorm(identity_conv(norm.num_features, like=convs[0].weight), norm))
        return fuse_parallel_convs(convs)


class FMViTMixer(nn.Module):
    """High frequencies: grouped and depthwise 3x3 convolutions, 1x1 convolution and identity in parallel, then a projection."""

    def __init__(self, config: FMViTConfig, width: int):
        super().__init__()
        groups = width // config.head_dim
        self.conv = FMViTMultiGroupConv(
            width, width, 3, (groups, width), config.batch_norm_eps, point_groups=groups, identity=True
        )
        self.activation_fn = ACT2FN[config.hidden_act]
        self.projection = PointwiseConv2d(width, width, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.projection(self.activation_fn(self.conv(hidden_states)))


class FMViTMLP(nn.Module):
    """gMLP: two multi-group 1x1 convolutions."""

    def __init__(self, config: FMViTConfig, width: int, ratio: float):
        super().__init__()
        intermediate_size = make_divisible(width * ratio, 32)
        self.fc1 = FMViTMultiGroupConv(width, intermediate_size, 1, config.mlp_groups, config.batch_norm_eps)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = FMViTMultiGroupConv(intermediate_size, width, 1, config.mlp_groups, config.batch_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class FMViTPooledProjection(nn.Module):
    """A multi-group 1x1 convolution whose output channels come in parts, each computed on a map of its own.

    One (B, C, H_i, W_i) for each part -> one (B, C_i, H_i, W_i) for each part
    """

    def __init__(self, width: int, parts: Sequence[int], groups: Sequence[int], eps: float):
        super().__init__()
        self.parts = parts
        self.convs = nn.ModuleList(PointwiseConv2d(width, width, g, bias=False) for g in groups)
        self.norms = nn.ModuleList(nn.ModuleList(nn.BatchNorm2d(part, eps=eps) for part in parts) for _ in groups)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        convolved = ([conv(feature_map).split(self.parts, 1) for conv in self.convs] for feature_map in maps)
        return [
            sum(norms[part](branch[part]) for norms, branch in zip(self.norms, branches))
            for part, branches in enumerate(convolved)
        ]

    def fuse(self) -> nn.Module:
        starts = [sum(self.parts[:i]) for i in range(len(self.parts))]
        return FMViTFusedProjection(
            fuse_parallel_convs(
                [
                    fuse_conv_batchnorm(output_rows(conv, start, start + size), norms[part])
                    for conv, norms in zip(self.convs, self.norms)
                ]
            )
            for part, (start, size) in enumerate(zip(starts, self.parts))
        )


class FMViTFusedProjection(nn.ModuleList):
    """What `FMViTPooledProjection` fuses into: one convolution for each part, which computes the channels of that part only."""

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [conv(feature_map) for conv, feature_map in zip(self, maps)]


class FMViTFrequency(nn.Module):
    """Softmax attention of the heads of one pooling factor."""

    is_causal = False

    def __init__(self, config: FMViTConfig):
        super().__init__()
        self.config = config

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Maps (B, c, H, W), (B, c, h, w) and (B, c, h, w) -> tokens (B, H * W, c) and, from eager attention, the weights
        (B, heads, H * W, h * w)"""
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        head_dim = self.config.head_dim
        context, weights = attention_interface(
            self,
            *(as_tokens(x).unflatten(2, (-1, head_dim)).transpose(1, 2) for x in (query, key, value)),
            None,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=head_dim**-0.5,
            **kwargs,
        )
        return context.flatten(2), weights


class FMViTAttention(nn.Module):
    """Low frequencies: re-parameterized lightweight attention (RLMHSA). The heads come in consecutive parts, and each part takes its
    keys and values from the map pooled by its own factor. (B, C, H, W) -> (B, C, H, W)"""

    def __init__(self, config: FMViTConfig, stage: int, width: int):
        super().__init__()
        ratios, self.parts = zip(*config.pooled_parts(stage, width))
        self.pools = nn.ModuleList(
            nn.AvgPool2d(ratio, ratio, ceil_mode=True, count_include_pad=False) if ratio > 1 else nn.Identity()
            for ratio in ratios
        )
        self.q_proj = FMViTMultiGroupConv(width, width, 1, config.mlp_groups, config.batch_norm_eps)
        self.k_proj = FMViTPooledProjection(width, self.parts, config.mlp_groups, config.batch_norm_eps)
        self.v_proj = FMViTPooledProjection(width, self.parts, config.mlp_groups, config.batch_norm_eps)
        self.frequencies = nn.ModuleList(FMViTFrequency(config) for _ in ratios)
        self.o_proj = nn.Linear(width, width)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        pooled = [pool(hidden_states) for pool in self.pools]
        query = self.q_proj(hidden_states).split(self.parts, dim=1)
        key, value = self.k_proj(pooled), self.v_proj(pooled)
        tokens = [part(q, k, v, **kwargs)[0] for part, q, k, v in zip(self.frequencies, query, key, value)]
        return as_map(token_linear(self.o_proj, torch.cat(tokens, dim=-1)), tuple(hidden_states.shape[2:]))

    def fuse_after(self, norm: nn.BatchNorm2d) -> None:
        """Takes the norm in front into the folded projections: pooling is linear and keeps constants."""
        self.q_proj = fuse_batchnorm_before(norm, self.q_proj)
        for projection in (self.k_proj, self.v_proj):
            for part, conv in enumerate(projection):
                projection[part] = fuse_batchnorm_before(norm, conv)


class FMViTConvLayer(GradientCheckpointingLayer):
    """Convolutional fusion block (CFB)."""

    def __init__(
        self,
        config: FMViTConfig,
        stage: int,
        in_channels: int,
        width: int,
        stride: int,
        drop_path_rate: float,
    ):
        super().__init__()
        self.patch_embedding = patch_embedding(in_channels, width, stride, config.batch_norm_eps)
        self.mixer = FMViTMixer(config, width)
        self.mlp = FMViTMLP(config, width, config.cfb_mlp_ratio)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        hidden_states = self.patch_embedding(hidden_states)
        hidden_states = hidden_states + self.drop_path(self.mixer(hidden_states))
        return hidden_states + self.drop_path(self.mlp(hidden_states))


class FMViTMultiFrequencyLayer(GradientCheckpointingLayer):
    """Multi-frequency block (FMB): attention on a share of the channels, convolution on what is projected from them, both concatenated
    and mixed by an MLP."""

    def __init__(
        self,
        config: FMViTConfig,
        stage: int,
        in_channels: int,
        width: int,
        stride: int,
        drop_path_rate: float,
    ):
        super().__init__()
        attention_width, conv_width = split_width(width, config.mix_block_ratio)
        self.patch_embedding = patch_embedding(in_channels, attention_width, stride, config.batch_norm_eps)
        self.norm = nn.BatchNorm2d(attention_width, eps=config.batch_norm_eps)
        self.attention = FMViTAttention(config, stage, attention_width)
        self.projection = patch_embedding(attention_width, conv_width, eps=config.batch_norm_eps)
        self.mixer = FMViTMixer(config, conv_width)
        self.mlp = FMViTMLP(config, width, config.fmb_mlp_ratio)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        low = self.patch_embedding(hidden_states)
        low = low + self.drop_path(self.attention(self.norm(low), **kwargs))
        high = self.projection(low)
        high = high + self.drop_path(self.mixer(high))
        hidden_states = torch.cat([low, high], dim=1)
        return hidden_states + self.drop_path(self.mlp(hidden_states))

    def fuse(self) -> nn.Module:
        self.attention.fuse_after(self.norm)
        self.norm = nn.Identity()
        return self


class FMViTStage(PyramidStage):
    """Convolutional fusion blocks and, but for the first stage, a multi-frequency block at the end."""

    def __init__(self, config: FMViTConfig, stage: int, drop_path_rates: Sequence[float]):
        layers = []
        in_channels = (config.stem_sizes[-1], *config.out_sizes)[stage]
        for block, rate in enumerate(drop_path_rates):
            mixes = config.is_multi_frequency_block(stage, block)
            layer_class = FMViTMultiFrequencyLayer if mixes else FMViTConvLayer
            width = (config.out_sizes if mixes else config.hidden_sizes)[stage]
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(layer_class(config, stage, in_channels, width, stride, rate))
            in_channels = width
        super().__init__(layers)


def fmvit_encoder(config: FMViTConfig) -> PyramidEncoder:
    rates = iter(linear_rates(config.drop_path_rate, sum(config.depths)))
    return PyramidEncoder(
        ConvStem(config.num_channels, config.stem_sizes, config.hidden_act, config.batch_norm_eps),
        (FMViTStage(config, stage, [next(rates) for _ in range(depth)]) for stage, depth in enumerate(config.depths)),
    )


class FMViTPreTrainedModel(FusionMixin, PreTrainedModel):
    config_class = FMViTConfig
    base_model_prefix = "fmvit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["ConvStem", "FMViTConvLayer", "FMViTMultiFrequencyLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": FMViTStage, "attentions": FMViTFrequency}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Truncated normal weights and zero biases; norms are identities."""
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init_linear(module, self.config.initializer_range)
        else:
            super()._init_weights(module)


class FMViTModel(FMViTPreTrainedModel):
    """FMViT without a classifier, ending with BatchNorm."""

    def __init__(self, config: FMViTConfig):
        super().__init__(config)
        self.encoder = fmvit_encoder(config)
        self.norm = nn.BatchNorm2d(config.out_sizes[-1], eps=config.batch_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.input_layer

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: (B, channels, H, W), normalised, of any size.

        Returns:
            `last_hidden_state` (B, out_sizes[-1], H / 32, W / 32) after the last norm, sizes rounded up, and its mean over positions,
            `pooler_output` (B, out_sizes[-1]). On request `hidden_states`, the maps of the stem and of each stage, and `attentions`,
            one entry for each pooling factor of each multi-frequency block.

        Raises:
            ValueError: not four axes, another number of channels than `num_channels`, or no pixels.
        """
        last_hidden_state = self.norm(self.encoder(pixel_values, **kwargs)[-1])
        return BaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state, pooler_output=last_hidden_state.mean((2, 3))
        )


class FMViTForImageClassification(PyramidClassifierMixin, FMViTPreTrainedModel):
    """FMViT with a linear classifier on the mean of the last map."""

    def __init__(self, config: FMViTConfig):
        super().__init__(config)
        self.fmvit = FMViTModel(config)
        self.classifier = nn.Linear(config.out_sizes[-1], config.num_labels)
        self.post_init()


class FMViTBackbone(PyramidBackboneMixin, FMViTPreTrainedModel):
    """FMViT as the backbone of a detector or a segmenter: maps of strides 4, 8, 16 and 32, without a norm."""

    _keys_to_ignore_on_load_unexpected = [r"^(fmvit\.)?norm\.", r"^classifier\."]

    def __init__(self, config: FMViTConfig):
        super().__init__(config)
        self.num_features = [config.stem_sizes[-1], *config.out_sizes]
        self.encoder = fmvit_encoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.input_layer


__all__ = ["FMViTBackbone", "FMViTForImageClassification", "FMViTModel", "FMViTPreTrainedModel"]
