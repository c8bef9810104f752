"""SLAB's image models: "SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch
Normalization" (arXiv 2405.11582, ICML 2024). Swin, DeiT, PVT, PVTv2 and CSWin with two changes: norms that become RepBN during
training (`hf_ext.layers.repbn`), and, in some stages, simplified linear attention (`hf_ext.ops.simplified_linear_attention`).
Reference: xinghaochen/SLAB @f58db00b, `classification/models/`; no licence file: written from the paper and from outputs.

Where the port differs on purpose:
- `model.fuse()` folds every RepBN exactly into the layer beside it; the authors' merge forgets alpha times the bias of the patch
  embedding. Norms with nothing linear beside them (those of what the model returns) become a scale and a shift;
- images of other sizes than `image_size`, but for CSWin: a window that covered the map still does, its positions interpolated, and
  others are laid over a padded map, whose padding nothing attends to;
- attention runs through Transformers' attention interface (SDPA by default), with the relative position bias and the mask of shifted
  windows as an additive mask;
- tensors that the authors' networks carry and do not use are left out: DeiT's class token beside linear attention, CSWin's `scale`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.swin.modeling_swin import SwinRelativePositionBias
from transformers.models.vit.modeling_vit import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_ext.layers.drop_path import DropPath, linear_rates
from hf_ext.layers.fusion import FusionMixin
from hf_ext.layers.initialization import init_conv_as_torch, init_linear
from hf_ext.layers.inputs import check_images
from hf_ext.layers.linear import token_linear
from hf_ext.layers.maps import as_map, as_tokens
from hf_ext.layers.positions import interpolate_positions
from hf_ext.layers.pyramid import PyramidBackboneMixin, PyramidClassifierMixin
from hf_ext.layers.repbn import LinearNorm, RepBatchNorm, affine, fold_into_conv, fold_into_followers
from hf_ext.layers.window import window_partition, window_reverse
from hf_ext.ops.simplified_linear_attention import simplified_linear_attention

from .configuration_slab import SlabConfig

MASKED = -100.0  # added to the logits of tokens that do not belong together


def make_norm(config: SlabConfig, width: int) -> nn.Module:
    """The norm of `config.norm_type` over the last axis."""
    if config.norm_type == "repbn":
        return RepBatchNorm(width, config.batch_norm_eps)
    norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
    if config.norm_type == "layernorm":
        return norm
    return LinearNorm(
        norm, RepBatchNorm(width, config.batch_norm_eps), config.norm_warmup_steps, config.norm_decay_steps
    )


class SlabScale(nn.Module):
    """x * weight + bias: what is left of a norm with nothing linear beside it."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.bias, hidden_states, self.weight)


def scale_of(norm: nn.Module) -> nn.Module:
    """The `SlabScale` that equals `norm` in eval mode; a LayerNorm stays."""
    if not isinstance(norm, (LinearNorm, RepBatchNorm)):
        return norm
    dtype = next(norm.parameters()).dtype
    return SlabScale(*(part.to(dtype) for part in affine(norm)))


def fold_norm(parent: nn.Module, norm: str, readers: Iterable[str]) -> None:
    """Folds the submodule `norm` of `parent` into the linear layers that read it; a LayerNorm stays."""
    if isinstance(parent.get_submodule(norm), (LinearNorm, RepBatchNorm)):
        fold_into_followers(parent, norm, readers)


