"""DWFormer, which restores photographs taken through a display: "Modular Degradation Simulation and Restoration for Under-Display
Camera" (arXiv 2209.11455, ACCV 2022). Reference: SummerParadise-0922/MPGNet @c9a28747, `models/DWFormer.py`, GPL-3.0; written from a
description of what it computes, not from its code.

Where the port differs on purpose:
- any input size: the image is reflected at the bottom and the right to a multiple of four pixels (and at least twelve), and the
  reconstruction cropped;
- the channel attention's sum over pixels is the mean, scaled after the MLP, which is the same (no bias, rectifiers) and does not
  overflow in half precision;
- the paper's weighted mean, which the authors' code reduces to a plain sum, is there as `global_pool="softmax"`.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ImageSuperResolutionOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_ext.layers.convolution import PointwiseConv2d
from hf_ext.layers.fusion import FusionMixin, fuse_batchnorm_before
from hf_ext.layers.initialization import init_conv_as_torch
from hf_ext.layers.inputs import check_images
from hf_ext.layers.restoration import reconstruction_loss
from hf_ext.layers.window import reflect_to_multiple

from .configuration_dwformer import DWFormerConfig

INITIAL_DEPTH = 36  # fixed in the reference, whatever the depths


class DWFormerChannelAttention(nn.Module):
    """A gate for each channel from the whole image (ACA). (B, C, H, W) -> (B, C, H, W)"""

    def __init__(self, config: DWFormerConfig, width: int):
        super().__init__()
        self.weighted = config.global_pool == "softmax"
        self.pixel_logits = PointwiseConv2d(width, 1).requires_grad_(self.weighted)
        self.fc1 = nn.Linear(width, width // config.squeeze_factor, bias=False)
        self.fc2 = nn.Linear(width // config.squeeze_factor, width, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.weighted:
            weights = self.pixel_logits(hidden_states).flatten(2).softmax(-1)  # (B, 1, H * W)
            pooled, scale = (hidden_states.flatten(2) * weights).sum(-1), 1
        else:
            pooled = hidden_states.mean((2, 3), dtype=torch.promote_types(hidden_states.dtype, torch.float32))
            pooled, scale = pooled.to(hidden_states.dtype), hidden_states.shape[2] * hidden_states.shape[3]
        logits = self.fc2(self.fc1(pooled).relu())
        gate = (logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale).sigmoid()
        return hidden_states * gate.to(hidden_states.dtype)[:, :, None, None]


class DWFormerMixer(nn.Module):
    """Exchange between pixels: a 5x5 depthwise convolution and channel attention between two 1x1 convolutions."""

    def __init__(self, config: DWFormerConfig, width: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(width, eps=config.batch_norm_eps)
        self.conv1 = PointwiseConv2d(width, width)
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, padding_mode="reflect", groups=width)
        self.attention = DWFormerChannelAttention(config, width)
        self.conv2 = PointwiseConv2d(width, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.depthwise(self.conv1(self.norm(hidden_states))).relu_()
        return self.conv2(self.attention(hidden_states))

    def fuse(self) -> nn.Module:
        self.conv1, self.norm = fuse_batchnorm_before(self.norm, self.conv1), nn.Identity()
        return self


class DWFormerMLP(nn.Module):
    """Exchange between the channels of a pixel."""

    def __init__(self, config: DWFormerConfig, width: int, mlp_ratio: float):
        super().__init__()
        self.norm = nn.BatchNorm2d(width, eps=config.batch_norm_eps)
        self.conv1 = PointwiseConv2d(width, int(width * mlp_ratio))
        self.conv2 = PointwiseConv2d(int(width * mlp_ratio), width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.conv1(self.norm(hidden_states)).relu_())

    fuse = DWFormerMixer.fuse


class DWFormerLayer(GradientCheckpointingLayer):
    def __init__(self, config: DWFormerConfig, width: int, mlp_ratio: float):
        super().__init__()
        self.mixer = DWFormerMixer(config, width)
        self.mlp = DWFormerMLP(config, width, mlp_ratio)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.mixer(hidden_states)
        return hidden_states + self.mlp(hidden_states)


class DWFormerStage(nn.Module):
    def __init__(self, config: DWFormerConfig, index: int):
        super().__init__()
        width, mlp_ratio = config.hidden_sizes[index], config.mlp_ratios[index]
        self.layers = nn.ModuleList(DWFormerLayer(config, width, mlp_ratio) for _ in range(config.depths[index]))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states


class DWFormerUpsampling(nn.Module):
    """Doubles a map and merges it with the one of that size from the way down."""

    def __init__(self, in_width: int, width: int):
        super().__init__()
        self.conv = PointwiseConv2d(in_width, 4 * width)
        self.shuffle = nn.PixelShuffle(2)
        self.merge = nn.Conv2d(2 * width, width, 3, padding=1, padding_mode="reflect")

    def forward(self, hidden_states: torch.Tensor, skipped: torch.Tensor) -> torch.Tensor:
        return self.merge(torch.cat([self.shuffle(self.conv(hidden_states)), skipped], 1)).relu_()


class DWFormerPreTrainedModel(FusionMixin, PreTrainedModel):
    config_class = DWFormerConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False  # the loss is a mean over pixels: Trainer averages it over accumulated batches
    supports_gradient_checkpointing = True
    _no_split_modules = ["DWFormerLayer", "DWFormerUpsampling"]
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": DWFormerStage}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the reference: in the layers truncated normal by width and depth, elsewhere torch's default."""
        if isinstance(module, DWFormerLayer):
            for layer in module.modules():
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    fans = nn.init._calculate_fan_in_and_fan_out(layer.weight)
                    init.trunc_normal_(layer.weight, std=(8 * INITIAL_DEPTH) ** -0.25 * (2 / sum(fans)) ** 0.5)
                    if layer.bias is not None:
                        init.zeros_(layer.bias)
        elif isinstance(module, nn.Conv2d):  # those in layers too, which come before their layer
            init_conv_as_torch(module)
        elif isinstance(module, nn.BatchNorm2d):
            super()._init_weights(module)


