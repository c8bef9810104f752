"""Configuration of Next-ViT, "Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic Industrial
Scenarios" (arXiv 2207.05501)."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from hf_ext.layers.presets import PresetMixin
from hf_ext.layers.widths import split_width

HYBRID_PERIOD = 5  # in the third stage every fifth block is a transformer block
STAGES = 4


@strict
class NextViTConfig(PresetMixin, BackboneConfigMixin, PreTrainedConfig):
    r"""
    The defaults are Next-ViT-S as published. Presets: `nextvit-small`, `nextvit-base`, `nextvit-large`.

    Args:
        stem_sizes: widths of the stem's convolutions; the fourth convolution is as wide as the third.
        hidden_sizes: for each stage, the width of its convolution blocks.
        out_sizes: for each stage, the width of its transformer blocks; the first stage has none and `hidden_sizes[0]` here.
        depths: blocks per stage. The last block of stages 2 and 4, and every fifth of stage 3, is a transformer block, so
            `depths[2]` is a multiple of 5.
        strides: 2 for each stage that halves the map, else 1.
        sr_ratios: for each stage, keys and values are averages over `sr_ratio ** 2` consecutive tokens (stage 1 has none).
        head_dim: width of a head of self-attention, and of a group of convolutional attention.
        mix_block_ratio: share of self-attention in the channels of a transformer block.
        conv_mlp_ratio, transformer_mlp_ratio: hidden width of the MLPs over their width, rounded to a multiple of 32.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        extra_norms: for `NextViTBackbone`, a BatchNorm after each stage, whose output is both returned and fed to the next stage
            (the authors' segmenters).
        fused: BatchNorm is folded into convolutions and linear layers; `model.fuse()` sets it.
        out_features, out_indices: stages that `NextViTBackbone` returns: "stem", "stage1" to "stage4".
    """

    model_type = "nextvit"

    num_channels: int = 3
    stem_sizes: list[int] | tuple[int, ...] = (64, 32, 64)
    hidden_sizes: list[int] | tuple[int, ...] = (96, 192, 384, 768)
    out_sizes: list[int] | tuple[int, ...] = (96, 256, 512, 1024)
    depths: list[int] | tuple[int, ...] = (3, 4, 10, 3)
    strides: list[int] | tuple[int, ...] = (1, 2, 2, 2)
    sr_ratios: list[int] | tuple[int, ...] = (8, 4, 2, 1)
    head_dim: int = 32
    mix_block_ratio: float | int = 0.75
    conv_mlp_ratio: float | int = 3.0
    transformer_mlp_ratio: float | int = 2.0
    hidden_act: str = "relu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.1
    batch_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    extra_norms: bool = False
    fused: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    PRESETS = {
        "nextvit-small": {"num_labels": 1000},
        "nextvit-base": {"depths": [3, 4, 20, 3], "drop_path_rate": 0.2, "num_labels": 1000},
        "nextvit-large": {"depths": [3, 4, 30, 3], "drop_path_rate": 0.2, "num_labels": 1000},
    }

    def __post_init__(self, **kwargs: Any):
        for name in ("stem_sizes", *self._PER_STAGE):
            setattr(self, name, list(getattr(self, name)))
        self._check()
        self.stage_names = ["stem", *(f"stage{i + 1}" for i in range(STAGES))]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    _PER_STAGE = ("hidden_sizes", "out_sizes", "depths", "strides", "sr_ratios")

    @property
    def num_hidden_layers(self) -> int:
        """Stages; `hidden_states` holds one entry for each, after the stem."""
        return STAGES

    def is_transformer_block(self, stage: int, block: int) -> bool:
        """The next hybrid strategy (section 3.4 of the paper)."""
        if stage == 0:
            return False
        return block % HYBRID_PERIOD == HYBRID_PERIOD - 1 if stage == 2 else block == self.depths[stage] - 1

    def _check(self) -> None:
        for name, length in {"stem_sizes": 3, **dict.fromkeys(self._PER_STAGE, STAGES)}.items():
            if len(getattr(self, name)) != length or min(getattr(self, name)) < 1:
                raise ValueError(f"`{name}` must be {length} positive numbers, not {getattr(self, name)}")
        if self.depths[2] % HYBRID_PERIOD:
            raise ValueError(f"`depths[2]` must be a multiple of {HYBRID_PERIOD}, not {self.depths[2]}")
        if self.out_sizes[0] != self.hidden_sizes[0]:
            raise ValueError(
                f"`out_sizes[0]` must equal `hidden_sizes[0]` ({self.hidden_sizes[0]}), not {self.out_sizes[0]}: the first stage "
                "has no transformer block"
            )
        if not set(self.strides) <= {1, 2}:
            raise ValueError(f"`strides` must hold ones and twos, not {self.strides}")
        for name in ("num_channels", "head_dim", "conv_mlp_ratio", "transformer_mlp_ratio", "batch_norm_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, not {getattr(self, name)}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie in [0, 1), not {getattr(self, name)}")
        self._check_widths()

    def _check_widths(self) -> None:
        used = [width for stage, width in enumerate(self.hidden_sizes) if self.depths[stage] > 1 or stage == 0]
        if any(width % self.head_dim for width in used):
            raise ValueError(
                f"`hidden_sizes` must be multiples of `head_dim` ({self.head_dim}), not {self.hidden_sizes}"
            )
        for width in self.out_sizes[1:]:
            parts = split_width(width, self.mix_block_ratio)
            if any(part < self.head_dim or part % (part // self.head_dim) for part in parts):
                raise ValueError(
                    f"`mix_block_ratio` {self.mix_block_ratio} splits a width of {width} (`out_sizes`) into {parts[0]} channels for "
                    f"self-attention and {parts[1]} for convolution; both must be positive and made of whole groups of about "
                    f"`head_dim` ({self.head_dim})"
                )


__all__ = ["NextViTConfig"]
