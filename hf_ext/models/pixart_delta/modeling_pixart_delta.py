"""PixArt-δ: the ControlNet-Transformer and the edge detector that feeds it.

Paper: PIXART-δ: Fast and Controllable Image Generation with Latent Consistency Models (arXiv 2401.05252), section 4.
Reference: PixArt-alpha/PixArt-alpha, diffusion/model/nets/pixart_controlnet.py and diffusion/model/hed.py.

The transformer itself is Diffusers' `PixArtTransformer2DModel`; what is here is what it lacks. The port differs on purpose in this:
- only the first copied block reads the image tokens, so the whole control branch runs right after base block 0 and hands its residuals
  over as Diffusers' ControlNets do; the reference interleaves the two, with the same result.
- `conditioning_scale` weighs the residuals (1.0 is the reference).
- the paper's figure feeds copy i beside frozen block i; in the authors' code, which is followed, its residual enters block i + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, PixArtTransformer2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import AttentionMixin, BasicTransformerBlock
from diffusers.models.controlnets.controlnet import zero_module
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import BaseOutput
from torch import nn


@dataclass
class PixArtControlNetOutput(BaseOutput):
    """
    Args:
        controlnet_block_samples: for each copied block, a residual of shape (batch, tokens, inner dim). The first is added to what enters
            the transformer's block 1, and so on.
    """

    controlnet_block_samples: tuple[torch.Tensor, ...]


class PixArtControlNetBlock(nn.Module):
    """A trainable copy of a transformer block between zero-initialised projections; only the first has a `before_proj`."""

    def __init__(self, block: BasicTransformerBlock, has_before_proj: bool):
        super().__init__()
        dim = block.dim
        self.before_proj = zero_module(nn.Linear(dim, dim)) if has_before_proj else None
        self.transformer_block = block
        self.after_proj = zero_module(nn.Linear(dim, dim))

    def forward(
        self, states: torch.Tensor, hidden_states: torch.Tensor, *block_inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Control states (batch, tokens, dim) -> the next control states, and the residual for the transformer."""
        if self.before_proj is not None:
            states = hidden_states + self.before_proj(states)
        states = self.transformer_block(states, *block_inputs)
        return states, self.after_proj(states)


