"""Configuration of HAT, "HAT: Hybrid Attention Transformer for Image Restoration" (arXiv 2309.05239).

Fields that Swin2SR has too carry its names (`upscale`, `img_range`, `upsampler`, `resi_connection`).
"""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hf_ext.layers.presets import PresetMixin

_SIZES = {
    "hat-s": {"hidden_size": 144, "compress_ratio": 24, "squeeze_factor": 24},
    "hat": {},
    "hat-l": {"depths": [6] * 12, "num_attention_heads": [6] * 12},
}


@strict
class HatConfig(PresetMixin, PreTrainedConfig):
    r"""
    The defaults are HAT x4 as published. Presets: `hat-s-x2`, `hat-x4`, `hat-l-x3` and so on.

    Args:
        image_size: edge of the training images in pixels; matters only for `use_absolute_embeddings`. Above `window_size`.
        num_channels: of the input and of the output. Three means RGB, from which the mean of DIV2K is subtracted.
        hidden_size: width of the body; a multiple of every entry of `num_attention_heads`.
        depths, num_attention_heads: hybrid attention blocks, and heads, per residual group.
        window_size: edge of an attention window in pixels.
        compress_ratio, squeeze_factor: how much narrower the bottlenecks of the convolution branch and of its channel
            attention are than `hidden_size`.
        conv_scale: weight of the convolution branch.
        overlap_ratio: how much larger the key/value windows of overlapping cross-attention are; `window_size * overlap_ratio`
            rounds down to an even number.
        mlp_ratio: hidden width of the MLPs over `hidden_size`.
        qkv_bias: whether query, key and value projections have a bias.
        attention_scale: factor on the logits; None for head_dim ** -0.5.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        use_absolute_embeddings: adds a learned position embedding, interpolated for other sizes than `image_size`.
        embedding_norm: layer norm after the first convolution.
        upscale: output pixels per input pixel along an edge: 3 or a power of two.
        img_range: factor on the input after the mean is subtracted.
        upsampler: "pixelshuffle" is the only one that HAT has.
        resi_connection: "1conv" ends each group and the body with a 3x3 convolution, "identity" with nothing.
    """

    model_type = "hat"

    image_size: int = 64
    num_channels: int = 3
    hidden_size: int = 180
    depths: list[int] | tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    num_attention_heads: list[int] | tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    window_size: int = 16
    compress_ratio: int = 3
    squeeze_factor: int = 30
    conv_scale: float | int = 0.01
    overlap_ratio: float | int = 0.5
    mlp_ratio: float | int = 2.0
    qkv_bias: bool = True
    attention_scale: float | int | None = None
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    use_absolute_embeddings: bool = False
    embedding_norm: bool = True
    upscale: int = 4
    img_range: float | int = 1.0
    upsampler: str = "pixelshuffle"
    resi_connection: str = "1conv"

    PRESETS = {f"{name}-x{scale}": {**size, "upscale": scale} for name, size in _SIZES.items() for scale in (2, 3, 4)}

    def __post_init__(self, **kwargs):
        self.depths = list(self.depths)
        self.num_attention_heads = list(self.num_attention_heads)
        super().__post_init__(**kwargs)
        self._check()

    @property
    def num_hidden_layers(self) -> int:
        """Residual groups; `hidden_states` holds one entry for each, after the embedding."""
        return len(self.depths)

    @property
    def overlap_window_size(self) -> int:
        """Edge of the key/value windows of overlapping cross-attention."""
        return self.window_size + int(self.window_size * self.overlap_ratio)

    def _check(self) -> None:
        positive = (
            "image_size",
            "num_channels",
            "hidden_size",
            "window_size",
            "compress_ratio",
            "squeeze_factor",
            "mlp_ratio",
        )
        for name in (*positive, "upscale", "img_range"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, not {getattr(self, name)}")
        for name in ("compress_ratio", "squeeze_factor"):
            if getattr(self, name) > self.hidden_size:
                raise ValueError(
                    f"`{name}` must be at most `hidden_size` ({self.hidden_size}), not {getattr(self, name)}"
                )
        if not self.depths or len(self.depths) != len(self.num_attention_heads) or min(self.depths) < 1:
            raise ValueError(
                "`depths` and `num_attention_heads` must name one positive number per group, not "
                f"{self.depths} and {self.num_attention_heads}"
            )
        if any(heads < 1 or self.hidden_size % heads for heads in self.num_attention_heads):
            raise ValueError(
                f"Every entry of `num_attention_heads` must divide `hidden_size` ({self.hidden_size}), not "
                f"{self.num_attention_heads}"
            )
        if self.image_size <= self.window_size:
            raise ValueError(f"`image_size` must exceed `window_size` ({self.window_size}), not {self.image_size}")
        if self.overlap_ratio < 0 or int(self.window_size * self.overlap_ratio) % 2:
            raise ValueError(
                f"`overlap_ratio` times `window_size` ({self.window_size}) must round down to an even number of pixels, and "
                f"not below zero; {self.overlap_ratio} gives {int(self.window_size * self.overlap_ratio)}"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie in [0, 1), not {getattr(self, name)}")
        if self.upscale != 3 and self.upscale & (self.upscale - 1):
            raise ValueError(f"`upscale` must be 3 or a power of two, not {self.upscale}")
        if self.upsampler != "pixelshuffle":
            raise ValueError(
                f"`upsampler` must be 'pixelshuffle', not {self.upsampler!r}: the authors' network returns its input unchanged "
                "with any other"
            )
        if self.resi_connection not in ("1conv", "identity"):
            raise ValueError(f"`resi_connection` must be '1conv' or 'identity', not {self.resi_connection!r}")


__all__ = ["HatConfig"]
