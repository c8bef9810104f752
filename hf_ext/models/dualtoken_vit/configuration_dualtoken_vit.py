"""Configuration of DualToken-ViT, "DualToken-ViT: Position-aware Efficient Vision Transformer with Dual Token Fusion"
(arXiv 2309.12424). The authors published no code: widths, depths and heads are this project's choice, near the paper's costs."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from hf_ext.layers.presets import PresetMixin


@strict
class DualTokenViTConfig(PresetMixin, BackboneConfigMixin, PreTrainedConfig):
    r"""
    The defaults are the small network that mixes global tokens. Presets: `dualtoken-vit-tiny-mix`, `-small-mix`, `-small`.

    Args:
        num_channels: of the image.
        hidden_sizes, depths, num_attention_heads, mlp_ratios: width, blocks, heads, and hidden width of the MLP over the width, for
            each of the three stages. `hidden_sizes[0]` is even (the stem halves it); heads divide their width.
        conv_kernel_size: edge of the depthwise kernel of the local branch; odd.
        conv_ratio: hidden width of the local branch over the width.
        global_mixer: how global tokens are transformed: "mlp" (each by itself) or "mix" (across positions, then each by itself).
        global_grid: edge of the grid of global tokens.
        global_weight: share of the transformed tokens in the new global tokens; the rest comes from the image. In [0, 1].
        qkv_bias: whether query, key and value projections have a bias.
        neck_dim: width of the layer before the average over positions and the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        layer_norm_eps, merge_norm_eps: of the blocks, and of stem, merging, neck and gates (as LightViT has them).
        fused: BatchNorm is folded into the convolutions of the stem; `model.fuse()` sets it.
        out_features, out_indices: stages that `DualTokenViTBackbone` returns: "stem", "stage1", "stage2", "stage3".
    """

    model_type = "dualtoken_vit"

    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256)
    depths: list[int] | tuple[int, ...] = (2, 6, 6)
    num_attention_heads: list[int] | tuple[int, ...] = (2, 4, 8)
    mlp_ratios: list[int | float] | tuple[int | float, ...] = (8, 4, 4)
    conv_kernel_size: int = 7
    conv_ratio: float | int = 1.0
    global_mixer: str = "mix"
    global_grid: int = 7
    global_weight: float | int = 0.5
    qkv_bias: bool = True
    neck_dim: int = 1280
    hidden_act: str = "gelu"
    drop_path_rate: float | int = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    merge_norm_eps: float = 1e-5
    fused: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    PRESETS = {
        "dualtoken-vit-tiny-mix": {"hidden_sizes": [48, 96, 192], "num_labels": 1000},
        "dualtoken-vit-small-mix": {"num_labels": 1000},
        "dualtoken-vit-small": {"global_mixer": "mlp", "num_labels": 1000},
    }

    def __post_init__(self, **kwargs: Any):
        for name in ("hidden_sizes", "depths", "num_attention_heads", "mlp_ratios"):
            setattr(self, name, list(getattr(self, name)))
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
        for name in ("hidden_sizes", "depths", "num_attention_heads", "mlp_ratios"):
            values = getattr(self, name)
            if len(values) != 3 or min(values) <= 0:
                raise ValueError(f"`{name}` must hold three positive numbers, one for each stage, not {values}")
        if self.hidden_sizes[0] % 2:
            raise ValueError(f"`hidden_sizes[0]` must be even, not {self.hidden_sizes[0]}")
        if any(width % heads for width, heads in zip(self.hidden_sizes, self.num_attention_heads)):
            raise ValueError(
                f"Every entry of `num_attention_heads` must divide that of `hidden_sizes` ({self.hidden_sizes}), not "
                f"{self.num_attention_heads}"
            )
        for name in ("num_channels", "conv_ratio", "global_grid", "neck_dim"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, not {getattr(self, name)}")
        if self.conv_kernel_size < 1 or self.conv_kernel_size % 2 == 0:
            raise ValueError(f"`conv_kernel_size` must be odd and positive, not {self.conv_kernel_size}")
        if self.global_mixer not in ("mlp", "mix"):
            raise ValueError(f"`global_mixer` must be 'mlp' or 'mix', not {self.global_mixer!r}")
        if not 0 <= self.global_weight <= 1:
            raise ValueError(f"`global_weight` must lie in [0, 1], not {self.global_weight}")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"`drop_path_rate` must lie in [0, 1), not {self.drop_path_rate}")


__all__ = ["DualTokenViTConfig"]
