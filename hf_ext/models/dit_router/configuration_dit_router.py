"""Configuration of DiT, "DiT: Efficient Vision Transformers with Dynamic Token Routing" (arXiv 2308.03409). The authors published no
code: sizes follow PVTv2, and what the paper leaves open is this project's choice. (Not the diffusion transformer of that name.)"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from hf_ext.layers.presets import PresetMixin

SCALES = 4  # strides 4, 8, 16 and 32
ROUTINGS = ("dynamic", "static")


@strict
class DynamicTokenRoutingConfig(PresetMixin, BackboneConfigMixin, PreTrainedConfig):
    r"""
    The defaults are the size of PVTv2-B1. Presets: `dit-router-b0` to `dit-router-b5`, the sizes of PVTv2.

    Args:
        num_channels: of the image.
        hidden_sizes, num_attention_heads, mlp_ratios: width, heads, and hidden width of the MLP over the width, for each of the four
            scales. Heads divide their width; a width is at least 4.
        sr_ratios: for each scale, keys and values come from a map that is smaller by this factor.
        depths: blocks of the stages on the diagonal of the grid, which are PVTv2's.
        extra_depth: blocks of each stage above the diagonal; 0 leaves these stages out.
        budget: share of the cost of the gated edges that the router loss aims at, in [0, 1].
        router_loss_coef: weight of the router loss.
        routing: "dynamic": gates decide for each token. "static": every token takes the path of PVTv2. Also a forward argument.
        drop_path_rate: stochastic depth of the last block of the diagonal; it grows linearly from 0, and the stages above have the
            rate of the last block of their column.
        out_features, out_indices: maps that `DynamicTokenRoutingBackbone` returns: "stage1" to "stage4", of strides 4 to 32.
    """

    model_type = "dit_router"

    # What the blocks of PVTv2 ask their configuration for, and is not free here
    patch_sizes = (7, 3, 3, 3)
    strides = (4, 2, 2, 2)
    linear_attention = False

    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 320, 512)
    num_attention_heads: list[int] | tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: list[int | float] | tuple[int | float, ...] = (8, 8, 4, 4)
    sr_ratios: list[int] | tuple[int, ...] = (8, 4, 2, 1)
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    extra_depth: int = 1
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    budget: float | int = 0.5
    router_loss_coef: float | int = 0.1
    routing: str = "dynamic"
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    PRESETS = {
        "dit-router-b0": {"hidden_sizes": [32, 64, 160, 256], "num_labels": 1000},
        "dit-router-b1": {"num_labels": 1000},
        "dit-router-b2": {"depths": [3, 4, 6, 3], "num_labels": 1000},
        "dit-router-b3": {"depths": [3, 4, 18, 3], "num_labels": 1000},
        "dit-router-b4": {"depths": [3, 8, 27, 3], "num_labels": 1000},
        "dit-router-b5": {"depths": [3, 6, 40, 3], "mlp_ratios": [4, 4, 4, 4], "num_labels": 1000},
    }

    _PER_SCALE = ("hidden_sizes", "num_attention_heads", "mlp_ratios", "sr_ratios", "depths")

    def __post_init__(self, **kwargs: Any):
        for name in self._PER_SCALE:
            setattr(self, name, list(getattr(self, name)))
        self._check()
        self.stage_names = [f"stage{scale + 1}" for scale in range(SCALES)]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    def depth(self, scale: int, column: int) -> int:
        """Blocks of the stage that leads from column to column + 1 at that scale."""
        return self.depths[scale] if scale == column else self.extra_depth

    @property
    def num_hidden_layers(self) -> int:
        """Stages; `hidden_states` holds one entry for each."""
        return SCALES + (SCALES * (SCALES - 1) // 2 if self.extra_depth else 0)

    def _check(self) -> None:
        for name in self._PER_SCALE:
            values = getattr(self, name)
            if len(values) != SCALES or min(values) <= 0:
                raise ValueError(f"`{name}` must hold {SCALES} positive numbers, one for each scale, not {values}")
        if min(self.hidden_sizes) < 4:
            raise ValueError(f"`hidden_sizes` must be at least 4, for the gates, not {self.hidden_sizes}")
        if any(width % heads for width, heads in zip(self.hidden_sizes, self.num_attention_heads)):
            raise ValueError(
                f"Every entry of `num_attention_heads` must divide that of `hidden_sizes` ({self.hidden_sizes}), not "
                f"{self.num_attention_heads}"
            )
        for name in ("num_channels", "layer_norm_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, not {getattr(self, name)}")
        for name in ("extra_depth", "router_loss_coef", "initializer_range"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, and is {getattr(self, name)}")
        if not 0 <= self.budget <= 1:
            raise ValueError(f"`budget` must lie in [0, 1], not {self.budget}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie in [0, 1), not {getattr(self, name)}")
        if self.routing not in ROUTINGS:
            raise ValueError(f"`routing` must be one of {', '.join(ROUTINGS)}, not {self.routing!r}")


__all__ = ["DynamicTokenRoutingConfig"]
