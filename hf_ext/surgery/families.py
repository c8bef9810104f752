"""Where the layers of a model family are, and what a layer is made of. Recipes read this table instead of the model's code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Branch:
    """One residual branch of a layer: x + norm_out(module(norm_in(x))); names are attributes of the layer."""

    norm_in: str
    module: str
    norm_out: str | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(name for name in (self.norm_in, self.module, self.norm_out) if name)


@dataclass(frozen=True)
class Family:
    """`layers`: attribute of the base model. `positional`: what the base model passes to a layer unnamed, after the hidden states."""

    layers: str
    attention: Branch
    mlp: Branch
    positional: tuple[str, ...] = ()


LLAMA_LIKE = Family(
    layers="layers",
    attention=Branch("input_layernorm", "self_attn"),
    mlp=Branch("post_attention_layernorm", "mlp"),
)

FAMILIES: dict[str, Family] = {
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "gemma2": Family(
        layers="layers",
        attention=Branch("input_layernorm", "self_attn", "post_attention_layernorm"),
        mlp=Branch("pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm"),
    ),
    "gpt2": Family(
        layers="h",
        attention=Branch("ln_1", "attn"),
        mlp=Branch("ln_2", "mlp"),
        positional=("past_key_values", "attention_mask", "encoder_hidden_states"),
    ),
}


def family_of(model: Any) -> Family:
    """The family of a model, changed already or not; a ValueError that lists the known ones otherwise."""
    model_type = model.config.model_type.removeprefix("surgical_")
    if model_type not in FAMILIES:
        raise ValueError(f"Surgery is not known for the model type '{model_type}'; it is for {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def layers_of(model: Any) -> Any:
    """The `ModuleList` of layers, of a base model or of one with a head."""
    return getattr(model.base_model, family_of(model).layers)
