"""EfficientFormer, a mobile vision transformer: "EfficientFormer: Vision Transformers at MobileNet Speed" (arXiv 2206.01191).
Reference: snap-research/EfficientFormer @d01da426, `models/efficientformer.py` (classification) and `segmentation/backbone.py` (maps).

Module and parameter names are those of the classes that Transformers had until version 4, so `snap-research/efficientformer-*`
loads unchanged. Where the port differs on purpose:
- attention runs through Transformers' attention interface; its bias is gathered in the forward pass, never from a stale cache;
- without attention blocks (`num_meta3d_blocks=0`) a classifier averages over all positions (the authors' averages over rows only);
- the distillation loss (theirs is in the training script) is computed by the model when `teacher_logits` are given;
- `fuse()` folds BatchNorm and layer scale.
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
from transformers.modeling_outputs import BackboneOutput, BaseModelOutput, ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.vit.modeling_vit import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hf_ext.layers.drop_path import DropPath
from hf_ext.layers.fusion import FusionMixin, fuse_conv_batchnorm
from hf_ext.layers.initialization import init_conv_as_torch, init_linear
from hf_ext.layers.inputs import check_images
from hf_ext.layers.tokens import to_map, to_tokens

from .configuration_efficientformer import EfficientFormerConfig


@dataclass
class EfficientFormerImageClassifierOutput(ModelOutput):
    """
    Attributes:
        loss: when labels or `teacher_logits` are given.
        logits: (B, num_labels), the mean of both heads' logits where there are two.
        cls_logits, distillation_logits: (B, num_labels) of each head; the second is None without a teacher's head.
        last_hidden_state: (B, tokens, hidden_sizes[3]), normalized.
        hidden_states: maps (B, C, H, W) after the stem and each stage.
        attentions: (B, heads, tokens, tokens) of each attention block.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cls_logits: torch.Tensor | None = None
    distillation_logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def layer_scale(config: EfficientFormerConfig, width: int) -> nn.Parameter | None:
    return nn.Parameter(torch.full((width,), config.layer_scale_init_value)) if config.use_layer_scale else None


