"""snap-research/EfficientFormer -> EfficientFormerForImageClassification, or EfficientFormerBackbone with `fork_feat`."""

from __future__ import annotations

from typing import Any

from transformers.core_model_loading import WeightRenaming

from hf_ext.models.efficientformer import EfficientFormerConfig

UNWRAP = ("model", "state_dict")

# reference argument -> (our field, the reference's default); those without a default must be given
FIELDS = {
    "layers": ("depths", None),
    "embed_dims": ("hidden_sizes", None),
    "downsamples": ("downsamples", None),
    "mlp_ratios": ("mlp_expansion_ratio", 4),
    "pool_size": ("pool_size", 3),
    "act_layer": ("hidden_act", "GELU"),
    "num_classes": ("num_labels", 1000),
    "down_patch_size": ("downsample_patch_size", 3),
    "down_stride": ("downsample_stride", 2),
    "down_pad": ("downsample_pad", 1),
    "drop_rate": ("hidden_dropout_prob", 0.0),
    "drop_path_rate": ("drop_path_rate", 0.0),
    "use_layer_scale": ("use_layer_scale", True),
    "layer_scale_init_value": ("layer_scale_init_value", 1e-5),
    "distillation": ("distillation", True),
    "bias_resolution": ("bias_resolution", 16),  # of segmentation/backbone.py; detection/backbone.py has 25
}
ACTIVATIONS = {"GELU": "gelu", "ReLU": "relu", "SiLU": "silu"}
FIXED = {"norm_layer": ("LayerNorm",), "init_cfg": (None,), "pretrained": (None, False, True)}


def config(arguments: dict[str, Any]) -> EfficientFormerConfig:
    known = (*FIELDS, "vit_num", "fork_feat", *FIXED)
    if unknown := arguments.keys() - set(known):
        raise ValueError(f"EfficientFormer has no arguments {sorted(unknown)}; it has {', '.join(known)}")
    if missing := [name for name in ("layers", "embed_dims", "downsamples") if arguments.get(name) is None]:
        raise ValueError(f"EfficientFormer needs the arguments {', '.join(missing)}")
    for name, allowed in FIXED.items():
        if name in arguments and arguments[name] not in allowed:
            raise ValueError(f"EfficientFormer's `{name}` must be one of {allowed}, not {arguments[name]!r}")
    fields = {field: arguments.get(name, default) for name, (field, default) in FIELDS.items()}
    if fields["hidden_act"] not in ACTIVATIONS:
        raise ValueError(f"`act_layer` must be one of {', '.join(ACTIVATIONS)}, not {fields['hidden_act']!r}")
    fields["hidden_act"] = ACTIVATIONS[fields["hidden_act"]]
    fields["num_meta3d_blocks"] = _attention_blocks(arguments)
    if arguments.get("fork_feat"):
        if not all(_downsampled(arguments)):
            raise ValueError("With `fork_feat` every stage but the last must be downsampled: the authors count modules")
        fields["out_features"] = ["stage1", "stage2", "stage3", "stage4"]
    return EfficientFormerConfig(**fields)


def model_class(arguments: dict[str, Any]) -> str:
    return "EfficientFormerBackbone" if arguments.get("fork_feat") else "EfficientFormerForImageClassification"


def IGNORE(arguments: dict[str, Any]) -> list[str]:
    """Index tables and, in the dense network, the biases of classification, which it keeps without using them."""
    unused = ["*.attention_biases"] if arguments.get("fork_feat") else []
    return ["*.attention_bias_idxs", "*.attention_bias_idxs_seg", *unused]


def RULES(arguments: dict[str, Any]) -> list[WeightRenaming]:
    """The authors number modules in a list: a stage, a downsampling where there is one, a stage ..."""
    modules: list[str] = []
    for downsampled in _downsampled(arguments):
        modules.append(f"intermediate_stages.{len(modules)}.meta4D_layers.blocks")
        if downsampled:
            modules.append(f"intermediate_stages.{len(modules)}")
    # Within the last stage the flattening, which stands between the two kinds of block, has a number too
    last = len(modules)
    attention_blocks = _attention_blocks(arguments)
    blocks = [f"meta4D_layers.blocks.{j}" for j in range(arguments["layers"][-1] - attention_blocks)] + ["flat"]
    blocks += [f"meta3D_layers.blocks.{j}" for j in range(attention_blocks)]
    maps = range(4 if arguments.get("fork_feat") else 0)
    return [
        *(WeightRenaming(rf"^network\.{i}\.", f"efficientformer.encoder.{name}.") for i, name in enumerate(modules)),
        *(
            WeightRenaming(rf"^network\.{last}\.{j}\.", f"efficientformer.encoder.last_stage.{name}.")
            for j, name in enumerate(blocks)
        ),
        *(WeightRenaming(rf"^norm{2 * i}\.", f"hidden_states_norms.stage{i + 1}.") for i in maps),
        WeightRenaming(r"^patch_embed\.0\.", "efficientformer.patch_embed.convolution1."),
        WeightRenaming(r"^patch_embed\.1\.", "efficientformer.patch_embed.batchnorm_before."),
        WeightRenaming(r"^patch_embed\.3\.", "efficientformer.patch_embed.convolution2."),
        WeightRenaming(r"^patch_embed\.4\.", "efficientformer.patch_embed.batchnorm_after."),
        WeightRenaming(r"^norm\.", "efficientformer.layernorm."),
        WeightRenaming(r"^head\.", "classifier."),
        WeightRenaming(r"^dist_head\.", "distillation_classifier."),
        WeightRenaming(r"(intermediate_stages\.\d+|token_mixer)\.proj\.", r"\1.projection."),
        WeightRenaming(r"(meta4D_layers.*)\.norm1\.", r"\1.batchnorm_before."),
        WeightRenaming(r"(meta4D_layers.*)\.norm2\.", r"\1.batchnorm_after."),
        WeightRenaming(r"(meta4D_layers.*)\.fc1\.", r"\1.convolution1."),
        WeightRenaming(r"(meta4D_layers.*)\.fc2\.", r"\1.convolution2."),
        WeightRenaming(r"(meta3D_layers.*)\.norm1\.", r"\1.layernorm1."),
        WeightRenaming(r"(meta3D_layers.*)\.norm2\.", r"\1.layernorm2."),
        WeightRenaming(r"(meta3D_layers.*)\.fc1\.", r"\1.linear_in."),
        WeightRenaming(r"(meta3D_layers.*)\.fc2\.", r"\1.linear_out."),
    ]


def _attention_blocks(arguments: dict[str, Any]) -> int:
    """The default differs between the authors' classification and segmentation files."""
    return arguments.get("vit_num", 1 if arguments.get("fork_feat") else 0)


def _downsampled(arguments: dict[str, Any]) -> list[bool]:
    widths = arguments["embed_dims"]
    return [bool(arguments["downsamples"][i]) or widths[i] != widths[i + 1] for i in range(len(widths) - 1)]
