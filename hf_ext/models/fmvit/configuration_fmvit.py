"""Configuration of FMViT, "FMViT: A multiple-frequency mixing Vision Transformer" (arXiv 2311.05707)."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from hf_ext.layers.presets import PresetMixin
from hf_ext.layers.widths import make_divisible, split_width

STAGES = 4


@strict
class FMViTConfig(PresetMixin, BackboneConfigMixin, PreTrainedConfig):
    r"""
    The paper publishes no sizes; the defaults are this package's own. Preset: `fmvit`, the defaults with ImageNet's 1000 classes.

    Args:
        stem_sizes: widths of the stem's convolutions; the fourth convolution is as wide as the third.
        hidden_sizes: for each stage, the width of its convolutional fusion blocks.
        out_sizes: for each stage, the width of its multi-frequency block; the first stage has none and `hidden_sizes[0]` here.
        depths: blocks per stage; the last block of stages 2 to 4 is a multi-frequency block.
        pool_ratios: for each stage, the pooling factors of the low-frequency branches, which share the heads in equal, consecutive
            parts (stage 1 has none).
        head_dim: width of an attention head, and channels per group of the 3x3 mixer.
        mix_block_ratio: share of self-attention in the channels of a multi-frequency block.
        cfb_mlp_ratio, fmb_mlp_ratio: hidden width of the MLPs over their width, rounded to a multiple of 32.
        mlp_groups: groups of the parallel 1x1 branches of MLPs, queries, keys and values. Each is a multiple of the smallest and
            divides the widths.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        fused: parallel branches and BatchNorm are folded; `model.fuse()` sets it.
        out_features, out_indices: stages that `FMViTBackbone` returns: "stem", "stage1" to "stage4".
    """

    model_type = "fmvit"

    num_channels: int = 3
    stem_sizes: list[int] | tuple[int, ...] = (64, 32, 64)
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    out_sizes: list[int] | tuple[int, ...] = (64, 192, 384, 640)
    depths: list[int] | tuple[int, ...] = (2, 3, 6, 3)
    pool_ratios: list[list[int]] | tuple[tuple[int, ...], ...] = ((8,), (4, 8), (2, 4), (1, 2))
    head_dim: int = 32
    mix_block_ratio: float | int = 0.75
    cfb_mlp_ratio: float | int = 3.0
    fmb_mlp_ratio: float | int = 2.0
    mlp_groups: list[int] | tuple[int, ...] = (1, 4)
    hidden_act: str = "relu"
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.1
    batch_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    fused: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    PRESETS = {"fmvit": {"num_labels": 1000}}

    def __post_init__(self, **kwargs: Any):
        for name in ("stem_sizes", "hidden_sizes", "out_sizes", "depths", "mlp_groups"):
            setattr(self, name, list(getattr(self, name)))
        self.pool_ratios = [list(ratios) for ratios in self.pool_ratios]
        self._check()
        self.stage_names = ["stem", *(f"stage{i + 1}" for i in range(STAGES))]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """Stages; `hidden_states` holds one entry for each, after the stem."""
        return STAGES

    def is_multi_frequency_block(self, stage: int, block: int) -> bool:
        return stage > 0 and block == self.depths[stage] - 1

    def pooled_parts(self, stage: int, width: int) -> list[tuple[int, int]]:
        """(pooling factor, channels) of the consecutive parts of an attention of that width; factors left without a head are not
        among them."""
        heads, ratios = width // self.head_dim, self.pool_ratios[stage]
        ends = [self.head_dim * (heads * i // len(ratios)) for i in range(len(ratios) + 1)]
        return [(ratio, end - start) for ratio, start, end in zip(ratios, ends, ends[1:]) if end > start]

    def _check(self) -> None:
        for name, length in {"stem_sizes": 3, "hidden_sizes": STAGES, "out_sizes": STAGES, "depths": STAGES}.items():
            if len(getattr(self, name)) != length or min(getattr(self, name)) < 1:
                raise ValueError(f"`{name}` must be {length} positive numbers, not {getattr(self, name)}")
        if len(self.pool_ratios) != STAGES or any(not ratios or min(ratios) < 1 for ratios in self.pool_ratios):
            raise ValueError(f"`pool_ratios` must hold one or more positive numbers per stage, not {self.pool_ratios}")
        if self.out_sizes[0] != self.hidden_sizes[0]:
            raise ValueError(
                f"`out_sizes[0]` must equal `hidden_sizes[0]` ({self.hidden_sizes[0]}), not {self.out_sizes[0]}: the first stage "
                "has no multi-frequency block"
            )
        for name in ("num_channels", "head_dim", "cfb_mlp_ratio", "fmb_mlp_ratio", "batch_norm_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, not {getattr(self, name)}")
        for name in ("attention_probs_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie in [0, 1), not {getattr(self, name)}")
        if not self.mlp_groups or min(self.mlp_groups) < 1 or any(g % min(self.mlp_groups) for g in self.mlp_groups):
            raise ValueError(f"`mlp_groups` must be positive multiples of the smallest, not {self.mlp_groups}")
        self._check_widths()

    def _check_widths(self) -> None:
        for stage, depth in enumerate(self.depths):
            if stage == 0 or depth > 1:
                width = self.hidden_sizes[stage]
                self._check_width(f"hidden_sizes[{stage}]", width, width, self.cfb_mlp_ratio)
                if width % self.head_dim:
                    raise ValueError(
                        f"`hidden_sizes[{stage}]` must be a multiple of `head_dim` ({self.head_dim}), not {width}"
                    )
            if stage > 0:
                width = self.out_sizes[stage]
                attention, conv = split_width(width, self.mix_block_ratio)
                if conv <= 0 or attention % self.head_dim or conv % self.head_dim:
                    raise ValueError(
                        f"`mix_block_ratio` {self.mix_block_ratio} splits `out_sizes[{stage}]` ({width}) into {attention} channels for "
                        f"self-attention and {conv} for convolution; both must be positive multiples of `head_dim` "
                        f"({self.head_dim})"
                    )
                self._check_width(f"out_sizes[{stage}]", width, width, self.fmb_mlp_ratio)
                self._check_width(f"The attention width of out_sizes[{stage}]", attention)

    def _check_width(self, name: str, width: int, mlp_width: int = 0, mlp_ratio: float = 0) -> None:
        hidden = make_divisible(mlp_width * mlp_ratio, 32) if mlp_width else width
        if any(width % groups or hidden % groups for groups in self.mlp_groups):
            raise ValueError(
                f"`mlp_groups` {self.mlp_groups} must divide every width; `{name}` is {width}, and {hidden} inside its MLP"
            )


__all__ = ["FMViTConfig"]
