"""DiT with dynamic token routing, a vision backbone in which each token finds its own way through a grid of scales and stages: "DiT:
Efficient Vision Transformers with Dynamic Token Routing" (arXiv 2308.03409).

The authors published no code (Maycbj/DiT holds a README and figures). The grid, the binary gate for each token and the bypass are
theirs; the form of the gates, the budget loss and the stages above the diagonal are this project's choice. The blocks are PVTv2's: the
diagonal of the grid is exactly that network, so its checkpoints start one of these (`from_pvt_v2`).

The same equations are computed in two ways. `Masked` multiplies by the gates; gradients pass, and the graph does not depend on the
data, so training, `torch.compile` and `torch.export` use it. `Gathered` computes selected tokens only and skips stages that nobody
entered; inference (eval mode under `torch.no_grad()`) uses it. Outputs are equal up to rounding.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.pvt_v2.modeling_pvt_v2 import (
    PvtV2ConvFeedForwardNetwork,
    PvtV2ForImageClassification,
    PvtV2OverlapPatchEmbeddings,
    PvtV2SelfAttention,
)
from transformers.models.vit.modeling_vit import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hf_ext.layers.drop_path import DropPath, linear_rates
from hf_ext.layers.initialization import init_linear
from hf_ext.layers.inputs import check_images
from hf_ext.layers.tokens import to_map, to_tokens

from .configuration_dit_router import ROUTINGS, SCALES, DynamicTokenRoutingConfig

Size = tuple[int, int]


@dataclass
class DynamicTokenRoutingModelOutput(ModelOutput):
    """
    Attributes:
        last_hidden_state: (B, C, H / 32, W / 32), the last of `feature_maps`.
        pooler_output: (B, hidden_sizes[3]), its mean over positions.
        feature_maps: for each scale, the normalized map (B, hidden_sizes[i], H / stride, W / stride).
        gates: for each gate, in the order of evaluation, who was selected: (B, h, w) of zeros and ones, float32. The order is that of
            `model.gate_names`.
        gate_ratios: (gates,), the mean of each gate over the batch and its tokens.
        cost_ratio: the share of the gated multiply-adds that was spent.
        router_loss: (cost_ratio - budget) ** 2.
        hidden_states: (B, N, C) after each stage, in the order of evaluation.
        attentions: (B, heads, N, keys) of each block.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    feature_maps: tuple[torch.Tensor, ...] | None = None
    gates: tuple[torch.Tensor, ...] | None = None
    gate_ratios: torch.Tensor | None = None
    cost_ratio: torch.Tensor | None = None
    router_loss: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class DynamicTokenRoutingImageClassifierOutput(DynamicTokenRoutingModelOutput):
    """
    Attributes:
        loss: when labels are given: that of the task plus `router_loss_coef` times `router_loss`.
        logits: (B, num_labels).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


@dataclass
class DynamicTokenRoutingBackboneOutput(BackboneOutput):
    """`BackboneOutput` with what the router did, as in `DynamicTokenRoutingModelOutput`."""

    gates: tuple[torch.Tensor, ...] | None = None
    gate_ratios: torch.Tensor | None = None
    cost_ratio: torch.Tensor | None = None
    router_loss: torch.Tensor | None = None


class Whole:
    """All tokens are selected."""

    def take(self, tokens: torch.Tensor) -> torch.Tensor:
        """What is computed of (B, N, C)."""
        return tokens

    def spread(self, selected: torch.Tensor) -> torch.Tensor:
        """Back to (B, N, C), with zeros for tokens that are not selected."""
        return selected

    def add(self, tokens: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """`tokens` (B, N, C) plus `update` where selected; the others stay what they are."""
        return tokens + update

    def to_rows(self, selected: torch.Tensor) -> torch.Tensor:
        """One row for each image: (B, M, C)."""
        return selected

    def from_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_rows`."""
        return rows


