"""VDIGPKU/CBNetV2 -> CompositeBackbone and, with the arguments of a neck, CompositeBackboneWithPyramid.

Arguments are those of the backbone, or `{"backbone": ..., "neck": ...}` as a detector's configuration has them. Of a detector's
checkpoint the heads are left behind, and without the neck's arguments the neck is, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.core_model_loading import Chunk, ConversionOps, WeightConverter, WeightRenaming

from hf_ext.models.cbnet import CompositeBackboneConfig

from .operations import only_tensor


class ToTokens(ConversionOps):
    """(1, C, H, W) -> (1, H * W, C)"""

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs) -> dict[str, torch.Tensor]:
        return {target_patterns[0]: only_tensor(input_dict).flatten(2).transpose(1, 2).contiguous()}


# Reference argument -> (field of the upstream configuration, the reference's default)
SWIN_FIELDS = {
    "pretrain_img_size": ("image_size", 224),
    "patch_size": ("patch_size", 4),
    "in_chans": ("num_channels", 3),
    "embed_dim": ("embed_dim", 96),
    "depths": ("depths", (2, 2, 6, 2)),
    "num_heads": ("num_heads", (3, 6, 12, 24)),
    "window_size": ("window_size", 7),
    "mlp_ratio": ("mlp_ratio", 4.0),
    "qkv_bias": ("qkv_bias", True),
    "drop_rate": ("hidden_dropout_prob", 0.0),
    "attn_drop_rate": ("attention_probs_dropout_prob", 0.0),
    "drop_path_rate": ("drop_path_rate", 0.2),
    "ape": ("use_absolute_embeddings", False),
}
COMPOSITE = ("out_indices", "frozen_stages", "cb_del_stages", "cb_zero_init")
SWIN = (*SWIN_FIELDS, *COMPOSITE, "patch_norm")
RESNET = (
    "depth",
    "in_channels",
    "stem_channels",
    "base_channels",
    "style",
    "norm_cfg",
    "norm_eval",
    "cb_inplanes",
    *COMPOSITE,
)
# Values of other arguments that mean what the port computes
SWIN_FIXED = {"qk_scale": (None,)}
RESNET_FIXED = {
    "num_stages": (4,),
    "strides": ((1, 2, 2, 2),),
    "dilations": ((1, 1, 1, 1),),
    "deep_stem": (False,),
    "avg_down": (False,),
    "conv_cfg": (None,),
    "dcn": (None,),
    "stage_with_dcn": ((False,) * 4,),
    "plugins": (None,),
}
NECK_FIXED = {
    "start_level": (0,),
    "end_level": (-1, 3),
    "add_extra_convs": (False,),
    "relu_before_extra_convs": (False,),
    "no_norm_on_lateral": (False,),
    "conv_cfg": (None,),
    "norm_cfg": (None,),
    "act_cfg": (None,),
    "upsample_cfg": ({"mode": "nearest"},),
}
UNUSED = ("type", "init_cfg", "pretrained", "use_checkpoint", "with_cp", "zero_init_residual", "norm_layer")

LAYERS = {
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
    152: ("bottleneck", [3, 8, 36, 3]),
}


def is_detector(arguments: Mapping[str, Any]) -> bool:
    return "backbone" in arguments


def is_resnet(arguments: Mapping[str, Any]) -> bool:
    return "depth" in arguments.get("backbone", arguments)


def model_class(arguments: Mapping[str, Any]) -> str:
    return "CompositeBackboneWithPyramid" if "neck" in arguments else "CompositeBackbone"


def config(arguments: Mapping[str, Any]) -> CompositeBackboneConfig:
    if not is_detector(arguments):
        return CompositeBackboneConfig(**(resnet_fields if is_resnet(arguments) else swin_fields)(arguments))
    if unknown := arguments.keys() - {"backbone", "neck"}:
        raise ValueError(f"CBNet has no arguments {sorted(unknown)} beside backbone, neck")
    fields = (resnet_fields if is_resnet(arguments) else swin_fields)(arguments["backbone"])
    if "neck" in arguments:
        fields |= neck_fields(arguments["neck"])
    config = CompositeBackboneConfig(**fields)
    if "neck" in arguments:
        widths = arguments["neck"]["in_channels"]
        expected = stage_widths(config.backbone_config)
        if list(widths) != expected:
            raise ValueError(f"CBFPN's `in_channels` must be the backbone's, {expected}, not {list(widths)}")
    return config


def swin_fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    check("CBSwinTransformer", arguments, SWIN, SWIN_FIXED)
    backbone = {field: arguments.get(name, default) for name, (field, default) in SWIN_FIELDS.items()}
    return composite_fields(arguments) | {
        "backbone_config": {"model_type": "swin", **{n: as_list(v) for n, v in backbone.items()}},
        "prune_stages": max(arguments.get("cb_del_stages", 1) - 1, 0),
        "embedding_norm": arguments.get("patch_norm", True),
    }


def resnet_fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    check("CBResNet", arguments, RESNET, RESNET_FIXED)
    depth, style = arguments["depth"], arguments.get("style", "pytorch")
    if depth not in LAYERS:
        raise ValueError(f"CBResNet's `depth` must be one of {list(LAYERS)}, not {depth}")
    if style not in ("pytorch", "caffe"):
        raise ValueError(f"CBResNet's `style` must be 'pytorch' or 'caffe', not {style!r}")
    if (norm := (arguments.get("norm_cfg") or {}).get("type", "BN")) not in ("BN", "SyncBN"):
        raise ValueError(f"CBResNet's `norm_cfg` must be of type BN or SyncBN, not {norm}")
    layer_type, depths = LAYERS[depth]
    base = arguments.get("base_channels", 64)
    stem = arguments.get("stem_channels") or base
    widths = [base * 2**i * (4 if layer_type == "bottleneck" else 1) for i in range(4)]
    given = arguments.get("cb_inplanes")
    if given is not None and list(given) != [stem, *widths]:
        raise ValueError(f"CBResNet's `cb_inplanes` must be the widths of its stages, {[stem, *widths]}, not {given}")
    return composite_fields(arguments) | {
        "backbone_config": {
            "model_type": "resnet",
            "num_channels": arguments.get("in_channels", 3),
            "embedding_size": stem,
            "hidden_sizes": widths,
            "depths": depths,
            "layer_type": layer_type,
            "downsample_in_bottleneck": style == "caffe",
        },
        "prune_stages": arguments.get("cb_del_stages", 0),
        "freeze_batch_norm": arguments.get("norm_eval", True),
        "link_norm": True,
    }


def composite_fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "zero_init": arguments.get("cb_zero_init", True),
        "frozen_stages": arguments.get("frozen_stages", -1),
        "out_features": [f"stage{index + 1}" for index in sorted(arguments.get("out_indices", range(4)))],
    }


def neck_fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    check("CBFPN", arguments, ("in_channels", "out_channels", "num_outs"), NECK_FIXED)
    if missing := {"in_channels", "out_channels", "num_outs"} - arguments.keys():
        raise ValueError(f"CBFPN needs {sorted(missing)}")
    return {"pyramid_size": arguments["out_channels"], "num_pyramid_levels": arguments["num_outs"]}


def stage_widths(backbone: Any) -> list[int]:
    if backbone.model_type == "resnet":
        return list(backbone.hidden_sizes)
    return [backbone.embed_dim * 2**i for i in range(len(backbone.depths))]


def check(name: str, arguments: Mapping[str, Any], known: tuple[str, ...], fixed: Mapping[str, tuple]) -> None:
    if unknown := arguments.keys() - set(known) - fixed.keys() - set(UNUSED):
        raise ValueError(f"{name} has no arguments {sorted(unknown)}; it has {', '.join((*known, *fixed, *UNUSED))}")
    for argument, allowed in fixed.items():
        value = arguments.get(argument, allowed[0])
        if (tuple(value) if isinstance(value, list) else value) not in allowed:
            raise ValueError(f"{name}'s `{argument}` must be one of {list(allowed)}, not {value!r}")


def as_list(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def IGNORE(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Index tables, counters of norms that do not count, and what the reference's second backbone keeps but does not use."""
    ignored = [
        "*cb_modules.*.relative_position_index",
        "*cb_modules.*.attn_mask",
        "*cb_linears.*.num_batches_tracked",
        "*cb_modules.1.bn1.*",
        "*cb_modules.1.absolute_pos_embed",
    ]
    if is_detector(arguments):
        ignored += ["rpn_head.*", "roi_head.*", "bbox_head.*", "mask_head.*"]
        ignored += [] if "neck" in arguments else ["neck.*"]
    return tuple(ignored)


