"""qhfan/RMT -> RMTForImageClassification and RMTBackbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.core_model_loading import WeightConverter, WeightRenaming

from hf_ext.models.rmt import RMTConfig

from .operations import Flatten

# reference argument -> (our field, the reference's default)
FIELDS = {
    "in_chans": ("num_channels", 3),
    "num_classes": ("num_labels", 1000),
    "embed_dims": ("hidden_sizes", (96, 192, 384, 768)),
    "depths": ("depths", (2, 2, 6, 2)),
    "num_heads": ("num_attention_heads", (3, 6, 12, 24)),
    "init_values": ("decay_starts", (1, 1, 1, 1)),
    "heads_ranges": ("decay_ranges", (3, 3, 3, 3)),
    "mlp_ratios": ("mlp_ratios", (3, 3, 3, 3)),
    "drop_path_rate": ("drop_path_rate", 0.1),
    "chunkwise_recurrents": ("decomposed", (True, True, False, False)),
    "projection": ("projection_size", 1024),
    "layerscales": ("use_layer_scale", (False, False, False, False)),
    "layer_init_values": ("layer_scale_init_value", 1e-6),
    "token_label": ("token_label", False),
    "token_label_projected": (
        "token_label_projected",
        False,
    ),  # not the reference's; `complete` finds it in the weights
}
BACKBONE = ("out_indices", "norm_eval", "pretrained", "init_cfg")  # arguments of the dense models' class
UNUSED = ("norm_layer", "patch_norm", "use_checkpoint", "use_checkpoints")  # without effect on what is computed


def config(arguments: Mapping[str, Any]) -> RMTConfig:
    known = (*FIELDS, *BACKBONE, *UNUSED)
    if unknown := arguments.keys() - set(known):
        raise ValueError(f"RMT has no arguments {sorted(unknown)}; it has {', '.join(known)}")
    fields = {field: arguments.get(name, default) for name, (field, default) in FIELDS.items()}
    if is_backbone(arguments):
        fields["out_features"] = [f"stage{index + 1}" for index in sorted(out_indices(arguments))]
    return RMTConfig(**fields)


def complete(arguments: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """In the published run of RMT-S* the token labels' head reads the projected features, which its width tells."""
    head, projection = state_dict.get("aux_head.weight"), state_dict.get("proj.weight")
    if head is None or projection is None:
        return dict(arguments)
    projected, width = projection.shape
    return {**arguments, "token_label": True, "token_label_projected": head.shape[1] == projected != width}


def is_backbone(arguments: Mapping[str, Any]) -> bool:
    return any(name in arguments for name in BACKBONE)


def out_indices(arguments: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(arguments.get("out_indices", (0, 1, 2, 3)))


def model_class(arguments: Mapping[str, Any]) -> str:
    return "RMTBackbone" if is_backbone(arguments) else "RMTForImageClassification"


def IGNORE(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Phases and decays follow from the arguments; the dense models also hold norms of maps that they do not return."""
    tables = ("layers.*.Relpos.angle", "layers.*.Relpos.decay")
    if not is_backbone(arguments):
        return tables
    return (*tables, *(f"extra_norms.{i}.*" for i in range(4) if i not in out_indices(arguments)))


def RULES(arguments: Mapping[str, Any]) -> list[WeightRenaming | WeightConverter]:
    prefix = "" if is_backbone(arguments) else "rmt."
    return [
        *(
            WeightRenaming(rf"^patch_embed\.proj\.{3 * i + j}\.", f"{prefix}encoder.stem.{i}.{part}.")
            for i in range(4)
            for j, part in enumerate(("conv", "norm"))
        ),
        *(
            WeightRenaming(
                rf"^layers\.{i}\.downsample\.{theirs}\.", f"{prefix}encoder.stages.{i + 1}.downsample.{ours}."
            )
            for i in range(3)
            for theirs, ours in (("reduction", "conv"), ("norm", "norm"))
        ),
        WeightRenaming(r"^layers\.(\d)\.blocks\.", rf"{prefix}encoder.stages.\1.layers."),
        *(WeightRenaming(rf"^extra_norms\.{i}\.", f"norms.stage{i + 1}.") for i in range(4)),
        WeightRenaming(r"^proj\.", f"{prefix}pooler.projection."),
        WeightRenaming(r"^norm\.", f"{prefix}pooler.norm."),
        WeightRenaming(r"^head\.", "classifier."),
        WeightRenaming(r"^aux_head\.", "token_classifier."),
        WeightRenaming(r"\.retention_layer_norm\.", ".layernorm_before."),
        WeightRenaming(r"\.final_layer_norm\.", ".layernorm_after."),
        WeightRenaming(r"\.retention\.out_proj\.", ".attention.o_proj."),
        WeightRenaming(r"\.retention\.lepe\.conv\.", ".attention.local_enhancement."),
        WeightRenaming(r"\.retention\.", ".attention."),
        WeightRenaming(r"\.ffn\.dwconv\.conv\.", ".mlp.conv.conv."),
        WeightRenaming(r"\.ffn\.", ".mlp."),
        WeightRenaming(r"\.pos\.conv\.", ".position.conv."),
        *(
            WeightConverter(theirs, f"{ours}.weight", [Flatten()])
            for theirs, ours in (("gamma_1", "attention_scale"), ("gamma_2", "mlp_scale"))
        ),
    ]
