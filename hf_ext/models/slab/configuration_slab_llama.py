"""Configuration of the language model of SLAB (arXiv 2405.11582): Llama with progressive re-parameterized batch normalization."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters

from hf_ext.layers.presets import PresetMixin


@strict
class SlabLlamaConfig(PresetMixin, PreTrainedConfig):
    r"""
    The fields of `LlamaConfig` (which is not the base class, since importing it takes longer than all of hf_ext), and the schedule of
    the norms. Preset, as published: `slab-llama-350m`.

    Args:
        norm_warmup_steps: optimizer steps during which training uses RMSNorm alone.
        norm_decay_steps: optimizer steps after those, during which RepBN takes over.
        norm_ratio: the share of RMSNorm at which the second stage starts.
        norm_update_every: forward passes per optimizer step, where the norms count by themselves; `ProgressiveNormCallback` sets
            them from the optimizer's step instead.
        fused: RepBN is folded into the linear layers that follow it; `model.fuse()` sets it.
    """

    model_type = "slab_llama"

    PRESETS = {
        "slab-llama-350m": {
            "vocab_size": 32000,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 18,
            "num_attention_heads": 8,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
        }
    }

    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters | dict | None = None
    attention_bias: bool = False
    attention_dropout: int | float | None = 0.0
    mlp_bias: bool = False
    norm_warmup_steps: int = 10_000
    norm_decay_steps: int = 18_000
    norm_ratio: int | float = 1.0
    norm_update_every: int = 16
    fused: bool = False

    def __post_init__(self, **kwargs):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `hidden_size` ({self.hidden_size}), got {self.num_attention_heads}"
            )
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)
        for name, least in (("norm_warmup_steps", 0), ("norm_decay_steps", 1), ("norm_update_every", 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}")
        if not 0 <= self.norm_ratio <= 1:
            raise ValueError(f"`norm_ratio` must be from 0 to 1, got {self.norm_ratio}")


__all__ = ["SlabLlamaConfig"]