class Masked(Whole):
    """All tokens are computed, and multiplied by `gate` (B, N, 1)."""

    def __init__(self, gate: torch.Tensor):
        self.gate = gate

    def spread(self, selected: torch.Tensor) -> torch.Tensor:
        return self.gate.to(selected.dtype) * selected

    def add(self, tokens: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        return tokens + self.spread(update)


class Gathered(Whole):
    """Only the T tokens that `mask` (B, H, W) selects are computed, as (T, C)."""

    def __init__(self, mask: torch.Tensor):
        self.mask = mask
        self.index = mask.flatten().nonzero().squeeze(1)
        counts = mask.flatten(1).sum(1, keepdim=True)
        # Images select different numbers of tokens, so rows are as long as the longest
        self.valid = torch.arange(int(counts.max()), device=mask.device) < counts

    def take(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.flatten(0, 1).index_select(0, self.index)

    def spread(self, selected: torch.Tensor) -> torch.Tensor:
        zeros = selected.new_zeros(self.mask.numel(), selected.shape[-1])
        return zeros.index_copy_(0, self.index, selected).unflatten(0, (len(self.mask), -1))

    def add(self, tokens: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        return tokens.flatten(0, 1).index_add(0, self.index, update).view_as(tokens)

    def to_rows(self, selected: torch.Tensor) -> torch.Tensor:
        rows = selected.new_zeros(*self.valid.shape, selected.shape[-1])
        rows[self.valid] = selected
        return rows

    def from_rows(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[self.valid]

    @cached_property
    def neighbours(self) -> list[torch.Tensor]:
        """For each tap of a 3x3 kernel, which selected token lies under it: nine times (T,), T where there is none."""
        batch, height, width = self.mask.shape
        count = len(self.index)
        slots = self.index.new_full((batch, height + 2, width + 2), count)
        slots[:, 1:-1, 1:-1][self.mask] = torch.arange(count, device=slots.device)
        return [slots[:, y : y + height, x : x + width][self.mask] for y in range(3) for x in range(3)]


def select(gate: torch.Tensor, size: Size, gather: bool) -> Whole | None:
    """How to compute a stage with that gate (B, H * W, 1); None: not at all."""
    if not gather:
        return Masked(gate)
    mask = gate.squeeze(-1).unflatten(1, size) > 0
    if mask.all():
        return Whole()
    return Gathered(mask) if mask.any() else None


class DynamicTokenRoutingLogit(nn.Linear):
    """(..., width) -> (..., 1), with a bias that starts at `first_bias`."""

    def __init__(self, width: int, first_bias: float):
        super().__init__(width, 1)
        self.first_bias = first_bias


class DynamicTokenRoutingGate(nn.Module):
    """Whether each token is selected. (B, N, C) -> (B, N, 1) of zeros and ones, float32.

    In training mode a straight-through sample (Gumbel-sigmoid, temperature 1); otherwise the sign of the logit. In both the gradient is
    the sigmoid's.
    """

    def __init__(self, config: DynamicTokenRoutingConfig, width: int, opened: bool):
        super().__init__()
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dense1 = nn.Linear(width, width // 4)
        self.activation_fn = ACT2FN["gelu"]
        self.dense2 = DynamicTokenRoutingLogit(width // 4, 1.0 if opened else -1.0)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        normed = self.layer_norm(tokens.to(self.layer_norm.weight.dtype))
        logits = self.dense2(self.activation_fn(self.dense1(normed))).float()
        if self.training:
            uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            logits = logits + uniform.log() - (-uniform).log1p()
        soft = logits.sigmoid()
        return (logits > 0).float() + (soft - soft.detach())

    def constant(self, tokens: torch.Tensor, value: float) -> torch.Tensor:
        """A gate of that value for every token."""
        return torch.full_like(tokens[..., :1], value, dtype=torch.float32)


class DynamicTokenRoutingAttention(PvtV2SelfAttention):
    """Attention of selected tokens to all tokens of the node, on a reduced map."""

    is_causal = False

    def __init__(self, config: DynamicTokenRoutingConfig, scale: int):
        super().__init__(config, config.hidden_sizes[scale], config.num_attention_heads[scale], config.sr_ratios[scale])
        self.config = config
        self.scaling = self.attention_head_size**-0.5

    def forward(
        self, tokens: torch.Tensor, size: Size, selection: Whole, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, C) -> the selected tokens, and from eager attention the weights (B, heads, queries, keys)"""
        reduced = self.reduce(tokens, size)
        query = selection.to_rows(self.query(selection.take(tokens)))
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        context, weights = attention_interface(
            self,
            *(self.transpose_for_scores(x) for x in (query, self.key(reduced), self.value(reduced))),
            None,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        context = selection.from_rows(context.flatten(2))
        return self.proj_drop(self.proj(context)), weights

    def reduce(self, tokens: torch.Tensor, size: Size) -> torch.Tensor:
        """(B, H * W, C) -> (B, H // sr * W // sr, C)"""
        if self.spatial_reduction_ratio == 1:
            return tokens
        return self.layer_norm(to_tokens(self.spatial_reduction(to_map(tokens, size))))


class SelectiveDepthwiseConv2d(nn.Conv2d):
    """A depthwise 3x3 convolution that sees zeros for tokens that are not selected, and computes selected ones only."""

    def __init__(self, width: int):
        super().__init__(width, width, 3, padding=1, groups=width)

    def forward(self, selected: torch.Tensor, size: Size, selection: Whole) -> torch.Tensor:
        """What is selected of (B, H * W, C) -> the same"""
        if not isinstance(selection, Gathered):
            return to_tokens(super().forward(to_map(selection.spread(selected), size)))
        padded = torch.cat([selected, selected.new_zeros(1, selected.shape[1])])
        output = self.bias.repeat(len(selected), 1)
        for tap, neighbour in zip(self.weight.flatten(1).t().contiguous(), selection.neighbours):
            output.addcmul_(padded.index_select(0, neighbour), tap)
        return output


class DynamicTokenRoutingDepthwise(nn.Module):
    """Keeps PVTv2's name for the convolution's weights."""

    def __init__(self, width: int):
        super().__init__()
        self.dwconv = SelectiveDepthwiseConv2d(width)

    def forward(self, selected: torch.Tensor, size: Size, selection: Whole) -> torch.Tensor:
        return self.dwconv(selected, size, selection)


class DynamicTokenRoutingMLP(PvtV2ConvFeedForwardNetwork):
    """PVTv2's MLP for selected tokens."""

    def __init__(self, config: DynamicTokenRoutingConfig, width: int, intermediate_size: int):
        super().__init__(config, width, intermediate_size)
        self.dwconv = DynamicTokenRoutingDepthwise(intermediate_size)

    def forward(self, selected: torch.Tensor, size: Size, selection: Whole) -> torch.Tensor:
        hidden_states = self.dwconv(self.dense1(selected), size, selection)
        hidden_states = self.dropout(self.intermediate_act_fn(hidden_states))
        return self.dropout(self.dense2(hidden_states))


class DynamicTokenRoutingLayer(GradientCheckpointingLayer):
    """PVTv2's block on selected tokens: x + g Attn(LN(x)), then x + g FFN(LN(x), g)."""

    def __init__(self, config: DynamicTokenRoutingConfig, scale: int, drop_path_rate: float):
        super().__init__()
        width = config.hidden_sizes[scale]
        self.layer_norm_1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = DynamicTokenRoutingAttention(config, scale)
        self.layer_norm_2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = DynamicTokenRoutingMLP(config, width, int(width * config.mlp_ratios[scale]))
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, tokens: torch.Tensor, size: Size, selection: Whole, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        attention, _ = self.attention(self.layer_norm_1(tokens), size, selection, **kwargs)
        tokens = selection.add(tokens, self.drop_path(attention))
        selected = self.layer_norm_2(selection.take(tokens))
        return selection.add(tokens, self.drop_path(self.mlp(selected, size, selection)))


class DynamicTokenRoutingStage(nn.Module):
    """The edge from a node to the next column: blocks for selected tokens, a bypass for the others."""

    def __init__(self, config: DynamicTokenRoutingConfig, scale: int, drop_path_rates: list[float], diagonal: bool):
        super().__init__()
        width = config.hidden_sizes[scale]
        self.gate = DynamicTokenRoutingGate(config, width, opened=diagonal)
        self.blocks = nn.ModuleList(DynamicTokenRoutingLayer(config, scale, rate) for rate in drop_path_rates)
        self.diagonal = diagonal
        self.width, self.sr_ratio = width, config.sr_ratios[scale]
        self.intermediate_size = int(width * config.mlp_ratios[scale])

    def forward(
        self, tokens: torch.Tensor, size: Size, routing: str, gather: bool, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, N, C) -> (B, N, C) and the gate (B, N, 1)"""
        if routing == "static":
            gate = self.gate.constant(tokens, float(self.diagonal))
            selection = Whole() if self.diagonal else None
        else:
            gate = self.gate(tokens)
            selection = select(gate, size, gather)
        if selection is not None:
            for block in self.blocks:
                tokens = block(tokens, size, selection, **kwargs)
        return tokens, gate

    def cost(self, size: Size) -> int:
        """Multiply-adds when all tokens are selected."""
        (height, width), channels = size, self.width
        keys = (height // self.sr_ratio) * (width // self.sr_ratio)
        per_token = 2 * channels**2 + 2 * keys * channels + (2 * channels + 9) * self.intermediate_size
        return len(self.blocks) * height * width * per_token


class SelectiveConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 2, padded by 1, that can be asked for some of its outputs only."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, feature_map: torch.Tensor, wanted: Whole) -> torch.Tensor:
        """(B, in, H, W) -> (B, H / 2 * W / 2, out), or with `Gathered` outputs (T, out)"""
        if not isinstance(wanted, Gathered):
            return to_tokens(super().forward(feature_map))
        # What each output sees, as a view: (B, H / 2, W / 2, in, 3, 3)
        padded = nn.functional.pad(feature_map, (1, 1, 1, 1)).permute(0, 2, 3, 1)
        windows = padded.unfold(1, 3, 2).unfold(2, 3, 2)
        return nn.functional.linear(windows[wanted.mask].flatten(1), self.weight.flatten(1), self.bias)


class DynamicTokenRoutingPatchEmbedding(nn.Module):
    """PVTv2's overlapping patch embedding, which halves the map, for the tokens that are wanted."""

    def __init__(self, config: DynamicTokenRoutingConfig, scale: int):
        super().__init__()
        self.proj = SelectiveConv2d(*config.hidden_sizes[scale : scale + 2])
        self.layer_norm = nn.LayerNorm(config.hidden_sizes[scale + 1], eps=config.layer_norm_eps)

    def forward(self, feature_map: torch.Tensor, wanted: Whole) -> torch.Tensor:
        return wanted.spread(self.layer_norm(self.proj(feature_map, wanted)))


class DynamicTokenRoutingScaling(nn.Module):
    """The edge from a node down to the next coarser scale. The main edges, those below the diagonal, have no gate: each token reaches
    the coarsest scale."""

    def __init__(self, config: DynamicTokenRoutingConfig, scale: int, main: bool):
        super().__init__()
        self.widths = config.hidden_sizes[scale : scale + 2]
        self.layer_norm = nn.LayerNorm(self.widths[0], eps=config.layer_norm_eps)
        self.patch_embedding = DynamicTokenRoutingPatchEmbedding(config, scale)
        self.gate = None if main else DynamicTokenRoutingGate(config, self.widths[0], opened=False)

    def forward(
        self, tokens: torch.Tensor, size: Size, routing: str, gather: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(B, H * W, C) -> (B, H / 2 * W / 2, C'), None where it is zero, and the gate (B, H * W, 1), None where there is none"""
        if self.gate is None:
            return self.patch_embedding(to_map(self.layer_norm(tokens), size), Whole()), None
        if routing == "static":
            return None, self.gate.constant(tokens, 0.0)
        gate = self.gate(tokens)
        # The convolution reaches a token of the coarser map if a selected one lies under its kernel
        reached = nn.functional.max_pool2d(to_map(gate, size), 3, stride=2, padding=1)
        wanted = select(to_tokens(reached), reached.shape[2:], gather)
        if wanted is None:
            return None, gate
        sent = gate.to(tokens.dtype) * self.layer_norm(tokens)
        return self.patch_embedding(to_map(sent, size), wanted), gate

    def cost(self, size: Size) -> float:
        """Multiply-adds when all tokens are selected."""
        return size[0] * size[1] * 9 * self.widths[0] * self.widths[1] / 4


class DynamicTokenRoutingEncoder(nn.Module):
    """The grid. Node (scale i, column j) exists for i <= min(j, 3); column 0 is the stem, column 4 the output."""

    def __init__(self, config: DynamicTokenRoutingConfig):
        super().__init__()
        self.sr_ratios = config.sr_ratios
        self.patch_embedding = PvtV2OverlapPatchEmbeddings(config, 0)
        rates = linear_rates(config.drop_path_rate, sum(config.depths))
        self.stages, self.scaling = nn.ModuleDict(), nn.ModuleDict()
        self.gate_names = []  # in the order of evaluation
        for column in range(SCALES + 1):
            for scale in range(min(column, SCALES - 1)):
                main = column == scale + 1
                self.scaling[f"{scale}_{column}"] = DynamicTokenRoutingScaling(config, scale, main)
                self.gate_names += [] if main else [f"scaling.{scale}_{column}"]
            if column == SCALES:
                break
            own, rates = rates[: config.depths[column]], rates[config.depths[column] :]
            for scale in range(column + 1):
                if config.depth(scale, column):
                    diagonal = scale == column
                    stage_rates = own if diagonal else own[-1:] * config.extra_depth
                    self.stages[f"{scale}_{column}"] = DynamicTokenRoutingStage(config, scale, stage_rates, diagonal)
                    self.gate_names.append(f"stages.{scale}_{column}")

    def forward(
        self, pixel_values: torch.Tensor, routing: str, gather: bool, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[list[torch.Tensor], list[Size], list[tuple[torch.Tensor, Size, float]]]:
        """(B, channels, H, W) -> for each scale the tokens (B, N, C) and the size of their map; for each gate its values (B, N, 1),
        the size, and the cost of its edge"""
        tokens, *size = self.patch_embedding(pixel_values)
        nodes, sizes = [tokens], self.check_sizes(tuple(size))
        gates = []
        for column in range(SCALES + 1):
            for scale in range(min(column, SCALES - 1)):
                edge = self.scaling[f"{scale}_{column}"]
                sent, gate = edge(nodes[scale], sizes[scale], routing, gather)
                if scale + 1 == len(nodes):
                    nodes.append(sent)
                elif sent is not None:
                    nodes[scale + 1] = nodes[scale + 1] + sent
                if gate is not None:
                    gates.append((gate, sizes[scale], edge.cost(sizes[scale])))
            for scale in range(len(nodes)):
                if f"{scale}_{column}" in self.stages:
                    stage = self.stages[f"{scale}_{column}"]
                    nodes[scale], gate = stage(nodes[scale], sizes[scale], routing, gather, **kwargs)
                    gates.append((gate, sizes[scale], stage.cost(sizes[scale])))
        return nodes, sizes, gates

    def check_sizes(self, size: Size) -> list[Size]:
        """The sizes of the maps at all scales, given the finest; `ValueError` where one is smaller than its `sr_ratio`."""
        sizes = [size]
        for _ in range(SCALES - 1):
            sizes.append(tuple((edge + 1) // 2 for edge in sizes[-1]))
        for (height, width), ratio in zip(sizes, self.sr_ratios):
            if min(height, width) < ratio:
                raise ValueError(
                    f"The image is too small: a map of {height}x{width} cannot be reduced by {ratio} (`sr_ratios`); images "
                    "of 32x32 and more fit the usual ratios"
                )
        return sizes


class DynamicTokenRoutingPreTrainedModel(PreTrainedModel):
    config_class = DynamicTokenRoutingConfig
    base_model_prefix = "dit_router"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["PvtV2OverlapPatchEmbeddings", "DynamicTokenRoutingLayer", "DynamicTokenRoutingScaling"]
    _keep_in_fp32_modules_strict = ["gate"]  # a rounded logit may change sign
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(DynamicTokenRoutingStage, index=0),
        "attentions": DynamicTokenRoutingAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As PVTv2; gates start open on the diagonal and closed elsewhere."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init_linear(module, self.config.initializer_range)
        elif isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
            init.zeros_(module.bias)
        if isinstance(module, DynamicTokenRoutingLogit):
            init.constant_(module.bias, module.first_bias)

    @property
    def gate_names(self) -> list[str]:
        """The names of the gates, in the order of `gates` and `gate_ratios`."""
        return list(self.base_model.encoder.gate_names)

    def encode(
        self, pixel_values: torch.Tensor | None, routing: str | None, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The maps of the stages that `self.layer_norms` knows, normalized, and what the router did."""
        routing = self.config.routing if routing is None else routing
        if routing not in ROUTINGS:
            raise ValueError(f"`routing` must be one of {', '.join(ROUTINGS)}, not {routing!r}")
        check_images(pixel_values, self.config.num_channels)
        # Attentions are returned for all tokens; the others need neither gradients nor a fixed graph
        keep_all = torch.is_grad_enabled() or torch.compiler.is_compiling() or kwargs.get("output_attentions", False)
        gather = not (self.training or keep_all)
        nodes, sizes, gates = self.encoder(
            pixel_values.to(self.encoder.patch_embedding.proj.weight.dtype), routing, gather, **kwargs
        )
        maps = {
            name: to_map(self.layer_norms[str(scale)](nodes[scale]), sizes[scale])
            for scale, name in enumerate(self.config.stage_names)
            if str(scale) in self.layer_norms
        }
        return maps, self.summarize(gates)

    def summarize(self, gates: list[tuple[torch.Tensor, Size, float]]) -> dict[str, Any]:
        ratios = [gate.mean() for gate, _, _ in gates]
        costs = [cost for _, _, cost in gates]
        cost_ratio = sum(ratio * (cost / sum(costs)) for ratio, cost in zip(ratios, costs))
        return {
            "gates": tuple(gate.squeeze(-1).unflatten(1, size) for gate, size, _ in gates),
            "gate_ratios": torch.stack(ratios),
            "cost_ratio": cost_ratio,
            "router_loss": (cost_ratio - self.config.budget) ** 2,
        }


def layer_norms(config: DynamicTokenRoutingConfig, scales: list[int]) -> nn.ModuleDict:
    return nn.ModuleDict(
        {str(scale): nn.LayerNorm(config.hidden_sizes[scale], eps=config.layer_norm_eps) for scale in scales}
    )


class DynamicTokenRoutingModel(DynamicTokenRoutingPreTrainedModel):
    """The grid without a classifier."""

    def __init__(self, config: DynamicTokenRoutingConfig):
        super().__init__(config)
        self.encoder = DynamicTokenRoutingEncoder(config)
        self.layer_norms = layer_norms(config, list(range(SCALES)))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.patch_embedding

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        routing: str | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DynamicTokenRoutingModelOutput:
        """
        Args:
            pixel_values: (B, channels, H, W), normalized; any size from 32x32.
            routing: "dynamic" or "static"; the configuration's by default.

        Returns:
            `DynamicTokenRoutingModelOutput`.

        Raises:
            ValueError: not four axes, another number of channels than `num_channels`, no pixels, an image that is too small, or an
                unknown `routing`.
        """
        maps, routed = self.encode(pixel_values, routing, **kwargs)
        feature_maps = tuple(maps.values())
        return DynamicTokenRoutingModelOutput(
            last_hidden_state=feature_maps[-1],
            pooler_output=feature_maps[-1].mean((2, 3)),
            feature_maps=feature_maps,
            **routed,
        )


class DynamicTokenRoutingForImageClassification(DynamicTokenRoutingPreTrainedModel):
    """The grid with a linear classifier on the mean of the coarsest map."""

    def __init__(self, config: DynamicTokenRoutingConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.dit_router = DynamicTokenRoutingModel(config)
        width = config.hidden_sizes[-1]
        self.classifier = nn.Linear(width, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @classmethod
    def from_pvt_v2(cls, source: str | PvtV2ForImageClassification, **overrides: Any):
        """A new model whose diagonal has the weights of a PVTv2 classifier: with `routing="static"` it computes the same.

        Args:
            source: the classifier, or what its `from_pretrained` takes.
            overrides: fields of the configuration that PVTv2 does not decide, such as `budget`.

        Raises:
            ValueError: a PVTv2 with linear attention or of another shape (stages, patch sizes, strides).
        """
        if not isinstance(source, PvtV2ForImageClassification):
            source = PvtV2ForImageClassification.from_pretrained(source)
        theirs, fixed = source.config, DynamicTokenRoutingConfig
        for name in ("patch_sizes", "strides", "linear_attention"):
            given, needed = getattr(theirs, name), getattr(fixed, name)
            if (tuple(given) if isinstance(given, list) else given) != needed:
                raise ValueError(f"`{name}` of the PVTv2 must be {needed}, not {given}")
        config = DynamicTokenRoutingConfig(**{name: getattr(theirs, name) for name in FROM_PVT_V2} | overrides)
        model = cls(config)
        state = {_renamed(name): tensor for name, tensor in source.state_dict().items()}
        _, unexpected = model.load_state_dict(state, strict=False)
        if unexpected:
            raise ValueError(f"The PVTv2 has weights that there is no place for: {', '.join(unexpected)}")
        return model.to(source.dtype).train(source.training)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        routing: str | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DynamicTokenRoutingImageClassifierOutput:
        """
        Args:
            pixel_values, routing: as for `DynamicTokenRoutingModel`.
            labels: (B,) classes, or (B, num_labels) targets (see `config.problem_type`).

        Returns:
            `DynamicTokenRoutingImageClassifierOutput`.

        Raises:
            ValueError: as for `DynamicTokenRoutingModel`.
        """
        outputs: DynamicTokenRoutingModelOutput = self.dit_router(pixel_values, routing=routing, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
            loss = loss + self.config.router_loss_coef * outputs.router_loss.to(loss.dtype)
            # The norms of the finer maps serve detectors; with a gradient of zero, DDP does not wait for theirs
            loss = loss + sum(feature_map.sum() for feature_map in outputs.feature_maps[:-1]) * 0.0
        return DynamicTokenRoutingImageClassifierOutput(loss=loss, logits=logits, **outputs)


FROM_PVT_V2 = (
    "num_channels",
    "hidden_sizes",
    "num_attention_heads",
    "mlp_ratios",
    "sr_ratios",
    "depths",
    "qkv_bias",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "drop_path_rate",
    "layer_norm_eps",
    "initializer_range",
    "id2label",
    "label2id",
)


def _renamed(name: str) -> str:
    """PVTv2's name of a weight -> ours."""

    def place(match: re.Match) -> str:
        scale, part = int(match[1]), match[2]
        if part == "blocks":
            return f"dit_router.encoder.stages.{scale}_{scale}.blocks"
        if part == "layer_norm" and scale == SCALES - 1:
            return f"dit_router.layer_norms.{scale}"
        if part == "layer_norm":
            return f"dit_router.encoder.scaling.{scale}_{scale + 1}.layer_norm"
        return "dit_router.encoder." + (f"scaling.{scale - 1}_{scale}." if scale else "") + "patch_embedding"

    return re.sub(r"^pvt_v2\.encoder\.layers\.(\d)\.(blocks|layer_norm|patch_embedding)", place, name)


class DynamicTokenRoutingBackbone(BackboneMixin, DynamicTokenRoutingPreTrainedModel):
    """The grid as the backbone of a detector or a segmenter: maps of strides 4, 8, 16 and 32. Add `router_loss_coef` times the output's
    `router_loss` to the task's loss to train the gates to a budget."""

    _keys_to_ignore_on_load_unexpected = [r"classifier\.", r"layer_norms\."]

    def __init__(self, config: DynamicTokenRoutingConfig):
        super().__init__(config)
        self.num_features = config.hidden_sizes
        self.encoder = DynamicTokenRoutingEncoder(config)
        self.layer_norms = layer_norms(config, self.out_indices)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.patch_embedding

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        routing: str | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DynamicTokenRoutingBackboneOutput:
        """
        Args:
            pixel_values, routing: as for `DynamicTokenRoutingModel`.

        Returns:
            `feature_maps`, for each of `out_features` the normalized map (B, C, H / stride, W / stride), and what the router did.

        Raises:
            ValueError: as for `DynamicTokenRoutingModel`.
        """
        maps, routed = self.encode(pixel_values, routing, **kwargs)
        return DynamicTokenRoutingBackboneOutput(feature_maps=tuple(maps[name] for name in self.out_features), **routed)


__all__ = [
    "DynamicTokenRoutingBackbone",
    "DynamicTokenRoutingBackboneOutput",
    "DynamicTokenRoutingForImageClassification",
    "DynamicTokenRoutingImageClassifierOutput",
    "DynamicTokenRoutingModel",
    "DynamicTokenRoutingModelOutput",
    "DynamicTokenRoutingPreTrainedModel",
]
