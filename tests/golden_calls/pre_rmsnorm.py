"""The three norms as functions; a converted ViT, GPT or GPT-2, and its parameters under the reference's names."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F

from hf_ext.convert import convert_checkpoint
from hf_ext.layers.mean_free import drop_last_input
from hf_ext.ops.rms_norm import rms_norm
from hf_ext.surgery.pre_rmsnorm import convert_pre_ln
from tests.goldens import call_arguments


@torch.no_grad()
def run(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    call = call_arguments(case)
    if "layer_norm" in call:
        return norms(call)
    source = convert_checkpoint("pre_rmsnorm", case["state_dict"], case["arguments"])
    variants = {name: convert_pre_ln(source, name, fold_affine=True).eval() for name in ("rms", "crms")}
    found = {f"logits_{name}": model(**call).logits for name, model in variants.items()}
    found |= (
        {"logits": found["logits_rms"]} if "logits_rms" not in case["outputs"] else {"logits": source(**call).logits}
    )
    for name, model in variants.items():
        if any(key.startswith("converted.") for key in case["expect"]):
            found |= {f"converted.{name}.{key}": x for key, x in reference_state(model, name == "crms").items()}
    return found


def norms(call: dict[str, Any]) -> dict[str, torch.Tensor]:
    states, eps = {name: call[name]["hidden_states"] for name in ("layer_norm", "rms_norm", "crms_norm")}, call["eps"]
    return {
        "layer_norm": F.layer_norm(states["layer_norm"], states["layer_norm"].shape[-1:], eps=eps),
        "rms_norm": rms_norm(states["rms_norm"], eps=eps),
        "crms_norm": rms_norm(states["crms_norm"], eps=eps, compressed=True),
    }


def reference_state(model: Any, compressed: bool) -> dict[str, torch.Tensor]:
    """The parameters of a converted model under the reference's names."""
    is_vit = hasattr(model, "vit")
    head = deepcopy(model.classifier if is_vit else model.lm_head)
    if compressed:
        drop_last_input(head)
    return (vit_state if is_vit else gpt_state)(model.base_model, compressed) | named(
        "mlp_head.1" if is_vit else "final_linear", head.weight, head.bias
    )


def named(name: str, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def vit_state(vit: Any, compressed: bool) -> dict[str, torch.Tensor]:
    embeddings = vit.embeddings
    kernel = embeddings.patch_embeddings.projection
    state = {"pos_embedding": embeddings.position_embeddings[:, 1:], "cls_token": embeddings.cls_token}
    state |= named("to_patch_embedding.1", kernel.weight.permute(0, 2, 3, 1).flatten(1), kernel.bias)
    for i, layer in enumerate(vit.layers):
        parts = [getattr(layer.attention, f"{part}_proj") for part in "qkv"]
        qkv = [torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "bias")]
        state |= named(f"transformer.layers.{i}.1.to_qkv", *qkv)
        for name, linear in (
            ("1.to_out", layer.attention.o_proj),
            ("3.net.0", layer.mlp.fc1),
            ("3.net.2", layer.mlp.fc2),
        ):
            state |= named(f"transformer.layers.{i}.{name}", linear.weight, linear.bias)
    return state


def gpt_state(gpt: Any, compressed: bool) -> dict[str, torch.Tensor]:
    width = -1 if compressed else None  # the last channel is dropped in the first layer, not in the tables
    state = {f"{name}.weight": getattr(gpt, name).weight[:, :width] for name in ("wte", "wpe")}
    for i, block in enumerate(gpt.h):
        linears = {
            "1.to_qkv": block.attn.c_attn,
            "1.to_out": block.attn.c_proj,
            "3.net.0": block.mlp.c_fc,
            "3.net.2": block.mlp.c_proj,
        }
        for name, linear in linears.items():
            state |= named(f"transformer.layers.{i}.{name}", linear.weight.T, linear.bias)
    return state
