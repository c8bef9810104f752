"""bytedance/Next-ViT -> NextViTForImageClassification and NextViTBackbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.core_model_loading import WeightRenaming

from hf_ext.models.nextvit import NextViTConfig

# reference argument -> (our field, the reference's default; None: it has none)
FIELDS = {
    "stem_chs": ("stem_sizes", None),
    "depths": ("depths", None),
    "path_dropout": ("drop_path_rate", None),
    "attn_drop": ("attention_probs_dropout_prob", 0.0),
    "drop": ("hidden_dropout_prob", 0.0),
    "num_classes": ("num_labels", 1000),
    "strides": ("strides", (1, 2, 2, 2)),
    "sr_ratios": ("sr_ratios", (8, 4, 2, 1)),
    "head_dim": ("head_dim", 32),
    "mix_block_ratio": ("mix_block_ratio", 0.75),
}
# Arguments of the backbones; the first marks a backbone in a case, where their own class would.
BACKBONE = ("features_only", "with_extra_norm", "frozen_stages", "norm_eval", "norm_cfg", "resume")
UNUSED = ("use_checkpoint",)  # a way to train, without effect on what is computed


def config(arguments: Mapping[str, Any]) -> NextViTConfig:
    known = (*FIELDS, *BACKBONE, *UNUSED)
    if unknown := arguments.keys() - set(known):
        raise ValueError(f"Next-ViT has no arguments {sorted(unknown)}; it has {', '.join(known)}")
    if missing := [name for name, (_, default) in FIELDS.items() if default is None and name not in arguments]:
        raise ValueError(f"Next-ViT needs the arguments {', '.join(missing)}")
    fields = {field: arguments.get(name, default) for name, (field, default) in FIELDS.items()}
    if is_backbone(arguments):
        fields |= {
            "extra_norms": arguments.get("with_extra_norm", True),
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        }
    return NextViTConfig(**fields)


def is_backbone(arguments: Mapping[str, Any]) -> bool:
    """`features_only` decides; without it, any other argument that only the backbones have."""
    return bool(arguments.get("features_only", any(name in arguments for name in BACKBONE)))


def model_class(arguments: Mapping[str, Any]) -> str:
    return "NextViTBackbone" if is_backbone(arguments) else "NextViTForImageClassification"


def RULES(arguments: Mapping[str, Any]) -> list[WeightRenaming]:
    prefix = "" if is_backbone(arguments) else "nextvit."
    blocks = ((stage, block) for stage, depth in enumerate(arguments["depths"]) for block in range(depth))
    return [
        *(
            WeightRenaming(rf"^features\.{index}\.", f"{prefix}encoder.stages.{stage}.layers.{block}.")
            for index, (stage, block) in enumerate(blocks)
        ),
        WeightRenaming(r"^stem\.", f"{prefix}encoder.stem."),
        WeightRenaming(r"^norm\.", f"{prefix}encoder.stages.3.norm."),
        WeightRenaming(r"^extra_norm_list\.(\d)\.", rf"{prefix}encoder.stages.\1.norm."),
        WeightRenaming(r"^proj_head\.0\.", "classifier."),
        WeightRenaming(r"\.patch_embed\.", ".patch_embedding."),
        WeightRenaming(r"\.mhca\.group_conv3x3\.", ".convolutional_attention.conv.conv."),
        WeightRenaming(r"\.mhca\.norm\.", ".convolutional_attention.conv.norm."),
        WeightRenaming(r"\.mhca\.projection\.", ".convolutional_attention.projection."),
        WeightRenaming(r"\.mlp\.conv(\d)\.", r".mlp.fc\1."),
        WeightRenaming(r"\.norm1\.", ".norm_before."),
        WeightRenaming(r"\.norm2\.", ".norm_after."),
        WeightRenaming(r"\.e_mhsa\.norm\.", ".attention.norm."),
        WeightRenaming(r"\.e_mhsa\.(q|k|v)\.", r".attention.\1_proj."),
        WeightRenaming(r"\.e_mhsa\.proj\.", ".attention.o_proj."),
    ]


def IGNORE(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """The authors' segmenters hold a norm for the last stage that they never apply; `norm` is applied there instead."""
    return ("extra_norm_list.3.*",) if arguments.get("with_extra_norm", True) else ()
