"""RMT, a vision backbone with Manhattan self-attention: "RMT: Retentive Networks Meet Vision Transformers" (arXiv 2309.11523, CVPR 2024).
Reference: qhfan/RMT @32ea2141, `classfication_release/RMT.py`, `classification_token_label_release/RMT.py` and
`segmentation/mmseg/models/backbones/RMT.py`; no licence file.

As the reference, and unlike equation 4 of the paper, the decay enters before the softmax: its logarithm is added to the logits.

Where the port differs on purpose:
- attention runs through Transformers' attention interface (SDPA by default) with the decay as an additive mask;
- phases and decays are computed for the map at hand, in float32, and not stored;
- maps are kept in channels-last memory, so tokens are views of them;
- `model.fuse()` folds BatchNorm, layer scale and the identity beside depthwise convolutions;
- with token labels, `logits` are the combination also in training mode; the parts are returned beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.vit.modeling_vit import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_ext.layers.convolution import ConvBatchNorm
from hf_ext.layers.drop_path import DropPath, linear_rates
from hf_ext.layers.fusion import FusionMixin, fuse_conv_batchnorm, fuse_parallel_convs, fuse_scale_after, identity_conv
from hf_ext.layers.initialization import init_conv_as_torch, init_linear
from hf_ext.layers.linear import token_linear
from hf_ext.layers.maps import as_map, as_tokens
from hf_ext.layers.pyramid import PyramidBackboneMixin, PyramidEncoder, PyramidStage

from .configuration_rmt import RMTConfig

MIX_SCALE = 8  # pixels of the stem's map per pixel of the last stage's
TOKEN_LABEL_WEIGHT = 0.5
MAP_NORM_EPS = 1e-5  # of the norms behind a backbone's maps


class RMTTables(NamedTuple):
    """What the layers of a stage share for maps of one size.

    Attributes:
        cosine, sine: (H * W, 1, head_dim / 2), of the phases of each position.
        biases: added to the logits; (1, heads, H * W, H * W) for whole attention, (1, heads, W, W) and (1, heads, H, H) for
            decomposed attention.
    """

    cosine: torch.Tensor
    sine: torch.Tensor
    biases: tuple[torch.Tensor, ...]


def phases(positions: int, pairs: int, base: float, device: torch.device) -> torch.Tensor:
    """(positions, 1, pairs): position times frequency; the frequencies fall from 1 to 1 / base."""
    frequencies = 1.0 / base ** torch.linspace(0, 1, pairs, device=device)
    return torch.arange(positions, device=device, dtype=torch.float32)[:, None, None] * frequencies


def log_decays(heads: int, start: float, spread: float, device: torch.device) -> torch.Tensor:
    """(heads,): the logarithm of how much attention fades per pixel; later heads see further."""
    return torch.log(1 - 2 ** (-start - spread * torch.arange(heads, device=device, dtype=torch.float32) / heads))


def distances(length: int, device: torch.device) -> torch.Tensor:
    """(length, length): |i - j|"""
    index = torch.arange(length, device=device, dtype=torch.float32)
    return (index[:, None] - index).abs()


def rotate(x: torch.Tensor, tables: RMTTables) -> torch.Tensor:
    """Turns each pair (2j, 2j + 1) of the last axis by its phase. (B, N, heads, head_dim) -> the same"""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack(
        [even * tables.cosine - odd * tables.sine, odd * tables.cosine + even * tables.sine], dim=-1
    ).flatten(-2)


class RMTSoftmax(nn.Module):
    """Softmax attention of rows of tokens with an additive bias."""

    is_causal = False

    def __init__(self, config: RMTConfig, head_dim: int):
        super().__init__()
        self.config = config
        self.scaling = head_dim**-0.5

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, rows, N, heads, head_dim) each -> the same and, from eager attention, the weights (B, rows, heads, N, N)"""
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        context, weights = attention_interface(
            self,
            *(x.flatten(0, 1).transpose(1, 2) for x in (query, key, value)),
            bias,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        grid = query.shape[:2]
        return context.unflatten(0, grid), None if weights is None else weights.unflatten(0, grid)


class RMTAttention(nn.Module):
    """Manhattan self-attention over the whole map (MaSA, section 3.2), with local context enhancement: a depthwise 5x5 convolution of the
    values. (B, C, H, W) -> (B, H * W, C)"""

    def __init__(self, config: RMTConfig, stage: int):
        super().__init__()
        width = config.hidden_sizes[stage]
        self.num_heads = config.num_attention_heads[stage]
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)
        self.local_enhancement = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.make_softmax(config, width // self.num_heads)

    def make_softmax(self, config: RMTConfig, head_dim: int) -> None:
        self.softmax = RMTSoftmax(config, head_dim)

    def forward(
        self,
        tokens: torch.Tensor,
        size: tuple[int, int],
        tables: RMTTables,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """(B, H * W, C) -> (B, H * W, C); `size` is (H, W)."""
        query, key, value = (token_linear(layer, tokens) for layer in (self.q_proj, self.k_proj, self.v_proj))
        local = as_tokens(self.local_enhancement(as_map(value, size)))
        heads = (-1, (self.num_heads, -1))
        context = self.attend(
            rotate(query.unflatten(*heads), tables),
            rotate(key.unflatten(*heads), tables),
            value.unflatten(*heads),
            size,
            tables.biases,
            **kwargs,
        )
        return token_linear(self.o_proj, context.flatten(2) + local)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        size: tuple[int, int],
        biases: tuple[torch.Tensor, ...],
        **kwargs,
    ) -> torch.Tensor:
        """(B, N, heads, head_dim) -> the same"""
        (bias,) = biases
        return self.softmax(*(x.unsqueeze(1) for x in (query, key, value)), bias, **kwargs)[0].squeeze(1)

    @staticmethod
    def make_biases(height: int, width: int, decays: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(1, heads, H * W, H * W): the decay of each head times the Manhattan distance (eq. 3)."""
        rows, columns = distances(height, decays.device), distances(width, decays.device)
        manhattan = (rows[:, None, :, None] + columns[None, :, None, :]).flatten(2).flatten(0, 1)
        return ((decays[:, None, None] * manhattan).unsqueeze(0),)


class RMTDecomposedAttention(RMTAttention):
    """Manhattan self-attention along the rows, and then along the columns of what the rows gave (eq. 5 and 6)."""

    def make_softmax(self, config: RMTConfig, head_dim: int) -> None:
        self.row_softmax = RMTSoftmax(config, head_dim)
        self.column_softmax = RMTSoftmax(config, head_dim)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        size: tuple[int, int],
        biases: tuple[torch.Tensor, ...],
        **kwargs,
    ) -> torch.Tensor:
        row_bias, column_bias = biases
        query, key, value = (x.unflatten(1, size) for x in (query, key, value))  # (B, H, W, heads, head_dim)
        value, _ = self.row_softmax(query, key, value, row_bias, **kwargs)
        columns = (x.transpose(1, 2) for x in (query, key, value))
        return self.column_softmax(*columns, column_bias, **kwargs)[0].transpose(1, 2).flatten(1, 2)

    @staticmethod
    def make_biases(height: int, width: int, decays: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(1, heads, W, W) and (1, heads, H, H)"""
        return tuple((decays[:, None, None] * distances(n, decays.device)).unsqueeze(0) for n in (width, height))


class RMTResidualConv(nn.Module):
    """x + depthwise 3x3 convolution of x. `fuse()` adds the identity to the kernel."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return feature_map + self.conv(feature_map)

    def fuse(self) -> nn.Module:
        conv = self.conv
        return fuse_parallel_convs([conv, identity_conv(conv.in_channels, like=conv.weight)])


class RMTMLP(nn.Module):
    """Two linear layers with a depthwise convolution between them. (B, H * W, C) -> (B, H * W, C)"""

    def __init__(self, config: RMTConfig, stage: int):
        super().__init__()
        width = config.hidden_sizes[stage]
        intermediate_size = int(config.mlp_ratios[stage] * width)
        self.fc1 = nn.Linear(width, intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.conv = RMTResidualConv(intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, width)

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        hidden_states = self.activation_fn(token_linear(self.fc1, tokens))
        return token_linear(self.fc2, as_tokens(self.conv(as_map(hidden_states, size))))


class RMTLayerScale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, width: int, value: float):
        super().__init__()
        self.initial_value = value
        self.weight = nn.Parameter(torch.full((width,), value))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.weight


class RMTLayer(GradientCheckpointingLayer):
    """RMT block (figure 3): conditional position encoding by convolution, attention, MLP."""

    def __init__(self, config: RMTConfig, stage: int, drop_path_rate: float):
        super().__init__()
        width = config.hidden_sizes[stage]
        attention_class = RMTDecomposedAttention if config.decomposed[stage] else RMTAttention
        self.position = RMTResidualConv(width)
        self.layernorm_before = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = attention_class(config, stage)
        self.layernorm_after = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = RMTMLP(config, stage)
        self.attention_scale, self.mlp_scale = (
            RMTLayerScale(width, config.layer_scale_init_value) if config.use_layer_scale[stage] else nn.Identity()
            for _ in range(2)
        )
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, hidden_states: torch.Tensor, tables: RMTTables, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        size = tuple(hidden_states.shape[2:])
        tokens = as_tokens(self.position(hidden_states))
        attention = self.attention(self.layernorm_before(tokens), size, tables, **kwargs)
        tokens = tokens + self.drop_path(self.attention_scale(attention))
        tokens = tokens + self.drop_path(self.mlp_scale(self.mlp(self.layernorm_after(tokens), size)))
        return as_map(tokens, size)

    def fuse(self) -> nn.Module:
        if isinstance(self.attention_scale, RMTLayerScale):
            self.attention.o_proj = fuse_scale_after(self.attention.o_proj, self.attention_scale.weight)
            self.mlp.fc2 = fuse_scale_after(self.mlp.fc2, self.mlp_scale.weight)
            self.attention_scale, self.mlp_scale = nn.Identity(), nn.Identity()
        return self


class RMTStage(PyramidStage):
    """Halves the map, but for the first stage, and runs layers that share one set of tables."""

    def __init__(self, config: RMTConfig, stage: int, drop_path_rates: Sequence[float]):
        super().__init__(RMTLayer(config, stage, rate) for rate in drop_path_rates)
        width = config.hidden_sizes[stage]
        self.downsample = (
            ConvBatchNorm(config.hidden_sizes[stage - 1], width, 3, 2, bias=True, eps=config.batch_norm_eps)
            if stage > 0
            else nn.Identity()
        )
        self.base = config.rotary_base
        self.num_heads = config.num_attention_heads[stage]
        self.num_pairs = width // self.num_heads // 2
        self.decay = (config.decay_starts[stage], config.decay_ranges[stage])

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        hidden_states = self.downsample(hidden_states)
        tables = self.tables(hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states, tables, **kwargs)
        return hidden_states

    def tables(self, feature_map: torch.Tensor) -> RMTTables:
        """For maps of the size, on the device and in the dtype of `feature_map`; computed in float32, which angles need."""
        height, width = feature_map.shape[2:]
        angles = phases(height * width, self.num_pairs, self.base, feature_map.device)
        decays = log_decays(self.num_heads, *self.decay, feature_map.device)
        biases = self.layers[0].attention.make_biases(height, width, decays)
        dtype = feature_map.dtype
        return RMTTables(angles.cos().to(dtype), angles.sin().to(dtype), tuple(bias.to(dtype) for bias in biases))


class RMTStem(nn.Sequential):
    """Four 3x3 convolutions with BatchNorm. (B, channels, H, W) -> (B, C, H / 4, W / 4), rounded up"""

    def __init__(self, config: RMTConfig):
        width = config.hidden_sizes[0]
        sizes = (config.num_channels, width // 2, width // 2, width, width)
        activations = (config.hidden_act,) * 3 + (None,)
        super().__init__(
            *(
                ConvBatchNorm(*pair, 3, stride, bias=True, hidden_act=activation, eps=config.batch_norm_eps)
                for *pair, stride, activation in zip(sizes, sizes[1:], (2, 1, 2, 1), activations)
            )
        )


class RMTEncoder(PyramidEncoder):
    """Stem and four stages. (B, channels, H, W) -> the maps of the stem and of each stage"""

    def __init__(self, config: RMTConfig):
        rates = iter(linear_rates(config.drop_path_rate, sum(config.depths)))
        super().__init__(
            RMTStem(config),
            (RMTStage(config, stage, [next(rates) for _ in range(depth)]) for stage, depth in enumerate(config.depths)),
        )

    def forward(
        self, pixel_values: torch.Tensor | None, mix_mask: torch.Tensor | None = None, **kwargs
    ) -> list[torch.Tensor]:
        embedding = self.embed(pixel_values)
        return self.encode(embedding if mix_mask is None else mix(embedding, mix_mask, MIX_SCALE), **kwargs)


def mix(maps: torch.Tensor, mask: torch.Tensor, scale: int = 1) -> torch.Tensor:
    """(B, C, H, W), with the maps of the batch in reverse order where `mask` (h, w), each entry of which stands for `scale` times
    `scale` pixels, is true; pixels beyond the mask stay."""
    mask = mask.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    inside = torch.zeros(maps.shape[2:], dtype=torch.bool, device=maps.device)
    inside[: mask.shape[0], : mask.shape[1]] = mask
    return torch.where(inside, maps.flip(0), maps)


def random_box(height: int, width: int, device: torch.device) -> torch.Tensor:
    """(height, width), true inside a box whose area is uniform in [0, 1] before the border cuts it (CutMix)."""
    edge = (1 - torch.rand((), device=device)).sqrt()
    inside = []
    for length in (height, width):
        half = (edge * length).floor().div(2, rounding_mode="floor")
        centre = torch.randint(max(length, 1), (), device=device)
        index = torch.arange(length, device=device)
        inside.append((index >= centre - half) & (index < centre + half))
    return inside[0][:, None] & inside[1]


class RMTPooler(nn.Module):
    """Projection of each position, BatchNorm, swish, mean. (B, C, H, W) -> (B, projection_size)"""

    def __init__(self, config: RMTConfig):
        super().__init__()
        self.projection = nn.Linear(config.hidden_sizes[-1], config.projection_size)
        self.norm = nn.BatchNorm1d(config.projection_size, eps=config.batch_norm_eps)
        self.projection_is_read = config.token_label_projected

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        projected = token_linear(self.projection, as_tokens(feature_map)).transpose(1, 2)
        return nn.functional.silu(self.norm(projected)).mean(2)

    def fuse(self) -> nn.Module:
        if not self.projection_is_read:
            self.projection, self.norm = fuse_conv_batchnorm(self.projection, self.norm), nn.Identity()
        return self


class RMTPreTrainedModel(FusionMixin, PreTrainedModel):
    config_class = RMTConfig
    base_model_prefix = "rmt"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["RMTStem", "RMTLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": RMTStage, "attentions": RMTSoftmax}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the reference: truncated normal for linear layers, torch's default for convolutions."""
        if isinstance(module, nn.Linear):
            init_linear(module, self.config.initializer_range)
        elif isinstance(module, nn.Conv2d):
            init_conv_as_torch(module)
        elif isinstance(module, RMTLayerScale):
            init.constant_(module.weight, module.initial_value)
        else:
            super()._init_weights(module)


class RMTModel(RMTPreTrainedModel):
    """RMT without a classifier."""

    def __init__(self, config: RMTConfig):
        super().__init__(config)
        self.encoder = RMTEncoder(config)
        self.pooler = RMTPooler(config)
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
            `last_hidden_state` (B, hidden_sizes[-1], H / 32, W / 32), sizes rounded up at every halving, and `pooler_output`
            (B, projection_size). On request `hidden_states`, the maps of the stem and of each stage, and `attentions`:
            (B, 1, heads, N, N) for a whole attention, (B, H, heads, W, W) and (B, W, heads, H, H) for a decomposed one.

        Raises:
            ValueError: not four axes, another number of channels than `num_channels`, or no pixels.
        """
        last_hidden_state = self.encoder(pixel_values, **kwargs)[-1]
        return BaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state, pooler_output=self.pooler(last_hidden_state)
        )


@dataclass
class RMTImageClassifierOutput(ImageClassifierOutput):
    """
    `cls_logits` (B, num_labels) and `aux_logits` (B, positions, num_labels) are there with token labels; `logits` are then
    `cls_logits` plus half of the largest `aux_logits` over positions.
    """

    cls_logits: torch.Tensor | None = None
    aux_logits: torch.Tensor | None = None


class RMTForImageClassification(RMTPreTrainedModel):
    """RMT with a linear classifier and, with `token_label`, a second one that classifies every position."""

    def __init__(self, config: RMTConfig):
        super().__init__(config)
        self.rmt = RMTModel(config)
        self.classifier = nn.Linear(config.projection_size, config.num_labels)
        if config.token_label:
            width = config.projection_size if config.token_label_projected else config.hidden_sizes[-1]
            self.token_classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        token_labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RMTImageClassifierOutput:
        """
        Args:
            pixel_values: (B, channels, H, W), as for `RMTModel`.
            labels: (B,) class indices; without `token_label` also (B, num_labels) for several labels or for regression.
            token_labels: with `token_label`, (B, positions) class indices or (B, positions, num_labels) probabilities; left out,
                every position has the image's label.

        Returns:
            `logits` (B, num_labels) and, when `labels` are given, `loss`. With `token_label` also `cls_logits` and `aux_logits`;
            the loss is then the cross-entropy of the former plus half that of the latter, and in training mode a box of the
            embedding comes from another image of the batch (`mix_token`), for which the labels are mixed as well.
        """
        if not self.config.token_label:
            outputs = self.rmt(pixel_values, **kwargs)
            logits = self.classifier(outputs.pooler_output)
            loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
            return RMTImageClassifierOutput(
                loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
            )
        mask = None
        if self.training and self.config.mix_token and pixel_values is not None:
            mask = random_box(*(-(-edge // 4) // MIX_SCALE for edge in pixel_values.shape[2:]), pixel_values.device)
        outputs = self.rmt(pixel_values, mix_mask=mask, **kwargs)
        cls_logits = self.classifier(outputs.pooler_output)
        tokens = as_tokens(outputs.last_hidden_state)
        size = tuple(outputs.last_hidden_state.shape[2:])
        if self.config.token_label_projected:
            tokens = self.rmt.pooler.projection(tokens)
        aux_logits = self.token_classifier(tokens)
        if mask is not None:  # every position goes back to the image that it came from
            aux_logits = as_tokens(mix(as_map(aux_logits, size), mask))
        loss = None
        if labels is not None:
            loss = token_label_loss(cls_logits, aux_logits, labels, token_labels, mask)
        return RMTImageClassifierOutput(
            loss=loss,
            logits=cls_logits + TOKEN_LABEL_WEIGHT * aux_logits.amax(1),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cls_logits=cls_logits,
            aux_logits=aux_logits,
        )


def token_label_loss(
    cls_logits: torch.Tensor,
    aux_logits: torch.Tensor,
    labels: torch.Tensor,
    token_labels: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Cross-entropy of the image, its label mixed as its positions were, plus half the mean cross-entropy of the positions."""
    positions = aux_logits.shape[1]
    token_labels = labels[:, None].expand(-1, positions) if token_labels is None else token_labels
    cross_entropy = nn.functional.cross_entropy
    loss = cross_entropy(cls_logits, labels)
    if mask is not None:
        share = mask.sum() / positions
        loss = (1 - share) * loss + share * cross_entropy(cls_logits, labels.flip(0))
    return loss + TOKEN_LABEL_WEIGHT * cross_entropy(aux_logits.flatten(0, 1), token_labels.flatten(0, 1))


class RMTBackbone(PyramidBackboneMixin, RMTPreTrainedModel):
    """RMT as the backbone of a detector or a segmenter: maps of strides 4, 8, 16 and 32, each through its own layer norm."""

    _keys_to_ignore_on_load_unexpected = [r"^(rmt\.)?pooler\.", r"classifier\."]

    def __init__(self, config: RMTConfig):
        super().__init__(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        self.encoder = RMTEncoder(config)
        self.norms = nn.ModuleDict(
            {
                stage: nn.LayerNorm(width, eps=MAP_NORM_EPS)
                for stage, width in zip(self.out_features, self.channels)
                if stage != "stem"
            }
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.input_layer

    def normalize(self, stage: str, feature_map: torch.Tensor) -> torch.Tensor:
        if stage == "stem":
            return feature_map
        return as_map(self.norms[stage](as_tokens(feature_map)), tuple(feature_map.shape[2:]))


__all__ = ["RMTBackbone", "RMTForImageClassification", "RMTImageClassifierOutput", "RMTModel", "RMTPreTrainedModel"]
