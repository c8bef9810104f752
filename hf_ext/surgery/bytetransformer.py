"""Encoders that compute nothing for padding: ByteTransformer (arXiv 2210.03052, section IV) on the models that Transformers has.

    model = AutoModel.from_pretrained("bert-base-uncased")
    enable_padding_free(model)      # BERT, RoBERTa, XLM-RoBERTa, ELECTRA, DistilBERT, ALBERT, DeBERTa v1 and v2; with any head

The real tokens of a batch are packed once before the encoder and put back behind it, so linear layers, activations and norms run on
real tokens alone, and attention within each sequence. Weights and names stay as they are, so does what is saved. The reference
(bytedance/ByteTransformer, Apache-2.0) is CUDA code with fused kernels; this is its algorithm in torch.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import pairwise
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.models.deberta import modeling_deberta
from transformers.models.deberta_v2 import modeling_deberta_v2

from hf_ext.ops.varlen_attention import Packing

# model type -> where its base model keeps the encoder
ENCODERS = {
    "bert": "encoder",
    "roberta": "encoder",
    "xlm-roberta": "encoder",
    "camembert": "encoder",
    "electra": "encoder",
    "distilbert": "transformer",
    "albert": "encoder",
    "deberta": "encoder",
    "deberta-v2": "encoder",
}
# Their attention does not go through Transformers' interface
DISENTANGLED = ("deberta", "deberta-v2")

_PACKING: ContextVar[Packing | None] = ContextVar("hf_ext_packing", default=None)


def enable_padding_free(model: PreTrainedModel, min_padding: float = 0.05) -> PreTrainedModel:
    """Makes `model` leave out padding, in place, and returns it.

    `last_hidden_state` and `hidden_states` are 0 at padded positions then; what stands at real ones, and the pooled output and the
    logits that come from them, are those of the padded model. The mask may have its zeros anywhere.

    The padded way is taken where less than `min_padding` of a batch is padding (there is little to win), under `torch.compile` and
    `torch.export` (the number of real tokens is no constant), for masks of four dimensions, and in decoders.

    Args:
        model: one of `ENCODERS`, bare or with a head, on any devices, also in 8-bit or with adapters.
        min_padding: 0 to 1.

    Raises:
        ValueError: another model, a DeBERTa with talking heads, `min_padding` out of range; when the model is called with
            `output_attentions`: fused attention keeps no maps.
    """
    base = _base(model)
    model_type = base.config.model_type.removeprefix("surgical_")
    if model_type not in ENCODERS:
        raise ValueError(f"Padding-free encoders are {', '.join(ENCODERS)}; this one is '{model_type}'")
    if not 0 <= min_padding <= 1:
        raise ValueError(f"`min_padding` is a share from 0 to 1, got {min_padding}")
    if getattr(base.config, "talking_head", False):
        raise ValueError("Attention with `talking_head` mixes whole maps and has no padding-free form")
    disable_padding_free(model)
    mode = _Mode(min_padding, base.config._attn_implementation, disentangled=model_type in DISENTANGLED)
    encoder = getattr(base, ENCODERS[model_type])
    if mode.disentangled:
        for module in encoder.modules():
            if type(module) in PACKED:
                _become(module, PACKED[type(module)])
    else:
        base.set_attn_implementation("bytetransformer")
    mode.hooks = [
        base.register_forward_pre_hook(_refuse_attentions, with_kwargs=True),
        encoder.register_forward_pre_hook(mode.pack, with_kwargs=True),
        encoder.register_forward_hook(mode.unpack, with_kwargs=True, always_call=True),
        base.register_forward_hook(mode.finish, always_call=True),
    ]
    base._padding_free = mode
    return model


def disable_padding_free(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it was before `enable_padding_free`; does nothing to another."""
    base = _base(model)
    mode = base.__dict__.pop("_padding_free", None)
    if mode is None:
        return model
    for hook in mode.hooks:
        hook.remove()
    for module in base.modules():
        if type(module) in UNPACKED:
            _become(module, UNPACKED[type(module)])
    if not mode.disentangled:
        base.set_attn_implementation(mode.attn_implementation)
    return model


def _base(model: nn.Module) -> PreTrainedModel:
    """The bare encoder below heads and adapters."""
    while not isinstance(model, PreTrainedModel):
        inner = getattr(model, "base_model", None) or getattr(model, "model", None) or getattr(model, "module", None)
        if inner is None or inner is model:
            raise ValueError(f"Padding-free encoders are models of Transformers, got a {type(model).__name__}")
        model = inner
    return model.base_model