class SlabWindows(NamedTuple):
    """A map of `size` (H, W), rolled by `shift` to the top left and cut into windows (h, w); padded where they do not divide it."""

    size: tuple[int, int]
    window: tuple[int, int]
    shift: int = 0

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        return tuple(-(-edge // window) for edge, window in zip(self.size, self.window))

    def cut(self, tokens: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        """(B, H * W, C) -> (B * windows, h * w, C), with `fill` where there was no token."""
        rows, columns = (-edge % window for edge, window in zip(self.size, self.window))
        maps = tokens.unflatten(1, self.size)
        if rows or columns:
            maps = nn.functional.pad(maps, (0, 0, 0, columns, 0, rows), value=fill)
        if self.shift:
            maps = torch.roll(maps, (-self.shift, -self.shift), (1, 2))
        return window_partition(maps, self.window).flatten(0, 2)

    def join(self, windows: torch.Tensor) -> torch.Tensor:
        """(B * windows, h * w, C) -> (B, H * W, C)"""
        maps = window_reverse(windows.unflatten(0, (-1, *self.grid)), self.window)
        if self.shift:
            maps = torch.roll(maps, (self.shift, self.shift), (1, 2))
        return maps[:, : self.size[0], : self.size[1]].flatten(1, 2)

    def mask(self, device: torch.device) -> torch.Tensor | None:
        """(windows, 1, h * w, h * w), `MASKED` between tokens that were not neighbours before the roll, or of which one is padding; None
        where there are no such."""
        if not self.shift and not any(edge % window for edge, window in zip(self.size, self.window)):
            return None
        rows, columns = (
            self._regions(*lengths, device)
            for lengths in zip(self.size, (g * w for g, w in zip(self.grid, self.window)))
        )
        regions = torch.roll(rows[:, None] * 4 + columns, (-self.shift, -self.shift), (0, 1))[None, ..., None]
        regions = window_partition(regions, self.window).flatten(0, 2).squeeze(-1)  # (windows, h * w)
        apart = regions[:, None, :, None] != regions[:, None, None, :]
        return torch.zeros(apart.shape, device=device).masked_fill(apart, MASKED)

    def _regions(self, length: int, padded: int, device: torch.device) -> torch.Tensor:
        """(padded,): a number for each part of an edge that stays together."""
        index = torch.arange(padded, device=device)
        return (index < self.shift).long() + 2 * (index >= length).long()


class SlabSoftmax(nn.Module):
    """Softmax attention. (B, N, C) -> (B, N, C) and, from eager attention, the weights (B, heads, N, M)"""

    is_causal = False

    def __init__(self, config: SlabConfig, stage: int):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_sizes[stage] // config.num_attention_heads[stage]
        self.scaling = config.attention_scale or self.head_dim**-0.5

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        context, weights = attention_interface(
            self,
            *(x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in (query, key, value)),
            bias,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return context.flatten(2), weights


class SlabLinear(nn.Module):
    """Simplified linear attention (section 3.3) with a learned position for each key. (B, N, C) -> (B, N, C)

    Args:
        width: C; a number of heads of the stage's width.
        size: the map of keys, rows and columns, that positions are laid out for.
    """

    def __init__(self, config: SlabConfig, stage: int, width: int, size: tuple[int, int]):
        super().__init__()
        self.head_dim = config.hidden_sizes[stage] // config.num_attention_heads[stage]
        kernel = config.kernel_size
        self.size = size
        self.positional_encoding = nn.Parameter(torch.zeros(1, size[0] * size[1], width))
        self.conv_weight = nn.Parameter(torch.empty(self.head_dim, 1, kernel, kernel))
        self.conv_bias = nn.Parameter(torch.empty(self.head_dim))

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        size: tuple[int, int],
        key_size: tuple[int, int],
    ) -> torch.Tensor:
        """`size` and `key_size`: rows and columns of the queries' and the keys' map."""
        positions = self.positional_encoding
        if key_size != self.size:
            positions = interpolate_positions(positions, key_size)
        heads = (x.unflatten(-1, (-1, self.head_dim)) for x in (query, key + positions, value))
        return simplified_linear_attention(*heads, self.conv_weight, self.conv_bias, size).flatten(2)


class SlabReduction(nn.Module):
    """The map that keys and values come from, `ratio` times shorter along each edge (PVT). (B, H * W, C) -> (B, N, C)"""

    def __init__(self, config: SlabConfig, stage: int, ratio: int, plain_norm: bool):
        super().__init__()
        width = config.hidden_sizes[stage]
        self.conv = nn.Conv2d(width, width, ratio, ratio)
        self.norm = nn.LayerNorm(width) if plain_norm else make_norm(config, width)

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return self.norm(as_tokens(self.conv(as_map(tokens, size))))


class SlabAttention(nn.Module):
    """Projections around an attention that subclasses bring."""

    def __init__(self, config: SlabConfig, stage: int, ratio: int = 1, plain_norm: bool = False):
        super().__init__()
        width = config.hidden_sizes[stage]
        self.ratio = ratio
        self.reduction = SlabReduction(config, stage, ratio, plain_norm) if ratio > 1 else None
        self.q_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, tokens: torch.Tensor, size: tuple[int, int], **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """(B, H * W, C) -> (B, H * W, C); `size` is (H, W)."""
        if min(size) < self.ratio:
            raise ValueError(
                f"The image is too small: a stage that shortens maps by {self.ratio} (`sr_ratios`, `linear_sr_ratios`) sees one of "
                f"{size[0]}x{size[1]}"
            )
        source = tokens if self.reduction is None else self.reduction(tokens, size)
        context = self.attend(
            token_linear(self.q_proj, tokens),
            token_linear(self.k_proj, source),
            token_linear(self.v_proj, source),
            size,
            **kwargs,
        )
        return self.dropout(token_linear(self.o_proj, context))

    @property
    def readers(self) -> tuple[str, ...]:
        """The layers that read what comes in."""
        return ("q_proj", "k_proj", "v_proj") if self.reduction is None else ("q_proj", "reduction.conv")

    def fuse(self) -> nn.Module:
        if self.reduction is not None:
            fold_norm(self, "reduction.norm", ("k_proj", "v_proj"))
        return self


class SlabGlobalAttention(SlabAttention):
    """Softmax attention over the whole map (DeiT, PVT)."""

    def __init__(self, config: SlabConfig, stage: int, shifted: bool):
        super().__init__(config, stage, config.sr_ratios[stage])
        self.softmax = SlabSoftmax(config, stage)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: tuple[int, int], **kwargs
    ) -> torch.Tensor:
        return self.softmax(query, key, value, **kwargs)[0]


class SlabWindowAttention(SlabAttention):
    """Softmax attention inside windows, in every second layer shifted by half a window (Swin)."""

    def __init__(self, config: SlabConfig, stage: int, shifted: bool):
        super().__init__(config, stage)
        self.edge = min(config.window_sizes[stage], config.grid(stage))
        self.shift = self.edge // 2 if shifted else 0
        self.relative_position_bias = SwinRelativePositionBias(
            config.num_attention_heads[stage], (self.edge, self.edge)
        )
        self.softmax = SlabSoftmax(config, stage)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: tuple[int, int], **kwargs
    ) -> torch.Tensor:
        windows = SlabWindows(size, (self.edge, self.edge), self.shift if min(size) > self.edge else 0)
        bias, mask = self.relative_position_bias(), windows.mask(query.device)  # (1, heads, N, N), (windows, 1, N, N)
        if mask is not None:
            bias = (bias + mask).repeat(query.shape[0], 1, 1, 1)
        context, _ = self.softmax(*(windows.cut(x) for x in (query, key, value)), bias.to(query.dtype), **kwargs)
        return windows.join(context)


class SlabLinearAttention(SlabAttention):
    """Simplified linear attention over the whole map or, in Swin's larger maps, inside windows.

    In shifted windows parts that were not neighbours see each other, as in the reference.
    """

    def __init__(self, config: SlabConfig, stage: int, shifted: bool):
        super().__init__(config, stage, config.linear_sr_ratios[stage], plain_norm=config.architecture == "pvt_v2")
        grid = config.grid(stage)
        edge = config.linear_window_sizes[stage] if config.architecture == "swin" else grid
        self.edge = None if edge >= grid else edge
        self.shift = edge // 2 if shifted else 0
        keys = min(edge, grid) // self.ratio
        self.linear = SlabLinear(config, stage, config.hidden_sizes[stage], (keys, keys))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: tuple[int, int], **kwargs
    ) -> torch.Tensor:
        if self.edge is None:
            return self.linear(query, key, value, size, tuple(edge // self.ratio for edge in size))
        window = (self.edge, self.edge)
        windows = SlabWindows(size, window, self.shift)
        key = windows.cut(key, fill=-torch.inf)  # ReLU makes nothing of it
        return windows.join(self.linear(windows.cut(query), key, windows.cut(value), window, window))


class SlabStripe(nn.Module):
    """Attention inside stripes, and a depthwise convolution of the values (CSWin's LePE). (B, H * W, C) -> (B, H * W, C)"""

    def __init__(self, config: SlabConfig, stage: int, width: int, window: tuple[int, int]):
        super().__init__()
        self.window = window
        self.local_enhancement = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.make_attention(config, stage, width)

    def make_attention(self, config: SlabConfig, stage: int, width: int) -> None:
        self.softmax = SlabSoftmax(config, stage)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: tuple[int, int], **kwargs
    ) -> torch.Tensor:
        windows = SlabWindows(size, self.window)
        query, key, value = (windows.cut(x) for x in (query, key, value))
        local = as_tokens(self.local_enhancement(as_map(value, self.window)))
        return windows.join(self.attend(query, key, value, **kwargs) + local)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs) -> torch.Tensor:
        return self.softmax(query, key, value, **kwargs)[0]


