"""DLGSANet, a light super-resolution network: "DLGSANet: Lightweight Dynamic Local and Global Self-Attention Networks for Image
Super-Resolution" (arXiv 2301.02031, ICCV 2023). Reference: NeonLeexiang/DLGSANet @0974b9ae, `basicsr/archs/dlgsanet_arch.py` and
`dlgsanet_idynamicdwconv_util.py`, Apache-2.0.

Where the port differs on purpose:
- feature maps are (B, H, W, C), and 1x1 convolutions are linear layers, which LoRA and 8-bit quantization know;
- the dynamic convolution runs on every device (theirs is a CUDA kernel of cupy), and predicts its filters row by row of the
  kernel, so that they never lie in memory whole;
- at test time each image of a batch gets its own attention windows (theirs takes one image at a time), and averages are kept
  in float32;
- theirs leaves the image as large as it was for an unknown `upsampler`; here that is `upscale=1`.
"""

from collections.abc import Callable
from itertools import product

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, ImageSuperResolutionOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_ext.layers.initialization import init_conv_as_torch
from hf_ext.layers.inputs import check_images
from hf_ext.layers.linear import token_linear
from hf_ext.layers.restoration import PixelShuffleUpsampler, image_mean, reconstruction_loss
from hf_ext.layers.window import as_image
from hf_ext.ops.dynamic_convolution import dynamic_convolution

from .configuration_dlgsanet import DLGSANetConfig