def _become(module: nn.Module, cls: type) -> None:
    module.__class__ = cls
    if hasattr(module, "_old_forward"):  # Accelerate calls what it found when it put the module on its device
        module._old_forward = MethodType(cls.forward, module)


def _refuse_attentions(base: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> None:
    if kwargs.get("output_attentions", base.config.output_attentions):
        raise ValueError("`output_attentions` needs the padded form: call `disable_padding_free(model)` first")


@dataclass
class _Mode:
    """The hooks of one model, and what they need to know."""

    min_padding: float
    attn_implementation: str
    disentangled: bool
    hooks: list = field(default_factory=list)
    # What is to be zeroed in the states of the call that runs: the packing, or the mask where the padded way was taken
    calls: ContextVar = field(default_factory=lambda: ContextVar("hf_ext_padding_free_call", default=None))

    def __deepcopy__(self, memo: dict) -> _Mode:
        raise TypeError("Call `disable_padding_free(model)` before copying the model")

    def pack(self, encoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Before the encoder: (batch, length, hidden) -> (1, tokens, hidden)"""
        self.calls.set(None)
        hidden_states, mask = _argument(args, kwargs, 0, "hidden_states"), _argument(args, kwargs, 1, "attention_mask")
        decoding = kwargs.get("encoder_hidden_states") is not None or kwargs.get("past_key_values") is not None
        if mask is None or mask.ndim != 2 or decoding or torch.compiler.is_compiling():
            return None
        packing = Packing.of(mask)
        self.calls.set(packing)
        kwargs = kwargs | {"hidden_states": hidden_states, "attention_mask": mask}
        if packing.padding < self.min_padding:
            if not self.disentangled:
                kwargs["attention_mask"] = mask.bool()[:, None, None]
            return args[2:], kwargs
        kwargs["hidden_states"] = packing.pack(hidden_states)[None]
        if self.disentangled:
            # Of four dimensions, so that the encoder makes no map of it, and true, as for a batch of one without padding
            kwargs["attention_mask"] = mask.new_ones(1, 1, 1, 1)
            kwargs["relative_pos"] = _Relative.of(packing, encoder.get_rel_pos(hidden_states))
            _PACKING.set(packing)
        else:
            kwargs |= {"attention_mask": None, "packing": packing}
        return args[2:], kwargs

    def unpack(self, encoder: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """Behind the encoder: back to (batch, length, hidden), zeros in the padding"""
        _PACKING.set(None)
        packing = self.calls.get()
        return output if packing is None or output is None else _restore(output, packing)

    def finish(self, base: nn.Module, args: tuple, output: Any) -> Any:
        """`hidden_states` that were recorded inside"""
        packing = self.calls.get()
        self.calls.set(None)
        return output if packing is None or output is None else _restore(output, packing)


def _argument(args: tuple, kwargs: dict[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def _restore(value: Any, packing: Packing) -> Any:
    """Every packed tensor (1, tokens, hidden) in an output is unpacked; padded ones get their zeros."""
    if isinstance(value, torch.Tensor):
        if value.ndim == 3 and value.shape[:2] == (1, packing.tokens) and packing.padding:
            return packing.unpack(value[0])
        if value.ndim == 3 and value.shape[:2] == (packing.batch, packing.length):
            return packing.unpack(packing.pack(value))
        return value
    if isinstance(value, dict):  # a ModelOutput
        for name, entry in value.items():
            value[name] = _restore(entry, packing)
        return value
    return tuple(_restore(entry, packing) for entry in value) if isinstance(value, tuple) else value


@dataclass
class _Relative:
    """Stands for DeBERTa's `relative_pos`, which its layers hand to attention.

    `sequences` are the rows of each sequence that is not empty, its relative positions (n, n), None in a model without, and how many
    positions on either side its tokens see.
    """

    sequences: list[tuple[slice, torch.Tensor | None, int]]

    @classmethod
    def of(cls, packing: Packing, positions: torch.Tensor | None) -> _Relative:
        sequences = []
        for start, stop in pairwise(packing.cu_seqlens.tolist()):
            relative, reach = None, 0
            if positions is not None and stop > start:
                places = packing.places[start:stop] % packing.length
                relative = positions[0][places][:, places].long()
                reach = int(relative.abs().max()) + 1
            if stop > start:
                sequences.append((slice(start, stop), relative, reach))
        return cls(sequences)


class _PackedAttention:
    """Disentangled attention (arXiv 2006.03654, eq. 4) within each sequence of a pack; upstream's otherwise."""

    def forward(
        self,
        hidden_states,
        attention_mask,
        output_attentions=False,
        query_states=None,
        relative_pos=None,
        rel_embeddings=None,
    ):
        if not isinstance(relative_pos, _Relative):
            return super().forward(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
        q, k, v = (x[0].unflatten(-1, (self.num_attention_heads, -1)) for x in self.project(hidden_states))
        position_key = position_query = None
        scale = ((1 + self.kinds) * q.shape[-1]) ** -0.5
        if self.relative_attention:
            position_key, position_query = (
                None if x is None else x.unflatten(-1, (self.num_attention_heads, -1)).transpose(0, 1)
                for x in self.project_positions(self.pos_dropout(rel_embeddings))
            )
        dropout = self.dropout.p if self.training else 0.0
        o = [v.new_empty(0, *v.shape[1:])]
        for rows, relative, reach in relative_pos.sequences:
            qkv = [x[rows].transpose(0, 1)[None] for x in (q, k, v)]
            bias = self.bias(qkv[0][0], qkv[1][0], position_key, position_query, relative, reach)
            bias = None if bias is None else (bias * scale)[None]
            out = F.scaled_dot_product_attention(*qkv, attn_mask=bias, dropout_p=dropout, scale=scale)
            o.append(out[0].transpose(0, 1))
        return torch.cat(o).flatten(1)[None], None

    @property
    def kinds(self) -> int:
        """How many kinds of position terms share the scale with the content"""
        return sum(kind in self.pos_att_type for kind in ("c2p", "p2c"))

    def bias(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        position_key: torch.Tensor | None,
        position_query: torch.Tensor | None,
        relative: torch.Tensor | None,
        reach: int,
    ) -> torch.Tensor | None:
        """(heads, n, n) of one sequence: content to position plus position to content

        q, k (heads, n, channels); position_key, position_query (heads, 2 * span, channels).
        """
        bias = None
        for content, position, sign in ((q, position_key, 1), (k, position_query, -1)):
            if position is None:
                continue
            span = position.shape[1] // 2
            near = min(reach, span)  # what lies further away no token of this sequence sees
            index = (sign * relative + near).clamp(0, 2 * near - 1).expand(len(q), -1, -1)
            term = (content @ position[:, span - near : span + near].transpose(1, 2)).gather(-1, index)
            term = term if sign == 1 else term.transpose(1, 2)
            bias = term if bias is None else bias + term
        return bias


class PackedDebertaAttention(_PackedAttention, modeling_deberta.DisentangledSelfAttention):
    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        heads = self.in_proj(hidden_states).unflatten(-1, (self.num_attention_heads, -1))
        q, k, v = (x.flatten(-2) for x in heads.chunk(3, dim=-1))
        return q + self.q_bias, k, v + self.v_bias

    def project_positions(self, embeddings: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (
            self.pos_proj(embeddings) if "c2p" in self.pos_att_type else None,
            self.pos_q_proj(embeddings) if "p2c" in self.pos_att_type else None,
        )


class PackedDebertaV2Attention(_PackedAttention, modeling_deberta_v2.DisentangledSelfAttention):
    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.query_proj(hidden_states), self.key_proj(hidden_states), self.value_proj(hidden_states)

    def project_positions(self, embeddings: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        embeddings = embeddings[: 2 * self.pos_ebd_size]
        key, query = (
            (self.key_proj, self.query_proj)
            if self.share_att_key
            else (getattr(self, "pos_key_proj", None), getattr(self, "pos_query_proj", None))
        )
        return (
            key(embeddings) if "c2p" in self.pos_att_type else None,
            query(embeddings) if "p2c" in self.pos_att_type else None,
        )


class PackedConvLayer(modeling_deberta_v2.ConvLayer):
    """Neighbours are those of the padded batch: the convolution sees zeros beyond a sequence's end."""

    def forward(self, hidden_states, residual_states, input_mask):
        packing = _PACKING.get()
        if packing is None:
            return super().forward(hidden_states, residual_states, input_mask)
        mask = packing.unpack(hidden_states.new_ones(packing.tokens))
        padded = (packing.unpack(x[0]) for x in (hidden_states, residual_states))
        return packing.pack(super().forward(*padded, mask))[None]


PACKED = {
    modeling_deberta.DisentangledSelfAttention: PackedDebertaAttention,
    modeling_deberta_v2.DisentangledSelfAttention: PackedDebertaV2Attention,
    modeling_deberta_v2.ConvLayer: PackedConvLayer,
}
UNPACKED = {packed: plain for plain, packed in PACKED.items()}
