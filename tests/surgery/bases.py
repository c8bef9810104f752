"""The four bases that every recipe is held against: a small model with a head, its inputs, and the Auto class that restores it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertConfig, GPT2Config, LlamaConfig, ViTConfig

from hf_ext.surgery import surgical_class, surgical_config
from tests.passport import Subject
from tests.tiny import images, tokens

LAYERS, HIDDEN, HEADS, MLP = 4, 32, 4, 48
TEXT = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
WIDTHS = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": MLP,
}

# base -> Auto class, configuration
BASES: dict[str, tuple[str, Any]] = {
    "gpt2": (
        "AutoModelForCausalLM",
        GPT2Config(
            n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_inner=MLP, n_positions=64, **TEXT,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
        ),
    ),
    "llama": (
        "AutoModelForCausalLM",
        LlamaConfig(**WIDTHS, **TEXT, num_key_value_heads=2, max_position_embeddings=64),
    ),
    "bert": (
        "AutoModelForSequenceClassification",
        BertConfig(**WIDTHS, **NO_DROPOUT, **TEXT, max_position_embeddings=64, num_labels=3),
    ),
    "vit": (
        "AutoModelForImageClassification",
        ViTConfig(**WIDTHS, **NO_DROPOUT, image_size=16, patch_size=4, num_labels=3),
    ),
}  # fmt: skip


def inputs_of(base: str) -> dict[str, torch.Tensor]:
    if base == "vit":
        return {"pixel_values": images(16), "labels": torch.tensor([0, 2])}
    ids = tokens(TEXT["vocab_size"])
    if base == "bert":
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 2])}
    return {"input_ids": ids, "labels": ids, "use_cache": False}


def base_class(base: str) -> type:
    import transformers

    auto, config = BASES[base]
    return getattr(transformers, auto)._model_mapping[type(config)]


def build(base: str, seed: int = 0) -> Any:
    """The untouched model, no weight at its initial value."""
    return Subject(base_class(base), BASES[base][1], inputs_of(base)).build(seed)


def surgical_subject(base: str, surgery: list[dict[str, Any]]) -> Subject:
    """The base after the changes that config.json would list."""
    auto, config = BASES[base]
    fields = config.to_dict()
    changed = surgical_config(fields.pop("model_type")).from_dict(fields | {"surgery": surgery})
    return Subject(surgical_class(base_class(base)), changed, inputs_of(base), (auto,))