class SlabLinearStripe(SlabStripe):
    """The same with simplified linear attention."""

    def make_attention(self, config: SlabConfig, stage: int, width: int) -> None:
        self.linear = SlabLinear(config, stage, width, self.window)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs) -> torch.Tensor:
        return self.linear(query, key, value, self.window, self.window)


class SlabStripeAttention(SlabAttention):
    """Half of the heads attend inside vertical stripes, half inside horizontal ones; over the whole map where a stripe is as wide, and
    in the last stage (CSWin)."""

    stripe_class = SlabStripe
    widths = "window_sizes"

    def __init__(self, config: SlabConfig, stage: int, shifted: bool):
        super().__init__(config, stage)
        grid, split = config.grid(stage), getattr(config, self.widths)[stage]
        whole = split >= grid or stage == len(config.depths) - 1
        windows = [(grid, grid)] if whole else [(grid, split), (split, grid)]
        width = config.hidden_sizes[stage] // len(windows)
        self.size = (grid, grid)
        self.stripes = nn.ModuleList(self.stripe_class(config, stage, width, window) for window in windows)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: tuple[int, int], **kwargs
    ) -> torch.Tensor:
        if size != self.size:
            raise ValueError(
                "CSWin takes images of `image_size` only: its stripes are laid out for a map of "
                f"{self.size[0]}x{self.size[1]} here, which is {size[0]}x{size[1]}"
            )
        parts = zip(*(x.chunk(len(self.stripes), -1) for x in (query, key, value)))
        contexts = [stripe(*part, size, **kwargs) for stripe, part in zip(self.stripes, parts)]
        return torch.cat(contexts, -1) if len(contexts) > 1 else contexts[0]


