"""DualToken-ViT in the layout of a plain implementation (the authors published none) -> DualTokenViTForImageClassification, or
DualTokenViTBackbone with `out_features`."""

from __future__ import annotations

from typing import Any

from transformers.core_model_loading import WeightRenaming

from hf_ext.models.dualtoken_vit import DualTokenViTConfig

# arguments that are fields of ours, with their defaults
FIELDS = {
    "num_channels": 3,
    "hidden_sizes": (64, 128, 256),
    "depths": (2, 6, 6),
    "num_heads": (2, 4, 8),
    "mlp_ratios": (8, 4, 4),
    "conv_kernel_size": 7,
    "conv_ratio": 1.0,
    "global_mixer": "mix",
    "global_grid": 7,
    "global_weight": 0.5,
    "qkv_bias": True,
    "neck_dim": 1280,
    "num_labels": 1000,
    "drop_path_rate": 0.1,
}


def config(arguments: dict[str, Any]) -> DualTokenViTConfig:
    known = (*FIELDS, "out_features")
    if unknown := arguments.keys() - set(known):
        raise ValueError(f"DualToken-ViT has no arguments {sorted(unknown)}; it has {', '.join(known)}")
    fields = {name: arguments.get(name, default) for name, default in FIELDS.items()}
    fields["num_attention_heads"] = fields.pop("num_heads")
    stages = arguments.get("out_features")
    return DualTokenViTConfig(**fields, out_indices=None if stages is None else [stage + 1 for stage in stages])


def model_class(arguments: dict[str, Any]) -> str:
    backbone = arguments.get("out_features") is not None
    return "DualTokenViTBackbone" if backbone else "DualTokenViTForImageClassification"


def RULES(arguments: dict[str, Any]) -> list[WeightRenaming]:
    return [
        *(
            WeightRenaming(rf"^out_norms\.{i}\.", f"hidden_states_norms.stage{stage + 1}.")
            for i, stage in enumerate(arguments.get("out_features") or ())
        ),
        *(WeightRenaming(rf"^patch_embed\.stem\.{3 * i}\.", f"patch_embed.stem_.{i}.conv.") for i in range(4)),
        *(WeightRenaming(rf"^patch_embed\.stem\.{3 * i + 1}\.", f"patch_embed.stem_.{i}.norm.") for i in range(4)),
        WeightRenaming(r"^patch_embed\.stem_\.", "patch_embed.stem."),
        WeightRenaming(r"^head\.", "classifier."),
        WeightRenaming(r"^(patch_embed|global_tokens|stages|norm|neck)", r"dualtoken_vit.\1"),
    ]
