"""Configuration of the Gated Linear Attention Transformer (arXiv 2312.06635).

Field names are those of fla-org/flash-linear-attention, so that the `config.json` of the checkpoints under fla-hub loads unchanged.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from hf_ext.layers.recurrent_config import RecurrentLanguageModelConfig


@strict
class GLAConfig(RecurrentLanguageModelConfig):
    r"""
    Fields of `RecurrentLanguageModelConfig`, and

    Args:
        num_kv_heads (`int`, *optional*): heads of keys, values and gates, a divisor of `num_heads`, which is the default.
        feature_map (`str`, *optional*): activation on q and k; one of `FEATURE_MAPS`.
        use_output_gate (`bool`): whether the output of a head is gated by swish(W_g x).
        clamp_min (`float`, *optional*): lower bound of the log gate, at most 0.
        elementwise_affine (`bool`): weight of the norm after each head.
        fuse_norm (`bool`): in the reference a choice of kernel; with `use_output_gate` it also names that norm's weight
            `g_norm_swish_gate`.
        use_gk, use_gv: kept, without effect, as in the reference.

    Raises:
        ValueError: an impossible combination; the message names the field, the value and what is allowed.
    """

    model_type = "gla"

    FEATURE_MAPS: ClassVar[tuple[str, ...]] = ("relu", "sqrelu", "sigmoid", "logsigmoid", "silu", "swish", "gelu")
    CHOICES: ClassVar[dict[str, tuple]] = RecurrentLanguageModelConfig.CHOICES | {"feature_map": (None, *FEATURE_MAPS)}
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "gla-340m": {"hidden_size": 1024, "tie_word_embeddings": True},
        "gla-1.3b": {},
        "gla-7b": {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_heads": 32,
            "num_kv_heads": 8,
            "expand_k": 1.0,
            "intermediate_size": 14336,
            "feature_map": "relu",
            "use_output_gate": False,
            "norm_eps": 1e-5,
        },
    }

    expand_k: float | int = 0.5
    num_heads: int = 4
    num_kv_heads: int | None = None
    feature_map: str | None = None
    use_short_conv: bool = False
    use_output_gate: bool = True
    clamp_min: float | int | None = None
    elementwise_affine: bool | None = True
    use_gk: bool = True
    use_gv: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.num_kv_heads is not None and (self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads):
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads} must be a divisor of num_heads={self.num_heads}, or None"
            )
        if self.clamp_min is not None and not self.clamp_min <= 0:
            raise ValueError(
                f"clamp_min={self.clamp_min} bounds the logarithm of a gate between 0 and 1: it must be at most 0, or None"
            )


__all__ = ["GLAConfig"]
