"""Configuration of SLAB's image models, "SLAB: Efficient Transformers with Simplified Linear Attention and Progressive
Re-parameterized Batch Normalization" (arXiv 2405.11582)."""

from typing import Any, NamedTuple

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from hf_ext.layers.presets import PresetMixin

NORM_TYPES = ("prepbn", "repbn", "layernorm")


class Patches(NamedTuple):
    """The convolution that makes a stage's tokens; 0 stands for `patch_size`."""

    kernel: int
    stride: int
    padding: int

    def count(self, edge: int) -> int:
        """Tokens along an edge of that many pixels."""
        return (edge + 2 * self.padding - self.kernel) // self.stride + 1


# architecture -> the first stage's patches and those of later stages
PATCHES = {
    "swin": (Patches(0, 0, 0), Patches(2, 2, 0)),
    "deit": (Patches(0, 0, 0), None),
    "pvt": (Patches(0, 0, 0), Patches(2, 2, 0)),
    "pvt_v2": (Patches(7, 4, 3), Patches(3, 2, 1)),
    "cswin": (Patches(7, 4, 2), Patches(3, 2, 1)),
}

_SWIN_SIZES = {
    "t": {"hidden_sizes": [96, 192, 384, 768], "depths": [2, 2, 6, 2], "num_attention_heads": [3, 6, 12, 24]},
    "s": {"hidden_sizes": [96, 192, 384, 768], "depths": [2, 2, 18, 2], "num_attention_heads": [3, 6, 12, 24]},
    "b": {"hidden_sizes": [128, 256, 512, 1024], "depths": [2, 2, 18, 2], "num_attention_heads": [4, 8, 16, 32]},
}
_SWIN_DROP_PATH = {"t": 0.2, "s": 0.3, "b": 0.5}
_DEIT_SIZES = {"t": (192, 3), "s": (384, 6)}
_PVT_DEPTHS = {"t": [2, 2, 2, 2], "s": [3, 4, 6, 3], "m": [3, 4, 18, 3]}
_CSWIN_DEPTHS = {"t": [2, 4, 18, 1], "s": [2, 4, 32, 2]}
_NONE = [0, 0, 0, 0]


def _deit(hidden_size: int, heads: int, **others: Any) -> dict[str, Any]:
    return {
        "architecture": "deit",
        "patch_size": 16,
        "hidden_sizes": [hidden_size],
        "depths": [12],
        "num_attention_heads": [heads],
        "layer_norm_eps": 1e-6,
        "drop_path_rate": 0.1,
        "num_labels": 1000,
        **others,
    }


def _pvt(depths: list[int], **others: Any) -> dict[str, Any]:
    return {
        "architecture": "pvt",
        "hidden_sizes": [64, 128, 320, 512],
        "depths": depths,
        "num_attention_heads": [1, 2, 5, 8],
        "mlp_ratios": [8, 8, 4, 4],
        "sr_ratios": [8, 4, 2, 1],
        "layer_norm_eps": 1e-6,
        "drop_path_rate": 0.1,
        "norm_decay_steps": 300_000,
        "num_labels": 1000,
        **others,
    }


PRESETS: dict[str, dict[str, Any]] = {
    f"slab-swin-{size}": {
        **fields,
        "linear_depths": [*fields["depths"][:2], 0, 0],
        "drop_path_rate": _SWIN_DROP_PATH[size],
        "num_labels": 1000,
    }
    for size, fields in _SWIN_SIZES.items()
}
PRESETS["swin-t-prepbn"] = {
    **_SWIN_SIZES["t"],
    "linear_depths": _NONE,
    "drop_path_rate": 0.2,
    "norm_type": "repbn",
    "num_labels": 1000,
}
PRESETS |= {f"slab-deit-{size}": _deit(*fields, linear_depths=[12]) for size, fields in _DEIT_SIZES.items()}
PRESETS |= {
    f"deit-{size}-prepbn": _deit(
        *_DEIT_SIZES[size], linear_depths=[0], use_class_token=True, norm_type=norm_type, norm_decay_steps=300_000
    )
    for size, norm_type in (("t", "repbn"), ("s", "prepbn"))
}
PRESETS |= {f"slab-pvt-{size}": _pvt(depths, linear_depths=depths) for size, depths in _PVT_DEPTHS.items()}
PRESETS |= {f"pvt-{size}-prepbn": _pvt(depths, linear_depths=_NONE) for size, depths in _PVT_DEPTHS.items()}
PRESETS |= {
    f"slab-cswin-{size}": {
        "architecture": "cswin",
        "hidden_sizes": [64, 128, 256, 512],
        "depths": depths,
        "linear_depths": [*depths[:2], 0, 0],
        "num_attention_heads": [2, 4, 8, 16],
        "window_sizes": [1, 2, 7, 7],
        "linear_window_sizes": [56, 28, 14, 7],
        "norm_decay_steps": 120_000,
        "num_labels": 1000,
    }
    for size, depths in _CSWIN_DEPTHS.items()
}


