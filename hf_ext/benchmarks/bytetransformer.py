"""Padding-free BERT against the same model padded under SDPA, fp32: over shares of padding, and within attention alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig

from hf_ext.surgery.bytetransformer import enable_padding_free

from . import Contest

BATCH, LENGTH = 16, 256
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
PEER = "padded, SDPA"


def contests(reference: Path | None = None) -> Iterator[Contest]:
    """Four layers of BERT-base (time is linear in layers), batches of 16 up to 256 tokens, on two cores."""
    yield from pairs("BERT-base width", "bert", uniform(), threads=2)
    yield from pairs("BERT-base width, one thread", "bert", uniform(), threads=1)
    for share in SHARES:
        yield from pairs(f"BERT-base width, {share:.0%} real tokens", "bert", around(share), threads=2)
    yield from pairs("ALBERT-base width", "albert", uniform(), threads=2)
    yield from pairs("DeBERTa-v2 at BERT-base width", "deberta-v2", uniform(), threads=2)
    yield nested(uniform())


def uniform() -> torch.Tensor:
    """Lengths drawn uniformly from 0.2 to 1 times the longest, the paper's setting: 0.6 on average."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(LENGTH // 5, LENGTH + 1, (BATCH,), generator=generator)
    lengths[0] = LENGTH
    return lengths


def around(share: float) -> torch.Tensor:
    """Lengths spread evenly around a share of the longest, which is there once."""
    spread = min(share - 0.1, 1 - share)
    lengths = torch.linspace(share - spread, share + spread, BATCH).mul(LENGTH).long()
    lengths[-1] = LENGTH
    return lengths


def pairs(name: str, model_type: str, lengths: torch.Tensor, threads: int) -> Iterator[Contest]:
    padded = model(model_type)
    inputs = batch(lengths)
    free = enable_padding_free(deepcopy(padded))
    yield Contest(
        f"{name}, lengths {int(lengths.min())} to {LENGTH}", call(free, **inputs), call(padded, **inputs), PEER, threads
    )


def model(model_type: str) -> nn.Module:
    torch.manual_seed(0)
    fields = {"num_hidden_layers": 4, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    if model_type == "deberta-v2":  # as in microsoft/deberta-v3-base
        fields |= {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 256,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
        }
    return AutoModel.from_config(AutoConfig.for_model(model_type, vocab_size=1000, **fields)).eval()


def batch(lengths: torch.Tensor) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 1000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(LENGTH) < lengths[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def call(function: Callable, **inputs: torch.Tensor) -> Callable[[], None]:
    @torch.inference_mode()
    def run() -> None:
        function(**inputs)

    return run


def nested(lengths: torch.Tensor) -> Contest:
    """Against `nn.TransformerEncoder` at the same size, which makes nested tensors of padded batches by itself."""
    config = BertConfig()
    layer = nn.TransformerEncoderLayer(
        config.hidden_size, config.num_attention_heads, config.intermediate_size, activation="gelu", batch_first=True
    )
    peer = nn.TransformerEncoder(layer, 4, enable_nested_tensor=True).eval()
    inputs = batch(lengths)
    free = enable_padding_free(model("bert"))
    states = torch.randn(BATCH, LENGTH, config.hidden_size)
    padding = inputs["attention_mask"] == 0
    ours = call(free.encoder, hidden_states=states, attention_mask=inputs["attention_mask"])
    theirs = call(peer, src=states, src_key_padding_mask=padding)
    return Contest("encoder of BERT-base width", ours, theirs, "nn.TransformerEncoder, nested tensors", threads=2)
