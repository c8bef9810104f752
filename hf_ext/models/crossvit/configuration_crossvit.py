"""Configuration of CrossViT, "CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification" (arXiv 2103.14899)."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hf_ext.layers.presets import PresetMixin

PATCH_EMBEDDINGS = ("linear", "conv_stem", "t2t_transformer", "t2t_performer")
STEM_PATCH_SIZES = (12, 16)  # what every other patch embedding than "linear" exists for


def _preset(width: int, heads: int, blocks: int, ratio: int, conv_stem: bool = False, large: bool = False) -> dict:
    return {
        "num_labels": 1000,
        "image_sizes": [408, 384] if large else [240, 224],
        "hidden_sizes": [width, 2 * width],
        "num_attention_heads": [heads, heads],
        "depths": [[1, blocks, 0]] * 3,
        "mlp_ratios": [ratio, ratio],
        "patch_embedding": "conv_stem" if conv_stem else "linear",
    }


@strict
class CrossVitConfig(PresetMixin, PreTrainedConfig):
    r"""
    The defaults are CrossViT-9 as published (`crossvit-9-224`). Everything "per branch" is a list with one entry for each branch;
    the published models have two, for small and for large patches.

    Args:
        image_sizes: per branch, the edge of the square that the model resizes an image to; a multiple of the patch size.
        patch_sizes: per branch, in pixels.
        num_channels: of the image.
        hidden_sizes, num_attention_heads, mlp_ratios: per branch; heads divide the width.
        depths: per stage, a list of the self-attention layers of each branch and, last, the cross-attention layers of each
            fusion. 0 means one, as in the published models, which has no stochastic depth rate of its own then.
        patch_embedding: "linear" (one convolution), "conv_stem" (three, the dagger models), or the Tokens-to-Token modules
            "t2t_transformer" and "t2t_performer". All but the first exist for patch sizes 12 and 16.
        qkv_bias: whether query, key and value projections have a bias.
        cross_attention_scale: factor on the logits of cross-attention; None for head_dim ** -0.5.
        drop_path_rate: stochastic depth of the last layer; it grows linearly from 0.
    """

    model_type = "crossvit"
    keys_to_ignore_at_inference = ["pooler_output", "branch_hidden_states"]

    image_sizes: list[int] | tuple[int, ...] = (240, 224)
    patch_sizes: list[int] | tuple[int, ...] = (12, 16)
    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (128, 256)
    depths: list[list[int]] | tuple[list[int] | tuple[int, ...], ...] = ((1, 3, 0), (1, 3, 0), (1, 3, 0))
    num_attention_heads: list[int] | tuple[int, ...] = (4, 4)
    mlp_ratios: list[float | int] | tuple[float | int, ...] = (3, 3)
    patch_embedding: str = "linear"
    qkv_bias: bool = True
    cross_attention_scale: float | int | None = None
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    PRESETS = {
        "crossvit-tiny-224": _preset(96, 3, 4, 4),
        "crossvit-small-224": _preset(192, 6, 4, 4),
        "crossvit-base-224": _preset(384, 12, 4, 4),
        "crossvit-9-224": _preset(128, 4, 3, 3),
        "crossvit-15-224": _preset(192, 6, 5, 3),
        "crossvit-18-224": _preset(224, 7, 6, 3),
        "crossvit-9-dagger-224": _preset(128, 4, 3, 3, conv_stem=True),
        "crossvit-15-dagger-224": _preset(192, 6, 5, 3, conv_stem=True),
        "crossvit-18-dagger-224": _preset(224, 7, 6, 3, conv_stem=True),
        "crossvit-15-dagger-384": _preset(192, 6, 5, 3, conv_stem=True, large=True),
        "crossvit-18-dagger-384": _preset(224, 7, 6, 3, conv_stem=True, large=True),
    }

    def __post_init__(self, **kwargs):
        for name in ("image_sizes", "patch_sizes", "hidden_sizes", "num_attention_heads", "mlp_ratios"):
            setattr(self, name, list(getattr(self, name)))
        self.depths = [list(stage) for stage in self.depths]
        super().__post_init__(**kwargs)
        self._check()

    @property
    def num_branches(self) -> int:
        return len(self.patch_sizes)

    @property
    def num_hidden_layers(self) -> int:
        """Self-attention layers of all stages and branches; `hidden_states` holds one entry for each, after the embedding."""
        return sum(sum(stage[:-1]) for stage in self.depths)

    def _check(self) -> None:
        branches = self.num_branches
        for name in ("image_sizes", "patch_sizes", "hidden_sizes", "num_attention_heads", "mlp_ratios"):
            values = getattr(self, name)
            if len(values) != branches or not values or min(values) <= 0:
                raise ValueError(
                    f"`{name}` must hold a positive number for each of the {branches} branches of `patch_sizes`, not {values}"
                )
        for name in ("num_channels", "num_labels"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be positive, not {getattr(self, name)}")
        if any(size % patch for size, patch in zip(self.image_sizes, self.patch_sizes)):
            raise ValueError(
                f"Each of `image_sizes` must be a multiple of its patch size, not {self.image_sizes} for {self.patch_sizes}"
            )
        if any(width % heads for width, heads in zip(self.hidden_sizes, self.num_attention_heads)):
            raise ValueError(
                f"Each of `num_attention_heads` must divide its width, not {self.num_attention_heads} for {self.hidden_sizes}"
            )
        if not self.depths or any(
            len(stage) != branches + 1 or min(stage[:-1]) < 1 or stage[-1] < 0 for stage in self.depths
        ):
            raise ValueError(
                f"Each stage of `depths` must hold {branches} positive numbers of self-attention layers and one of "
                f"cross-attention layers from 0, not {self.depths}"
            )
        if self.patch_embedding not in PATCH_EMBEDDINGS:
            raise ValueError(f"`patch_embedding` must be one of {PATCH_EMBEDDINGS}, not {self.patch_embedding!r}")
        if self.patch_embedding != "linear" and not set(self.patch_sizes) <= set(STEM_PATCH_SIZES):
            raise ValueError(
                f"`patch_embedding` {self.patch_embedding!r} exists for `patch_sizes` {STEM_PATCH_SIZES}, not {self.patch_sizes}"
            )
        if self.patch_embedding == "conv_stem" and any(width % 4 for width in self.hidden_sizes):
            raise ValueError(
                f"`patch_embedding` 'conv_stem' needs `hidden_sizes` that are multiples of 4, not {self.hidden_sizes}"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie in [0, 1), not {getattr(self, name)}")


__all__ = ["CrossVitConfig"]
