"""Configuration of T2T-ViT, "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet" (arXiv 2101.11986)."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from hf_ext.layers.presets import PresetMixin

PATCH_SIZE = 16  # what the three soft splits amount to


def _preset(hidden_size: int, layers: int, heads: int, mlp_ratio: int, **others: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": hidden_size * mlp_ratio,
        "num_labels": 1000,
        **others,
    }


@strict
class T2TViTConfig(PresetMixin, BackboneConfigMixin, PreTrainedConfig):
    r"""
    The defaults are T2T-ViT-14. Presets: `t2t-vit-7`, `-10`, `-12`, `-14`, `-19`, `-24`, `-14-384`, `-14-resnext`, `-14-wide`, and
    `t2t-vit-t-14`, `-t-19`, `-t-24` with softmax attention between the soft splits.

    Args:
        image_size: edge, in pixels, of the images that the positions are laid out for; a multiple of 16. Other sizes work, through
            interpolation.
        token_layer: how tokens attend to each other between the soft splits: "performer" (linear) or "transformer" (softmax).
        token_size: width of the tokens there.
        num_channels: of the image.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the backbone.
        qkv_bias: whether the backbone's query, key and value projections have a bias.
        attention_scale: factor on the backbone's attention logits; None for head_dim ** -0.5.
        hidden_dropout_prob, attention_probs_dropout_prob: dropout in the backbone. A performer has its own, fixed rate of 0.1.
        drop_path_rate: stochastic depth of the last layer; it grows linearly from 0.
        out_features, out_indices: layers that `T2TViTBackbone` returns: "stem", "stage1", "stage2", ...
    """

    model_type = "t2t_vit"

    image_size: int = 224
    token_layer: str = "performer"
    token_size: int = 64
    num_channels: int = 3
    hidden_size: int = 384
    num_hidden_layers: int = 14
    num_attention_heads: int = 6
    intermediate_size: int = 1152
    hidden_act: str = "gelu"
    qkv_bias: bool = False
    attention_scale: float | int | None = None
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    PRESETS = {
        "t2t-vit-7": _preset(256, 7, 4, 2),
        "t2t-vit-10": _preset(256, 10, 4, 2),
        "t2t-vit-12": _preset(256, 12, 4, 2),
        "t2t-vit-14": _preset(384, 14, 6, 3),
        "t2t-vit-19": _preset(448, 19, 7, 3),
        "t2t-vit-24": _preset(512, 24, 8, 3),
        "t2t-vit-14-384": _preset(384, 14, 6, 3, image_size=384),
        "t2t-vit-t-14": _preset(384, 14, 6, 3, token_layer="transformer"),
        "t2t-vit-t-19": _preset(448, 19, 7, 3, token_layer="transformer"),
        "t2t-vit-t-24": _preset(512, 24, 8, 3, token_layer="transformer"),
        "t2t-vit-14-resnext": _preset(384, 14, 32, 3),
        "t2t-vit-14-wide": _preset(768, 4, 12, 3),
    }

    def __post_init__(self, **kwargs: Any):
        self._check()
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, self.num_hidden_layers + 1))]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        positive = ("num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be positive, not {getattr(self, name)}")
        if self.image_size < 1 or self.image_size % PATCH_SIZE:
            raise ValueError(f"`image_size` must be a multiple of {PATCH_SIZE}, not {self.image_size}")
        if self.token_layer not in ("performer", "transformer"):
            raise ValueError(f"`token_layer` must be 'performer' or 'transformer', not {self.token_layer!r}")
        if self.token_size < 2:
            raise ValueError(f"`token_size` must be at least 2, not {self.token_size}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `hidden_size` ({self.hidden_size}), not {self.num_attention_heads}"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie in [0, 1), not {getattr(self, name)}")


__all__ = ["T2TViTConfig"]
