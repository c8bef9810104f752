"""Configuration of RMT, "RMT: Retentive Networks Meet Vision Transformers" (arXiv 2309.11523)."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from hf_ext.layers.presets import PresetMixin

STAGES = 4
PUBLISHED = {"decay_starts": [2, 2, 2, 2], "num_labels": 1000}
SMALL = {
    "hidden_sizes": [64, 128, 256, 512],
    "num_attention_heads": [4, 4, 8, 16],
    "decay_ranges": [4, 4, 6, 6],
    **PUBLISHED,
}
LARGE = {
    "depths": [4, 8, 25, 8],
    "mlp_ratios": [4, 4, 3, 3],
    "decomposed": [True, True, True, False],
    "use_layer_scale": [False, False, True, True],
    **PUBLISHED,
}

PRESETS = {
    "rmt-tiny": {"depths": [2, 2, 8, 2], **SMALL},
    "rmt-small": {
        "depths": [3, 4, 18, 4],
        "mlp_ratios": [4, 4, 3, 3],
        "decomposed": [True, True, True, False],
        "drop_path_rate": 0.15,
        **SMALL,
    },
    "rmt-base": {
        "hidden_sizes": [80, 160, 320, 512],
        "num_attention_heads": [5, 5, 10, 16],
        "decay_ranges": [5, 5, 6, 6],
        "drop_path_rate": 0.4,
        **LARGE,
    },
    "rmt-large": {
        "hidden_sizes": [112, 224, 448, 640],
        "num_attention_heads": [7, 7, 14, 20],
        "decay_ranges": [6, 6, 6, 6],
        "drop_path_rate": 0.5,
        **LARGE,
    },
}
PRESETS |= {f"rmt-{size}-token-label": {**PRESETS[f"rmt-{size}"], "token_label": True} for size in ("base", "large")}
# The published run of the small model read the projected features (its log's parameter count says so).
PRESETS["rmt-small-token-label"] = {**PRESETS["rmt-small"], "token_label": True, "token_label_projected": True}


@strict
class RMTConfig(PresetMixin, BackboneConfigMixin, PreTrainedConfig):
    r"""
    The defaults are those of the authors' class. Presets, as published: `rmt-tiny` (the authors' RMT_T3), `rmt-small` (RMT_S), `rmt-base`
    (RMT_M2), `rmt-large` (RMT_L6), and the last three with `-token-label`.

    Args:
        hidden_sizes, depths, num_attention_heads: width, layers and heads of each stage. Heads have an even width;
            `hidden_sizes[0]` is even (the stem halves it).
        decay_starts, decay_ranges: the decay per pixel of head h of n is `log(1 - 2 ** (-start - range * h / n))`.
        mlp_ratios: for each stage, hidden width of the MLPs over their width, rounded down.
        decomposed: for each stage, whether attention runs along rows and then along columns instead of over the whole map.
        use_layer_scale, layer_scale_init_value: for each stage, whether residual branches have a learned factor, and its first value.
        projection_size: width of the projection before the classifier.
        rotary_base: the phase of position p in pair j of a head of m pairs is `p * rotary_base ** (-j / (m - 1))`.
        token_label: whether a second head classifies every position; the most confident one counts half of the first head's.
        token_label_projected: whether that head reads the projected features instead of the last stage's.
        mix_token: whether training with `token_label` pastes a box of another image of the batch into each image's embedding.
        drop_path_rate: stochastic depth of the last layer; it grows linearly from 0.
        fused: BatchNorm, layer scale and identity paths are folded into convolutions and linear layers; `model.fuse()` sets it.
        out_features, out_indices: stages that `RMTBackbone` returns: "stem", "stage1" to "stage4".
    """

    model_type = "rmt"

    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (96, 192, 384, 768)
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_attention_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    decay_starts: list[float | int] | tuple[float | int, ...] = (1, 1, 1, 1)
    decay_ranges: list[float | int] | tuple[float | int, ...] = (3, 3, 3, 3)
    mlp_ratios: list[float | int] | tuple[float | int, ...] = (3, 3, 3, 3)
    decomposed: list[bool] | tuple[bool, ...] = (True, True, False, False)
    use_layer_scale: list[bool] | tuple[bool, ...] = (False, False, False, False)
    layer_scale_init_value: float = 1e-6
    projection_size: int = 1024
    rotary_base: float | int = 10000
    token_label: bool = False
    token_label_projected: bool = False
    mix_token: bool = True
    hidden_act: str = "gelu"
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.1
    layer_norm_eps: float = 1e-6
    batch_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    fused: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    _PER_STAGE = (
        "hidden_sizes",
        "depths",
        "num_attention_heads",
        "decay_starts",
        "decay_ranges",
        "mlp_ratios",
        "decomposed",
        "use_layer_scale",
    )

    PRESETS = PRESETS

    def __post_init__(self, **kwargs: Any):
        for name in self._PER_STAGE:
            setattr(self, name, list(getattr(self, name)))
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

    def _check(self) -> None:
        for name in self._PER_STAGE:
            if len(getattr(self, name)) != STAGES:
                raise ValueError(f"`{name}` must have {STAGES} entries, not {getattr(self, name)}")
        for name in ("hidden_sizes", "depths", "num_attention_heads", "decay_starts", "mlp_ratios"):
            if min(getattr(self, name)) <= 0:
                raise ValueError(f"`{name}` must be positive, not {getattr(self, name)}")
        if min(self.decay_ranges) < 0:
            raise ValueError(f"`decay_ranges` must not be negative, not {self.decay_ranges}")
        if self.hidden_sizes[0] % 2:
            raise ValueError(f"`hidden_sizes[0]` must be even, not {self.hidden_sizes[0]}: the stem halves it")
        for width, heads in zip(self.hidden_sizes, self.num_attention_heads):
            if width % (2 * heads):
                raise ValueError(
                    f"Heads must have an even width; `hidden_sizes` {self.hidden_sizes} over `num_attention_heads` "
                    f"{self.num_attention_heads} gives {width / heads:g}"
                )
        for name in ("num_channels", "projection_size", "layer_norm_eps", "batch_norm_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, not {getattr(self, name)}")
        for name in ("attention_probs_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie in [0, 1), not {getattr(self, name)}")
        if self.token_label_projected and not self.token_label:
            raise ValueError("`token_label_projected` says what the head of `token_label` reads; there is none")


__all__ = ["RMTConfig"]
