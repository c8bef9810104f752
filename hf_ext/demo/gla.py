"""A small GLA language model writes text; what it remembers has one size, however long the text is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_ext.data.text import byte_perplexity, sklearn_descriptions, windows

from . import Shown, Track

CONTEXT = 256
PROMPT = "The data set contains"
LENGTHS = (64, 512, 2048)


def show(card: Path, track: Track) -> Shown:
    model = AutoModelForCausalLM.from_pretrained(card).eval()
    tokenizer = AutoTokenizer.from_pretrained(card)
    text, held_out = sklearn_descriptions()
    ours = byte_perplexity(model, windows(held_out, CONTEXT, tokenizer))
    torch.manual_seed(0)
    prompt = tokenizer(PROMPT, add_special_tokens=False, return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=300, do_sample=True, temperature=0.7, top_k=40)
    sizes = [
        memory(model, tokenizer, text[:length]) for length in track(LENGTHS, "GLA: reading on, in constant memory")
    ]
    return Shown(
        task="text-generation",
        metric="perplexity per byte, held-out text",
        baseline=f"{bigram_perplexity(text, held_out):.2f} (byte bigrams)",
        ours=f"{ours:.2f}",
        text=tokenizer.decode(written[0])
        + "\n\nMemory of what was read: "
        + ", ".join(f"{size:,} bytes after {length} tokens" for length, size in zip(LENGTHS, sizes)),
    )


@torch.no_grad()
def memory(model: PreTrainedModel, tokenizer, text: str) -> int:
    """Bytes in the cache after the text was read."""
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    layers = model(**ids, use_cache=True).past_key_values.layers
    states = (
        state for layer in layers for kind in (layer.recurrent_states, layer.conv_states) for state in kind.values()
    )
    return sum(state.numel() * state.element_size() for state in states if state is not None)


def bigram_perplexity(text: str, held_out: str) -> float:
    """Of counts of byte pairs, smoothed with the counts of single bytes."""
    seen, new = (np.frombuffer(part.encode(), np.uint8) for part in (text, held_out))
    single = np.bincount(seen, minlength=256) + 0.1
    pairs = np.zeros((256, 256))
    np.add.at(pairs, (seen[:-1], seen[1:]), 1)
    probability = (pairs + 8 * single / single.sum()) / (pairs.sum(1, keepdims=True) + 8)
    return float(np.exp(-np.log(probability[new[:-1], new[1:]]).mean()))