class SlabLinearStripeAttention(SlabStripeAttention):
    stripe_class = SlabLinearStripe
    widths = "linear_window_sizes"


# architecture -> softmax attention and simplified linear attention
ATTENTIONS = {
    "swin": (SlabWindowAttention, SlabLinearAttention),
    "deit": (SlabGlobalAttention, SlabLinearAttention),
    "pvt": (SlabGlobalAttention, SlabLinearAttention),
    "pvt_v2": (SlabGlobalAttention, SlabLinearAttention),
    "cswin": (SlabStripeAttention, SlabLinearStripeAttention),
}


class SlabMLP(nn.Module):
    """Two linear layers. (B, H * W, C) -> (B, H * W, C)"""

    def __init__(self, config: SlabConfig, stage: int):
        super().__init__()
        width = config.hidden_sizes[stage]
        intermediate_size = int(width * config.mlp_ratios[stage])
        self.fc1 = nn.Linear(width, intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        tokens = self.dropout(self.activation_fn(token_linear(self.fc1, tokens)))
        return self.dropout(token_linear(self.fc2, tokens))


class SlabConvMLP(SlabMLP):
    """With a depthwise 3x3 convolution between them (PVTv2)."""

    def __init__(self, config: SlabConfig, stage: int):
        super().__init__(config, stage)
        channels = self.fc1.out_features
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        tokens = as_tokens(self.conv(as_map(token_linear(self.fc1, tokens), size)))
        return self.dropout(token_linear(self.fc2, self.dropout(self.activation_fn(tokens))))


class SlabLayer(GradientCheckpointingLayer):
    """Attention and an MLP, each behind a norm."""

    def __init__(self, config: SlabConfig, stage: int, index: int, drop_path_rate: float):
        super().__init__()
        width = config.hidden_sizes[stage]
        attention_class = ATTENTIONS[config.architecture][index < config.linear_depths[stage]]
        self.norm_before = make_norm(config, width)
        self.attention = attention_class(config, stage, shifted=index % 2 == 1)
        self.norm_after = make_norm(config, width)
        self.mlp = (SlabConvMLP if config.architecture == "pvt_v2" else SlabMLP)(config, stage)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, tokens: torch.Tensor, size: tuple[int, int], **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """(B, H * W, C) -> (B, H * W, C)"""
        tokens = tokens + self.drop_path(self.attention(self.norm_before(tokens), size, **kwargs))
        return tokens + self.drop_path(self.mlp(self.norm_after(tokens), size))

    def fuse(self) -> nn.Module:
        fold_norm(self, "norm_before", [f"attention.{name}" for name in self.attention.readers])
        fold_norm(self, "norm_after", ["mlp.fc1"])
        return self


class SlabPatchEmbedding(nn.Module):
    """Convolution, norm, and learned positions. (B, in, H, W) -> tokens (B, H' * W', C) and (H', W')"""

    def __init__(self, config: SlabConfig, stage: int):
        super().__init__()
        in_channels = config.hidden_sizes[stage - 1] if stage else config.num_channels
        width = config.hidden_sizes[stage]
        self.patches = config.patches(stage)
        self.projection = nn.Conv2d(in_channels, width, *self.patches)
        has_norm = config.architecture != "deit" and (config.patch_norm or config.architecture != "swin")
        self.norm = make_norm(config, width) if has_norm else nn.Identity()
        has_positions = config.architecture in ("deit", "pvt") or config.use_absolute_embeddings
        self.position_embeddings = (
            nn.Parameter(torch.zeros(1, config.grid(stage) ** 2 + config.use_class_token, width))
            if has_positions
            else None
        )
        self.position_mode = "bilinear" if config.architecture == "pvt" else "bicubic"
        self.dropout = nn.Dropout(config.hidden_dropout_prob if stage == 0 or has_positions else 0.0)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        if min(self.patches.count(edge) for edge in images.shape[2:]) < 1:
            raise ValueError(
                f"The image is too small: a stage cuts patches of {self.patches.kernel} from a map of {images.shape[2]}x{images.shape[3]}"
            )
        maps = self.projection(images)
        size = tuple(maps.shape[2:])
        tokens = self.norm(as_tokens(maps))
        if self.position_embeddings is not None:
            tokens = self.add_positions(tokens, size)
        return self.dropout(tokens), size

    def add_positions(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return tokens + interpolate_positions(self.position_embeddings, size, self.position_mode)

    def fuse(self) -> nn.Module:
        if isinstance(self.norm, (LinearNorm, RepBatchNorm)):
            self.projection, self.norm = fold_into_conv(self.projection, self.norm), nn.Identity()
        return self


class SlabClassTokenEmbedding(SlabPatchEmbedding):
    """With a class token before the patches. (B, in, H, W) -> (B, 1 + H' * W', C)"""

    def __init__(self, config: SlabConfig, stage: int):
        super().__init__(config, stage)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.hidden_sizes[stage]))

    def add_positions(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        first, others = self.position_embeddings.split([1, self.position_embeddings.shape[1] - 1], dim=1)
        tokens = tokens + interpolate_positions(others, size, self.position_mode)
        return torch.cat([(self.class_token + first).expand(len(tokens), -1, -1), tokens], dim=1)


class SlabPatchMerging(nn.Module):
    """Four neighbours side by side, a norm, half of the channels (Swin). (B, C, H, W) -> tokens (B, H' * W', 2 C) and (H', W'), half of
    (H, W) rounded up"""

    def __init__(self, config: SlabConfig, stage: int):
        super().__init__()
        width = config.hidden_sizes[stage - 1]
        self.norm = make_norm(config, 4 * width)
        self.reduction = nn.Linear(4 * width, config.hidden_sizes[stage], bias=False)

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        rows, columns = (edge % 2 for edge in maps.shape[2:])
        if rows or columns:
            maps = nn.functional.pad(maps, (0, columns, 0, rows))
        size = tuple(edge // 2 for edge in maps.shape[2:])
        maps = maps.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H', 2, W', 2, C)
        tokens = maps.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)
        return token_linear(self.reduction, self.norm(tokens)), size

    def fuse(self) -> nn.Module:
        fold_norm(self, "norm", ["reduction"])
        return self


