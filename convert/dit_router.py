"""The state dict of the definition of DiT with dynamic token routing -> DynamicTokenRoutingForImageClassification. The authors published
no checkpoints. (`from_pvt_v2` of that class starts from a checkpoint of PVTv2.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.core_model_loading import WeightRenaming

from hf_ext.models.dit_router import DynamicTokenRoutingConfig

# arguments that are fields of ours under the same name and with the same default
FIELDS = (
    "num_channels",
    "hidden_sizes",
    "num_attention_heads",
    "mlp_ratios",
    "sr_ratios",
    "depths",
    "extra_depth",
    "qkv_bias",
    "layer_norm_eps",
    "budget",
    "router_loss_coef",
    "routing",
)
MODEL = "DynamicTokenRoutingForImageClassification"
RULES = [
    WeightRenaming(r"^(patch_embedding|stages|scaling)\.", r"dit_router.encoder.\1."),
    WeightRenaming(r"^layer_norms\.", "dit_router.layer_norms."),
]


def config(arguments: Mapping[str, Any]) -> DynamicTokenRoutingConfig:
    known = (*FIELDS, "num_classes", "num_labels")
    if unknown := arguments.keys() - set(known):
        raise ValueError(
            f"DiT with dynamic token routing has no arguments {sorted(unknown)}; it has {', '.join(known)}"
        )
    fields = {name: arguments[name] for name in FIELDS if name in arguments}
    return DynamicTokenRoutingConfig(
        **fields, num_labels=arguments.get("num_classes", arguments.get("num_labels", 1000))
    )
