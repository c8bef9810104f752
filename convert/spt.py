"""Checkpoints of ytgui/SPT-proto's `naive_gpt` after its four upgrades: OPT or Llama with SPT, and LoRA injected by PEFT."""

from __future__ import annotations

from typing import Any

from peft import inject_adapter_in_model
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PretrainedConfig
from transformers.core_model_loading import Transpose, WeightConverter, WeightRenaming

from hf_ext.surgery.spt import apply_spt, spt_lora_config

FAMILIES = {"opt": OPTConfig, "llama": LlamaConfig}
NAMES = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "max_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
}
OWN = {"opt": {"d_feedforward": "ffn_dim", "p_dropout": "dropout"}, "llama": {"d_feedforward": "intermediate_size"}}
DEFAULTS = {"d_lora": 16, "p_dropout": 0.0}
PLACES = {"opt": "model.decoder", "llama": "model"}
MODULES = {
    "opt": {
        r"^embedding\.": "embed_tokens.",
        r"^learned_pe\.": "embed_positions.table.",
        r"^final_norm\.": "final_layer_norm.",
        r"\.mha\.linear_o\.": ".self_attn.out_proj.",
        r"\.ffd\.fc1\.": ".fc1.up.",
        r"\.ffd\.fc2\.": ".fc1.down.",
        r"\.ffd\.router\.0\.": ".fc1.router.",
        r"\.norm1\.": ".self_attn_layer_norm.",
        r"\.norm2\.": ".final_layer_norm.",
    },
    "llama": {
        r"^embedding\.": "embed_tokens.",
        r"^final_norm\.": "norm.",
        r"\.mha\.linear_o\.": ".self_attn.o_proj.",
        r"\.ffd\.side\.": ".mlp.up.",
        r"\.ffd\.(gate|down)\.": r".mlp.\1.",
        r"\.ffd\.router\.0\.": ".mlp.router.",
        r"\.norm1\.": ".input_layernorm.",
        r"\.norm2\.": ".post_attention_layernorm.",
    },
}
COMMON = {
    r"\.mha\.linear_([qkv])\.": r".self_attn.\1_proj.",
    r"\.mha\.attn_fn\.quantizer\.": ".self_attn.quantizer.",
    r"^decoders\.": "layers.",
}
# what carries LoRA, after its renaming
ADAPTED = ("_proj", "up", "down", "gate", "embed_tokens", "table", "lm_head")
IGNORE = ["*.trigger", "*.cached_ids", "*.cos_cached", "*.sin_cached"]


def config(arguments: dict[str, Any]) -> PretrainedConfig:
    """Upstream's configuration, from `family` and the arguments of the reference's `OPTModel` or `LLaMAModel`."""
    arguments = DEFAULTS | dict(arguments)
    family = arguments.pop("family", None)
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} is not one of {', '.join(FAMILIES)}")
    arguments.pop("d_lora")
    names = NAMES | OWN[family]
    if unknown := set(arguments) - set(names) - {"p_dropout"}:
        raise ValueError(f"unknown arguments {sorted(unknown)}; known: {sorted(('family', 'd_lora', *names))}")
    fields = {names[name]: value for name, value in arguments.items() if name in names}
    if family == "opt":
        fields["word_embed_proj_dim"] = fields["hidden_size"]
    return FAMILIES[family](**fields, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)


def build(arguments: dict[str, Any]) -> Any:
    model = apply_spt(AutoModelForCausalLM.from_config(config(arguments)))
    r = arguments.get("d_lora", DEFAULTS["d_lora"])
    return inject_adapter_in_model(spt_lora_config(model, r, modules_to_save=None), model)


def RULES(arguments: dict[str, Any]) -> list:
    family = arguments["family"]
    table = {**MODULES[family], **COMMON, r"^(?!lm_output)(.*)$": rf"{PLACES[family]}.\1", r"^lm_output\.": "lm_head."}
    embeddings = r"(embed_tokens|embed_positions\.table)\.lora\."
    return [
        *(WeightRenaming(source, target) for source, target in table.items()),
        WeightRenaming(embeddings + r"left\.weight$", r"\1.lora_embedding_A.left"),
        WeightRenaming(embeddings + r"right\.weight$", r"\1.lora_embedding_B.default"),
        WeightRenaming(r"\.lora\.right\.weight$", ".lora_B.default.weight"),
        *(WeightRenaming(rf"(?<={name})\.(weight|bias)$", r".base_layer.\1") for name in ADAPTED),
        WeightConverter(".lora_embedding_A.left", ".lora_embedding_A.default", operations=[Transpose(0, 1)]),
        WeightConverter(".lora.left.weight", ".lora_A.default.weight", operations=[Transpose(0, 1)]),
    ]
