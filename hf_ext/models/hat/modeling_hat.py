"""HAT, a super-resolution transformer: "HAT: Hybrid Attention Transformer for Image Restoration" (arXiv 2309.05239; CVPR 2023
version 2205.04437). Reference: XPixelGroup/HAT @1638a9a8, `hat/archs/hat_arch.py`, Apache-2.0.

Where the port differs on purpose:
- any input size: the forward reflects the image to the next multiple of the window at the bottom and the right (the authors do
  that outside the network), and crops the reconstruction;
- attention runs through Transformers' attention interface (SDPA by default) with the relative position bias as an additive
  mask. The mask of shifted windows is not made per window: only the last row and the last column of windows are cut by the
  image border, so at most four biases serve an image of any size;
- index tables are computed, not stored;
- an absolute position embedding is interpolated for other sizes than `image_size`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, ImageSuperResolutionOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.vit.modeling_vit import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_ext.layers.drop_path import DropPath, linear_rates
from hf_ext.layers.inputs import check_images
from hf_ext.layers.linear import token_linear
from hf_ext.layers.positions import interpolate_positions
from hf_ext.layers.restoration import PixelShuffleUpsampler, image_mean, reconstruction_loss
from hf_ext.layers.window import (
    as_image,
    overlapping_windows,
    reflect_to_multiple,
    window_partition,
    window_reverse,
)

from .configuration_hat import HatConfig


class HatTables(NamedTuple):
    """What all windows share, whatever the image.

    Attributes:
        self_index, overlap_index: (N, N) and (N, M), the entry of a bias table that belongs to a query and a key.
        shift_masks: (2, 2, 1, N, N), additive; [last row?, last column?] is the mask for that window of a shifted image.
    """

    self_index: torch.Tensor
    overlap_index: torch.Tensor
    shift_masks: torch.Tensor

    @classmethod
    def make(cls, size: int, overlap_size: int) -> HatTables:
        """For windows of edge `size` and key/value windows of edge `overlap_size`."""
        query, key = (torch.cartesian_prod(torch.arange(edge), torch.arange(edge)) for edge in (size, overlap_size))
        rows, columns = (query[:, None] - query[None] + size - 1).unbind(-1)
        self_index = rows * (2 * size - 1) + columns
        # Negative where the authors' offset is off; Python's indexing wraps them round, and trained tables rely on it.
        width = size + overlap_size - 1
        rows, columns = (key[None] - query[:, None] + size - overlap_size + 1).unbind(-1)
        overlap_index = (rows * width + columns) % width**2

        wrapped = query >= size - size // 2  # (N, 2): rolled in from the other side of the image
        apart_in_row, apart_in_column = (wrapped[:, None] != wrapped[None]).unbind(-1)
        nowhere = torch.zeros_like(apart_in_row)
        masked = torch.stack([nowhere, apart_in_column, apart_in_row, apart_in_row | apart_in_column])
        shift_masks = torch.zeros(masked.shape).masked_fill(masked, -100.0)
        return cls(self_index, overlap_index, shift_masks.unflatten(0, (2, 2)).unsqueeze(2))


class HatMLP(nn.Module):
    def __init__(self, config: HatConfig, dropout: float = 0.0):
        super().__init__()
        intermediate_size = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(config.hidden_size, intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation_fn(token_linear(self.fc1, hidden_states)))
        return self.dropout(token_linear(self.fc2, hidden_states))


class HatConvolution(nn.Module):
    """The convolution branch (CAB): two 3x3 convolutions, then channel attention. (B, C, H, W) -> (B, C, H, W)"""

    def __init__(self, config: HatConfig):
        super().__init__()
        width = config.hidden_size
        self.conv1 = nn.Conv2d(width, width // config.compress_ratio, 3, padding=1)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.conv2 = nn.Conv2d(width // config.compress_ratio, width, 3, padding=1)
        self.squeeze = nn.Conv2d(width, width // config.squeeze_factor, 1)
        self.excite = nn.Conv2d(width // config.squeeze_factor, width, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        features = self.conv2(self.activation_fn(self.conv1(hidden_states)))
        attention = self.excite(self.squeeze(features.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return features * attention


class HatAttention(nn.Module):
    """Multi-head attention of windows with a learned bias for each relative position."""

    is_causal = False

    def __init__(self, config: HatConfig, num_heads: int, table_length: int):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // num_heads
        self.scaling = config.attention_scale or self.head_dim**-0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros(table_length, num_heads))
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def position_bias(self, index: torch.Tensor) -> torch.Tensor:
        """(N, M) -> (heads, N, M)"""
        return self.relative_position_bias_table.t()[:, index]

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, dropout: float, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention inside each window.

        Args:
            query, key, value: (B, rows, columns, N or M, C).
            bias: (heads, N, M), added to the logits.

        Returns:
            (B, rows, columns, N, C) and, from eager attention, the weights (B, rows, columns, heads, N, M).
        """
        grid = query.shape[:3]
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        context, weights = attention_interface(
            self,
            *(x.flatten(0, 2).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in (query, key, value)),
            bias.unsqueeze(0).to(query.dtype),
            dropout=dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return context.reshape(query.shape), None if weights is None else weights.unflatten(0, grid)


class HatWindowAttention(HatAttention):
    """Self-attention inside windows (W-MSA)."""

    def __init__(self, config: HatConfig, num_heads: int):
        super().__init__(config, num_heads, (2 * config.window_size - 1) ** 2)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, tables: HatTables, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, H, W, C) -> (B, H, W, C) and the weights (B, windows, heads, N, N)"""
        windows = window_partition(hidden_states, self.config.window_size)
        context, weights = self.attend(
            *(token_linear(projection, windows) for projection in (self.q_proj, self.k_proj, self.v_proj)),
            self.biases(tables),
            dropout=self.config.attention_probs_dropout_prob,
            **kwargs,
        )
        hidden_states = window_reverse(self.dropout(token_linear(self.o_proj, context)), self.config.window_size)
        return hidden_states, None if weights is None else weights.flatten(1, 2)

    def biases(self, tables: HatTables) -> torch.Tensor:
        return self.position_bias(tables.self_index)


class HatShiftedWindowAttention(HatWindowAttention):
    """Self-attention inside windows that are shifted by half a window (SW-MSA)."""

    def forward(
        self, hidden_states: torch.Tensor, tables: HatTables, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shift = self.config.window_size // 2
        shifted = torch.roll(hidden_states, (-shift, -shift), (1, 2))
        hidden_states, weights = super().forward(shifted, tables, **kwargs)
        return torch.roll(hidden_states, (shift, shift), (1, 2)), weights

    def biases(self, tables: HatTables) -> torch.Tensor:
        """(2, 2, heads, N, N): [last row?, last column?]"""
        return self.position_bias(tables.self_index) + tables.shift_masks

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, biases: torch.Tensor, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Four parts of the image, one for each bias; no other part than the last where there is one row or column."""
        first, last = (0, slice(0, -1)), (1, slice(-1, None))
        rows, columns = ([first, last] if count > 1 else [last] for count in query.shape[1:3])
        parts = [
            [super(HatShiftedWindowAttention, self).attend(
                *(x[:, row, column] for x in (query, key, value)), biases[i, j], **kwargs
            ) for j, column in columns]
            for i, row in rows
        ]  # fmt: skip
        context, weights = (
            None if parts[0][0][k] is None else torch.cat([torch.cat([part[k] for part in row], 2) for row in parts], 1)
            for k in (0, 1)
        )
        return context, weights