class DLGSANetMLP(nn.Module):
    """(B, H, W, C) -> (B, H, W, C)"""

    def __init__(self, config: DLGSANetConfig, mlp_ratio: float):
        super().__init__()
        intermediate_size = int(config.hidden_size * mlp_ratio)
        self.fc1 = nn.Linear(config.hidden_size, intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return token_linear(self.fc2, self.activation_fn(token_linear(self.fc1, hidden_states)))


class DLGSANetGatedMLP(nn.Module):
    """Restormer's gated depthwise-convolution network (GDFN). (B, H, W, C) -> (B, H, W, C)"""

    def __init__(self, config: DLGSANetConfig, mlp_ratio: float):
        super().__init__()
        width = 2 * int(config.hidden_size * mlp_ratio)
        self.in_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.out_proj = nn.Linear(width // 2, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, hidden_states = as_image(self.conv, token_linear(self.in_proj, hidden_states)).chunk(2, dim=-1)
        return token_linear(self.out_proj, self.activation_fn(gate) * hidden_states)


MLPS = {"plain": DLGSANetMLP, "gated": DLGSANetGatedMLP}


class DLGSANetDynamicConvolution(nn.Module):
    """Depthwise convolution with filters predicted from each pixel's surroundings (section 3.2). (B, C, H, W) -> (B, C, H, W)"""

    def __init__(self, config: DLGSANetConfig):
        super().__init__()
        size, width, groups = (
            config.kernel_size,
            config.hidden_size // 4,
            config.hidden_size // config.filter_group_size,
        )
        self.reduce = nn.Linear(config.hidden_size, width)
        self.conv = nn.Conv2d(width, width, size, padding=size // 2, groups=width)
        self.weight = nn.Parameter(torch.empty(groups, size, size, width))
        self.bias = nn.Parameter(torch.empty(groups, size, size))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.conv(token_linear(self.reduce, images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return dynamic_convolution(images, features, self.weight, self.bias)


def depthwise_convolution(config: DLGSANetConfig) -> nn.Module:
    width = config.hidden_size
    return nn.Conv2d(width, width, config.kernel_size, padding=config.kernel_size // 2, groups=width)


class DLGSANetLocalAttention(nn.Module):
    """Multi-head dynamic local self-attention (MHDLSA). (B, H, W, C) -> (B, H, W, C), and no weights"""

    def __init__(self, config: DLGSANetConfig):
        super().__init__()
        self.in_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.conv = DLGSANetDynamicConvolution(config) if config.dynamic_filters else depthwise_convolution(config)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        hidden_states = as_image(self.conv, token_linear(self.in_proj, hidden_states))
        return token_linear(self.out_proj, hidden_states), None


class DLGSANetGlobalAttention(nn.Module):
    """Sparse global self-attention (SparseGSA, section 3.3): channels attend to channels, the image is their vector.

    With `attention_act="softmax"` it is Restormer's (MDTA).
    """

    def __init__(self, config: DLGSANetConfig):
        super().__init__()
        width = 3 * config.hidden_size
        self.num_heads = config.num_attention_heads
        self.window_size = config.attention_window_size
        self.temperature = nn.Parameter(torch.ones(config.num_attention_heads, 1, 1))
        self.qkv_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        softmax = config.attention_act == "softmax"
        self.activation_fn: Callable = nn.Softmax(dim=-1) if softmax else ACT2FN[config.attention_act]
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, H, W, C) -> (B, H, W, C) and the weights (B, windows, heads, C / heads, C / heads)"""
        qkv = self.conv(token_linear(self.qkv_proj, hidden_states).permute(0, 3, 1, 2))
        height, width = size = qkv.shape[2:]
        if self.training or self.window_size is None or max(size) <= self.window_size:
            context, weights = self.attend(qkv.unsqueeze(1))
            context = context.squeeze(1)
        else:
            rows, columns = min(height, self.window_size), min(width, self.window_size)
            corners = list(product(window_starts(height, rows), window_starts(width, columns)))
            windows = torch.stack([qkv[:, :, y : y + rows, x : x + columns] for y, x in corners], 1)
            context, weights = self.attend(windows)
            context = averaged_windows(context, corners, size)
        return token_linear(self.out_proj, context.permute(0, 2, 3, 1)), weights

    def attend(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, windows, 3 * C, h, w) -> (B, windows, C, h, w) and the weights"""
        parts = windows.contiguous().flatten(3).unflatten(2, (3, self.num_heads, -1))
        query, key, value = parts.unbind(2)  # each (B, windows, heads, C / heads, h * w)
        query, key = (nn.functional.normalize(part, dim=-1) for part in (query, key))
        weights = self.activation_fn(query @ key.transpose(-1, -2) * self.temperature)
        return (weights @ value).flatten(2, 3).unflatten(3, windows.shape[3:]), weights


def window_starts(length: int, size: int) -> list[int]:
    """Where windows of `size` start along an axis: as few as cover it, spread evenly, the last one flush with its end."""
    count = -(-length // size)
    step = -(-(length - size) // max(count - 1, 1)) or size
    return [*range(0, length - size, step), length - size]


def averaged_windows(windows: torch.Tensor, corners: list[tuple[int, int]], size: tuple[int, int]) -> torch.Tensor:
    """(B, windows, C, h, w) with their upper left corners -> (B, C, H, W), the mean where they overlap"""
    batch, _, channels, height, width = windows.shape
    total = windows.new_zeros(batch, channels, *size, dtype=torch.promote_types(windows.dtype, torch.float32))
    count = total.new_zeros(size)
    for window, (y, x) in zip(windows.unbind(1), corners):
        total[:, :, y : y + height, x : x + width] += window
        count[y : y + height, x : x + width] += 1
    return (total / count).to(windows.dtype)


ATTENTIONS = {"local": DLGSANetLocalAttention, "global": DLGSANetGlobalAttention}


class DLGSANetLayer(GradientCheckpointingLayer):
    """Local or global attention, then a feed-forward network, each after a layer norm over channels."""

    def __init__(self, config: DLGSANetConfig, kind: str):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ATTENTIONS[kind](config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLPS[getattr(config, f"{kind}_mlp")](config, getattr(config, f"{kind}_mlp_ratio"))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        attention, _ = self.attention(self.layernorm_before(hidden_states))
        hidden_states = hidden_states + attention
        return hidden_states + self.mlp(self.layernorm_after(hidden_states))


class DLGSANetGroup(nn.Module):
    """Residual hybrid dynamic-Transformer group (RHDTG)."""

    def __init__(self, config: DLGSANetConfig, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(DLGSANetLayer(config, kind) for kind in depth * config.block_layers)
        self.conv = nn.Conv2d(config.hidden_size, config.hidden_size, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = hidden_states
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return residual + as_image(self.conv, hidden_states)


class DLGSANetDirectUpsampler(nn.Module):
    """One convolution and a pixel shuffle. (B, C, H, W) -> (B, channels, H * upscale, W * upscale)"""

    def __init__(self, hidden_size: int, num_channels: int, upscale: int):
        super().__init__()
        self.conv = nn.Conv2d(hidden_size, num_channels * upscale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(upscale)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.shuffle(self.conv(features))


UPSAMPLERS = {"pixelshuffledirect": DLGSANetDirectUpsampler, "pixelshuffle": PixelShuffleUpsampler}


class DLGSANetPreTrainedModel(PreTrainedModel):
    config_class = DLGSANetConfig
    base_model_prefix = "dlgsanet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False  # the loss is a mean over pixels: Trainer averages it over accumulated batches
    supports_gradient_checkpointing = True
    _no_split_modules = ["DLGSANetLayer"]
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": DLGSANetGroup, "attentions": DLGSANetGlobalAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the reference: torch's default for convolutions, 1x1 ones among them."""
        if isinstance(module, DLGSANetDynamicConvolution):
            bound = module.weight.shape[-1] ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            init_conv_as_torch(module)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, DLGSANetGlobalAttention):
            init.ones_(module.temperature)
        elif isinstance(module, DLGSANetModel):
            init.copy_(module.mean, image_mean(self.config.num_channels))


class DLGSANetModel(DLGSANetPreTrainedModel):
    """The body of DLGSANet, without the upsampler (figure 2 of the paper)."""

    def __init__(self, config: DLGSANetConfig):
        super().__init__(config)
        self.register_buffer("mean", image_mean(config.num_channels), persistent=False)
        self.conv_first = nn.Conv2d(config.num_channels, config.hidden_size, 3, padding=1, bias=False)
        self.layernorm_before, self.layernorm_after = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.body_norm else nn.Identity()
            for _ in range(2)
        )
        self.groups = nn.ModuleList(DLGSANetGroup(config, depth) for depth in config.depths)
        self.conv_after_body = nn.Conv2d(config.hidden_size, config.hidden_size, 3, padding=1)
        self.post_init()

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
            `last_hidden_state` (B, hidden_size, H, W). On request `hidden_states`, (B, H, W, hidden_size) for the embedding and each
            group, and `attentions`, (B, windows, heads, hidden_size / heads, hidden_size / heads) for each global layer.

        Raises:
            ValueError: not four axes, another number of channels than `num_channels`, or no pixels.
        """
        check_images(pixel_values, self.config.num_channels)
        pixel_values = (pixel_values.to(self.conv_first.weight.dtype) - self.mean) * self.config.img_range
        shallow = self.conv_first(pixel_values).permute(0, 2, 3, 1).contiguous()
        hidden_states = self.layernorm_before(shallow)
        for group in self.groups:
            hidden_states = group(hidden_states)
        hidden_states = as_image(self.conv_after_body, self.layernorm_after(hidden_states)) + shallow
        return BaseModelOutput(last_hidden_state=hidden_states.permute(0, 3, 1, 2))


class DLGSANetForImageSuperResolution(DLGSANetPreTrainedModel):
    """DLGSANet with its upsampler.

    In eval mode attention is computed in windows of `attention_window_size`, in train mode over the whole image: for images larger
    than that the two differ, as the authors mean them to.
    """

    def __init__(self, config: DLGSANetConfig):
        super().__init__(config)
        self.dlgsanet = DLGSANetModel(config)
        self.upsampler = UPSAMPLERS[config.upsampler](config.hidden_size, config.num_channels, config.upscale)
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
            ValueError: `pixel_values` as for `DLGSANetModel`, or `labels` of another shape than the reconstruction.
        """
        outputs: BaseModelOutput = self.dlgsanet(pixel_values, **kwargs)
        reconstruction = self.upsampler(outputs.last_hidden_state) / self.config.img_range + self.dlgsanet.mean
        return ImageSuperResolutionOutput(
            loss=reconstruction_loss(reconstruction, labels),
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["DLGSANetForImageSuperResolution", "DLGSANetModel", "DLGSANetPreTrainedModel"]
