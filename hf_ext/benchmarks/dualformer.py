"""Dualformer against a T5 of the same width and depth, and against writing without a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from hf_ext.models.dualformer import DualformerConfig, DualformerForConditionalGeneration

from . import Contest

VOCABULARY = 118
PROMPT, ANSWER, NEW_TOKENS = 116, 512, 64


def contests(reference: Path | None = None) -> Iterator[Contest]:
    """Preset s, mazes of 10 x 10, float32, one thread: a training step of 2 answers of 512 tokens, and 64 tokens written."""
    torch.manual_seed(0)
    ours = DualformerForConditionalGeneration(
        DualformerConfig.from_preset("dualformer-s", vocab_size=VOCABULARY)
    ).eval()
    side = ours.config.decoder
    t5 = T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=side.hidden_size,
            d_kv=side.head_dim,
            d_ff=side.intermediate_size,
            num_layers=side.num_hidden_layers,
            num_heads=side.num_attention_heads,
            feed_forward_proj="gated-silu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
            dropout_rate=0.0,
        )
    ).eval()
    prompts, answers = (torch.randint(2, VOCABULARY, (2, length)) for length in (PROMPT, ANSWER))
    yield Contest(
        f"training step, 2 x {ANSWER} tokens", step(ours, prompts, answers), step(t5, prompts, answers), "T5", threads=1
    )
    write, peer = (partial(writer, model, prompts[:1]) for model in (ours, t5))
    yield Contest(f"write {NEW_TOKENS} tokens", write, peer, "T5", threads=1)
    yield Contest(f"write {NEW_TOKENS} tokens", write, partial(uncached, ours, prompts[:1]), "no cache", threads=1)


def step(model: PreTrainedModel, prompts: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        model.zero_grad()
        model(input_ids=prompts, labels=labels).loss.backward()

    return run


def writer(model: PreTrainedModel, prompt: torch.Tensor, **arguments) -> torch.Tensor:
    return model.generate(prompt, do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, **arguments)


def uncached(model: PreTrainedModel, prompt: torch.Tensor) -> torch.Tensor:
    """Neither keys and values of the answer nor those of the prompt are kept."""
    return writer(model, prompt, use_cache=False)