class HatOverlappingAttention(HatAttention):
    """Queries from a window, keys and values from an enlarged window around it.

    Beyond the image border keys and values are zero and are not masked (as in the reference).
    """

    def __init__(self, config: HatConfig, num_heads: int):
        super().__init__(config, num_heads, (config.window_size + config.overlap_window_size - 1) ** 2)

    def forward(
        self, hidden_states: torch.Tensor, tables: HatTables, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, H, W, C) -> (B, H, W, C) and the weights (B, windows, heads, N, M)"""
        size, overlap_size = self.config.window_size, self.config.overlap_window_size
        context, weights = self.attend(
            window_partition(token_linear(self.q_proj, hidden_states), size),
            overlapping_windows(token_linear(self.k_proj, hidden_states), size, overlap_size),
            overlapping_windows(token_linear(self.v_proj, hidden_states), size, overlap_size),
            self.position_bias(tables.overlap_index),
            dropout=0.0,
            **kwargs,
        )
        hidden_states = window_reverse(token_linear(self.o_proj, context), size)
        return hidden_states, None if weights is None else weights.flatten(1, 2)


class HatLayer(GradientCheckpointingLayer):
    """Hybrid attention block (HAB): window attention and convolution side by side, then an MLP."""

    def __init__(self, config: HatConfig, num_heads: int, shifted: bool, drop_path_rate: float):
        super().__init__()
        attention_class = HatShiftedWindowAttention if shifted else HatWindowAttention
        self.conv_scale = config.conv_scale
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = attention_class(config, num_heads)
        self.convolution = HatConvolution(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = HatMLP(config, config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, hidden_states: torch.Tensor, tables: HatTables, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        normed = self.layernorm_before(hidden_states)
        attention, _ = self.attention(normed, tables, **kwargs)
        hidden_states = hidden_states + self.drop_path(attention) + self.conv_scale * as_image(self.convolution, normed)
        return hidden_states + self.drop_path(token_linear(self.mlp, self.layernorm_after(hidden_states)))


class HatOverlappingLayer(GradientCheckpointingLayer):
    """Overlapping cross-attention block (OCAB)."""

    def __init__(self, config: HatConfig, num_heads: int):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = HatOverlappingAttention(config, num_heads)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = HatMLP(config)

    def forward(
        self, hidden_states: torch.Tensor, tables: HatTables, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        attention, _ = self.attention(self.layernorm_before(hidden_states), tables, **kwargs)
        hidden_states = hidden_states + attention
        return hidden_states + token_linear(self.mlp, self.layernorm_after(hidden_states))


def residual_connection(config: HatConfig) -> nn.Module:
    """What ends a group and the body."""
    if config.resi_connection == "identity":
        return nn.Identity()
    return nn.Conv2d(config.hidden_size, config.hidden_size, 3, padding=1)


class HatGroup(nn.Module):
    """Residual hybrid attention group (RHAG)."""

    def __init__(self, config: HatConfig, num_heads: int, drop_path_rates: list[float]):
        super().__init__()
        self.layers = nn.ModuleList(
            HatLayer(config, num_heads, shifted=i % 2 == 1 and config.window_size > 1, drop_path_rate=rate)
            for i, rate in enumerate(drop_path_rates)
        )
        self.overlapping_layer = HatOverlappingLayer(config, num_heads)
        self.conv = residual_connection(config)

    def forward(
        self, hidden_states: torch.Tensor, tables: HatTables, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        residual = hidden_states
        for layer in self.layers:
            hidden_states = layer(hidden_states, tables, **kwargs)
        hidden_states = self.overlapping_layer(hidden_states, tables, **kwargs)
        return residual + as_image(self.conv, hidden_states)


class HatEmbeddings(nn.Module):
    """Layer norm and, where configured, a learned position for each pixel. (B, H, W, C) -> (B, H, W, C)"""

    def __init__(self, config: HatConfig):
        super().__init__()
        self.norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.embedding_norm else nn.Identity()
        )
        self.position_embeddings = (
            nn.Parameter(torch.zeros(1, config.image_size**2, config.hidden_size))
            if config.use_absolute_embeddings
            else None
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.norm(hidden_states)
        if self.position_embeddings is not None:
            size = hidden_states.shape[1:3]
            hidden_states = hidden_states + interpolate_positions(self.position_embeddings, size).unflatten(1, size)
        return self.dropout(hidden_states)


class HatPreTrainedModel(PreTrainedModel):
    config_class = HatConfig
    base_model_prefix = "hat"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False  # the loss is a mean over pixels: Trainer averages it over accumulated batches
    supports_gradient_checkpointing = True
    _no_split_modules = ["HatEmbeddings", "HatLayer", "HatOverlappingLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": HatGroup, "attentions": HatAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the reference: truncated normal for linear layers, tables and positions; torch's default for convolutions."""
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, HatAttention):
            init.trunc_normal_(module.relative_position_bias_table, std=self.config.initializer_range)
        elif isinstance(module, HatEmbeddings) and module.position_embeddings is not None:
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)
        elif isinstance(module, HatModel):
            for name, value in module.constants().items():
                init.copy_(getattr(module, name), value)


