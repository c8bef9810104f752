"""One fused linear layer, the influence of each block, the groups of a fusion, and the fitting of one."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from hf_ext.surgery.families import layers_of
from hf_ext.surgery.fusegpt import (
    FuseLinear,
    Sample,
    fit_group,
    fuse,
    fusion_group,
    linears_of,
    record,
    similarity_without,
)
from hf_ext.surgery.fusegpt import run as run_layers
from tests.goldens import call_arguments

NAMES = {
    r"lora_([AB])$": r"low_rank_\1",
    r"fuse_coef_b$": "coef_bias",
    r"coef_list\.(\d+)\.1$": r"fused.\1.coef_right",
    r"coef_list\.(\d+)(\.0)?$": r"fused.\1.coef",
}  # the reference's -> ours


def run(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    arguments = case["arguments"]
    if "in_features" in arguments:
        return fuse_linear(case)
    if "group" in arguments:
        return fuse_update(case)
    return macro_influence(case) if "vocab_size" in arguments else groups(case)


def load(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Loads the reference's tensors; it does not keep the removed weights among them."""
    for pattern, name in NAMES.items():
        state = {re.sub(pattern, name, key): value for key, value in state.items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected and all(re.search(r"fused\.\d+\.weight$|fused_bias$", name) for name in missing)


@torch.no_grad()
def fuse_linear(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    arguments, call = case["arguments"], call_arguments(case)
    linear = nn.Linear(arguments["in_features"], arguments["out_features"], bias=arguments["bias"])
    fused = FuseLinear(linear, len(case["state_dict"]["lora_A"]))
    for index in range(arguments["num_fused"]):
        bias = call.get("add_bias")
        fused.add(call["add_weight"][str(index)], bias, arguments["coef_mode"], arguments["lora_rank"])
    load(fused, case["state_dict"])
    return {"output": fused(call["hidden_states"]), "merged_weight": fused.merged_weight()}


def macro_influence(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    model = LlamaForCausalLM(LlamaConfig(**case["arguments"]))
    model.load_state_dict(case["state_dict"])
    similarity = similarity_without(model, [call_arguments(case)])
    return {"similarity": similarity, "removal_order": similarity.argsort(descending=True, stable=True)}


def groups(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    call = call_arguments(case)
    rows = [fusion_group(i, call["num_layers"], call["group_size"]) for i in call["fuse_index"].flatten().tolist()]
    return {"group": torch.tensor(rows)}


def fuse_update(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    arguments, call = case["arguments"], call_arguments(case)
    model = LlamaModel(LlamaConfig(**arguments["config"])).eval()
    layers, places, index = layers_of(model), arguments["group"], arguments["fuse_index"]
    linears = linears_of(layers[index])
    for name, linear in linears.items():
        for attribute, value in dict_at(call["fused"], name).items():
            getattr(linear, attribute).data = value
    rest = nn.ModuleList(layers[i] for i in places if i != index)
    rank = next(len(tensor) for name, tensor in case["state_dict"].items() if name.endswith("lora_A"))
    fuse(layers[index], rest, arguments.get("coef_mode", "lora"), arguments["lora_rank"], rank)
    load(rest, case["state_dict"])
    hidden, target = call["hidden_states"], call["target_hidden_states"]
    found = record(model, {"inputs_embeds": hidden[0]})
    calls = [found.calls[i] for i in places if i != index]
    keep = torch.ones(*hidden.shape[1:3], 1, dtype=torch.bool)
    with torch.no_grad():
        initial = torch.stack([run_layers(rest, calls, x) for x in hidden])
    samples = [Sample(x, y, keep, calls) for x, y in zip(hidden, target)]
    losses = fit_group(rest, samples, epochs=call["epochs"], coef_lr=call["coef_lr"])
    with torch.no_grad():
        final = torch.stack([run_layers(rest, calls, x) for x in hidden])
    merged = {
        f"merged.{name}.weight": linear.merged_weight()
        for name, linear in linears_of(rest).items()
        if isinstance(linear, FuseLinear)
    }
    return {
        "target": target,
        "hidden_states_initial": initial,
        "hidden_states": final,
        "losses": torch.tensor(losses),
        **merged,
    }


def dict_at(tree: dict[str, Any], path: str) -> dict[str, Any]:
    for key in path.split("."):
        tree = tree[key]
    return tree
