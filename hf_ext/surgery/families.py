"""Where the layers of a model family are, and what a layer is made of. Recipes read this table instead of the model's code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Branch:
    """One residual branch of a layer: x + norm_out(module(norm_in(x))), or norm_out(x + module(x)) where there is no norm_in.

    Attributes:
        norm_in, norm_out: norms, by attribute of the layer.
        module: the attribute of the layer that holds the branch and nothing else; None where the layer holds its parts itself.
        inputs: the linear layers that read the normed input; for an attention, queries, keys and values, or one for all three; for an
            MLP, the one that is activated first. All names are seen from the layer.
        output: the linear layer that ends the branch.
        per_unit: what else has parameters for each head, or for each hidden channel of the MLP.
    """

    norm_in: str | None
    module: str | None
    norm_out: str | None = None
    inputs: tuple[str, ...] = ()
    output: str = ""
    per_unit: tuple[str, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(name for name in (self.norm_in, self.module, self.norm_out) if name)


@dataclass(frozen=True)
class Family:
    """A model type.

    Attributes:
        layers: from the base model, "*" for each element of a list.
        norm: the final norm, from the base model.
        positional: what the base model passes to a layer unnamed, after the hidden states.
        plain: whether a layer is its two branches and nothing else, each in a module of its own.
    """

    layers: str
    attention: Branch
    mlp: Branch
    norm: str | None = None
    positional: tuple[str, ...] = ()
    plain: bool = True

    @property
    def post_norm(self) -> bool:
        """Whether a norm follows the residual sum."""
        return self.attention.norm_in is None


LLAMA_LIKE = Family(
    layers="layers",
    attention=Branch(
        "input_layernorm",
        "self_attn",
        inputs=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        output="self_attn.o_proj",
    ),
    mlp=Branch("post_attention_layernorm", "mlp", inputs=("mlp.gate_proj", "mlp.up_proj"), output="mlp.down_proj"),
    norm="norm",
)
VIT_LIKE = Family(
    layers="layers",
    attention=Branch(
        "layernorm_before",
        "attention",
        inputs=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        output="attention.o_proj",
    ),
    mlp=Branch("layernorm_after", "mlp", inputs=("mlp.fc1",), output="mlp.fc2"),
    norm="layernorm",
)
SWIN = replace(
    VIT_LIKE,
    layers="encoder.layers.*.blocks",
    attention=replace(VIT_LIKE.attention, per_unit=("attention.relative_position_bias",)),
    plain=False,
)
BERT_LIKE = Family(
    layers="encoder.layer",
    attention=Branch(
        None,
        "attention",
        norm_out="attention.output.LayerNorm",
        inputs=("attention.self.query", "attention.self.key", "attention.self.value"),
        output="attention.output.dense",
    ),
    mlp=Branch(None, None, norm_out="output.LayerNorm", inputs=("intermediate.dense",), output="output.dense"),
    plain=False,
)

FAMILIES: dict[str, Family] = {
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "gemma2": replace(
        LLAMA_LIKE,
        attention=replace(LLAMA_LIKE.attention, norm_out="post_attention_layernorm"),
        mlp=replace(LLAMA_LIKE.mlp, norm_in="pre_feedforward_layernorm", norm_out="post_feedforward_layernorm"),
    ),
    "gpt2": Family(
        layers="h",
        attention=Branch("ln_1", "attn", inputs=("attn.c_attn",), output="attn.c_proj"),
        mlp=Branch("ln_2", "mlp", inputs=("mlp.c_fc",), output="mlp.c_proj"),
        norm="ln_f",
        positional=("past_key_values", "attention_mask", "encoder_hidden_states"),
    ),
    "opt": Family(
        layers="decoder.layers",
        attention=Branch(
            "self_attn_layer_norm",
            "self_attn",
            inputs=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            output="self_attn.out_proj",
        ),
        mlp=Branch("final_layer_norm", None, inputs=("fc1",), output="fc2"),
        norm="decoder.final_layer_norm",
        plain=False,
    ),
    "vit": VIT_LIKE,
    "deit": VIT_LIKE,
    "swin": SWIN,
    # these two where their backbone is a Swin
    "mask2former": replace(SWIN, layers="pixel_level_module.encoder.swin.encoder.layers.*.blocks"),
    "upernet": replace(SWIN, layers="backbone.swin.encoder.layers.*.blocks"),
    "segformer": replace(
        VIT_LIKE,
        layers="stages.*.blocks",
        mlp=replace(VIT_LIKE.mlp, per_unit=("mlp.dwconv.dwconv",)),
        plain=False,
    ),
    "bert": BERT_LIKE,
    "roberta": BERT_LIKE,
}


def family_of(model: Any) -> Family:
    """The family of a model, changed already or not; a ValueError that lists the known ones otherwise."""
    model_type = model.config.model_type.removeprefix("surgical_")
    if model_type not in FAMILIES:
        raise ValueError(f"Surgery is not known for the model type '{model_type}'; it is for {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def layers_of(model: Any) -> list[nn.Module]:
    """The layers in the order in which they run, of a base model or of one with a head."""
    return list(_found(model.base_model, family_of(model).layers.split(".")))


def assign_cache_entries(config: Any, layers: list[nn.Module], attention: str) -> None:
    """Gives the attention of each layer that has one the first free cache entry of the layer's type.

    Entry 0 must be in use: the cache takes its length from there.
    """
    types = getattr(config, "layer_types", None) or ["full_attention"] * len(layers)
    free = {kind: iter([i for i, other in enumerate(types) if other == kind]) for kind in set(types)}
    kept = [
        (getattr(layer, attention), kind) for layer, kind in zip(layers, types) if getattr(layer, attention) is not None
    ]
    numbered = [([m for m in module.modules() if hasattr(m, "layer_idx")], kind) for module, kind in kept]
    if numbered and not numbered[0][0]:
        return  # an encoder: there is no cache
    if types[0] not in {kind for _, kind in kept}:
        of_type = f" of type '{types[0]}'" if len(free) > 1 else ""
        raise ValueError(
            f"A model cannot drop every attention{of_type}: positions are counted by the first one's cache"
        )
    for modules, kind in numbered:
        entry = next(free[kind])
        for module in modules:
            module.layer_idx = entry


def _found(module: nn.Module, path: list[str]) -> Iterator[nn.Module]:
    if not path:
        yield from module
    elif path[0] == "*":
        for child in module:
            yield from _found(child, path[1:])
    else:
        yield from _found(getattr(module, path[0]), path[1:])
