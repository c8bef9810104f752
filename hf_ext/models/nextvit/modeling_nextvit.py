"""Next-ViT, a convolution and transformer hybrid for deployment: "Next-ViT: Next Generation Vision Transformer for Efficient
Deployment in Realistic Industrial Scenarios" (arXiv 2207.05501). Reference: bytedance/Next-ViT @922e771a,
`classification/nextvit.py` and its copies in `segmentation/` and `detection/`, Apache-2.0.

Where the port differs on purpose:
- `model.fuse()` folds every BatchNorm but those that end a stage, also the ones behind convolutions (the authors' `merge_bn` folds
  only those in front of a linear layer), and the folded form saves and loads;
- export to ONNX keeps the norms of a model that was not fused (the authors' code drops them silently);
- in the backbone with extra norms the last stage's norm is the classifier's, so ImageNet weights load into it (in the authors'
  repository that line is commented out, and this mode fails);
- maps are kept in channels-last memory on the way, so tokens are views of them.
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
from hf_ext.layers.fusion import FusionMixin, batchnorm_affine, fuse_affine_before, fuse_batchnorm_before
from hf_ext.layers.initialization import init_linear
from hf_ext.layers.linear import token_linear
from hf_ext.layers.maps import as_map, as_tokens
from hf_ext.layers.pyramid import PyramidBackboneMixin, PyramidClassifierMixin, PyramidEncoder, PyramidStage
from hf_ext.layers.widths import make_divisible, split_width

from .configuration_nextvit import NextViTConfig


class NextViTMLP(nn.Module):
    """Two 1x1 convolutions. (B, C, H, W) -> (B, C, H, W)"""

    def __init__(self, config: NextViTConfig, width: int, ratio: float):
        super().__init__()
        intermediate_size = make_divisible(width * ratio, 32)
        self.fc1 = PointwiseConv2d(width, intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = PointwiseConv2d(intermediate_size, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation_fn(self.fc1(hidden_states)))
        return self.dropout(self.fc2(hidden_states))


class NextViTConvolutionalAttention(nn.Module):
    """Multi-head convolutional attention (MHCA, eq. 4): a grouped 3x3 convolution, one group a head, and a projection."""

    def __init__(self, config: NextViTConfig, width: int):
        super().__init__()
        heads = width // config.head_dim
        self.conv = ConvBatchNorm(
            width, width, 3, groups=heads, hidden_act=config.hidden_act, eps=config.batch_norm_eps
        )
        self.projection = PointwiseConv2d(width, width, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.projection(self.conv(hidden_states))


class NextViTAttention(nn.Module):
    """Efficient multi-head self-attention (E-MHSA, eq. 6). Keys and values come from averages over `sr_ratio ** 2` tokens that
    follow each other in row-major order, so the result depends on the width of the map; a last, shorter run is left out."""

    is_causal = False

    def __init__(self, config: NextViTConfig, width: int, sr_ratio: int):
        super().__init__()
        self.config = config
        self.head_dim = width // (width // config.head_dim)
        self.scaling = config.head_dim**-0.5
        self.window = sr_ratio**2
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width, eps=config.batch_norm_eps) if sr_ratio > 1 else nn.Identity()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, C) -> (B, N, C) and, from eager attention, the weights (B, heads, N, N // window)"""
        reduced = self.reduce(hidden_states)
        query, key, value = (
            token_linear(projection, tokens).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection, tokens in ((self.q_proj, hidden_states), (self.k_proj, reduced), (self.v_proj, reduced))
        )
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        context, weights = attention_interface(
            self,
            query,
            key,
            value,
            None,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.dropout(token_linear(self.o_proj, context.flatten(2))), weights

    def reduce(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, N, C) -> (B, N // window, C)"""
        if self.window == 1:
            return hidden_states
        count = hidden_states.shape[1] // self.window
        if count == 0:
            raise ValueError(
                f"The image is too small: a stage that averages {self.window} tokens (`sr_ratios`) sees a map of "
                f"{hidden_states.shape[1]}"
            )
        reduced = hidden_states[:, : count * self.window].unflatten(1, (count, self.window)).mean(2)
        return self.norm(reduced.transpose(1, 2)).transpose(1, 2)

    def fuse_after(self, norm: nn.BatchNorm2d) -> None:
        """Takes the norm in front into the projections. Averaging is linear and keeps constants, so the norm behind it follows."""
        scale, shift = batchnorm_affine(norm)
        self.q_proj = fuse_affine_before(scale, shift, self.q_proj)
        if self.window > 1:
            inner_scale, inner_shift = batchnorm_affine(self.norm)
            scale, shift, self.norm = scale * inner_scale, shift * inner_scale + inner_shift, nn.Identity()
        self.k_proj = fuse_affine_before(scale, shift, self.k_proj)
        self.v_proj = fuse_affine_before(scale, shift, self.v_proj)


class NextViTConvLayer(GradientCheckpointingLayer):
    """Next convolution block (NCB, eq. 3): convolutional attention without a norm in front, then an MLP."""

    def __init__(
        self, config: NextViTConfig, in_channels: int, width: int, stride: int, sr_ratio: int, drop_path_rate: float
    ):
        super().__init__()
        self.patch_embedding = patch_embedding(in_channels, width, stride, config.batch_norm_eps)
        self.convolutional_attention = NextViTConvolutionalAttention(config, width)
        self.norm = nn.BatchNorm2d(width, eps=config.batch_norm_eps)
        self.mlp = NextViTMLP(config, width, config.conv_mlp_ratio)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        hidden_states = self.patch_embedding(hidden_states)
        hidden_states = hidden_states + self.drop_path(self.convolutional_attention(hidden_states))
        return hidden_states + self.drop_path(self.mlp(self.norm(hidden_states)))

    def fuse(self) -> nn.Module:
        self.mlp.fc1, self.norm = fuse_batchnorm_before(self.norm, self.mlp.fc1), nn.Identity()
        return self


class NextViTTransformerLayer(GradientCheckpointingLayer):
    """Next transformer block (NTB, eq. 8): self-attention on a share of the channels, convolutional attention on what is projected
    from them, both concatenated and mixed by an MLP."""

    def __init__(
        self, config: NextViTConfig, in_channels: int, width: int, stride: int, sr_ratio: int, drop_path_rate: float
    ):
        super().__init__()
        attention_width, conv_width = split_width(width, config.mix_block_ratio)
        self.patch_embedding = patch_embedding(in_channels, attention_width, stride, config.batch_norm_eps)
        self.norm_before = nn.BatchNorm2d(attention_width, eps=config.batch_norm_eps)
        self.attention = NextViTAttention(config, attention_width, sr_ratio)
        self.attention_drop_path = DropPath(drop_path_rate * config.mix_block_ratio)
        self.projection = patch_embedding(attention_width, conv_width, eps=config.batch_norm_eps)
        self.convolutional_attention = NextViTConvolutionalAttention(config, conv_width)
        self.conv_drop_path = DropPath(drop_path_rate * (1 - config.mix_block_ratio))
        self.norm_after = nn.BatchNorm2d(width, eps=config.batch_norm_eps)
        self.mlp = NextViTMLP(config, width, config.transformer_mlp_ratio)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        hidden_states = self.patch_embedding(hidden_states)
        tokens = as_tokens(self.norm_before(hidden_states))
        attention, _ = self.attention(tokens, **kwargs)
        low = hidden_states + self.attention_drop_path(as_map(attention, tuple(hidden_states.shape[2:])))
        high = self.projection(low)
        high = high + self.conv_drop_path(self.convolutional_attention(high))
        hidden_states = torch.cat([low, high], dim=1)
        return hidden_states + self.drop_path(self.mlp(self.norm_after(hidden_states)))

    def fuse(self) -> nn.Module:
        self.attention.fuse_after(self.norm_before)
        self.mlp.fc1 = fuse_batchnorm_before(self.norm_after, self.mlp.fc1)
        self.norm_before, self.norm_after = nn.Identity(), nn.Identity()
        return self


class NextViTStage(PyramidStage):
    """Blocks, the first of which may halve the map, then BatchNorm where `norm` says so."""

    def __init__(self, config: NextViTConfig, stage: int, drop_path_rates: Sequence[float], norm: bool):
        layers = []
        in_channels = (config.stem_sizes[-1], *config.out_sizes)[stage]
        for block, rate in enumerate(drop_path_rates):
            transformer = config.is_transformer_block(stage, block)
            layer_class = NextViTTransformerLayer if transformer else NextViTConvLayer
            width = (config.out_sizes if transformer else config.hidden_sizes)[stage]
            stride = config.strides[stage] if block == 0 else 1
            layers.append(layer_class(config, in_channels, width, stride, config.sr_ratios[stage], rate))
            in_channels = width
        super().__init__(layers, nn.BatchNorm2d(in_channels, eps=config.batch_norm_eps) if norm else None)


def nextvit_encoder(config: NextViTConfig, norms: Sequence[bool]) -> PyramidEncoder:
    """Stem and four stages; `norms` says which stages end with one."""
    rates = iter(linear_rates(config.drop_path_rate, sum(config.depths)))
    return PyramidEncoder(
        ConvStem(config.num_channels, config.stem_sizes, config.hidden_act, config.batch_norm_eps),
        (
            NextViTStage(config, stage, [next(rates) for _ in range(depth)], norms[stage])
            for stage, depth in enumerate(config.depths)
        ),
    )


class NextViTPreTrainedModel(FusionMixin, PreTrainedModel):
    config_class = NextViTConfig
    base_model_prefix = "nextvit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["ConvStem", "NextViTConvLayer", "NextViTTransformerLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": NextViTStage, "attentions": NextViTAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the reference: truncated normal weights and zero biases; norms are identities."""
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init_linear(module, self.config.initializer_range)
        else:
            super()._init_weights(module)


class NextViTModel(NextViTPreTrainedModel):
    """Next-ViT without a classifier; its last stage ends with BatchNorm."""

    def __init__(self, config: NextViTConfig):
        super().__init__(config)
        self.encoder = nextvit_encoder(config, norms=(False, False, False, True))
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
            pixel_values: (B, channels, H, W), normalised; any size whose maps hold `sr_ratio ** 2` tokens in every stage (25x25
                and more with the usual strides).

        Returns:
            `last_hidden_state` (B, out_sizes[-1], H / 32, W / 32) after the last norm, sizes rounded up, and its mean over positions,
            `pooler_output` (B, out_sizes[-1]). On request `hidden_states`, the maps of the stem and of each stage, and `attentions`.

        Raises:
            ValueError: not four axes, another number of channels than `num_channels`, no pixels, or an image that is too small.
        """
        last_hidden_state = self.encoder(pixel_values, **kwargs)[-1]
        return BaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state, pooler_output=last_hidden_state.mean((2, 3))
        )


class NextViTForImageClassification(PyramidClassifierMixin, NextViTPreTrainedModel):
    """Next-ViT with a linear classifier on the mean of the last map."""

    def __init__(self, config: NextViTConfig):
        super().__init__(config)
        self.nextvit = NextViTModel(config)
        self.classifier = nn.Linear(config.out_sizes[-1], config.num_labels)
        self.post_init()


class NextViTBackbone(PyramidBackboneMixin, NextViTPreTrainedModel):
    """Next-ViT as the backbone of a detector or a segmenter: maps of strides 4, 8, 16 and 32."""

    _keys_to_ignore_on_load_unexpected = [r"classifier\.", r"encoder\.stages\.\d\.norm\."]

    def __init__(self, config: NextViTConfig):
        super().__init__(config)
        self.num_features = [config.stem_sizes[-1], *config.out_sizes]
        self.encoder = nextvit_encoder(config, norms=[config.extra_norms] * len(config.depths))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.input_layer


__all__ = ["NextViTBackbone", "NextViTForImageClassification", "NextViTModel", "NextViTPreTrainedModel"]
