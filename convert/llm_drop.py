"""LLM-Drop checkpoints: a dense model's tensors and two lists, `drop_attn_list` and `drop_mlp_list`, in config.json."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_ext.surgery import surgical_config
from hf_ext.surgery.families import FAMILIES
from hf_ext.surgery.llm_drop import LlmDrop

RULES: list = []
REMOTE_CODE = ("auto_map", "architectures")


def indices(listed: list[bool] | list[int] | None) -> list[int]:
    """Layer indices from a list of indices or, as the authors save them, of one boolean per layer."""
    if listed and all(isinstance(value, bool) for value in listed):
        return [index for index, dropped in enumerate(listed) if dropped]
    return list(listed or [])


def recipe(arguments: dict[str, Any]) -> LlmDrop:
    return LlmDrop(attention=indices(arguments.get("drop_attn_list")), mlp=indices(arguments.get("drop_mlp_list")))


def config(arguments: dict[str, Any]) -> Any:
    """The base model's configuration, and the recipe in `surgery` where the lists name a layer."""
    own = ("model_type", "drop_attn_list", "drop_mlp_list", *REMOTE_CODE)
    fields = {name: value for name, value in arguments.items() if name not in own}
    model_type = arguments.get("model_type", "llama")
    drop = recipe(arguments)
    if not drop.attention and not drop.mlp:
        return CONFIG_MAPPING[model_type](**fields)
    return surgical_config(model_type)(**fields, surgery=[drop.to_dict()])


def build(arguments: dict[str, Any]) -> Any:
    return AutoModelForCausalLM.from_config(config(arguments))


def IGNORE(arguments: dict[str, Any]) -> list[str]:
    """The dense tensors of dropped modules, which released checkpoints often still hold."""
    family = FAMILIES[arguments.get("model_type", "llama")]
    drop = recipe(arguments)
    return [
        f"*.{family.layers}.{index}.{module}.*"
        for branch, dropped in ((family.attention, drop.attention), (family.mlp, drop.mlp))
        for index in dropped
        for module in branch.modules
    ] + ["*.rotary_emb.inv_freq"]
