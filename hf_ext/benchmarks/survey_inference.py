"""What general techniques do to the speed of two models: an encoder of BERT-small's sizes and a Llama of the same, one thread.

The peer is the untouched model. Techniques that only save memory or disk are not raced; `hf-ext recommend` measures those too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import prune_linear_layer

from hf_ext.layers.compression import merge_tokens, row_mask
from hf_ext.surgery import LlmDrop, apply
from hf_ext.surgery.bytetransformer import enable_padding_free

from . import Contest

BATCH, LENGTH = 4, 128
SIZES = {"vocab_size": 1000, "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}


def contests(reference: Path | None = None) -> Iterator[Contest]:
    encoder, decoder = bert(), llama()
    ids = torch.randint(3, 1000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    padded = {
        "input_ids": ids,
        "attention_mask": (torch.arange(LENGTH) < torch.tensor([[128], [64], [64], [32]])).long(),
    }
    for name, changed, inputs in (
        ("dynamic int8", int8(encoder), {"input_ids": ids}),
        ("bfloat16", deepcopy(encoder).to(torch.bfloat16), {"input_ids": ids}),
        ("half of the hidden neurons removed", narrow(encoder), {"input_ids": ids}),
        ("half of the layers (a distilled student's shape)", bert(layers=2), {"input_ids": ids}),
        ("no work for padding, 56% real tokens", enable_padding_free(deepcopy(encoder)), padded),
    ):
        yield Contest(f"BERT, {name}", forward(changed, **inputs), forward(encoder, **inputs), "dense", threads=1)
    yield Contest(
        "BERT, a quarter of the tokens merged after layer 2",
        merging(encoder, ids),
        layers(encoder, ids),
        "all tokens",
        threads=1,
    )
    for name, changed in (
        ("dynamic int8", int8(decoder)),
        ("half of the attentions dropped", apply(decoder, LlmDrop(attention=[1, 3]))),
    ):
        yield Contest(
            f"Llama, {name}", forward(changed, input_ids=ids), forward(decoder, input_ids=ids), "dense", threads=1
        )


def bert(layers: int = 4) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(**SIZES | {"num_hidden_layers": layers}, intermediate_size=2048)
    ).eval()


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=1408)).eval()


def int8(model: nn.Module) -> nn.Module:
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def narrow(model: BertForSequenceClassification) -> nn.Module:
    changed = deepcopy(model)
    for layer in changed.bert.encoder.layer:
        kept = row_mask(layer.intermediate.dense.weight, 0.5)[:, 0].nonzero()[:, 0]
        layer.intermediate.dense = prune_linear_layer(layer.intermediate.dense, kept)
        layer.output.dense = prune_linear_layer(layer.output.dense, kept, dim=1)
    return changed


def forward(model: nn.Module, **inputs: Any) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return model(**inputs)

    return run


def layers(model: BertForSequenceClassification, ids: torch.Tensor, merge: int = 0) -> Callable[[], torch.Tensor]:
    """The encoder, layer by layer."""

    def run() -> torch.Tensor:
        with torch.inference_mode():
            hidden_states = model.bert.embeddings(ids)
            for index, layer in enumerate(model.bert.encoder.layer):
                if index == 2 and merge:
                    hidden_states, _ = merge_tokens(hidden_states, merge)
                hidden_states = layer(hidden_states)
                hidden_states = hidden_states[0] if isinstance(hidden_states, tuple) else hidden_states
            return hidden_states

    return run


def merging(model: BertForSequenceClassification, ids: torch.Tensor) -> Callable[[], torch.Tensor]:
    return layers(model, ids, merge=LENGTH // 4)