class SlabStage(nn.Module):
    """Makes the map smaller, but for the first stage, and runs layers; PVTv2 ends a stage with a norm."""

    def __init__(self, config: SlabConfig, stage: int, drop_path_rates: list[float]):
        super().__init__()
        embedding_class = SlabPatchMerging if config.architecture == "swin" else SlabPatchEmbedding
        self.downsample = embedding_class(config, stage) if stage else None
        self.layers = nn.ModuleList(SlabLayer(config, stage, index, rate) for index, rate in enumerate(drop_path_rates))
        self.norm = make_norm(config, config.hidden_sizes[stage]) if config.architecture == "pvt_v2" else nn.Identity()

    def forward(
        self, tokens: torch.Tensor, size: tuple[int, int], **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, tuple[int, int]]:
        """(B, H * W, C) and (H, W) -> the same of this stage"""
        if self.downsample is not None:
            tokens, size = self.downsample(as_map(tokens, size))
        for layer in self.layers:
            tokens = layer(tokens, size, **kwargs)
        return self.norm(tokens), size

    def fuse(self) -> nn.Module:
        self.norm = scale_of(self.norm)
        return self


class SlabEncoder(nn.Module):
    """Patch embedding and stages. (B, channels, H, W) -> of the embedding and of each stage tokens (B, N, C) and their map's size"""

    def __init__(self, config: SlabConfig):
        super().__init__()
        self.num_channels = config.num_channels
        rates = iter(linear_rates(config.drop_path_rate, sum(config.depths)))
        self.stem = (SlabClassTokenEmbedding if config.use_class_token else SlabPatchEmbedding)(config, 0)
        self.stages = nn.ModuleList(
            SlabStage(config, stage, [next(rates) for _ in range(depth)]) for stage, depth in enumerate(config.depths)
        )

    def forward(
        self, pixel_values: torch.Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> list[tuple[torch.Tensor, tuple[int, int]]]:
        check_images(pixel_values, self.num_channels)
        states = [self.stem(pixel_values.to(self.stem.projection.weight.dtype, memory_format=torch.channels_last))]
        for stage in self.stages:
            states.append(stage(*states[-1], **kwargs))
        return states


class SlabPooler(nn.Module):
    """The final norm, but for PVT, and the mean token or the class token. (B, N, C) -> (B, N, C) and (B, C)"""

    def __init__(self, config: SlabConfig):
        super().__init__()
        self.norm = (
            nn.Identity() if config.architecture.startswith("pvt") else make_norm(config, config.hidden_sizes[-1])
        )
        self.takes_first = config.use_class_token

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.norm(tokens)
        return tokens, tokens[:, 0] if self.takes_first else tokens.mean(1)

    def fuse(self) -> nn.Module:
        self.norm = scale_of(self.norm)
        return self


class SlabNorms(nn.ModuleDict):
    """A norm for each map that a backbone returns."""

    def fuse(self) -> nn.Module:
        for stage, norm in list(self.items()):
            self[stage] = scale_of(norm)
        return self


class SlabPreTrainedModel(FusionMixin, PreTrainedModel):
    config_class = SlabConfig
    base_model_prefix = "slab"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["SlabPatchEmbedding", "SlabClassTokenEmbedding", "SlabPatchMerging", "SlabLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": SlabStage, "attentions": SlabSoftmax}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the references: truncated normal for linear layers, tables and positions; torch's default for convolutions."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init_linear(module, std)
        elif isinstance(module, nn.Conv2d):
            init_conv_as_torch(module)
        elif isinstance(module, SwinRelativePositionBias):
            init.trunc_normal_(module.relative_position_bias_table, std=std)
            init.copy_(module.relative_position_index, module._create_relative_position_index().view(-1))
        elif isinstance(module, SlabLinear):
            init.zeros_(module.positional_encoding)
            bound = module.conv_weight[0].numel() ** -0.5
            init.uniform_(module.conv_weight, -bound, bound)
            init.uniform_(module.conv_bias, -bound, bound)
        elif isinstance(module, SlabPatchEmbedding):
            for name in ("position_embeddings", "class_token"):
                if getattr(module, name, None) is not None:
                    init.trunc_normal_(getattr(module, name), std=std)
        elif isinstance(module, RepBatchNorm):
            module.reset_parameters()
        elif isinstance(module, LinearNorm):
            module.reset_counters()
        elif isinstance(module, SlabScale):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class SlabModel(SlabPreTrainedModel):
    """SLAB without a classifier."""

    def __init__(self, config: SlabConfig):
        super().__init__(config)
        self.encoder = SlabEncoder(config)
        self.pooler = SlabPooler(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.stem.projection

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: (B, channels, H, W), normalised, of any size; for CSWin `image_size` squared.

        Returns:
            `last_hidden_state` (B, N, hidden_sizes[-1]), the last stage's tokens after the final norm, row by row and after the class token
            if there is one, and `pooler_output` (B, hidden_sizes[-1]). On request `hidden_states`, the tokens of the embedding and of each
            stage, and `attentions`, (B * windows, heads, queries, keys) of each layer (or stripe) with softmax attention.

        Raises:
            ValueError: not four axes, another number of channels than `num_channels`, no pixels, or too few.
        """
        tokens, _ = self.encoder(pixel_values, **kwargs)[-1]
        last_hidden_state, pooler_output = self.pooler(tokens)
        return BaseModelOutputWithPooling(last_hidden_state=last_hidden_state, pooler_output=pooler_output)


class SlabForImageClassification(PyramidClassifierMixin, SlabPreTrainedModel):
    """SLAB with a linear classifier."""

    def __init__(self, config: SlabConfig):
        super().__init__(config)
        self.slab = SlabModel(config)
        self.classifier = nn.Linear(config.hidden_sizes[-1], config.num_labels)
        self.post_init()


class SlabBackbone(PyramidBackboneMixin, SlabPreTrainedModel):
    """SLAB as the backbone of a detector or a segmenter: the maps of the stages. Swin, DeiT and CSWin give each map a norm, as the Swin
    of detectors has; PVT does not."""

    _keys_to_ignore_on_load_unexpected = [r"^(slab\.)?pooler\.", r"classifier\."]

    def __init__(self, config: SlabConfig):
        super().__init__(config)
        if config.use_class_token:
            raise ValueError("`SlabBackbone` returns maps, and a model with `use_class_token` has none")
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        self.encoder = SlabEncoder(config)
        self.norms = SlabNorms(
            {
                stage: make_norm(config, width)
                for stage, width in zip(self.out_features, self.channels)
                if stage != "stem" and not config.architecture.startswith("pvt")
            }
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.stem.projection

    def normalize(self, stage: str, state: tuple[torch.Tensor, tuple[int, int]]) -> torch.Tensor:
        """The tokens of a stage, and their map's size -> the map (B, C, H, W)"""
        tokens, size = state
        return as_map(self.norms[stage](tokens) if stage in self.norms else tokens, size)


__all__ = ["SlabBackbone", "SlabForImageClassification", "SlabModel", "SlabPreTrainedModel"]
