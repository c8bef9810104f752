"""Configuration of DeltaNet, with eigenvalues in [0, 1] or [-1, 1] (arXiv 2406.06484, 2411.12537).

Field names are those of fla-org/flash-linear-attention, so that the `config.json` of the checkpoints under fla-hub loads unchanged.
"""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from hf_ext.layers.recurrent_config import RecurrentLanguageModelConfig


@strict
class DeltaNetConfig(RecurrentLanguageModelConfig):
    r"""
    Fields of `RecurrentLanguageModelConfig`, and

    Args:
        allow_neg_eigval (`bool`): whether the step size beta is doubled, to (0, 2): the state's transitions then have eigenvalues in
            (-1, 1) along their key instead of (0, 1), which parity and other state tracking need.
        use_beta (`bool`): whether beta depends on the token; otherwise it is 1 (2 with `allow_neg_eigval`).
        use_gate (`bool`): whether the output of a head is gated by silu(W_g x).
        qk_activation (`str`): on q and k: "silu", "relu", "elu" (plus 1) or "identity".
        qk_norm (`str`): how q and k are normalised per head: "l2" to length 1, "sum" to sum 1.
        sigmoid_scale, sigmoid_shift, sigmoid_pre_scale (`float`): the authors' more general step size,
            beta = scale * sigmoid(pre_scale * W_b x) + shift. `allow_neg_eigval` multiplies it.
        use_output_norm (`bool`): kept, without effect, as in the reference: the norm after each head is always there.

    Raises:
        ValueError: an impossible combination; the message names the field, the value and what is allowed.
    """

    model_type = "delta_net"

    CHOICES: ClassVar[dict[str, tuple]] = RecurrentLanguageModelConfig.CHOICES | {
        "qk_activation": ("silu", "relu", "elu", "identity"),
        "qk_norm": ("l2", "sum"),
    }
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "deltanet-parity": {
            "vocab_size": 3,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "allow_neg_eigval": True,
        },
        "deltanet-340m": {"hidden_size": 1024, "num_heads": 8},
        "deltanet-1.3b": {},
    }

    use_gate: bool = False
    allow_neg_eigval: bool = False
    use_beta: bool = True
    use_output_norm: bool = True
    qk_norm: str = "l2"
    qk_activation: str = "silu"
    sigmoid_scale: float | int = 1.0
    sigmoid_shift: float | int = 0.0
    sigmoid_pre_scale: float | int = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("sigmoid_scale", "sigmoid_shift", "sigmoid_pre_scale"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number")


__all__ = ["DeltaNetConfig"]
