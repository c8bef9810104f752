"""CrossViT: "CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification" (arXiv 2103.14899, ICCV 2021).
Reference: IBM/CrossViT @3f7ab77c, `models/crossvit.py`, Apache-2.0.

Branches with different patch sizes run side by side; after each stage the class token of a branch attends to the patches of the
next branch. Where the port differs on purpose:
- an image whose height or width is not the branch's is resized (the reference looks at the height only, and fails on the width);
- `interpolate_pos_encoding=True` keeps the resolution and the aspect ratio, and interpolates the position embeddings instead;
- attention runs through Transformers' attention interface (SDPA by default);
- the random features of the T2T performer are a buffer, not a parameter without gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.vit.modeling_vit import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hf_ext.layers.drop_path import DropPath, linear_rates
from hf_ext.layers.initialization import init_conv_as_torch, init_linear
from hf_ext.layers.inputs import check_images
from hf_ext.layers.linear import token_linear
from hf_ext.layers.positions import interpolate_positions
from hf_ext.layers.tokens_to_token import TokenPerformer, TokensToToken, TokenTransformer

from .configuration_crossvit import CrossVitConfig


@dataclass
class CrossVitModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state: (B, 1 + N, D) of the last branch, the one with the largest patches.
        pooler_output: (B, sum of D), the class tokens of all branches side by side.
        branch_hidden_states: on request, for each branch (B, 1 + N, D) after the last layer norm, class token first, patches row
            by row.
        hidden_states: on request, the embedding of the first branch and the output of each self-attention layer in the order in
            which they run: stage by stage, in a stage branch by branch.
        attentions, cross_attentions: on request, (B, heads, queries, keys) of each self- and cross-attention layer.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    branch_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class CrossVitImageClassifierOutput(ModelOutput):
    """
    Args:
        loss: a scalar, when `labels` are given.
        logits: (B, num_labels), the mean over the branches.
        pooler_output, branch_hidden_states, hidden_states, attentions, cross_attentions: as in `CrossVitModelOutput`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    branch_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


def linear_patches(config: CrossVitConfig, width: int, patch_size: int) -> nn.Module:
    return nn.Conv2d(config.num_channels, width, patch_size, stride=patch_size)


