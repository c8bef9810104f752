"""A small Llama, whole and with half of its attention layers dropped: perplexity and speed side by side."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_ext.data.text import byte_perplexity, sklearn_descriptions, windows
from hf_ext.reproductions.llm_drop import CONTEXT, calibrate
from hf_ext.surgery import apply
from hf_ext.surgery.llm_drop import choose

from . import Shown, Track

NEW_TOKENS = 128
ROUNDS = 3


def show(card: Path, track: Track) -> Shown:
    model = AutoModelForCausalLM.from_pretrained(card / "dense").eval()
    tokenizer = AutoTokenizer.from_pretrained(card)
    text, held_out = sklearn_descriptions()
    half = model.config.num_hidden_layers // 2
    similarities = calibrate(model, text, tokenizer)
    dropped = apply(model, choose(similarities, half))
    validation = windows(held_out, CONTEXT, tokenizer)
    prompt = tokenizer(held_out[:200], return_tensors="pt")
    rounds = [
        [tokens_per_second(variant, prompt) for variant in (model, dropped)]
        for _ in track(range(ROUNDS), "LLM-Drop: whole and half, in turn")
    ]
    speeds = [max(values) for values in zip(*rounds)]
    perplexities = [byte_perplexity(variant, validation) for variant in (model, dropped)]
    layers = ", ".join(map(str, dropped.config.surgery[0]["attention"]))
    return Shown(
        task="text-generation",
        metric="perplexity per byte, tokens/s",
        baseline=f"{perplexities[0]:.2f}, {speeds[0]:.0f} (whole)",
        ours=f"{perplexities[1]:.2f}, {speeds[1]:.0f} (half the attentions)",
        text=f"Most similar in and out, hence dropped: the attention of layers {layers}. No training followed.\n"
        + "\n".join(f"layer {i}: cosine {value:.4f}" for i, value in enumerate(similarities.attention.tolist())),
    )


def tokens_per_second(model: PreTrainedModel, prompt: dict[str, torch.Tensor]) -> float:
    """Greedy decoding of `NEW_TOKENS` tokens, batch 1."""
    start = time.perf_counter()
    model.generate(**prompt, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, do_sample=False)
    return NEW_TOKENS / (time.perf_counter() - start)