class HatModel(HatPreTrainedModel):
    """The body of HAT, without the upsampler (sections 3.1 and 3.2 of the paper)."""

    def __init__(self, config: HatConfig):
        super().__init__(config)
        self.conv_first = nn.Conv2d(config.num_channels, config.hidden_size, 3, padding=1)
        self.embeddings = HatEmbeddings(config)
        rates = iter(linear_rates(config.drop_path_rate, sum(config.depths)))
        self.groups = nn.ModuleList(
            HatGroup(config, num_heads, [next(rates) for _ in range(depth)])
            for depth, num_heads in zip(config.depths, config.num_attention_heads)
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.conv_after_body = residual_connection(config)
        for name, value in self.constants().items():
            self.register_buffer(name, value, persistent=False)
        self.post_init()

    def constants(self) -> dict[str, torch.Tensor]:
        """The buffers: the mean of the input, and `HatTables`."""
        config = self.config
        tables = HatTables.make(config.window_size, config.overlap_window_size)
        return {"mean": image_mean(config.num_channels), **tables._asdict()}

    def get_input_embeddings(self) -> nn.Module:
        return self.conv_first

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutput:
        """
        Args:
            pixel_values: (B, channels, H, W) in [0, 1], of any size from 1x1.

        Returns:
            `last_hidden_state` (B, hidden_size, H', W'), where H' and W' are H and W rounded up to a multiple of `window_size`
            (the image is reflected at the bottom and the right). On request `hidden_states`, (B, H', W', hidden_size) for the
            embedding and each group, and `attentions`, (B, windows, heads, queries, keys) for each layer.

        Raises:
            ValueError: not four axes, another number of channels than `num_channels`, or no pixels.
        """
        check_images(pixel_values, self.config.num_channels)
        pixel_values = reflect_to_multiple(pixel_values.to(self.conv_first.weight.dtype), self.config.window_size)
        shallow = self.conv_first((pixel_values - self.mean) * self.config.img_range).permute(0, 2, 3, 1)
        tables = HatTables(self.self_index, self.overlap_index, self.shift_masks)
        hidden_states = self.embeddings(shallow)
        for group in self.groups:
            hidden_states = group(hidden_states, tables, **kwargs)
        hidden_states = as_image(self.conv_after_body, self.layernorm(hidden_states)) + shallow
        return BaseModelOutput(last_hidden_state=hidden_states.permute(0, 3, 1, 2))


class HatForImageSuperResolution(HatPreTrainedModel):
    """HAT with its pixel-shuffle upsampler; with `upscale=1` it restores (denoises, deblurs) instead."""

    def __init__(self, config: HatConfig):
        super().__init__(config)
        self.hat = HatModel(config)
        self.upsampler = PixelShuffleUpsampler(config.hidden_size, config.num_channels, config.upscale)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageSuperResolutionOutput:
        """
        Args:
            pixel_values: (B, channels, H, W) in [0, 1], of any size from 1x1.
            labels: (B, channels, H * upscale, W * upscale) in [0, 1]: the image to reconstruct.

        Returns:
            `reconstruction`, shaped like `labels` and not clamped, and `loss`, the mean absolute error, when `labels` are given.

        Raises:
            ValueError: `pixel_values` as for `HatModel`, or `labels` of another shape than the reconstruction.
        """
        outputs: BaseModelOutput = self.hat(pixel_values, **kwargs)
        reconstruction = self.upsampler(outputs.last_hidden_state) / self.config.img_range + self.hat.mean
        height, width = (edge * self.config.upscale for edge in pixel_values.shape[2:])
        reconstruction = reconstruction[:, :, :height, :width]
        return ImageSuperResolutionOutput(
            loss=reconstruction_loss(reconstruction, labels),
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["HatForImageSuperResolution", "HatModel", "HatPreTrainedModel"]
