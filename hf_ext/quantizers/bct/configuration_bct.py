"""What BCT stores in how many bits. The fields are this project's own: the paper (arXiv 2304.01483) has no code."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_ext.layers.presets import PresetMixin

HEADS = ("classifier", "score", "lm_head", "qa_outputs")


@dataclass(kw_only=True)
class BCTConfig(PresetMixin, QuantizationConfigMixin):
    """Blockwise integers for `from_pretrained(..., quantization_config=BCTConfig(...))`.

    Args:
        weight_bits: of the matrices of linear layers and embeddings, 2 to 8.
        vector_bits: of biases and of the weights and biases of norms, 2 to 8.
        activation_bits: of what linear layers, norms, activation functions and attention take and give, 2 to 8; None stores the
            weights in integers and computes in floats.
        block_size: B. A matrix has a shift for every B x B elements, a vector and the channels of a token for every B.
        quantize_embeddings, quantize_norms, quantize_activations, quantize_attention: whether embedding tables, norms, activation
            functions and attention take part. Linear layers always do.
        modules_to_not_convert: modules that stay as they are, by full name, end of the name or pattern. A tensor that such a module
            shares with another (an output layer tied to the embedding) stays as it is in both.
        pack: whether weights of 4 bits or fewer are kept two in a byte, in memory and in the file.

    Raises:
        ValueError: a value that is not allowed; the message names the field.
    """

    weight_bits: int = 4
    vector_bits: int = 8
    activation_bits: int | None = 8
    block_size: int = 64
    quantize_embeddings: bool = True
    quantize_norms: bool = True
    quantize_activations: bool = True
    quantize_attention: bool = True
    modules_to_not_convert: list[str] | None = field(default_factory=lambda: list(HEADS))
    pack: bool = True
    quant_method: str = "bct"

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"bct_int8": {"weight_bits": 8}, "bct_int4_8": {"weight_bits": 4}}

    def __post_init__(self):
        for name in ("weight_bits", "vector_bits", "activation_bits"):
            value = getattr(self, name)
            optional = name == "activation_bits"
            if not (optional and value is None) and not (_is_integer(value) and 2 <= value <= 8):
                raise ValueError(f"BCTConfig.{name} is 2 to 8{', or None' if optional else ''}; got {value!r}")
        if not _is_integer(self.block_size) or self.block_size < 1:
            raise ValueError(f"BCTConfig.block_size is 1 or more; got {self.block_size!r}")
        for name in ("quantize_embeddings", "quantize_norms", "quantize_activations", "quantize_attention", "pack"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"BCTConfig.{name} is True or False; got {getattr(self, name)!r}")
        names = [] if self.modules_to_not_convert is None else self.modules_to_not_convert
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"BCTConfig.modules_to_not_convert is a list of names; got {names!r}")
        self.modules_to_not_convert = list(names)
        if self.quant_method != "bct":
            raise ValueError(f"BCTConfig.quant_method is 'bct'; got {self.quant_method!r}")

    @property
    def packed(self) -> bool:
        return self.pack and self.weight_bits <= 4


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
