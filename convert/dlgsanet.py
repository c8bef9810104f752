"""NeonLeexiang/DLGSANet -> DLGSANetForImageSuperResolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.core_model_loading import WeightConverter, WeightRenaming

from hf_ext.models.dlgsanet import DLGSANetConfig

from .operations import Flatten, Reshape

MODEL = "DLGSANetForImageSuperResolution"
UNWRAP = ("params_ema", "params")

# reference argument -> (our field, the reference's default)
FIELDS = {
    "in_chans": ("num_channels", 3),
    "dim": ("hidden_size", 60),
    "window_size": ("kernel_size", 7),
    "idynamic_num_heads": ("filter_group_size", 6),
    "idynamic_ffn_expansion_factor": ("local_mlp_ratio", 2.0),
    "idynamic": ("dynamic_filters", True),
    "restormer_num_heads": ("num_attention_heads", 6),
    "restormer_ffn_expansion_factor": ("global_mlp_ratio", 2.0),
    "body_norm": ("body_norm", False),
    "img_range": ("img_range", 1.0),
}
STRUCTURE = {
    "groups": 4,
    "blocks": 3,
    "buildblock_type": "edge",
    "idynamic_ffn_type": "GDFN",
    "restormer_ffn_type": "GDFN",
    "tlc_flag": True,
    "tlc_kernel": 48,
    "activation": "relu",
    "upscale": 4,
    "upsampler": "",
}
UNUSED = ("input_resolution",)  # for counting operations

LAYERS = {
    "sparseedge": ["local", "global"],
    "edge": ["local", "global"],
    "idynamic": ["local"],
    "restormer": ["global"],
}
MLPS = {"GDFN": "gated", "BaseFFN": "plain"}
RESTORMER_WINDOW = 48  # `tlc_kernel` does not reach Restormer's layers


def config(arguments: Mapping[str, Any]) -> DLGSANetConfig:
    known = (*FIELDS, *STRUCTURE, *UNUSED)
    if unknown := arguments.keys() - set(known):
        raise ValueError(f"DLGSANet has no arguments {sorted(unknown)}; it has {', '.join(known)}")
    given = STRUCTURE | arguments
    for name, allowed in (("buildblock_type", LAYERS), ("idynamic_ffn_type", MLPS), ("restormer_ffn_type", MLPS)):
        if given[name] not in allowed:
            raise ValueError(f"DLGSANet's `{name}` must be one of {', '.join(allowed)}, not {given[name]!r}")
    sparse = given["buildblock_type"] == "sparseedge"
    activation = given["activation"] if given["activation"] in ("relu", "gelu", "sigmoid") else "linear"
    window = given["tlc_kernel"] if sparse else RESTORMER_WINDOW
    return DLGSANetConfig(
        **{field: arguments.get(name, default) for name, (field, default) in FIELDS.items()},
        depths=[given["blocks"]] * given["groups"],
        block_layers=LAYERS[given["buildblock_type"]],
        local_mlp=MLPS[given["idynamic_ffn_type"]],
        global_mlp=MLPS[given["restormer_ffn_type"]],
        attention_act=activation if sparse else "softmax",
        attention_window_size=window if given["tlc_flag"] else None,
        **_upsampler(given),
    )


def _upsampler(given: Mapping[str, Any]) -> dict[str, Any]:
    """An upsampler that the reference does not know leaves the size alone, whatever its `upscale`."""
    if given["upsampler"] in ("pixelshuffledirect", "pixelshuffle"):
        return {"upsampler": given["upsampler"], "upscale": given["upscale"]}
    return {"upsampler": "pixelshuffledirect", "upscale": 1}


def RULES(arguments: Mapping[str, Any]) -> list[WeightRenaming | WeightConverter]:
    ours = config(arguments)
    groups, first = len(ours.depths), int(ours.body_norm)
    body = "deep_feature_extraction"
    if ours.upsampler == "pixelshuffle":
        head = [
            WeightRenaming(r"^conv_before_upsample\.0\.", "upsampler.conv_before."),
            *(WeightRenaming(rf"^upsample\.{2 * i}\.", f"upsampler.convs.{i}.") for i in range(8)),
            WeightRenaming(r"^conv_last\.", "upsampler.conv_last."),
        ]
    else:
        head = [WeightRenaming(r"^(upsample\.0|conv_last)\.", "upsampler.conv.")]
    return [
        *head,
        WeightRenaming(r"^overlap_embed\.0\.proj\.", "dlgsanet.conv_first."),
        WeightRenaming(rf"^{body}\.(\d+)\.body\.\d+\.(?=\w+$)", rf"{body}.\1.conv."),
        *(WeightRenaming(rf"^{body}\.{first + i}\.(body|conv)\.", rf"dlgsanet.groups.{i}.\1.") for i in range(groups)),
        WeightRenaming(rf"^{body}\.0\.body\.", "dlgsanet.layernorm_before."),
        WeightRenaming(rf"^{body}\.{groups + first}\.body\.", "dlgsanet.layernorm_after."),
        WeightRenaming(rf"^{body}\.\d+\.(?=\w+$)", "dlgsanet.conv_after_body."),
        WeightRenaming(r"\.body\.(\d+)\.norm[13]\.body\.", r".layers.\1.layernorm_before."),
        WeightRenaming(r"\.body\.(\d+)\.norm[24]\.body\.", r".layers.\1.layernorm_after."),
        WeightRenaming(r"\.body\.(\d+)\.(IDynamicDWConv|restormer_attn)\.", r".layers.\1.attention."),
        WeightRenaming(r"\.body\.(\d+)\.(IDynamic_ffn|restormer_ffn)\.", r".layers.\1.mlp."),
        WeightRenaming(r"\.attention\.conv0\.", ".attention.in_proj."),
        WeightRenaming(r"\.attention\.conv1\.", ".attention.out_proj."),
        WeightRenaming(r"\.attention\.conv\.conv1\.0\.", ".attention.conv.reduce."),
        WeightRenaming(r"\.attention\.conv\.conv1\.1\.", ".attention.conv.conv."),
        WeightRenaming(r"\.attention\.conv\.conv2\.0\.", ".attention.conv.predict."),
        WeightRenaming(r"\.qkv\.", ".qkv_proj."),
        WeightRenaming(r"\.(qkv_dwconv|dwconv)\.", ".conv."),
        WeightRenaming(r"\.project_(in|out)\.", r".\1_proj."),
        WeightRenaming(r"\.mlp\.body\.0\.", ".mlp.fc1."),
        WeightRenaming(r"\.mlp\.body\.2\.", ".mlp.fc2."),
        *(
            WeightConverter(f"{name}.weight", f"{name}.weight", [Flatten(1)])  # a 1x1 kernel becomes a matrix
            for name in ("in_proj", "out_proj", "qkv_proj", "reduce", "fc1", "fc2")
        ),
        WeightConverter(
            "conv.predict.weight",
            "conv.weight",
            [Reshape((-1, ours.kernel_size, ours.kernel_size, ours.hidden_size // 4))],
        ),
        WeightConverter("conv.predict.bias", "conv.bias", [Reshape((-1, ours.kernel_size, ours.kernel_size))]),
    ]
