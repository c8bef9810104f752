"""Training with a quarter of the sources against dense attention, 1024 tokens: the attention alone, and whole training steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hf_ext.ops.subsampled_attention import SSAConfig, subsampled_attention
from hf_ext.training.ssa import use_ssa

from . import Contest

TOKENS = 1024
SIZES = {
    "vocab_size": 512,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": TOKENS,
}
DRAWS = {
    "unbiased, ratio 4": SSAConfig(ratio=4),
    "windows of 256": SSAConfig(kind="local1d", window_size=256),
}


def contests(reference: Path | None = None) -> Iterator[Contest]:
    """Attention forward and backward at B2 H8 L1024 D64; training steps of a BERT and a Llama, 2 layers 512 wide, batch 1; one thread."""
    torch.manual_seed(0)
    qkv = [torch.randn(2, TOKENS, 8, 64).transpose(1, 2).requires_grad_() for _ in range(3)]
    for causal in (False, True):
        kind = "causal attention" if causal else "attention"
        for name, settings in DRAWS.items():
            yield Contest(
                f"{kind}, {name}", attention(qkv, causal, settings), attention(qkv, causal), "torch's SDPA", threads=1
            )
    for family, build in (("BERT", bert), ("Llama", llama)):
        for peer in ("sdpa", "eager"):
            ours = training_step(use_ssa(build("sdpa"), ratio=4))
            yield Contest(
                f"{family} training step, unbiased, ratio 4", ours, training_step(build(peer)), peer, threads=1
            )


def attention(qkv: list[torch.Tensor], causal: bool, settings: SSAConfig | None = None) -> Callable[[], None]:
    def run() -> None:
        if settings is None:
            o = F.scaled_dot_product_attention(*qkv, is_causal=causal)
        else:
            o, _ = subsampled_attention(*qkv, None, settings, causal=causal)
        torch.autograd.grad(o.sum(), qkv)

    return run


def bert(implementation: str) -> PreTrainedModel:
    config = BertConfig(**SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return BertForMaskedLM._from_config(config, attn_implementation=implementation)


def llama(implementation: str) -> PreTrainedModel:
    return LlamaForCausalLM._from_config(LlamaConfig(**SIZES, use_cache=False), attn_implementation=implementation)


def training_step(model: PreTrainedModel) -> Callable[[], None]:
    """Forward, backward and an SGD update."""
    model.train()
    ids = torch.randint(0, SIZES["vocab_size"], (1, TOKENS), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def run() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run
