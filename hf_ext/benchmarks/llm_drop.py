"""Decoding with half of the attention layers dropped, against the dense model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hf_ext.surgery import LlmDrop, apply

from . import Contest

NEW_TOKENS = 16


def contests(reference: Path | None = None) -> Iterator[Contest]:
    """A 12-layer Llama (width 512, 8 heads) decodes 16 tokens, batch 1, after contexts of 128 and 1024 tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=512, intermediate_size=1376, num_hidden_layers=12, num_attention_heads=8
    )
    dense = LlamaForCausalLM(config).eval()
    middle = list(range(6, 12))
    variants = {
        "half of the attentions dropped": LlmDrop(attention=middle),
        "half of the MLPs dropped": LlmDrop(mlp=middle),
        "half of the blocks dropped": LlmDrop(attention=middle, mlp=middle),
    }
    for context in (128, 1024):
        for name, recipe in variants.items():
            ours, peer = decoder(apply(dense, recipe), context), decoder(dense, context)
            yield Contest(f"decode {NEW_TOKENS} tokens after {context}, {name}", ours, peer, "dense model", threads=1)


def decoder(model: PreTrainedModel, context: int) -> Callable[[], None]:
    """A function that decodes `NEW_TOKENS` tokens after a context that was read once, beforehand."""
    with torch.no_grad():
        prompt = torch.randint(0, model.config.vocab_size, (1, context), generator=torch.Generator().manual_seed(0))
        cache = DynamicCache(config=model.config)
        model(prompt, past_key_values=cache)

    @torch.no_grad()
    def decode() -> None:
        token = prompt[:, -1:]
        for _ in range(NEW_TOKENS):
            token = model(token, past_key_values=cache).logits[:, -1:].argmax(-1)
        cache.crop(-NEW_TOKENS)

    return decode
