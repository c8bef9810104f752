"""Configuration of DLGSANet, "DLGSANet: Lightweight Dynamic Local and Global Self-Attention Networks for Image Super-Resolution"
(arXiv 2301.02031).

Fields that Swin2SR has too carry its names (`upscale`, `img_range`, `upsampler`).
"""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hf_ext.layers.presets import PresetMixin

_SIZES = {
    "dlgsanet-tiny": {"hidden_size": 48, "depths": [3] * 3},
    "dlgsanet-light": {"hidden_size": 48, "depths": [3] * 4},
    "dlgsanet": {},
}
_WINDOWS = {2: 96, 3: 72, 4: 48}
_CHOICES = {
    "attention_act": ("relu", "gelu", "sigmoid", "linear", "softmax"),
    "local_mlp": ("gated", "plain"),
    "global_mlp": ("gated", "plain"),
    "upsampler": ("pixelshuffledirect", "pixelshuffle"),
}
_LAYERS = ("local", "global")


@strict
class DLGSANetConfig(PresetMixin, PreTrainedConfig):
    r"""
    The defaults are the large DLGSANet x4 as published. Presets: `dlgsanet-tiny-x2`, `dlgsanet-light-x4`, `dlgsanet-x3` and so on.

    Args:
        num_channels: of the input and of the output. Three means RGB, from which the mean of DIV2K is subtracted.
        hidden_size: width of the body; a multiple of `num_attention_heads` and of `filter_group_size`, and at least 4.
        depths: blocks per residual group.
        block_layers: the layers of a block in order, each "local" (dynamic convolution) or "global" (attention between channels).
        kernel_size: edge of the local layers' filters, odd.
        filter_group_size: neighbouring channels that share a dynamic filter.
        dynamic_filters: False makes the local layers ordinary depthwise convolutions.
        num_attention_heads: of the global layers.
        attention_act: what turns similarities of channels into weights: "relu" (the paper's sparse attention), "gelu", "sigmoid",
            "linear" (nothing) or "softmax" (Restormer's attention).
        attention_window_size: in eval mode, a larger image's attention is computed in overlapping windows of this edge and
            averaged, so that it sees what it saw in training (test-time local converter); None: always the whole image.
        local_mlp, global_mlp: "gated" (Restormer's gated depthwise-convolution network) or "plain" (two linear layers with bias).
        local_mlp_ratio, global_mlp_ratio: hidden width of these over `hidden_size`.
        body_norm: a layer norm before the first group and after the last.
        upscale: output pixels per input pixel along an edge; 1 restores without enlarging.
        img_range: factor on the input after the mean is subtracted.
        upsampler: "pixelshuffledirect" is one convolution, "pixelshuffle" a wider and deeper head (`upscale` 3 or a power of two).
    """

    model_type = "dlgsanet"

    num_channels: int = 3
    hidden_size: int = 90
    depths: list[int] | tuple[int, ...] = (4, 4, 4, 4, 4, 4)
    block_layers: list[str] | tuple[str, ...] = ("local", "global")
    kernel_size: int = 7
    filter_group_size: int = 6
    dynamic_filters: bool = True
    num_attention_heads: int = 6
    attention_act: str = "relu"
    attention_window_size: int | None = 48
    local_mlp: str = "gated"
    global_mlp: str = "gated"
    local_mlp_ratio: float | int = 2.0
    global_mlp_ratio: float | int = 2.0
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    body_norm: bool = False
    upscale: int = 4
    img_range: float | int = 1.0
    upsampler: str = "pixelshuffledirect"

    PRESETS = {
        f"{name}-x{scale}": {**size, "upscale": scale, "attention_window_size": window}
        for name, size in _SIZES.items()
        for scale, window in _WINDOWS.items()
    }

    def __post_init__(self, **kwargs):
        self.depths = list(self.depths)
        self.block_layers = list(self.block_layers)
        super().__post_init__(**kwargs)
        self._check()

    @property
    def num_hidden_layers(self) -> int:
        """Residual groups; `hidden_states` holds one entry for each, after the embedding."""
        return len(self.depths)

    def _check(self) -> None:
        positive = ("num_channels", "hidden_size", "kernel_size", "filter_group_size", "num_attention_heads", "upscale")
        for name in (*positive, "img_range", "local_mlp_ratio", "global_mlp_ratio", "attention_window_size"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, not {getattr(self, name)}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if not self.depths or min(self.depths) < 1:
            raise ValueError(f"`depths` must name one positive number per group, not {self.depths}")
        if not self.block_layers or any(kind not in _LAYERS for kind in self.block_layers):
            raise ValueError(f"`block_layers` must be a list of {' and '.join(_LAYERS)}, not {self.block_layers}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd, not {self.kernel_size}")
        if self.hidden_size < 4:
            raise ValueError(f"`hidden_size` must be at least 4, not {self.hidden_size}")
        divisors = {
            "num_attention_heads": "global" in self.block_layers,
            "filter_group_size": "local" in self.block_layers and self.dynamic_filters,
        }
        for name, used in divisors.items():
            if used and self.hidden_size % getattr(self, name):
                raise ValueError(f"`{name}` must divide `hidden_size` ({self.hidden_size}), not {getattr(self, name)}")
        for name in ("local_mlp_ratio", "global_mlp_ratio"):
            if int(self.hidden_size * getattr(self, name)) < 1:
                raise ValueError(
                    f"`{name}` must leave at least one channel of {self.hidden_size}, not {getattr(self, name)}"
                )
        if self.upsampler == "pixelshuffle" and self.upscale != 3 and self.upscale & (self.upscale - 1):
            raise ValueError(f"`upscale` must be 3 or a power of two with 'pixelshuffle', not {self.upscale}")


__all__ = ["DLGSANetConfig"]
