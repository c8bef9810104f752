"""IBM/CrossViT (and timm's `crossvit_*`, whose names differ in one character) -> CrossVitForImageClassification."""

from __future__ import annotations

from typing import Any

from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming

from hf_ext.models.crossvit import CrossVitConfig

MODEL = "CrossVitForImageClassification"

# reference argument -> (our field, the reference's default)
FIELDS = {
    "img_size": ("image_sizes", (224, 224)),
    "patch_size": ("patch_sizes", (8, 16)),
    "in_chans": ("num_channels", 3),
    "num_classes": ("num_labels", 1000),
    "embed_dim": ("hidden_sizes", (192, 384)),
    "depth": ("depths", ((1, 3, 1), (1, 3, 1), (1, 3, 1))),
    "num_heads": ("num_attention_heads", (6, 12)),
    "mlp_ratio": ("mlp_ratios", (2.0, 2.0, 4.0)),
    "qkv_bias": ("qkv_bias", False),
    "qk_scale": ("cross_attention_scale", None),
    "drop_rate": ("hidden_dropout_prob", 0.0),
    "attn_drop_rate": ("attention_probs_dropout_prob", 0.0),
    "drop_path_rate": ("drop_path_rate", 0.0),
    "norm_eps": ("layer_norm_eps", 1e-5),
}
PATCH_EMBEDDING = ("hybrid_backbone", "multi_conv")


def config(arguments: dict[str, Any]) -> CrossVitConfig:
    if unknown := arguments.keys() - FIELDS.keys() - set(PATCH_EMBEDDING):
        raise ValueError(
            f"CrossViT has no arguments {sorted(unknown)}; it has {', '.join((*FIELDS, *PATCH_EMBEDDING))}"
        )
    fields = {field: arguments.get(name, default) for name, (field, default) in FIELDS.items()}
    branches = len(fields["patch_sizes"])
    if isinstance(fields["image_sizes"], int):
        fields["image_sizes"] = [fields["image_sizes"]] * branches
    fields["mlp_ratios"] = fields["mlp_ratios"][:branches]  # a further entry is for cross-attention, which has no MLP
    hybrid, multi_conv = arguments.get("hybrid_backbone"), arguments.get("multi_conv", False)
    if hybrid is not None:
        fields["patch_embedding"] = "t2t_transformer" if hybrid == "t2t" else "t2t_performer"
    else:
        fields["patch_embedding"] = "conv_stem" if multi_conv else "linear"
    return CrossVitConfig(**fields)


RULES = [
    WeightRenaming(r"^patch_embed\.(\d+)\.", r"crossvit.embeddings.\1.patch_embeddings."),
    WeightRenaming(r"^pos_embed[._](\d+)", r"crossvit.embeddings.\1.position_embeddings"),
    WeightRenaming(r"^cls_token[._](\d+)", r"crossvit.embeddings.\1.cls_token"),
    WeightRenaming(r"^norm\.", "crossvit.layernorms."),
    WeightRenaming(r"^head\.", "classifiers."),
    WeightRenaming(r"^blocks\.", "crossvit.stages."),
    WeightRenaming(r"\.blocks\.", ".branches."),
    WeightRenaming(r"\.projs\.(\d+)\.", r".fusions.\1.projection."),
    WeightRenaming(r"\.revert_projs\.(\d+)\.", r".fusions.\1.back_projection."),
    WeightRenaming(r"\.fusion\.(\d+)\.", r".fusions.\1.layers."),
    WeightRenaming(r"\.layers\.(norm1|attn)\.", r".layers.0.\1."),  # one cross-attention layer, which is in no list
    WeightRenaming(r"(\.layers\.\d+\.)norm1\.", r"\1layernorm."),
    WeightRenaming(r"\.norm1\.", ".layernorm_before."),
    WeightRenaming(r"\.norm2\.", ".layernorm_after."),
    WeightRenaming(r"\.attn\.w([qkv])\.", r".attn.\1_proj."),
    # the Tokens-to-Token module, where there is one
    WeightRenaming(r"\.patch_embeddings\.attention1\.(attn\.)?", ".patch_embeddings.layers.0."),
    WeightRenaming(r"\.patch_embeddings\.attention2\.(attn\.)?", ".patch_embeddings.layers.1."),
    WeightRenaming(r"(\.patch_embeddings\.layers\.\d\.)mlp\.", r"\1"),
    WeightRenaming(r"(\.patch_embeddings\.layers\.\d\.)0\.", r"\1fc1."),
    WeightRenaming(r"(\.patch_embeddings\.layers\.\d\.)2\.", r"\1fc2."),
    WeightRenaming(r"(\.patch_embeddings\.layers\.\d\.)proj\.", r"\1o_proj."),
    WeightRenaming(r"(\.patch_embeddings\.layers\.\d\.)w$", r"\1random_features"),
    WeightRenaming(r"\.patch_embeddings\.proj\.", ".patch_embeddings."),
    WeightRenaming(r"\.patch_embeddings\.project\.", ".patch_embeddings.projection."),
    WeightRenaming(r"\.attn\.proj\.", ".attn.o_proj."),
    WeightRenaming(r"\.attn\.", ".attention."),
    *(
        WeightConverter(f"{order}.{kind}", [f"{name}_proj.{kind}" for name in order], operations=[Chunk(dim=0)])
        for order in ("qkv", "kqv")  # rows of a fused projection; the T2T performer has keys first
        for kind in ("weight", "bias")
    ),
]
