"""What stands in a model in the place of its linear layers, embeddings, norms and activation functions."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2CLS
from transformers.pytorch_utils import Conv1D

from hf_ext.ops import blockwise_integer as blockwise
from hf_ext.ops.blockwise_integer.interface import Rounding

from .configuration_bct import BCTConfig

LINEAR = (nn.Linear, Conv1D)
ACTIVATIONS = (
    *{entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values()},
    nn.GELU,
    nn.ELU,
    nn.Softplus,
)


class Integers:
    """A matrix kept as integers, in a module with `weight`, `weight_shift` and `like`, an empty tensor in the type to compute in.

    weight: int8 (rows, columns), or (rows, ceil(columns / 2)) with two values in a byte, the low nibble the even column. Bytes are
    signed also then: Transformers' T5 brings its hidden states to the type of a weight unless that is int8.
    """

    def keep_integers(self, rows: int, columns: int, config: BCTConfig, like: torch.Tensor) -> None:
        """Makes room for the matrix, on the device of `like`"""
        self.rows, self.columns = rows, columns
        self.block, self.packed = config.block_size, config.packed
        shifts = (-(-rows // self.block), -(-columns // self.block))
        for name, shape in (
            ("weight", (rows, -(-columns // 2) if self.packed else columns)),
            ("weight_shift", shifts),
        ):
            empty = torch.empty(shape, dtype=torch.int8, device=like.device)
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))
        self.register_buffer("like", like.new_empty(0), persistent=False)

    def integers(self, weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`weight` and `weight_shift` of a matrix in floats"""
        if tuple(weight.shape) != (self.rows, self.columns):
            raise ValueError(f"A matrix of shape {(self.rows, self.columns)} is needed here, got {tuple(weight.shape)}")
        q, shift = blockwise.quantize(weight, bits, (self.block, self.block))
        return (blockwise.pack(q) if self.packed else q), shift

    def floats(self) -> torch.Tensor:
        """The matrix (rows, columns) that the integers stand for"""
        q = blockwise.unpack(self.weight, self.columns) if self.packed else self.weight
        return blockwise.dequantize(q, self.weight_shift, (self.block, self.block), self.like.dtype)


class BCTLinear(Integers, nn.Module):
    """y = Q(Q(x) W^T + b). No `nn.Linear`: what trains or folds linear layers has no business with integers.

    Args:
        source: the layer whose place this one takes.
    """

    def __init__(self, source: nn.Linear | Conv1D, config: BCTConfig):
        super().__init__()
        self.source_class = type(source)
        self.out_features, self.in_features = (
            source.weight.shape if self.source_class is nn.Linear else source.weight.T.shape
        )
        self.keep_integers(self.out_features, self.in_features, config, source.weight)
        bias = None if source.bias is None else nn.Parameter(torch.empty_like(source.bias), requires_grad=False)
        self.register_parameter("bias", bias)
        self.bits = config.activation_bits

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not hidden_states.is_floating_point():
            raise ValueError(
                f"{self} takes floats, got {hidden_states.dtype}. The model seems to bring its states to the type of this layer's "
                "weight: name the layer in modules_to_not_convert"
            )
        return blockwise.linear(
            hidden_states, self.weight, self.weight_shift, self.bias, self.packed, self.bits, self.block
        )

    def integers(self, weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
        return super().integers(weight if self.source_class is nn.Linear else weight.T, bits)

    def empty_source(self) -> nn.Module:
        """The layer that stood here, without weights of its own"""
        with torch.device(self.like.device):
            if self.source_class is Conv1D:
                source = Conv1D(self.out_features, self.in_features)
            else:
                source = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        return source.to(self.like.dtype)

    def source(self) -> nn.Module:
        """The layer in floats, with the weights that the integers stand for"""
        source, weight = self.empty_source(), self.floats()
        source.weight = nn.Parameter(weight if self.source_class is nn.Linear else weight.T.contiguous())
        if self.bias is not None:
            source.bias = nn.Parameter(self.bias.detach().clone())
        return source

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, block={self.block}, packed={self.packed}, bits={self.bits}"


class BCTEmbedding(Integers, nn.Embedding):
    """Rows of a table kept as integers. Made of an embedding in place, so that subclasses keep what their forward does."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return blockwise.embedding(
            ids, self.weight, self.weight_shift, self.packed, self.block, self.columns, self.like.dtype
        )

    def empty_source(self) -> nn.Embedding:
        """The embedding that stood here, on the meta device"""
        source = nn.Embedding(self.rows, self.columns, self.padding_idx, device="meta", dtype=self.like.dtype)
        return source.to_empty(device=self.like.device)


class _Rounded:
    """A norm or an activation function: y = Q(f(Q(x)))"""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.rounding(super().forward(self.rounding(hidden_states), *args, **kwargs))


def is_embedding(module: nn.Module) -> bool:
    """Not those that scale their rows in place, or whose own forward reads the table itself."""
    plain = isinstance(module, nn.Embedding) and module.max_norm is None
    return plain and (type(module) is nn.Embedding or "weight" not in type(module).forward.__code__.co_names)


def is_norm(module: nn.Module) -> bool:
    """Also by name, as Transformers tells its norms from other modules; those of feature maps have no channels at the end."""
    named = any(kind in type(module).__name__ for kind in ("LayerNorm", "RMSNorm"))
    alone = not any(True for _ in module.children()) and getattr(module, "data_format", None) != "channels_first"
    return alone and (named or isinstance(module, (nn.LayerNorm, nn.RMSNorm)))


def is_activation(module: nn.Module) -> bool:
    return isinstance(module, ACTIVATIONS)


def convert_embedding(module: nn.Embedding, config: BCTConfig) -> None:
    like, module.source_class = module.weight, type(module)
    module.__class__ = _embedding_class(type(module))
    module.keep_integers(module.num_embeddings, module.embedding_dim, config, like)


def convert_rounded(module: nn.Module, rounding: Rounding) -> None:
    module.source_class, module.rounding = type(module), rounding
    module.__class__ = _rounded_class(type(module))


def restore(module: nn.Module) -> None:
    """An embedding, norm or activation function as it was, with the weights that the integers stand for"""
    weight = module.floats() if isinstance(module, BCTEmbedding) else None
    module.__class__ = module.__dict__.pop("source_class")
    module.__dict__.pop("rounding", None)
    if weight is not None:
        del module.weight_shift, module.like
        module.weight = nn.Parameter(weight)
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_()


@cache
def _embedding_class(cls: type) -> type:
    return BCTEmbedding if cls is nn.Embedding else _derived(cls, (cls, BCTEmbedding))


@cache
def _rounded_class(cls: type) -> type:
    return _derived(cls, (_Rounded, cls))


def _derived(cls: type, bases: tuple[type, ...]) -> type:
    """It keeps its name, which `device_map`, output recording and initialization go by."""
    return type(cls.__name__, bases, {"__module__": __name__, "__qualname__": cls.__qualname__})
