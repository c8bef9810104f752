"""Configuration of Mamba with eigenvalues in [-1, 1] (arXiv 2411.12537): upstream's, with two fields more."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import MambaConfig

from hf_ext.layers.presets import PresetMixin


@strict
class SignedMambaConfig(PresetMixin, MambaConfig):
    r"""
    Fields of Transformers' `MambaConfig`, and

    Args:
        allow_neg_eigval (`bool`): whether the state's transitions are 2 * exp(dt * A) - 1, in (-1, 1), instead of exp(dt * A).
        use_final_norm (`bool`): whether a norm stands before the head; the authors' models for state tracking have none.

    Raises:
        ValueError: a size below 1.
    """

    model_type = "signed_mamba"

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "mamba-parity": {
            "vocab_size": 3,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "conv_kernel": 1,
            "use_final_norm": False,
            "tie_word_embeddings": False,
        },
    }

    allow_neg_eigval: bool = True
    use_final_norm: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        sizes = ("vocab_size", "hidden_size", "state_size", "num_hidden_layers", "conv_kernel", "time_step_rank")
        for name in (*sizes, "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")


__all__ = ["SignedMambaConfig"]