class PixArtControlNetModel(ModelMixin, AttentionMixin, ConfigMixin):
    """The trainable half of the ControlNet-Transformer: copies of the first `num_layers` blocks of a PixArt transformer (section 4).

    It has no embeddings of its own: latents, condition, timestep and caption come embedded by the frozen transformer, see
    `PixArtControlNetTransformer2DModel`.

    Args:
        num_layers: number of copied blocks, N in the paper; at most one less than the transformer has.
        num_attention_heads, attention_head_dim, cross_attention_dim, ...: as in `PixArtTransformer2DModel`.
        conditioning_scale: weight of the residuals; 1.0 is the reference.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["PixArtControlNetBlock"]

    @register_to_config
    def __init__(
        self,
        num_layers: int = 13,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        cross_attention_dim: int | None = 1152,
        dropout: float = 0.0,
        attention_bias: bool = True,
        activation_fn: str = "gelu-approximate",
        num_embeds_ada_norm: int | None = 1000,
        upcast_attention: bool = False,
        norm_type: str = "ada_norm_single",
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-6,
        attention_type: str = "default",
        conditioning_scale: float = 1.0,
    ):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"`num_layers` is {num_layers}; a ControlNet copies at least one block")
        self.controlnet_blocks = nn.ModuleList(
            PixArtControlNetBlock(
                BasicTransformerBlock(
                    num_attention_heads * attention_head_dim,
                    num_attention_heads,
                    attention_head_dim,
                    dropout=dropout,
                    cross_attention_dim=cross_attention_dim,
                    attention_bias=attention_bias,
                    activation_fn=activation_fn,
                    num_embeds_ada_norm=num_embeds_ada_norm,
                    upcast_attention=upcast_attention,
                    norm_type=norm_type,
                    norm_elementwise_affine=norm_elementwise_affine,
                    norm_eps=norm_eps,
                    attention_type=attention_type,
                ),
                has_before_proj=index == 0,
            )
            for index in range(num_layers)
        )
        self.gradient_checkpointing = False

    @classmethod
    def from_transformer(cls, transformer: PixArtTransformer2DModel, num_layers: int = 13) -> PixArtControlNetModel:
        """A fresh ControlNet for `transformer`: copies of its first `num_layers` blocks, projections at zero."""
        _check_depth(num_layers, transformer.config.num_layers)
        controlnet = cls.from_config({**_shared_config(cls, transformer), "num_layers": num_layers})
        for ours, theirs in zip(controlnet.controlnet_blocks, transformer.transformer_blocks):
            ours.transformer_block.load_state_dict(theirs.state_dict())
        return nn.Module.to(controlnet, device=transformer.device, dtype=transformer.dtype)

    def forward(
        self,
        hidden_states: torch.Tensor,
        controlnet_cond: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        conditioning_scale: float | None = None,
        return_dict: bool = True,
    ) -> PixArtControlNetOutput | tuple[tuple[torch.Tensor, ...]]:
        """
        Args:
            hidden_states: (batch, tokens, dim), the output of the transformer's block 0.
            controlnet_cond: (batch, tokens, dim), the condition's latents through the transformer's patch embedding.
            encoder_hidden_states: (batch, caption tokens, dim), the caption through the transformer's caption projection.
            timestep: (batch, 6 * dim), the output of the transformer's `adaln_single`.
            encoder_attention_mask, attention_mask: additive, (batch, 1, keys).
            conditioning_scale: overrides the configuration's.
        """
        scale = self.config.conditioning_scale if conditioning_scale is None else conditioning_scale
        block_inputs = (
            hidden_states,
            attention_mask,
            encoder_hidden_states,
            encoder_attention_mask,
            timestep,
            cross_attention_kwargs,
        )
        states, residuals = controlnet_cond, []
        for block in self.controlnet_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                states, residual = self._gradient_checkpointing_func(block, states, *block_inputs)
            else:
                states, residual = block(states, *block_inputs)
            residuals.append(residual * scale)
        if not return_dict:
            return (tuple(residuals),)
        return PixArtControlNetOutput(controlnet_block_samples=tuple(residuals))


class PixArtControlNetTransformer2DModel(PixArtTransformer2DModel):
    """A PixArt transformer with a ControlNet in it (the reference's `ControlPixArtHalf` and `ControlPixArtMSHalf`).

    Without `controlnet_cond` it is exactly `PixArtTransformer2DModel`, and goes wherever that goes. To train: freeze everything but
    `controlnet`.

    Args:
        num_control_layers: number of copied blocks; `num_control_layers + 1 <= num_layers`.
        conditioning_scale: weight of the ControlNet's residuals.
        The others: as in `PixArtTransformer2DModel`.
    """

    _no_split_modules = [*PixArtTransformer2DModel._no_split_modules, "PixArtControlNetBlock"]

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int | None = 8,
        num_layers: int = 28,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        cross_attention_dim: int | None = 1152,
        attention_bias: bool = True,
        sample_size: int = 128,
        patch_size: int = 2,
        activation_fn: str = "gelu-approximate",
        num_embeds_ada_norm: int | None = 1000,
        upcast_attention: bool = False,
        norm_type: str = "ada_norm_single",
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-6,
        interpolation_scale: float | None = None,
        use_additional_conditions: bool | None = None,
        caption_channels: int | None = None,
        attention_type: str | None = "default",
        num_control_layers: int = 13,
        conditioning_scale: float = 1.0,
    ):
        _check_depth(num_control_layers, num_layers)
        own = dict(self.config)
        _check_width_fits(num_attention_heads * attention_head_dim, own)
        super().__init__(**_arguments(PixArtTransformer2DModel, own))
        shared = {**_arguments(PixArtControlNetModel, own), "num_layers": num_control_layers}
        self.controlnet = PixArtControlNetModel(**shared)

    @classmethod
    def from_transformer(
        cls,
        transformer: PixArtTransformer2DModel,
        controlnet: PixArtControlNetModel | None = None,
        num_layers: int = 13,
    ) -> PixArtControlNetTransformer2DModel:
        """Puts `controlnet` (or a fresh one of `num_layers` blocks) into `transformer`. The modules are shared, not copied."""
        controlnet = controlnet or PixArtControlNetModel.from_transformer(transformer, num_layers)
        _check_width(transformer, controlnet)
        control = {
            "num_control_layers": controlnet.config.num_layers,
            "conditioning_scale": controlnet.config.conditioning_scale,
        }
        with torch.device("meta"):
            model = cls.from_config({**_shared_config(cls, transformer), **control})
        for name, module in transformer.named_children():
            setattr(model, name, module)
        model.scale_shift_table = transformer.scale_shift_table
        model.controlnet = controlnet
        return model.train(transformer.training)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        timestep: torch.LongTensor | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        controlnet_cond: torch.Tensor | None = None,
        conditioning_scale: float | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """
        Args:
            hidden_states: (batch, in_channels, height, width), noisy latents.
            encoder_hidden_states: (batch, caption tokens, caption_channels).
            timestep: (batch,).
            added_cond_kwargs: `resolution` (batch, 2) and `aspect_ratio` (batch, 1), for multi-scale models.
            encoder_attention_mask: (batch, caption tokens), 1 for a token, 0 for padding.
            controlnet_cond: (batch, in_channels, height, width), latents of the condition times the VAE's scaling factor.
            conditioning_scale: weight of the control; the configuration's if None.

        Returns:
            `sample`, (batch, out_channels, height, width): noise, then variance logits.

        Raises:
            ValueError: `controlnet_cond` differs from `hidden_states` in shape.
        """
        if controlnet_cond is None:
            return super().forward(
                hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                timestep=timestep,
                added_cond_kwargs=added_cond_kwargs,
                cross_attention_kwargs=cross_attention_kwargs,
                attention_mask=attention_mask,
                encoder_attention_mask=encoder_attention_mask,
                return_dict=return_dict,
            )
        if hidden_states.ndim != 4 or controlnet_cond.shape != hidden_states.shape:
            raise ValueError(
                f"`controlnet_cond` {tuple(controlnet_cond.shape)} must have the shape of `hidden_states` {tuple(hidden_states.shape)}, "
                "(batch, channels, height, width); under classifier-free guidance repeat both"
            )
        if self.use_additional_conditions and added_cond_kwargs is None:
            raise ValueError("A multi-scale transformer needs `added_cond_kwargs` with `resolution` and `aspect_ratio`")
        patch = self.config.patch_size
        batch_size, channels, height, width = hidden_states.shape
        if channels != self.config.in_channels or height % patch or width % patch:
            raise ValueError(
                f"`hidden_states` is {tuple(hidden_states.shape)}; it must have {self.config.in_channels} channels and sides divisible "
                f"by {patch}"
            )

        # Embeddings, all by the frozen transformer
        hidden_states, condition = self.pos_embed(hidden_states), self.pos_embed(controlnet_cond)
        timestep, embedded_timestep = self.adaln_single(
            timestep, added_cond_kwargs, batch_size=batch_size, hidden_dtype=hidden_states.dtype
        )
        if self.caption_projection is not None:
            encoder_hidden_states = self.caption_projection(encoder_hidden_states)
        attention_mask = _additive(attention_mask, hidden_states.dtype)
        encoder_attention_mask = _additive(encoder_attention_mask, hidden_states.dtype)
        block_inputs = (attention_mask, encoder_hidden_states, encoder_attention_mask, timestep, cross_attention_kwargs)

        # Block 0, the control branch, and blocks 1 .. with a residual before each of the first num_control_layers
        first, *blocks = self.transformer_blocks
        hidden_states = self._run(first, hidden_states, block_inputs)
        residuals = self.controlnet(
            hidden_states,
            condition,
            encoder_hidden_states,
            timestep,
            encoder_attention_mask=encoder_attention_mask,
            attention_mask=attention_mask,
            cross_attention_kwargs=cross_attention_kwargs,
            conditioning_scale=conditioning_scale,
            return_dict=False,
        )[0]
        for index, block in enumerate(blocks):
            if index < len(residuals):
                hidden_states = hidden_states + residuals[index].to(hidden_states.device)
            hidden_states = self._run(block, hidden_states, block_inputs)

        # Output
        shift, scale = (self.scale_shift_table + embedded_timestep[:, None].to(self.scale_shift_table.device)).chunk(
            2, dim=1
        )
        hidden_states = self.norm_out(hidden_states)
        hidden_states = hidden_states * (1 + scale.to(hidden_states.device)) + shift.to(hidden_states.device)
        hidden_states = self.proj_out(hidden_states)  # (B, tokens, patch * patch * out_channels)
        patches = hidden_states.unflatten(2, (patch, patch, self.out_channels)).unflatten(
            1, (height // patch, width // patch)
        )
        output = patches.permute(0, 5, 1, 3, 2, 4).reshape(batch_size, self.out_channels, height, width)
        if not return_dict:
            return (output,)
        return Transformer2DModelOutput(sample=output)

    def _run(self, block: nn.Module, hidden_states: torch.Tensor, block_inputs: tuple[Any, ...]) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, hidden_states, *block_inputs)
        return block(hidden_states, *block_inputs)


def _arguments(model_class: type[ModelMixin], config: dict[str, Any]) -> dict[str, Any]:
    """The entries of a configuration that `model_class` takes."""
    return {name: config[name] for name in model_class._get_init_keys(model_class) if name in config}


def _shared_config(model_class: type[ModelMixin], transformer: PixArtTransformer2DModel) -> dict[str, Any]:
    """The transformer's configuration as far as `model_class` shares it, with what upstream derives from the sample size spelled out."""
    config = {**transformer.config, "use_additional_conditions": transformer.use_additional_conditions}
    return _arguments(model_class, config)


def _check_depth(num_control_layers: int, num_layers: int) -> None:
    if not 1 <= num_control_layers < num_layers:
        raise ValueError(
            f"`num_control_layers` is {num_control_layers}; a transformer of {num_layers} blocks takes 1 to {num_layers - 1} copied blocks"
        )


def _check_width_fits(dim: int, config: dict[str, Any]) -> None:
    multi_scale = config["use_additional_conditions"]
    multi_scale = config["sample_size"] == 128 if multi_scale is None else multi_scale  # upstream's rule
    divisor = 12 if multi_scale else 4
    if dim % divisor:
        raise ValueError(
            f"`num_attention_heads` times `attention_head_dim` is {dim}; it must be divisible by 4 for the position table"
            + (" and by 3 for the three size embeddings" if divisor == 12 else "")
        )
    if config["caption_channels"] is not None and config["cross_attention_dim"] != dim:
        raise ValueError(
            f"`cross_attention_dim` is {config['cross_attention_dim']}; captions are projected to {dim}, so it must be that"
        )


def _check_width(transformer: PixArtTransformer2DModel, controlnet: PixArtControlNetModel) -> None:
    for field in ("num_attention_heads", "attention_head_dim", "cross_attention_dim"):
        ours, theirs = controlnet.config[field], transformer.config[field]
        if ours != theirs:
            raise ValueError(f"`{field}` is {ours} in the ControlNet and {theirs} in the transformer; they must agree")


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A mask of (batch, keys), 1 = keep, as an additive (batch, 1, keys); other masks are taken as additive already."""
    if mask is None or mask.ndim != 2:
        return mask
    return (1 - mask.to(dtype))[:, None] * -10000.0


@dataclass
class PixArtHEDOutput(BaseOutput):
    """
    Args:
        edge: (batch, 1, height, width) in [0, 1].
        condition: (batch, 3, height, width) in [-1, 1], the edge map as the VAE takes it.
    """

    edge: torch.Tensor
    condition: torch.Tensor


class PixArtHEDBlock(nn.Module):
    """3x3 convolutions with ReLU, and a 1x1 projection of their output to one edge map."""

    def __init__(self, in_channels: int, out_channels: int, num_layers: int):
        super().__init__()
        widths = [in_channels] + [out_channels] * num_layers
        self.convs = nn.ModuleList(nn.Conv2d(a, b, kernel_size=3, padding=1) for a, b in pairwise(widths))
        self.projection = nn.Conv2d(out_channels, 1, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for conv in self.convs:
            hidden_states = F.relu(conv(hidden_states))
        return hidden_states, self.projection(hidden_states)


class PixArtHEDDetector(ModelMixin, ConfigMixin):
    """Holistically-nested edge detection as PixArt-δ is trained with (RGB in, edges as floats; the reference's `ControlNetHED_Apache2`).

    Not bit-identical to the detectors of the `controlnet_aux` package, which round the edges to uint8.

    Args:
        block_out_channels, layers_per_block: width and number of convolutions of each stage.
    """

    @register_to_config
    def __init__(
        self,
        block_out_channels: tuple[int, ...] = (64, 128, 256, 512, 512),
        layers_per_block: tuple[int, ...] = (2, 2, 3, 3, 3),
    ):
        super().__init__()
        if len(block_out_channels) != len(layers_per_block):
            raise ValueError(
                f"`layers_per_block` {tuple(layers_per_block)} needs one entry for each of `block_out_channels` {tuple(block_out_channels)}"
            )
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        widths = [3, *block_out_channels]
        self.blocks = nn.ModuleList(map(PixArtHEDBlock, widths, block_out_channels, layers_per_block))

    def forward(
        self, pixel_values: torch.Tensor, strength: float = 1.0, return_dict: bool = True
    ) -> PixArtHEDOutput | tuple:
        """
        Args:
            pixel_values: (batch, 3, height, width) in [0, 1]; each side at least 2 ** (stages - 1), 16 for the published net.
            strength: weight of the edges in `condition`.

        Raises:
            ValueError: another rank or number of channels, or an image too small for the pooling.
        """
        smallest = 2 ** (len(self.blocks) - 1)
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3 or min(pixel_values.shape[2:]) < smallest:
            raise ValueError(
                f"`pixel_values` is {tuple(pixel_values.shape)}; it must be (batch, 3, height, width) with sides of at least {smallest}"
            )
        size = pixel_values.shape[2:]
        hidden_states = 255 * pixel_values - self.norm
        edges = []
        for index, block in enumerate(self.blocks):
            hidden_states, edge = block(F.max_pool2d(hidden_states, 2) if index else hidden_states)
            edges.append(F.interpolate(edge, size, mode="bilinear", align_corners=False))
        edge = torch.cat(edges, dim=1).mean(dim=1, keepdim=True).sigmoid()
        condition = (2 * strength * edge - 1).expand(-1, 3, -1, -1)
        if not return_dict:
            return edge, condition
        return PixArtHEDOutput(edge=edge, condition=condition)
