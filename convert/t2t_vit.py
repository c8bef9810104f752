"""yitu-opensource/T2T-ViT -> T2TViTForImageClassification."""

from __future__ import annotations

from typing import Any

from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming

from hf_ext.models.t2t_vit import T2TViTConfig

MODEL = "T2TViTForImageClassification"
UNWRAP = ("state_dict_ema", "state_dict")

# reference argument -> (our field, the reference's default)
FIELDS = {
    "img_size": ("image_size", 224),
    "tokens_type": ("token_layer", "performer"),
    "in_chans": ("num_channels", 3),
    "num_classes": ("num_labels", 1000),
    "embed_dim": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "qkv_bias": ("qkv_bias", False),
    "qk_scale": ("attention_scale", None),
    "drop_rate": ("hidden_dropout_prob", 0.0),
    "attn_drop_rate": ("attention_probs_dropout_prob", 0.0),
    "drop_path_rate": ("drop_path_rate", 0.0),
    "token_dim": ("token_size", 64),
}


def config(arguments: dict[str, Any]) -> T2TViTConfig:
    known = (*FIELDS, "mlp_ratio", "norm_layer")
    if unknown := arguments.keys() - set(known):
        raise ValueError(f"T2T-ViT has no arguments {sorted(unknown)}; it has {', '.join(known)}")
    if arguments.get("norm_layer", "LayerNorm") != "LayerNorm":
        raise ValueError(f"T2T-ViT's `norm_layer` must be 'LayerNorm', not {arguments['norm_layer']!r}")
    fields = {field: arguments.get(name, default) for name, (field, default) in FIELDS.items()}
    fields["intermediate_size"] = int(fields["hidden_size"] * arguments.get("mlp_ratio", 4.0))
    return T2TViTConfig(**fields)


T2T = "t2t_vit.embeddings.tokens_to_token"

RULES = [
    WeightRenaming(r"^cls_token$", "t2t_vit.embeddings.cls_token"),
    WeightRenaming(r"^pos_embed$", "t2t_vit.embeddings.position_embeddings"),
    WeightRenaming(r"^tokens_to_token\.project\.", f"{T2T}.projection."),
    WeightRenaming(r"^tokens_to_token\.attention1\.(attn\.)?", f"{T2T}.layers.0."),
    WeightRenaming(r"^tokens_to_token\.attention2\.(attn\.)?", f"{T2T}.layers.1."),
    WeightRenaming(r"(tokens_to_token\.layers\.\d\.)mlp\.", r"\1"),
    WeightRenaming(r"(tokens_to_token\.layers\.\d\.)0\.", r"\1fc1."),
    WeightRenaming(r"(tokens_to_token\.layers\.\d\.)2\.", r"\1fc2."),
    WeightRenaming(r"(tokens_to_token\.layers\.\d\.)proj\.", r"\1o_proj."),
    WeightRenaming(r"(tokens_to_token\.layers\.\d\.)w$", r"\1random_features"),
    WeightRenaming(r"^blocks\.", "t2t_vit.layers."),
    WeightRenaming(r"^norm\.", "t2t_vit.layernorm."),
    WeightRenaming(r"^head\.", "classifier."),
    WeightRenaming(r"\.norm1\.", ".layernorm_before."),
    WeightRenaming(r"\.norm2\.", ".layernorm_after."),
    WeightRenaming(r"\.attn\.proj\.", ".attn.o_proj."),
    WeightRenaming(r"\.attn\.", ".attention."),
    *(
        WeightConverter(f"{order}.{kind}", [f"{name}_proj.{kind}" for name in order], operations=[Chunk(dim=0)])
        for order in ("qkv", "kqv")  # rows of a fused projection; a performer has the keys first
        for kind in ("weight", "bias")
    ),
]
