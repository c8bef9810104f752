"""Configuration of TCNCA models (arXiv 2312.05605).

The authors published no code; the defaults are MEGA's EnWik8 model (arXiv 2209.10655) with the moving average replaced by convolutions
whose sizes are our own choice.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hf_ext.layers.presets import PresetMixin


@strict
class TCNCAConfig(PresetMixin, PreTrainedConfig):
    r"""
    Args:
        vocab_size (`int`): number of token ids.
        hidden_size (`int`): width of the residual stream and of the convolutions.
        z_dim (`int`): width of the representation that queries and keys share; even with rotary biases.
        v_dim (`int`): width of values.
        intermediate_size (`int`): width of the feed-forward network; 0 for none.
        num_hidden_layers (`int`): number of layers.
        chunk_size (`int`): tokens that attend to each other; all of them if -1.
        rel_pos_bias (`str`): "simple", a learned number per distance, or "rotary", two learned vectors.
        max_position_embeddings (`int`): longest sequence that simple biases serve when `chunk_size` is -1.
        attention_activation (`str`): "softmax", "relu2" or "laplace".
        kernel_size, dilation_factor, depth, layers_per_block (`int`): the convolutions: `depth` blocks of `layers_per_block` each, those
            of block i with dilation `dilation_factor` ** i.
        tcn_activation (`str`): after each convolution, "relu", "silu", "gelu" or "none".
        final_norm_affine (`bool`): whether the last norm has weights.
        causal (`bool`): whether tokens see earlier ones only, as language models need.
        dropout (`float`): of embeddings, of what leaves the convolutions, the attention and the feed-forward network.
        attention_dropout, hidden_dropout (`float`): of attention weights; of values and of the feed-forward network's hidden layer.
        feature_dropout (`bool`): whether whole channels are dropped, for all tokens; attention weights never are.
        layer_norm_eps, use_cache, initializer_range, tie_word_embeddings and the token ids: as everywhere in Transformers.

    Raises:
        ValueError: an impossible combination; the message names the field, the value and what is allowed.
    """

    model_type = "tcnca"
    keys_to_ignore_at_inference = ["past_key_values"]

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "rel_pos_bias": ("simple", "rotary"),
        "attention_activation": ("softmax", "relu2", "laplace"),
        "tcn_activation": ("relu", "silu", "gelu", "none"),
    }
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"tcnca-enwik8": {}}

    vocab_size: int = 256
    hidden_size: int = 512
    z_dim: int = 128
    v_dim: int = 1024
    intermediate_size: int = 1024
    num_hidden_layers: int = 12
    chunk_size: int = 2048
    rel_pos_bias: str = "rotary"
    max_position_embeddings: int = 2048
    attention_activation: str = "softmax"
    kernel_size: int = 17
    dilation_factor: int = 8
    depth: int = 4
    layers_per_block: int = 1
    tcn_activation: str = "relu"
    final_norm_affine: bool = False
    causal: bool = True
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    feature_dropout: bool = False
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        sizes = ("vocab_size", "hidden_size", "z_dim", "v_dim", "num_hidden_layers", "max_position_embeddings")
        for name in (*sizes, "kernel_size", "dilation_factor", "depth", "layers_per_block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.intermediate_size < 0:
            raise ValueError(f"intermediate_size={self.intermediate_size} must be at least 0")
        if self.chunk_size < 1 and self.chunk_size != -1:
            raise ValueError(f"chunk_size={self.chunk_size} must be at least 1, or -1 for attention without chunks")
        for name, allowed in self.CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}")
        if self.rel_pos_bias == "rotary" and self.z_dim % 2:
            raise ValueError(f"z_dim={self.z_dim} must be even with rel_pos_bias='rotary'")
        for name in ("dropout", "attention_dropout", "hidden_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and less than 1")
        if not self.layer_norm_eps > 0:
            raise ValueError(f"layer_norm_eps={self.layer_norm_eps} must be above 0")
        super().__post_init__(**kwargs)

    @property
    def receptive_field(self) -> int:
        """Tokens that an output of the convolutions depends on."""
        return 1 + self.layers_per_block * (self.kernel_size - 1) * sum(
            self.dilation_factor**i for i in range(self.depth)
        )


__all__ = ["TCNCAConfig"]
