"""Configuration of FlashRNN models (arXiv 2412.07752).

The authors publish an operator, not a model; the names of what belongs to the operator are theirs.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hf_ext.layers.presets import PresetMixin


@strict
class FlashRNNConfig(PresetMixin, PreTrainedConfig):
    r"""
    Args:
        vocab_size (`int`): number of token ids.
        hidden_size (`int`): width of the residual stream and of the recurrent layer.
        num_hidden_layers (`int`): number of blocks, each a recurrent layer and an MLP.
        num_heads (`int`): heads of the recurrent layer, a divisor of `hidden_size`. Heads never mix within it.
        function (`str`): the cell, one of `FUNCTIONS`.
        intermediate_size (`int`): width of the SwiGLU MLP.
        norm_eps (`float`): epsilon of the norms.
        gradient_recurrent_cut (`bool`): whether gradients stop at the recurrent product on their way to earlier steps.
        gradient_recurrent_clipval (`float`, *optional*): bound on each entry of the gradient handed to the hidden state one step before.
        forward_clipval (`float`, *optional*): bound on the entries of the hidden state.
        use_cache, initializer_range, tie_word_embeddings and the token ids: as everywhere in Transformers.

    Raises:
        ValueError: an impossible combination; the message names the field, the value and what is allowed.
    """

    model_type = "flashrnn"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {"num_attention_heads": "num_heads"}

    FUNCTIONS: ClassVar[tuple[str, ...]] = ("lstm", "slstm", "gru", "elman")
    # The width, heads and depth that the paper's language models have, with any of the cells
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        f"flashrnn-{function}": {"function": function} for function in FUNCTIONS
    }

    vocab_size: int = 50304
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_heads: int = 12
    function: str = "lstm"
    intermediate_size: int = 2048
    norm_eps: float = 1e-6
    gradient_recurrent_cut: bool = False
    gradient_recurrent_clipval: float | int | None = None
    forward_clipval: float | int | None = None
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 0
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    # What the decoder that models with recurrent mixers share asks for
    use_l2warp: ClassVar[bool] = False
    attention_layers: ClassVar[dict[int, dict[str, Any]]] = {}

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} must divide hidden_size={self.hidden_size}")
        if self.function not in self.FUNCTIONS:
            raise ValueError(f"function must be one of {', '.join(self.FUNCTIONS)}; got {self.function!r}")
        for name in ("gradient_recurrent_clipval", "forward_clipval"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, or None; got {getattr(self, name)}")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps must be above 0; got {self.norm_eps}")
        super().__post_init__(**kwargs)

    @property
    def mlp_dim(self) -> int:
        return self.intermediate_size

    @property
    def layer_types(self) -> list[str]:
        """What Transformers' caches and masks need to know of each layer."""
        return ["linear_attention"] * self.num_hidden_layers


__all__ = ["FlashRNNConfig"]
