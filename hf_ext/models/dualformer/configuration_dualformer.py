"""Configuration of Dualformer (arXiv 2410.09918), whose encoder and decoder may differ in everything but the vocabulary."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters

from hf_ext.layers.presets import PresetMixin


def swiglu_width(hidden_size: int, multiple_of: int = 256) -> int:
    """Two thirds of 4 * hidden_size, rounded up to a multiple."""
    return multiple_of * -(-int(2 * (4 * hidden_size) / 3) // multiple_of)


@strict
class DualformerStackConfig(PreTrainedConfig):
    """Encoder or decoder: the fields of `LlamaConfig` (which is not the base class, since importing it takes longer than all of hf_ext),
    with the reference's defaults.

    Args:
        hidden_size, num_hidden_layers, num_attention_heads: the size; a head has an even number of channels, their ratio.
        intermediate_size: width inside the feed-forward network; `swiglu_width(hidden_size)` when None.
        norm_affine: whether the RMS norms have weights.
        is_decoder: whether self-attention is causal; set by `DualformerConfig`.

    Raises:
        ValueError: a field out of its range, named with what is allowed.
    """

    model_type = "dualformer_stack"

    vocab_size: int = 118
    hidden_size: int = 192
    intermediate_size: int | None = None
    num_hidden_layers: int = 6
    num_attention_heads: int = 3
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 65536
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters | dict | None = None
    attention_bias: bool = False
    attention_dropout: int | float | None = 0.0
    mlp_bias: bool = False
    norm_affine: bool = True
    is_decoder: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1

    def __post_init__(self, **kwargs: Any) -> None:
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"`hidden_size` must be a multiple of twice `num_attention_heads` = {self.num_attention_heads}, so that rotary positions "
                f"find pairs of channels; got {self.hidden_size}"
            )
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(f"`attention_dropout` must be at least 0 and below 1, got {self.attention_dropout}")
        if self.intermediate_size is None:
            self.intermediate_size = swiglu_width(self.hidden_size)
        if self.intermediate_size < 1:
            raise ValueError(f"`intermediate_size` must be 1 or more, got {self.intermediate_size}")
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        super().__post_init__(**kwargs)


def _both(**fields: int) -> dict[str, Any]:
    return {"encoder": dict(fields), "decoder": dict(fields)}


@strict
class DualformerConfig(PresetMixin, PreTrainedConfig):
    """An encoder that reads the task and a decoder that writes a search trace, if any, and the plan.

    Args:
        encoder, decoder: a `DualformerStackConfig`, or its fields as a dict; `vocab_size` and the token ids are taken from here.
        vocab_size: tokens of the closed vocabulary; a maze of w x h has max(w, h) + w * h + 8.
        encoder_padding_mask: whether the encoder's self-attention leaves padding out. The reference's does not (only cross-attention
            does), so that its output depends on the amount of padding.
        plan_token_id, create_token_id: what `generate(mode="fast")` and `generate(mode="slow")` force the answer to open with.
        bos_token_id, eos_token_id, pad_token_id, decoder_start_token_id: bos also pads and starts the decoder.

    Raises:
        ValueError: a field out of its range, named with what is allowed.
    """

    model_type = "dualformer"
    keys_to_ignore_at_inference = ["past_key_values"]
    sub_configs_defaults = {"encoder": DualformerStackConfig, "decoder": DualformerStackConfig}
    PRESETS = {
        "dualformer-s": _both(hidden_size=192, num_hidden_layers=6, num_attention_heads=3),
        "dualformer-m-s": _both(hidden_size=384, num_hidden_layers=8, num_attention_heads=4),
        "dualformer-l": _both(hidden_size=768, num_hidden_layers=9, num_attention_heads=4),
        "dualformer-xl-2": _both(hidden_size=1152, num_hidden_layers=16, num_attention_heads=12),
    }

    encoder: DualformerStackConfig | dict[Any, Any] | None = None
    decoder: DualformerStackConfig | dict[Any, Any] | None = None
    vocab_size: int = 118
    encoder_padding_mask: bool = False
    plan_token_id: int | None = None
    create_token_id: int | None = None
    initializer_range: float = 0.02
    is_encoder_decoder: bool = True
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    pad_token_id: int | None = 0
    decoder_start_token_id: int | None = 0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for stack in (self.encoder, self.decoder):
            for name in (
                "vocab_size",
                "bos_token_id",
                "eos_token_id",
                "pad_token_id",
                "initializer_range",
                "use_cache",
            ):
                setattr(stack, name, getattr(self, name))
        self.encoder.is_decoder, self.decoder.is_decoder = False, True
        if self.vocab_size < 2:
            raise ValueError(f"`vocab_size` must be 2 or more, got {self.vocab_size}")
        for name in ("plan_token_id", "create_token_id", "decoder_start_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ValueError(f"`{name}` must be below `vocab_size` = {self.vocab_size}, got {value}")
        if self.tie_word_embeddings:
            raise ValueError(
                "`tie_word_embeddings` must be False: encoder, decoder and head have embeddings of their own"
            )


__all__ = ["DualformerConfig", "DualformerStackConfig"]