def conv_stem(config: CrossVitConfig, width: int, patch_size: int) -> nn.Module:
    """The stem of the dagger models: three convolutions."""
    second, third = {12: ((3, 0), (1, 1)), 16: ((2, 1), (2, 1))}[patch_size]  # (stride, padding)
    return nn.Sequential(
        nn.Conv2d(config.num_channels, width // 4, 7, stride=4, padding=3),
        nn.ReLU(),
        nn.Conv2d(width // 4, width // 2, 3, *second),
        nn.ReLU(),
        nn.Conv2d(width // 2, width, 3, *third),
    )


def tokens_to_token(config: CrossVitConfig, width: int, patch_size: int, layer_class: type) -> nn.Module:
    return TokensToToken(config, layer_class, config.num_channels, width, patch_size)


PATCH_EMBEDDINGS: dict[str, Callable[[CrossVitConfig, int, int], nn.Module]] = {
    "linear": linear_patches,
    "conv_stem": conv_stem,
    "t2t_transformer": partial(tokens_to_token, layer_class=TokenTransformer),
    "t2t_performer": partial(tokens_to_token, layer_class=TokenPerformer),
}


class CrossVitEmbeddings(nn.Module):
    """Class token, patches and positions of one branch: (B, channels, H, W) -> (B, 1 + N, D)"""

    def __init__(self, config: CrossVitConfig, branch: int):
        super().__init__()
        width = config.hidden_sizes[branch]
        self.image_size = config.image_sizes[branch]
        self.patch_size = config.patch_sizes[branch]
        self.scale = self.image_size / config.image_sizes[0]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + (self.image_size // self.patch_size) ** 2, width))
        self.patch_embeddings = PATCH_EMBEDDINGS[config.patch_embedding](config, width, self.patch_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches per column and row for an image that keeps its size, relative to the first branch."""
        rows, columns = (max(round(edge * self.scale / self.patch_size), 1) for edge in (height, width))
        return rows, columns

    def forward(self, images: torch.Tensor, interpolate_pos_encoding: bool | None = None) -> torch.Tensor:
        side = self.image_size // self.patch_size
        grid = self.grid(*images.shape[2:]) if interpolate_pos_encoding else (side, side)
        size = (grid[0] * self.patch_size, grid[1] * self.patch_size)
        if size != tuple(images.shape[2:]):
            images = nn.functional.interpolate(images, size=size, mode="bicubic", align_corners=False)
        patches = self.patch_embeddings(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], 1)
        positions = self.position_embeddings
        positions = torch.cat([positions[:, :1], interpolate_positions(positions[:, 1:], grid)], 1)
        return self.dropout(tokens + positions)


class CrossVitAttention(nn.Module):
    """Multi-head attention; with one query, the class token, it is the paper's cross-attention (equation 5)."""

    is_causal = False

    def __init__(self, config: CrossVitConfig, width: int, num_heads: int, scaling: float | None = None):
        super().__init__()
        self.config = config
        self.head_dim = width // num_heads
        self.scaling = scaling or self.head_dim**-0.5
        self.q_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, queries: torch.Tensor, tokens: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`queries` (B, M, D) attend to `tokens` (B, N, D)."""
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        projected = (
            token_linear(self.q_proj, queries),
            token_linear(self.k_proj, tokens),
            token_linear(self.v_proj, tokens),
        )
        context, weights = attention_interface(
            self,
            *(x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in projected),
            None,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.dropout(token_linear(self.o_proj, context.flatten(2))), weights


class CrossVitMLP(nn.Module):
    def __init__(self, config: CrossVitConfig, width: int, mlp_ratio: float):
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * mlp_ratio))
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(int(width * mlp_ratio), width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation_fn(token_linear(self.fc1, hidden_states)))
        return self.dropout(token_linear(self.fc2, hidden_states))


class CrossVitLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer of one branch."""

    def __init__(self, config: CrossVitConfig, branch: int, drop_path_rate: float):
        super().__init__()
        width = config.hidden_sizes[branch]
        self.layernorm_before = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = CrossVitAttention(config, width, config.num_attention_heads[branch])
        self.layernorm_after = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = CrossVitMLP(config, width, config.mlp_ratios[branch])
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        normed = self.layernorm_before(hidden_states)
        attention, _ = self.attention(normed, normed, **kwargs)
        hidden_states = hidden_states + self.drop_path(attention)
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


class CrossVitCrossLayer(GradientCheckpointingLayer):
    """The first token attends to all tokens, itself among them: (B, N, D) -> (B, 1, D). There is no MLP."""

    def __init__(self, config: CrossVitConfig, branch: int, drop_path_rate: float):
        super().__init__()
        width = config.hidden_sizes[branch]
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = CrossVitAttention(
            config, width, config.num_attention_heads[branch], config.cross_attention_scale
        )
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        normed = self.layernorm(hidden_states)
        attention, _ = self.attention(normed[:, :1], normed, **kwargs)
        return hidden_states[:, :1] + self.drop_path(attention)


class CrossVitFusion(nn.Module):
    """Takes the class token of a branch to the patches of another branch, and back (section 3.3, figure 4)."""

    def __init__(self, config: CrossVitConfig, branch: int, other: int, depth: int, drop_path_rate: float):
        super().__init__()
        self.projection = self.between(config, config.hidden_sizes[branch], config.hidden_sizes[other])
        self.layers = nn.ModuleList(CrossVitCrossLayer(config, other, drop_path_rate) for _ in range(depth))
        self.back_projection = self.between(config, config.hidden_sizes[other], config.hidden_sizes[branch])

    @staticmethod
    def between(config: CrossVitConfig, source: int, target: int) -> nn.Module:
        return nn.Sequential(
            nn.LayerNorm(source, eps=config.layer_norm_eps), ACT2FN[config.hidden_act], nn.Linear(source, target)
        )

    def forward(
        self, cls_token: torch.Tensor, patches: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """(B, 1, D of the branch) and (B, N, D of the other) -> (B, 1, D of the branch)"""
        tokens = torch.cat([self.projection(cls_token), patches], 1)
        for layer in self.layers:  # from the second on, the class token is all that is left
            tokens = layer(tokens, **kwargs)
        return self.back_projection(tokens)


class CrossVitStage(nn.Module):
    """Self-attention in each branch, then every class token is replaced by what it learned from the next branch."""

    def __init__(self, config: CrossVitConfig, depth: list[int], drop_path_rates: list[float]):
        super().__init__()
        branches = range(config.num_branches)
        self.branches = nn.ModuleList(
            nn.ModuleList(CrossVitLayer(config, branch, rate) for rate in drop_path_rates[: depth[branch]])
            for branch in branches
        )
        self.fusions = nn.ModuleList(
            CrossVitFusion(config, branch, (branch + 1) % len(branches), max(depth[-1], 1), drop_path_rates[-1])
            for branch in branches
        )

    def forward(self, hidden_states: list[torch.Tensor], **kwargs: Unpack[TransformersKwargs]) -> list[torch.Tensor]:
        hidden_states = list(hidden_states)
        for branch, layers in enumerate(self.branches):
            for layer in layers:
                hidden_states[branch] = layer(hidden_states[branch], **kwargs)
        patches = [tokens[:, 1:] for tokens in hidden_states]
        fused = [
            fusion(tokens[:, :1], patches[(branch + 1) % len(patches)], **kwargs)
            for branch, (fusion, tokens) in enumerate(zip(self.fusions, hidden_states))
        ]
        return [torch.cat(pair, 1) for pair in zip(fused, patches)]


class CrossVitPreTrainedModel(PreTrainedModel):
    config_class = CrossVitConfig
    base_model_prefix = "crossvit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["CrossVitEmbeddings", "CrossVitLayer", "CrossVitCrossLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": CrossVitLayer,
        "attentions": OutputRecorder(CrossVitAttention, index=1, layer_name="branches"),
        "cross_attentions": OutputRecorder(CrossVitAttention, index=1, layer_name="fusions"),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the reference: truncated normal for linear layers, class tokens and positions; torch's default for convolutions."""
        if isinstance(module, nn.Linear):
            init_linear(module, self.config.initializer_range)
        elif isinstance(module, nn.Conv2d):
            init_conv_as_torch(module)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, CrossVitEmbeddings):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)
        elif isinstance(module, TokenPerformer):
            init.copy_(module.random_features, module.draw_features(*module.random_features.shape))


class CrossVitModel(CrossVitPreTrainedModel):
    """The branches and their fusions, without classifiers."""

    def __init__(self, config: CrossVitConfig):
        super().__init__(config)
        self.embeddings = nn.ModuleList(CrossVitEmbeddings(config, branch) for branch in range(config.num_branches))
        # A layer's rate depends on its place in the stage, whatever its branch; all fusions of a stage have the last rate.
        lengths = [max(depth[:-1]) + depth[-1] for depth in config.depths]
        rates = iter(linear_rates(config.drop_path_rate, sum(lengths)))
        self.stages = nn.ModuleList(
            CrossVitStage(config, depth, [next(rates) for _ in range(length)])
            for depth, length in zip(config.depths, lengths)
        )
        self.layernorms = nn.ModuleList(nn.LayerNorm(width, eps=config.layer_norm_eps) for width in config.hidden_sizes)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_branch_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CrossVitModelOutput:
        """
        Args:
            pixel_values: (B, channels, H, W), normalized as `CrossVitImageProcessor` does.
            interpolate_pos_encoding: False (the reference): each branch resizes the image to its own square of `image_sizes`.
                True: the first branch sees the image at its size, the others in proportion to their `image_sizes`, each rounded
                to whole patches; position embeddings are interpolated to the grid of patches. Any H and W, also unequal.
            output_branch_hidden_states: whether to return the tokens of all branches. Not by default, because upstream's pipelines
                take any tuple they do not know for a batch.

        Raises:
            ValueError: not four axes, another number of channels than `num_channels`, or no pixels.
        """
        check_images(pixel_values, self.config.num_channels)
        images = pixel_values.to(self.embeddings[0].cls_token.dtype)
        hidden_states = [embeddings(images, interpolate_pos_encoding) for embeddings in self.embeddings]
        for stage in self.stages:
            hidden_states = stage(hidden_states, **kwargs)
        branches = tuple(layernorm(tokens) for layernorm, tokens in zip(self.layernorms, hidden_states))
        return CrossVitModelOutput(
            last_hidden_state=branches[-1],
            pooler_output=torch.cat([tokens[:, 0] for tokens in branches], 1),
            branch_hidden_states=branches if output_branch_hidden_states else None,
        )


class CrossVitForImageClassification(CrossVitPreTrainedModel):
    """CrossViT with a linear classifier for each branch; the logits are their mean."""

    def __init__(self, config: CrossVitConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.crossvit = CrossVitModel(config)
        self.classifiers = nn.ModuleList(nn.Linear(width, config.num_labels) for width in config.hidden_sizes)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_branch_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CrossVitImageClassifierOutput:
        """
        Args:
            pixel_values, interpolate_pos_encoding, output_branch_hidden_states: as for `CrossVitModel`.
            labels: (B,) class indices; `config.problem_type` chooses another loss as in upstream's classifiers.
        """
        outputs: CrossVitModelOutput = self.crossvit(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_branch_hidden_states=output_branch_hidden_states,
            **kwargs,
        )
        cls_tokens = outputs.pooler_output.split(self.config.hidden_sizes, 1)
        logits = torch.stack([head(token) for head, token in zip(self.classifiers, cls_tokens)]).mean(0)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return CrossVitImageClassifierOutput(
            loss=loss,
            logits=logits,
            pooler_output=outputs.pooler_output,
            branch_hidden_states=outputs.branch_hidden_states,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


__all__ = ["CrossVitForImageClassification", "CrossVitModel", "CrossVitPreTrainedModel"]
