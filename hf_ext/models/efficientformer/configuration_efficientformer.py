"""Configuration of EfficientFormer, "EfficientFormer: Vision Transformers at MobileNet Speed" (arXiv 2206.01191).

The fields are those of the class that Transformers had until version 4, so its checkpoints load unchanged.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from hf_ext.layers.presets import PresetMixin


@strict
class EfficientFormerConfig(PresetMixin, BackboneConfigMixin, PreTrainedConfig):
    r"""
    The defaults are EfficientFormer-L1 as published. Presets: `efficientformer-l1`, `-l3`, `-l7`.

    Args:
        depths, hidden_sizes: blocks, and width, of each of the four stages. `hidden_sizes[0]` is even (the stem halves it).
        downsamples: for each stage but the last, whether a strided convolution follows even where the width stays; a fourth
            entry is allowed and has no effect.
        num_meta3d_blocks: attention blocks at the end of the last stage, at most `depths[3]`.
        num_attention_heads, key_dim, attention_ratio: heads, width of a key, and width of a value over that of a key.
        resolution: edge of the token grid that the attention biases are learned for. A classifier takes exactly
            `resolution * resolution` tokens (with 7 and the usual strides: images from 193 to 224 pixels).
        bias_resolution: the same for `EfficientFormerBackbone`, which has biases of its own and interpolates them (16 in the
            authors' segmenters, 25 in their detectors).
        mlp_expansion_ratio: hidden width of the MLPs over their width.
        pool_size: edge of the pooling window; odd.
        downsample_patch_size, downsample_stride, downsample_pad: convolution between two stages.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        use_layer_scale, layer_scale_init_value: learned factor on every residual branch.
        distillation: whether a second head learns from a teacher; at inference the logits of both heads are averaged.
        distillation_type, distillation_alpha, distillation_temperature: the loss when `teacher_logits` are given: "hard" (the
            teacher's most likely class) or "soft" (its distribution), the teacher's share, and the temperature of "soft".
        fused: BatchNorm and layer scale are folded into the convolutions; `model.fuse()` sets it.
        out_features, out_indices: stages that `EfficientFormerBackbone` returns: "stem", "stage1" to "stage4".
    """

    model_type = "efficientformer"

    depths: list[int] | tuple[int, ...] = (3, 2, 6, 4)
    hidden_sizes: list[int] | tuple[int, ...] = (48, 96, 224, 448)
    downsamples: list[bool] | tuple[bool, ...] = (True, True, True, True)
    num_meta3d_blocks: int = 1
    num_attention_heads: int = 8
    key_dim: int = 32
    attention_ratio: float | int = 4
    resolution: int = 7
    bias_resolution: int = 16
    mlp_expansion_ratio: float | int = 4
    num_channels: int = 3
    pool_size: int = 3
    downsample_patch_size: int = 3
    downsample_stride: int = 2
    downsample_pad: int = 1
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    use_layer_scale: bool = True
    layer_scale_init_value: float | int = 1e-5
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    batch_norm_eps: float = 1e-5
    distillation: bool = True
    distillation_type: str = "hard"
    distillation_alpha: float | int = 0.5
    distillation_temperature: float | int = 1.0
    fused: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    PRESETS = {
        "efficientformer-l1": {"num_labels": 1000},
        "efficientformer-l3": {
            "depths": [4, 4, 12, 6],
            "hidden_sizes": [64, 128, 320, 512],
            "num_meta3d_blocks": 4,
            "num_labels": 1000,
        },
        "efficientformer-l7": {
            "depths": [6, 6, 18, 8],
            "hidden_sizes": [96, 192, 384, 768],
            "num_meta3d_blocks": 8,
            "num_labels": 1000,
        },
    }

    def __post_init__(self, **kwargs: Any):
        self.depths, self.hidden_sizes = list(self.depths), list(self.hidden_sizes)
        self.downsamples = list(self.downsamples)
        kwargs.pop("num_hidden_layers", None)  # a constant in the files of Transformers 4
        self._check()
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, len(self.depths) + 1))]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """Stages; `hidden_states` holds one entry for each, after the stem."""
        return len(self.depths)

    def _check(self) -> None:
        for name, length in (("depths", (4,)), ("hidden_sizes", (4,)), ("downsamples", (3, 4))):
            if len(getattr(self, name)) not in length:
                raise ValueError(
                    f"`{name}` must have {' or '.join(map(str, length))} entries, not {getattr(self, name)}"
                )
        if min(self.depths) < 1 or min(self.hidden_sizes) < 1 or self.hidden_sizes[0] % 2:
            raise ValueError(
                "`depths` and `hidden_sizes` must be positive and `hidden_sizes[0]` even, not "
                f"{self.depths} and {self.hidden_sizes}"
            )
        if not 0 <= self.num_meta3d_blocks <= self.depths[-1]:
            raise ValueError(
                f"`num_meta3d_blocks` must lie between 0 and the blocks of the last stage ({self.depths[-1]}), not "
                f"{self.num_meta3d_blocks}"
            )
        positive = (
            "num_attention_heads",
            "key_dim",
            "attention_ratio",
            "resolution",
            "bias_resolution",
            "num_channels",
        )
        for name in (*positive, "mlp_expansion_ratio", "downsample_patch_size", "downsample_stride"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, not {getattr(self, name)}")
        if self.pool_size < 1 or self.pool_size % 2 == 0:
            raise ValueError(f"`pool_size` must be odd and positive, not {self.pool_size}")
        if self.downsample_pad < 0:
            raise ValueError(f"`downsample_pad` must not be negative, not {self.downsample_pad}")
        for name in ("hidden_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie in [0, 1), not {getattr(self, name)}")
        if self.distillation_type not in ("hard", "soft"):
            raise ValueError(f"`distillation_type` must be 'hard' or 'soft', not {self.distillation_type!r}")
        if not 0 <= self.distillation_alpha <= 1:
            raise ValueError(f"`distillation_alpha` must lie in [0, 1], not {self.distillation_alpha}")
        if self.distillation_temperature <= 0:
            raise ValueError(f"`distillation_temperature` must be positive, not {self.distillation_temperature}")


__all__ = ["EfficientFormerConfig"]
