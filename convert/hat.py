"""XPixelGroup/HAT -> HatForImageSuperResolution."""

from __future__ import annotations

from typing import Any

from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming

from hf_ext.models.hat import HatConfig

MODEL = "HatForImageSuperResolution"
UNWRAP = ("params_ema", "params")
IGNORE = ("relative_position_index_SA", "relative_position_index_OCA")

# reference argument -> (our field, the reference's default)
FIELDS = {
    "img_size": ("image_size", 64),
    "in_chans": ("num_channels", 3),
    "embed_dim": ("hidden_size", 96),
    "depths": ("depths", (6, 6, 6, 6)),
    "num_heads": ("num_attention_heads", (6, 6, 6, 6)),
    "window_size": ("window_size", 7),
    "compress_ratio": ("compress_ratio", 3),
    "squeeze_factor": ("squeeze_factor", 30),
    "conv_scale": ("conv_scale", 0.01),
    "overlap_ratio": ("overlap_ratio", 0.5),
    "mlp_ratio": ("mlp_ratio", 4.0),
    "qkv_bias": ("qkv_bias", True),
    "qk_scale": ("attention_scale", None),
    "drop_rate": ("hidden_dropout_prob", 0.0),
    "attn_drop_rate": ("attention_probs_dropout_prob", 0.0),
    "drop_path_rate": ("drop_path_rate", 0.1),
    "ape": ("use_absolute_embeddings", False),
    "patch_norm": ("embedding_norm", True),
    "upscale": ("upscale", 2),
    "img_range": ("img_range", 1.0),
    "upsampler": ("upsampler", ""),
    "resi_connection": ("resi_connection", "1conv"),
}
FIXED = {"patch_size": (1, [1, 1], (1, 1)), "use_checkpoint": (False, True)}  # read by nothing in the network


def config(arguments: dict[str, Any]) -> HatConfig:
    if unknown := arguments.keys() - FIELDS.keys() - FIXED.keys():
        raise ValueError(f"HAT has no arguments {sorted(unknown)}; it has {', '.join((*FIELDS, *FIXED))}")
    for name, allowed in FIXED.items():
        if name in arguments and arguments[name] not in allowed:
            raise ValueError(f"HAT's `{name}` must be one of {allowed}, not {arguments[name]!r}")
    image_size = arguments.get("img_size", 64)
    if isinstance(image_size, (list, tuple)):
        if len(set(image_size)) != 1:
            raise ValueError(f"HAT's `img_size` must be square, not {image_size}")
        arguments = {**arguments, "img_size": image_size[0]}
    return HatConfig(**{field: arguments.get(name, default) for name, (field, default) in FIELDS.items()})


RULES = [
    WeightRenaming(r"^conv_before_upsample\.0\.", "upsampler.conv_before."),
    *(WeightRenaming(rf"^upsample\.{2 * i}\.", f"upsampler.convs.{i}.") for i in range(8)),
    WeightRenaming(r"^conv_last\.", "upsampler.conv_last."),
    WeightRenaming(r"^patch_embed\.norm\.", "hat.embeddings.norm."),
    WeightRenaming(r"^absolute_pos_embed$", "hat.embeddings.position_embeddings"),
    WeightRenaming(r"^norm\.", "hat.layernorm."),
    WeightRenaming(r"^(conv_first|conv_after_body)\.", r"hat.\1."),
    WeightRenaming(r"^layers\.", "hat.groups."),
    WeightRenaming(r"\.residual_group\.blocks\.", ".layers."),
    WeightRenaming(r"\.residual_group\.overlap_attn\.", ".overlapping_layer."),
    WeightRenaming(r"\.norm1\.", ".layernorm_before."),
    WeightRenaming(r"\.norm2\.", ".layernorm_after."),
    WeightRenaming(r"\.conv_block\.cab\.0\.", ".convolution.conv1."),
    WeightRenaming(r"\.conv_block\.cab\.2\.", ".convolution.conv2."),
    WeightRenaming(r"\.conv_block\.cab\.3\.attention\.1\.", ".convolution.squeeze."),
    WeightRenaming(r"\.conv_block\.cab\.3\.attention\.3\.", ".convolution.excite."),
    WeightRenaming(r"\.overlapping_layer\.(qkv|proj|relative)", r".overlapping_layer.attention.\1"),
    WeightRenaming(r"\.attn\.", ".attention."),
    WeightRenaming(r"\.attention\.proj\.", ".attention.o_proj."),
    *(
        WeightConverter(
            f"attention.qkv.{kind}", [f"attention.{name}_proj.{kind}" for name in "qkv"], operations=[Chunk(dim=0)]
        )
        for kind in ("weight", "bias")
    ),
]