class DWFormerForImageRestoration(DWFormerPreTrainedModel):
    """DWFormer: three sizes, five stages, and the difference to the input as output (figure 4 of the paper)."""

    def __init__(self, config: DWFormerConfig):
        super().__init__(config)
        full, half, quarter = config.hidden_sizes[:3]
        self.conv_first = nn.Conv2d(config.num_channels, full, 3, padding=1)
        self.downsamples = nn.ModuleList([nn.Conv2d(full, half, 2, stride=2), nn.Conv2d(half, quarter, 2, stride=2)])
        self.stages = nn.ModuleList(DWFormerStage(config, index) for index in range(5))
        self.upsamples = nn.ModuleList([DWFormerUpsampling(quarter, half), DWFormerUpsampling(half, full)])
        self.conv_last = nn.Conv2d(full, config.num_channels, 3, padding=1, padding_mode="reflect")
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.conv_first

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageSuperResolutionOutput:
        """
        Args:
            pixel_values: (B, channels, H, W) in [0, 1], of any size from 1x1.
            labels: (B, channels, H, W) in [0, 1]: the image to restore.

        Returns:
            `reconstruction`, shaped like `pixel_values` and not clamped, and `loss`, the mean absolute error, when `labels` are given. On
            request `hidden_states`, the embedding (B, hidden_sizes[0], H', W') and the map that each stage returns.

        Raises:
            ValueError: not four axes, another number of channels than `num_channels`, no pixels, or `labels` of another shape.
        """
        check_images(pixel_values, self.config.num_channels)
        height, width = pixel_values.shape[2:]
        pixel_values = pixel_values.to(self.conv_first.weight.dtype)
        # Quarter-size maps are reflected by two pixels, so they need three
        images = reflect_to_multiple(pixel_values, 4 if min(height, width) >= 12 else 12)
        images = images.contiguous(memory_format=torch.channels_last)  # twice as fast on a CPU
        full = self.stages[0](self.conv_first(images))
        half = self.stages[1](self.downsamples[0](full))
        hidden_states = self.stages[2](self.downsamples[1](half))
        hidden_states = self.stages[3](self.upsamples[0](hidden_states, half))
        hidden_states = self.stages[4](self.upsamples[1](hidden_states, full))
        reconstruction = (images + self.conv_last(hidden_states))[:, :, :height, :width]
        return ImageSuperResolutionOutput(
            loss=reconstruction_loss(reconstruction, labels), reconstruction=reconstruction
        )


__all__ = ["DWFormerForImageRestoration", "DWFormerPreTrainedModel"]
