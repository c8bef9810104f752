"""PixArt-α and PixArt-δ checkpoints of the authors -> Diffusers models.

Reference: PixArt-alpha/PixArt-alpha: `PixArt-XL-2-*.pth`, `PixArt-XL-2-{512,1024}-ControlNet.pth` and `ControlNetHED.pth`.
`arguments["model"]` names the reference class: PixArt, PixArtMS, ControlPixArtHalf, ControlPixArtMSHalf or ControlNetHED_Apache2.
"""

from __future__ import annotations

from typing import Any

from diffusers import ModelMixin, PixArtTransformer2DModel
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming, WeightTransform

from hf_ext.models.pixart_delta import PixArtControlNetTransformer2DModel, PixArtHEDDetector

MODELS: dict[str, type[ModelMixin]] = {
    "PixArt": PixArtTransformer2DModel,
    "PixArtMS": PixArtTransformer2DModel,
    "ControlPixArtHalf": PixArtControlNetTransformer2DModel,
    "ControlPixArtMSHalf": PixArtControlNetTransformer2DModel,
    "ControlNetHED_Apache2": PixArtHEDDetector,
}

# The reference's constructor arguments and their defaults; those of training and of sizing buffers have no field here
DEFAULTS: dict[str, Any] = {
    "base": "PixArtMS",
    "input_size": 32,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 1152,
    "depth": 28,
    "num_heads": 16,
    "mlp_ratio": 4.0,
    "class_dropout_prob": 0.1,
    "learn_sigma": True,
    "pred_sigma": True,
    "drop_path": 0.0,
    "window_size": 0,
    "window_block_indexes": None,
    "use_rel_pos": False,
    "caption_channels": 4096,
    "lewei_scale": 1.0,
    "config": None,
    "model_max_length": 120,
    "copy_blocks_num": 13,
}
# What no released model uses and the Diffusers class cannot express
FIXED = {"mlp_ratio": 4.0, "window_size": 0, "use_rel_pos": False}

UNWRAP = ("state_dict",)


def _model(arguments: dict[str, Any]) -> str:
    name = arguments.get("model")
    if name not in MODELS:
        raise ValueError(f"arguments['model'] is {name!r}; it names the reference class, one of {', '.join(MODELS)}")
    return name


def config(arguments: dict[str, Any]) -> dict[str, Any]:
    """The constructor arguments of our model, from the reference's."""
    name = _model(arguments)
    if unknown := sorted(set(arguments) - {"model", *DEFAULTS}):
        raise ValueError(f"Unknown arguments {', '.join(unknown)}; the reference knows model, {', '.join(DEFAULTS)}")
    if name == "ControlNetHED_Apache2":
        return {}
    reference = DEFAULTS | arguments
    for field, value in FIXED.items():
        if reference[field] != value:
            raise ValueError(
                f"'{field}' is {reference[field]}; only {value} can be converted (all released models have it)"
            )
    width, heads = reference["hidden_size"], reference["num_heads"]
    if width % heads:
        raise ValueError(f"'hidden_size' {width} must be divisible by 'num_heads' {heads}")
    fields = {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "cross_attention_dim": width,
        "num_layers": reference["depth"],
        "sample_size": reference["input_size"],
        "patch_size": reference["patch_size"],
        "in_channels": reference["in_channels"],
        "out_channels": reference["in_channels"] * (2 if reference["pred_sigma"] else 1),
        "caption_channels": reference["caption_channels"],
        "interpolation_scale": reference["lewei_scale"],
        "use_additional_conditions": name in ("PixArtMS", "ControlPixArtMSHalf"),
    }
    return fields | {"num_control_layers": reference["copy_blocks_num"]} if name.startswith("Control") else fields


def build(arguments: dict[str, Any]) -> ModelMixin:
    return MODELS[_model(arguments)](**config(arguments))


def RULES(arguments: dict[str, Any]) -> list[WeightTransform]:
    return HED_RULES if _model(arguments) == "ControlNetHED_Apache2" else PIXART_RULES


def IGNORE(arguments: dict[str, Any]) -> list[str]:
    # The position table is computed, and the null caption of guidance is an input (`negative_prompt_embeds`).
    ignore = ["*pos_embed", "*y_embedder.y_embedding"]
    # ControlPixArtHalf on a multi-scale base, as the authors' 512 px script builds it, never calls the size embedders.
    return [*ignore, "*csize_embedder.*", "*ar_embedder.*"] if _model(arguments) == "ControlPixArtHalf" else ignore


HED_RULES = [WeightRenaming(rf"^block{stage + 1}\.", f"blocks.{stage}.") for stage in range(5)]

PIXART_RULES = [
    WeightRenaming(r"^base_model\.", ""),
    WeightRenaming(r"^controlnet\.(\d+)\.copied_block\.", r"controlnet.controlnet_blocks.\1.transformer_block."),
    WeightRenaming(r"^controlnet\.(\d+)\.", r"controlnet.controlnet_blocks.\1."),
    WeightRenaming(r"^x_embedder\.", "pos_embed."),
    WeightRenaming(r"^y_embedder\.y_proj\.fc(\d)\.", r"caption_projection.linear_\1."),
    WeightRenaming(r"^t_block\.1\.", "adaln_single.linear."),
    WeightRenaming(r"^t_embedder\.", "adaln_single.emb.timestep_embedder."),
    WeightRenaming(r"^csize_embedder\.", "adaln_single.emb.resolution_embedder."),
    WeightRenaming(r"^ar_embedder\.", "adaln_single.emb.aspect_ratio_embedder."),
    WeightRenaming(r"embedder\.mlp\.0\.", "embedder.linear_1."),
    WeightRenaming(r"embedder\.mlp\.2\.", "embedder.linear_2."),
    WeightRenaming(r"^final_layer\.linear\.", "proj_out."),
    WeightRenaming(r"^final_layer\.", ""),
    WeightRenaming(r"^blocks\.", "transformer_blocks."),
    WeightRenaming(r"\.attn\.proj\.", ".attn1.to_out.0."),
    WeightRenaming(r"\.cross_attn\.proj\.", ".attn2.to_out.0."),
    WeightRenaming(r"\.cross_attn\.q_linear\.", ".attn2.to_q."),
    WeightRenaming(r"\.mlp\.fc1\.", ".ff.net.0.proj."),
    WeightRenaming(r"\.mlp\.fc2\.", ".ff.net.2."),
    WeightConverter(r"\.attn\.qkv\.", [".attn1.to_q.", ".attn1.to_k.", ".attn1.to_v."], [Chunk(dim=0)]),
    WeightConverter(r"\.cross_attn\.kv_linear\.", [".attn2.to_k.", ".attn2.to_v."], [Chunk(dim=0)]),
]