@strict
class SlabConfig(PresetMixin, BackboneConfigMixin, PreTrainedConfig):
    r"""
    The defaults are SLAB-Swin-T. Presets: `slab-swin-t`, `-s`, `-b`; `slab-deit-t`, `-s`; `slab-pvt-t`, `-s`, `-m`; `slab-cswin-t`, `-s`;
    and with softmax attention `swin-t-prepbn`, `deit-t-prepbn`, `-s-`, `pvt-t-prepbn`, `-s-`, `-m-`.

    Args:
        architecture: "swin", "deit", "pvt", "pvt_v2" or "cswin". DeiT has one stage, so one entry in each list.
        image_size: edge in pixels of the images that positions and windows are laid out for. CSWin takes this size only.
        patch_size: edge of the first stage's patches; PVTv2 and CSWin have overlapping ones of their own, 4 pixels apart.
        hidden_sizes, depths, num_attention_heads, mlp_ratios: width, layers, heads and hidden width of the MLPs over the width, per stage.
        linear_depths: how many layers of each stage, from its first, have simplified linear attention; the others have softmax.
        window_sizes, linear_window_sizes: per stage, the edge of attention windows (Swin) or the width of stripes (CSWin) of softmax and
            of linear attention. A window no smaller than the map is the map. Here, for `mlp_ratios` and for the next two one number
            stands for all stages.
        sr_ratios, linear_sr_ratios: per stage, how much shorter an edge of the map is that keys and values come from (PVT).
        kernel_size: of the convolution in simplified linear attention; odd.
        qkv_bias: whether query, key and value projections have a bias.
        attention_scale: factor on the logits of softmax attention; None for head_dim ** -0.5.
        use_class_token: whether a class token is classified instead of the mean token (DeiT with softmax attention).
        use_absolute_embeddings: whether Swin's patches get a learned position.
        patch_norm: whether Swin's patch embedding ends with a norm.
        norm_type: "prepbn" trains from LayerNorm to RepBN and is RepBN in eval mode, "repbn" and "layernorm" are these.
        norm_warmup_steps, norm_decay_steps: for "prepbn", steps of pure LayerNorm, and steps from there to pure RepBN.
        layer_norm_eps, batch_norm_eps: of LayerNorm and RepBN.
        drop_path_rate: stochastic depth of the last layer; it grows linearly from 0.
        fused: RepBN is folded into linear layers and convolutions; `model.fuse()` sets it.
        out_features, out_indices: stages that `SlabBackbone` returns: "stem", "stage1", "stage2", ...
    """

    model_type = "slab"

    architecture: str = "swin"
    image_size: int = 224
    patch_size: int = 4
    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (96, 192, 384, 768)
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    linear_depths: list[int] | tuple[int, ...] = (2, 2, 0, 0)
    num_attention_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratios: float | int | list[float | int] | tuple[float | int, ...] = 4
    window_sizes: int | list[int] | tuple[int, ...] = 7
    linear_window_sizes: int | list[int] | tuple[int, ...] = 56
    sr_ratios: int | list[int] | tuple[int, ...] = 1
    linear_sr_ratios: int | list[int] | tuple[int, ...] = 1
    kernel_size: int = 5
    qkv_bias: bool = True
    attention_scale: float | int | None = None
    use_class_token: bool = False
    use_absolute_embeddings: bool = False
    patch_norm: bool = True
    norm_type: str = "prepbn"
    norm_warmup_steps: int = 0
    norm_decay_steps: int = 60_000
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.2
    layer_norm_eps: float = 1e-5
    batch_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    fused: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    _PER_STAGE = (
        "hidden_sizes",
        "depths",
        "linear_depths",
        "num_attention_heads",
        "mlp_ratios",
        "window_sizes",
        "linear_window_sizes",
        "sr_ratios",
        "linear_sr_ratios",
    )

    PRESETS = PRESETS

    def __post_init__(self, **kwargs: Any):
        for name in self._PER_STAGE:
            value = getattr(self, name)
            setattr(self, name, [value] * len(self.depths) if isinstance(value, (int, float)) else list(value))
        self._check()
        self.stage_names = ["stem", *(f"stage{i + 1}" for i in range(len(self.depths)))]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """Stages; `hidden_states` holds one entry for each, after the embedding."""
        return len(self.depths)

    def patches(self, stage: int) -> Patches:
        """The convolution that makes the tokens of `stage`."""
        patches = PATCHES[self.architecture][min(stage, 1)]
        return patches if patches.kernel else Patches(self.patch_size, self.patch_size, 0)

    def grid(self, stage: int) -> int:
        """Tokens along an edge of the map of `stage`, for images of `image_size`."""
        return self.patches(stage).count(self.image_size if stage == 0 else self.grid(stage - 1))

    def _check(self) -> None:
        if self.architecture not in PATCHES:
            raise ValueError(f"`architecture` must be one of {', '.join(PATCHES)}, not {self.architecture!r}")
        if self.norm_type not in NORM_TYPES:
            raise ValueError(f"`norm_type` must be one of {', '.join(NORM_TYPES)}, not {self.norm_type!r}")
        stages = len(self.depths)
        if stages == 0 or (self.architecture == "deit" and stages > 1):
            raise ValueError(f"`depths` must have an entry for each stage, of which 'deit' has one, not {self.depths}")
        for name in self._PER_STAGE:
            values = getattr(self, name)
            if len(values) != stages:
                raise ValueError(f"`{name}` must have {stages} entries, as `depths`, not {values}")
            if name != "linear_depths" and min(values) <= 0:
                raise ValueError(f"`{name}` must be positive, not {values}")
        if any(not 0 <= linear <= depth for linear, depth in zip(self.linear_depths, self.depths)):
            raise ValueError(f"`linear_depths` must lie between 0 and `depths` {self.depths}, not {self.linear_depths}")
        for width, heads in zip(self.hidden_sizes, self.num_attention_heads):
            if width % heads:
                raise ValueError(
                    f"`hidden_sizes` {self.hidden_sizes} must be multiples of `num_attention_heads` {self.num_attention_heads}"
                )
        positive = ("image_size", "patch_size", "num_channels", "kernel_size", "norm_decay_steps", "layer_norm_eps")
        for name in (*positive, "batch_norm_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, not {getattr(self, name)}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd, not {self.kernel_size}")
        if self.norm_warmup_steps < 0:
            raise ValueError(f"`norm_warmup_steps` must not be negative, not {self.norm_warmup_steps}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie in [0, 1), not {getattr(self, name)}")
        if self.grid(stages - 1) < 1:
            raise ValueError(
                f"`image_size` {self.image_size} is too small for {stages} stages of {self.architecture!r}"
            )
        self._check_architecture()

    def _check_architecture(self) -> None:
        if self.use_class_token and (self.architecture != "deit" or any(self.linear_depths)):
            raise ValueError(
                "`use_class_token` is for 'deit' with softmax attention (`linear_depths=[0]`): linear attention works on a map"
            )
        if self.use_absolute_embeddings and self.architecture != "swin":
            raise ValueError(
                f"`use_absolute_embeddings` is for 'swin'; {self.architecture!r} has positions anyway or never"
            )
        if not self.architecture.startswith("pvt") and max(*self.sr_ratios, *self.linear_sr_ratios, 1) > 1:
            raise ValueError(
                f"`sr_ratios` and `linear_sr_ratios` are for 'pvt' and 'pvt_v2'; for {self.architecture!r} they must be 1, not "
                f"{self.sr_ratios} and {self.linear_sr_ratios}"
            )
        if self.architecture == "cswin":
            self._check_stripes()

    def _check_stripes(self) -> None:
        for stage, (depth, linear) in enumerate(zip(self.depths, self.linear_depths)):
            grid = self.grid(stage)
            used = {self.linear_window_sizes[stage]} if linear else set()
            used |= {self.window_sizes[stage]} if linear < depth else set()
            for split in used if stage < len(self.depths) - 1 else ():
                if split < grid and (grid % split or self.num_attention_heads[stage] % 2):
                    raise ValueError(
                        f"Stripes of {split} tokens (`window_sizes`, `linear_window_sizes`) must divide the map of {grid}x{grid} in "
                        f"stage {stage + 1}, and its heads must be even, not {self.num_attention_heads[stage]}"
                    )


__all__ = ["SlabConfig"]