def scaled(hidden_states: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return hidden_states if scale is None else hidden_states * scale


@torch.no_grad()
def fold_scale(layer: nn.Linear | nn.Conv2d, scale: torch.Tensor | None) -> None:
    """Makes `layer` give `scale` (C,) times what it gave."""
    if scale is not None:
        layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.mul_(scale)


class EfficientFormerConvStem(nn.Module):
    """Two convolutions of stride 2. (B, channels, H, W) -> (B, C, H / 4, W / 4), rounded up"""

    def __init__(self, config: EfficientFormerConfig):
        super().__init__()
        width = config.hidden_sizes[0]
        self.convolution1 = nn.Conv2d(config.num_channels, width // 2, 3, stride=2, padding=1)
        self.batchnorm_before = nn.BatchNorm2d(width // 2, eps=config.batch_norm_eps)
        self.convolution2 = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.batchnorm_after = nn.BatchNorm2d(width, eps=config.batch_norm_eps)
        self.activation = nn.ReLU()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = self.activation(self.batchnorm_before(self.convolution1(pixel_values)))
        return self.activation(self.batchnorm_after(self.convolution2(features)))

    def fuse(self) -> EfficientFormerConvStem:
        self.convolution1 = fuse_conv_batchnorm(self.convolution1, self.batchnorm_before)
        self.convolution2 = fuse_conv_batchnorm(self.convolution2, self.batchnorm_after)
        self.batchnorm_before = self.batchnorm_after = nn.Identity()
        return self


class EfficientFormerPatchEmbeddings(nn.Module):
    """The strided convolution between two stages."""

    def __init__(self, config: EfficientFormerConfig, in_channels: int, out_channels: int):
        super().__init__()
        self.projection = nn.Conv2d(
            in_channels,
            out_channels,
            config.downsample_patch_size,
            stride=config.downsample_stride,
            padding=config.downsample_pad,
        )
        self.norm = nn.BatchNorm2d(out_channels, eps=config.batch_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.projection(hidden_states))

    def fuse(self) -> EfficientFormerPatchEmbeddings:
        self.projection, self.norm = fuse_conv_batchnorm(self.projection, self.norm), nn.Identity()
        return self


class EfficientFormerConvMlp(nn.Module):
    """1x1 convolutions with BatchNorm after each. (B, C, H, W) -> (B, C, H, W)"""

    def __init__(self, config: EfficientFormerConfig, width: int):
        super().__init__()
        intermediate_size = int(width * config.mlp_expansion_ratio)
        self.convolution1 = nn.Conv2d(width, intermediate_size, 1)
        self.batchnorm_before = nn.BatchNorm2d(intermediate_size, eps=config.batch_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.convolution2 = nn.Conv2d(intermediate_size, width, 1)
        self.batchnorm_after = nn.BatchNorm2d(width, eps=config.batch_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation(self.batchnorm_before(self.convolution1(hidden_states))))
        return self.dropout(self.batchnorm_after(self.convolution2(hidden_states)))

    def fuse(self) -> EfficientFormerConvMlp:
        self.convolution1 = fuse_conv_batchnorm(self.convolution1, self.batchnorm_before)
        self.convolution2 = fuse_conv_batchnorm(self.convolution2, self.batchnorm_after)
        self.batchnorm_before = self.batchnorm_after = nn.Identity()
        return self


class EfficientFormerMeta4D(GradientCheckpointingLayer):
    """Pooling as the token mixer, then the convolutional MLP, on a map."""

    def __init__(self, config: EfficientFormerConfig, width: int, drop_path_rate: float):
        super().__init__()
        self.token_mixer = nn.AvgPool2d(
            config.pool_size, stride=1, padding=config.pool_size // 2, count_include_pad=False
        )
        self.mlp = EfficientFormerConvMlp(config, width)
        self.drop_path = DropPath(drop_path_rate)
        self.layer_scale_1 = layer_scale(config, width)
        self.layer_scale_2 = layer_scale(config, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # x + scale * (pool(x) - x) goes from x towards pool(x) by `scale`
        share = scaled(hidden_states.new_ones(hidden_states.shape[:2]), self.layer_scale_1)
        share = self.drop_path(share)[:, :, None, None]
        hidden_states = torch.lerp(hidden_states, self.token_mixer(hidden_states), share)
        scale = None if self.layer_scale_2 is None else self.layer_scale_2[:, None, None]
        return hidden_states + self.drop_path(scaled(self.mlp(hidden_states), scale))

    def fuse(self) -> EfficientFormerMeta4D:
        fold_scale(self.mlp.convolution2, self.layer_scale_2)
        self.layer_scale_2 = None
        return self


class EfficientFormerSelfAttention(nn.Module):
    """Attention over a square grid of tokens with a learned bias for each absolute offset (|dy|, |dx|), as in LeViT."""

    is_causal = False

    def __init__(self, config: EfficientFormerConfig):
        super().__init__()
        width, heads = config.hidden_sizes[-1], config.num_attention_heads
        value_dim = int(config.attention_ratio * config.key_dim)
        self.config = config
        self.head_dims = [config.key_dim, config.key_dim, value_dim]
        self.scaling = config.key_dim**-0.5
        self.qkv = nn.Linear(width, heads * sum(self.head_dims))
        self.projection = nn.Linear(heads * value_dim, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, config.resolution**2))

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, C) -> (B, N, C) and, from eager attention, the weights (B, heads, N, N)"""
        shape = hidden_states.shape[:2]
        heads = self.qkv(hidden_states).view(*shape, self.config.num_attention_heads, -1).transpose(1, 2)
        query, key, value = heads.split(self.head_dims, dim=-1)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        bias = self.position_bias(shape[1]).to(query.dtype)
        context, weights = attention_interface(self, query, key, value, bias, scaling=self.scaling, **kwargs)
        return self.projection(context.reshape(*shape, -1)), weights

    def position_bias(self, length: int) -> torch.Tensor:
        """(1, heads, length, length)"""
        if length != self.config.resolution**2:
            raise ValueError(
                f"The attention biases are learned for {self.config.resolution}x{self.config.resolution} tokens and the image gives "
                f"{length}: resize it (with 7x7 tokens and the usual strides, edges from 193 to 224 fit)"
            )
        return expand_biases(self.attention_biases, self.config.resolution)


class EfficientFormerDenseAttention(EfficientFormerSelfAttention):
    """Attention for maps of any size: biases of their own, interpolated over the plane of (query, key) indices."""

    def __init__(self, config: EfficientFormerConfig):
        super().__init__(config)
        del self.attention_biases
        self.attention_biases_seg = nn.Parameter(torch.zeros(config.num_attention_heads, config.bias_resolution**2))

    def position_bias(self, length: int) -> torch.Tensor:
        bias = expand_biases(self.attention_biases_seg, self.config.bias_resolution)
        return nn.functional.interpolate(bias, size=(length, length), mode="bicubic", align_corners=False)


def expand_biases(biases: torch.Tensor, resolution: int) -> torch.Tensor:
    """(heads, R * R), one for each offset |dy| * R + |dx|, -> (1, heads, R * R, R * R)"""
    edge = torch.arange(resolution, device=biases.device)
    offset = (edge[:, None] - edge).abs()
    index = (offset[:, None, :, None] * resolution + offset[None, :, None, :]).flatten(2).flatten(0, 1)
    return biases[None, :, index]


class EfficientFormerDenseMlp(nn.Module):
    def __init__(self, config: EfficientFormerConfig, width: int):
        super().__init__()
        intermediate_size = int(width * config.mlp_expansion_ratio)
        self.linear_in = nn.Linear(width, intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.linear_out = nn.Linear(intermediate_size, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation(self.linear_in(hidden_states)))
        return self.dropout(self.linear_out(hidden_states))


class EfficientFormerMeta3D(GradientCheckpointingLayer):
    """A transformer block on tokens."""

    def __init__(self, config: EfficientFormerConfig, drop_path_rate: float, dense: bool):
        super().__init__()
        width = config.hidden_sizes[-1]
        self.token_mixer = (EfficientFormerDenseAttention if dense else EfficientFormerSelfAttention)(config)
        self.layernorm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layernorm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = EfficientFormerDenseMlp(config, width)
        self.drop_path = DropPath(drop_path_rate)
        self.layer_scale_1 = layer_scale(config, width)
        self.layer_scale_2 = layer_scale(config, width)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        mixed, _ = self.token_mixer(self.layernorm1(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(scaled(mixed, self.layer_scale_1))
        return hidden_states + self.drop_path(scaled(self.mlp(self.layernorm2(hidden_states)), self.layer_scale_2))

    def fuse(self) -> EfficientFormerMeta3D:
        fold_scale(self.token_mixer.projection, self.layer_scale_1)
        fold_scale(self.mlp.linear_out, self.layer_scale_2)
        self.layer_scale_1 = self.layer_scale_2 = None
        return self


class EfficientFormerBlocks(nn.Module):
    """Blocks in a row, under the name `blocks`."""

    def __init__(self, blocks: list[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states, **kwargs)
        return hidden_states


class EfficientFormerIntermediateStage(nn.Module):
    """Pooling blocks. (B, C, H, W) -> (B, C, H, W)"""

    def __init__(self, config: EfficientFormerConfig, width: int, drop_path_rates: list[float]):
        super().__init__()
        self.meta4D_layers = EfficientFormerBlocks(
            [EfficientFormerMeta4D(config, width, rate) for rate in drop_path_rates]
        )

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        return self.meta4D_layers(hidden_states)


class EfficientFormerLastStage(EfficientFormerIntermediateStage):
    """Pooling blocks, then attention blocks on the flattened map. (B, C, H, W) -> (B, C, H, W)"""

    def __init__(self, config: EfficientFormerConfig, width: int, drop_path_rates: list[float], dense: bool):
        pooling_blocks = len(drop_path_rates) - config.num_meta3d_blocks
        super().__init__(config, width, drop_path_rates[:pooling_blocks])
        self.meta3D_layers = EfficientFormerBlocks(
            [EfficientFormerMeta3D(config, rate, dense) for rate in drop_path_rates[pooling_blocks:]]
        )

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        feature_map = self.meta4D_layers(hidden_states)
        return to_map(self.meta3D_layers(to_tokens(feature_map), **kwargs), feature_map.shape[2:])


class EfficientFormerEncoder(nn.Module):
    def __init__(self, config: EfficientFormerConfig, dense: bool):
        super().__init__()
        step = config.drop_path_rate / max(sum(config.depths) - 1, 1)
        rates = [step * block for block in range(sum(config.depths))]
        by_stage = [[rates.pop(0) for _ in range(depth)] for depth in config.depths]
        stages: list[nn.Module] = []
        for i, width in enumerate(config.hidden_sizes[:-1]):
            stages.append(EfficientFormerIntermediateStage(config, width, by_stage[i]))
            if config.downsamples[i] or width != config.hidden_sizes[i + 1]:
                stages.append(EfficientFormerPatchEmbeddings(config, width, config.hidden_sizes[i + 1]))
        self.intermediate_stages = nn.ModuleList(stages)
        self.last_stage = EfficientFormerLastStage(config, config.hidden_sizes[-1], by_stage[-1], dense)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        for stage in self.intermediate_stages:
            hidden_states = stage(hidden_states)
        return self.last_stage(hidden_states, **kwargs)


class EfficientFormerPreTrainedModel(FusionMixin, PreTrainedModel):
    config_class = EfficientFormerConfig
    base_model_prefix = "efficientformer"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["EfficientFormerConvStem", "EfficientFormerMeta3D", "EfficientFormerMeta4D"]
    _keys_to_ignore_on_load_unexpected = [r"attention_bias_idxs"]  # saved by Transformers 4
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(EfficientFormerIntermediateStage),
        "attentions": EfficientFormerSelfAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the reference: truncated normal for linear layers and in the MLPs, torch's default for the other convolutions."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init_linear(module, std)
        elif isinstance(module, nn.Conv2d):
            init_conv_as_torch(module)
        elif isinstance(module, EfficientFormerConvMlp):
            for convolution in (module.convolution1, module.convolution2):
                init.trunc_normal_(convolution.weight, std=std)
                init.zeros_(convolution.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, EfficientFormerSelfAttention):
            for parameter in module.parameters(recurse=False):
                init.zeros_(parameter)
        elif isinstance(module, (EfficientFormerMeta3D, EfficientFormerMeta4D)):
            for parameter in module.parameters(recurse=False):
                init.constant_(parameter, self.config.layer_scale_init_value)
        else:
            super()._init_weights(module)


class EfficientFormerModel(EfficientFormerPreTrainedModel):
    """The network without a head (section 4 of the paper).

    Args:
        dense: for feature maps of any size, as `EfficientFormerBackbone` needs them: interpolated attention biases, and no final
            norm (`last_hidden_state` is not normalized).
    """

    def __init__(self, config: EfficientFormerConfig, dense: bool = False):
        super().__init__(config)
        self.patch_embed = EfficientFormerConvStem(config)
        self.encoder = EfficientFormerEncoder(config, dense)
        self.layernorm = nn.Identity() if dense else nn.LayerNorm(config.hidden_sizes[-1], eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embed

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutput:
        """
        Args:
            pixel_values: (B, channels, H, W), normalized; H and W such that the last stage sees `resolution * resolution` tokens
                (193 to 224 for the presets), or anything with `dense`.

        Returns:
            `last_hidden_state` (B, tokens, hidden_sizes[3]). On request `hidden_states`, maps (B, C, H, W) after the stem and each
            stage, and `attentions`, (B, heads, tokens, tokens) of each attention block.

        Raises:
            ValueError: not four axes, another number of channels than `num_channels`, no pixels, or another number of tokens.
        """
        check_images(pixel_values, self.config.num_channels)
        hidden_states = self.patch_embed(pixel_values.to(self.dtype))
        hidden_states = self.encoder(hidden_states, **kwargs)
        return BaseModelOutput(last_hidden_state=self.layernorm(to_tokens(hidden_states)))


class EfficientFormerForImageClassification(EfficientFormerPreTrainedModel):
    """EfficientFormer with a linear head on the mean token, and with `config.distillation` a second one for the teacher."""

    def __init__(self, config: EfficientFormerConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.efficientformer = EfficientFormerModel(config)
        self.classifier = self._head()
        self.distillation_classifier = self._head() if config.distillation else None
        self.post_init()

    def _head(self) -> nn.Module:
        return nn.Linear(self.config.hidden_sizes[-1], self.num_labels) if self.num_labels > 0 else nn.Identity()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        teacher_logits: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EfficientFormerImageClassifierOutput:
        """
        Args:
            pixel_values: (B, channels, H, W) as for `EfficientFormerModel`.
            labels: (B,) classes, or (B, num_labels) targets (see `config.problem_type`).
            teacher_logits: (B, num_labels) of a teacher on the same images. The loss is then
                `(1 - distillation_alpha) * loss(cls_logits, labels) + distillation_alpha * loss(distillation_logits, teacher)`.

        Returns:
            `EfficientFormerImageClassifierOutput`. With labels alone the loss is that of `logits`, so both heads learn.

        Raises:
            ValueError: `pixel_values` as for `EfficientFormerModel`, or `teacher_logits` without labels, without a teacher's head or
                of another shape than the logits.
        """
        outputs: BaseModelOutput = self.efficientformer(pixel_values, **kwargs)
        pooled = outputs.last_hidden_state.mean(1)
        logits = cls_logits = self.classifier(pooled)
        distillation_logits = None
        if self.distillation_classifier is not None:
            distillation_logits = self.distillation_classifier(pooled)
            logits = (cls_logits + distillation_logits) / 2
        loss = None
        if teacher_logits is not None:
            loss = self._distillation_loss(labels, teacher_logits, cls_logits, distillation_logits, **kwargs)
        elif labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return EfficientFormerImageClassifierOutput(
            loss=loss,
            logits=logits,
            cls_logits=cls_logits,
            distillation_logits=distillation_logits,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _distillation_loss(
        self,
        labels: torch.Tensor | None,
        teacher_logits: torch.Tensor,
        cls_logits: torch.Tensor,
        distillation_logits: torch.Tensor | None,
        **kwargs,
    ) -> torch.Tensor:
        """The loss of DeiT (arXiv 2012.12877, equations 2 and 3), which the authors train with."""
        if labels is None or distillation_logits is None or teacher_logits.shape != cls_logits.shape:
            raise ValueError(
                f"`teacher_logits` need labels, a model with `distillation=True` and the shape {tuple(cls_logits.shape)}; given: "
                f"labels {'missing' if labels is None else 'present'}, distillation={self.config.distillation}, shape "
                f"{tuple(teacher_logits.shape)}"
            )
        own = self.loss_function(labels, cls_logits, self.config, **kwargs)
        if self.config.distillation_type == "hard":
            taught = nn.functional.cross_entropy(distillation_logits, teacher_logits.argmax(-1))
        else:
            temperature = self.config.distillation_temperature
            student, teacher = ((x / temperature).log_softmax(-1) for x in (distillation_logits, teacher_logits))
            divergence = nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)
            taught = divergence * temperature**2 / distillation_logits.numel()
        alpha = self.config.distillation_alpha
        return (1 - alpha) * own + alpha * taught


class EfficientFormerForImageClassificationWithTeacher(EfficientFormerForImageClassification):
    """The name that checkpoints with two heads carry in Transformers 4."""

    def __init__(self, config: EfficientFormerConfig):
        if not config.distillation:
            raise ValueError(
                f"`distillation` must be True for {type(self).__name__}; EfficientFormerForImageClassification takes both"
            )
        super().__init__(config)


class EfficientFormerBackbone(BackboneMixin, EfficientFormerPreTrainedModel):
    """Feature maps of the stages in `config.out_features`, each through a norm of its own; images of any size."""

    def __init__(self, config: EfficientFormerConfig):
        super().__init__(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        self.efficientformer = EfficientFormerModel(config, dense=True)
        self.hidden_states_norms = nn.ModuleDict(
            {
                stage: nn.GroupNorm(1, channels, eps=config.layer_norm_eps)
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
            `feature_maps`, (B, C, H / stride, W / stride) with strides 4 ("stem", "stage1"), 8, 16 and 32 (rounded up) for the presets.

        Raises:
            ValueError: as for `EfficientFormerModel`.
        """
        outputs: BaseModelOutput = self.efficientformer(pixel_values, **kwargs)
        stages = dict(zip(self.stage_names, outputs.hidden_states))
        return BackboneOutput(
            feature_maps=tuple(self.hidden_states_norms[name](stages[name]) for name in self.out_features),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "EfficientFormerBackbone",
    "EfficientFormerForImageClassification",
    "EfficientFormerForImageClassificationWithTeacher",
    "EfficientFormerImageClassifierOutput",
    "EfficientFormerModel",
    "EfficientFormerPreTrainedModel",
]