def RULES(arguments: Mapping[str, Any]) -> list[WeightRenaming | WeightConverter]:
    rules = RESNET_RULES if is_resnet(arguments) else SWIN_RULES
    if is_detector(arguments) and "neck" not in arguments:
        rules = [WeightRenaming(r"^backbone\.", ""), *rules]
    return [
        WeightRenaming(r"cb_modules\.(\d)\.", r"backbones.\1."),
        *rules,
        WeightRenaming(r"^neck\.(\w+_convs\.\d)\.conv\.", r"neck.\1."),
    ]


SWIN_RULES = [
    WeightRenaming(r"cb_linears\.(\d\.\d)\.", r"links.0.stages.\1.conv."),
    *(
        WeightRenaming(rf"backbones\.(\d)\.norm{i}\.", rf"backbones.\1.hidden_states_norms.stage{i + 1}.")
        for i in range(4)
    ),
    WeightRenaming(
        r"backbones\.(\d)\.patch_embed\.proj\.", r"backbones.\1.swin.embeddings.patch_embeddings.projection."
    ),
    WeightRenaming(r"backbones\.(\d)\.patch_embed\.norm\.", r"backbones.\1.swin.embeddings.norm."),
    WeightRenaming(r"backbones\.(\d)\.layers\.", r"backbones.\1.swin.encoder.layers."),
    WeightRenaming(r"\.norm1\.", ".layernorm_before."),
    WeightRenaming(r"\.norm2\.", ".layernorm_after."),
    WeightRenaming(r"\.attn\.", ".attention."),
    WeightRenaming(r"\.attention\.proj\.", ".attention.o_proj."),
    WeightRenaming(r"\.relative_position_bias_table$", ".relative_position_bias.relative_position_bias_table"),
    *(
        WeightConverter(f"attention.qkv.{kind}", [f"attention.{name}_proj.{kind}" for name in "qkv"], [Chunk(dim=0)])
        for kind in ("weight", "bias")
    ),
    WeightConverter("absolute_pos_embed", "swin.embeddings.position_embeddings", [ToTokens()]),
]
RESNET_RULES = [
    WeightRenaming(r"cb_linears\.(\d\.\d)\.0\.", r"links.0.stages.\1.conv."),
    WeightRenaming(r"cb_linears\.(\d\.\d)\.1\.", r"links.0.stages.\1.norm."),
    *(
        WeightRenaming(rf"backbones\.(\d)\.{theirs}\.", rf"backbones.\1.embedder.embedder.{ours}.")
        for theirs, ours in (("conv1", "convolution"), ("bn1", "normalization"))
    ),
    *(WeightRenaming(rf"\.layer{i + 1}\.(\d+)\.", rf".encoder.stages.{i}.layers.\1.") for i in range(4)),
    *(
        WeightRenaming(rf"\.layers\.(\d+)\.{theirs}{i + 1}\.", rf".layers.\1.layer.{i}.{ours}.")
        for i in range(3)
        for theirs, ours in (("conv", "convolution"), ("bn", "normalization"))
    ),
    *(
        WeightRenaming(rf"\.downsample\.{i}\.", f".shortcut.{ours}.")
        for i, ours in enumerate(("convolution", "normalization"))
    ),
]
