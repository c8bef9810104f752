"""The op against the token loop, and decoding in constant memory against a Llama of the same width."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hf_ext.models.gla import GLACache, GLAConfig, GLAForCausalLM
from hf_ext.ops.gla import gated_linear_attention, reference

from . import Contest

NEW_TOKENS = 16


def contests(reference_folder: Path | None = None) -> Iterator[Contest]:
    """The op at B1 T1024 H4 K128 V256, float32, one thread; 16 tokens decoded, batch 1, after 64 and after 2048 tokens."""
    torch.manual_seed(0)
    inputs = op_inputs()
    yield Contest("op forward", forward(gated_linear_attention, inputs), forward(reference, inputs), "token loop", 1)
    yield Contest(
        "op forward + backward",
        forward_backward(gated_linear_attention, inputs),
        forward_backward(reference, inputs),
        "token loop with autograd",
        1,
    )
    sizes = {"vocab_size": 2048, "hidden_size": 512, "num_hidden_layers": 8}
    gla = GLAForCausalLM(GLAConfig(num_heads=4, **sizes)).eval()
    llama = LlamaForCausalLM(LlamaConfig(num_attention_heads=8, intermediate_size=gla.config.mlp_dim, **sizes)).eval()
    for context in (64, 2048):
        yield Contest(
            f"decode {NEW_TOKENS} tokens after {context}", decoder(gla, context), decoder(llama, context), "Llama", 1
        )


def op_inputs(batch=1, tokens=1024, heads=4, key_channels=128, value_channels=256) -> list[torch.Tensor]:
    q, k, g = (torch.randn(batch, tokens, heads, key_channels) for _ in range(3))
    v = torch.randn(batch, tokens, heads, value_channels)
    return [x.requires_grad_() for x in (q, k, v, F.logsigmoid(g) / 16)]


def forward(function: Callable, inputs: list[torch.Tensor]) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        function(*inputs)

    return run


def forward_backward(function: Callable, inputs: list[torch.Tensor]) -> Callable[[], None]:
    def run() -> None:
        o, _ = function(*inputs)
        torch.autograd.grad(o.sum(), inputs)

    return run


def decoder(model: PreTrainedModel, context: int) -> Callable[[], None]:
    """A function that decodes `NEW_TOKENS` tokens after a context that was read once, beforehand."""
    with torch.no_grad():
        prompt = torch.randint(0, model.config.vocab_size, (1, context), generator=torch.Generator().manual_seed(0))
        cache = GLACache(model.config) if model.config.model_type == "gla" else DynamicCache(config=model.config)
        model(prompt, past_key_values=cache)

    @torch.no_grad()
    def decode() -> None:
        token = prompt[:, -1:]
        for _ in range(NEW_TOKENS):
            token = model(token, past_key_values=cache).logits[:, -1:].argmax(-1)
        if isinstance(model, LlamaForCausalLM):
            cache.crop(-NEW_TOKENS)

    return decode
