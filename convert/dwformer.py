"""SummerParadise-0922/MPGNet -> DWFormerForImageRestoration, MPGNetModel and MPGNetDiscriminator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.core_model_loading import WeightRenaming

from hf_ext.models.dwformer import DWFormerConfig, MPGNetConfig

# class -> reference argument -> (our field, the reference's default)
FIELDS: dict[str, dict[str, tuple[str, Any]]] = {
    "DWFormerForImageRestoration": {
        "in_ch": ("num_channels", 3),
        "emd_dims": ("hidden_sizes", (24, 48, 96, 48, 24)),
        "mlp_ratios": ("mlp_ratios", (2, 4, 4, 2, 2)),
        "layer_num": ("depths", (8, 8, 8, 6, 6)),
        "se_ratio": ("squeeze_factor", 1),
        "global_pool": ("global_pool", "sum"),  # not the reference's: "softmax" is what the paper says
    },
    "MPGNetModel": {"variant": ("light_rate_act", "P")},  # not the reference's, which has a class for each
    "MPGNetDiscriminator": {
        "num_in_ch": ("discriminator_num_channels", 6),
        "num_feat": ("discriminator_hidden_size", 64),
        "skip_connection": ("discriminator_skip_connection", True),
    },
}
VARIANTS = {"P": "sigmoid", "T": "relu"}


def model_class(arguments: Mapping[str, Any]) -> str:
    """The class that has all of the arguments; DWFormer where there are none."""
    for name, fields in FIELDS.items():
        if arguments.keys() <= fields.keys():
            return name
    known = "; ".join(f"{name}: {', '.join(fields)}" for name, fields in FIELDS.items())
    raise ValueError(f"No class of the reference has the arguments {sorted(arguments)}; there are {known}")


def config(arguments: Mapping[str, Any]) -> DWFormerConfig | MPGNetConfig:
    name = model_class(arguments)
    fields = {field: arguments.get(argument, default) for argument, (field, default) in FIELDS[name].items()}
    if name == "DWFormerForImageRestoration":
        return DWFormerConfig(**fields)
    if name == "MPGNetModel":
        if fields["light_rate_act"] not in VARIANTS:
            raise ValueError(f"MPGNet's `variant` must be P or T, not {fields['light_rate_act']!r}")
        fields = {"light_rate_act": VARIANTS[fields["light_rate_act"]]}
    return MPGNetConfig(**fields)


def RULES(arguments: Mapping[str, Any]) -> list[WeightRenaming]:
    return [WeightRenaming(*pair) for pair in RENAMINGS[model_class(arguments)]]


RESIDUALS = [
    (r"\.body\.0\.", ".conv1."),
    (r"\.body\.1\.", ".activation_fn."),
    (r"\.body\.2\.", ".conv2."),
]
RENAMINGS: dict[str, list[tuple[str, str]]] = {
    "DWFormerForImageRestoration": [
        (r"^downproj1\.", "conv_first."),
        *((rf"^downproj{i + 2}\.", f"downsamples.{i}.") for i in range(2)),
        *((rf"^block{i + 1}\.blocks\.", f"stages.{i}.layers.") for i in range(5)),
        *((rf"^upproj{i + 4}\.0\.", f"upsamples.{i}.conv.") for i in range(2)),
        *((rf"^fuse{i + 1}\.0\.", f"upsamples.{i}.merge.") for i in range(2)),
        (r"^out\.", "conv_last."),
        (r"\.inter\.0\.", ".mixer.norm."),
        (r"\.inter\.1\.", ".mixer.conv1."),
        (r"\.inter\.2\.", ".mixer.depthwise."),
        (r"\.inter\.4\.pwconv\.", ".mixer.attention.pixel_logits."),
        (r"\.inter\.4\.mlp\.0\.", ".mixer.attention.fc1."),
        (r"\.inter\.4\.mlp\.2\.", ".mixer.attention.fc2."),
        (r"\.inter\.5\.", ".mixer.conv2."),
        (r"\.intra\.0\.", ".mlp.norm."),
        (r"\.intra\.1\.", ".mlp.conv1."),
        (r"\.intra\.3\.", ".mlp.conv2."),
    ],
    "MPGNetModel": [
        (r"^light_rate\.feat_ext\.", "light_rate.convs."),
        (r"^light_rate\.to_light_rate\.2\.", "light_rate.fc1."),
        (r"^light_rate\.to_light_rate\.4\.", "light_rate.fc2."),
        *(
            (rf"^psf\.model\.{1 + 3 * i + j}\.", f"blur.downs.{i}.{part}.")
            for i in range(3)
            for j, part in enumerate(("conv", "norm"))
        ),
        *(
            (rf"^psf\.model\.{10 + i}\.conv_block\.{j}\.", f"blur.layers.{i}.{part}.")
            for i in range(9)
            for j, part in ((1, "conv"), (2, "norm"))
        ),
        *(
            (rf"^psf\.model\.{19 + 3 * i + j}\.", f"blur.ups.{i}.{part}.")
            for i in range(2)
            for j, part in enumerate(("conv", "norm"))
        ),
        (r"^psf\.model\.26\.", "blur.conv_last."),
        (r"^add_noise\.ext_head\.", "noise.features."),
        (r"^add_noise\.ext_merge\.", "noise.merge."),
        (r"^add_noise\.ext\.", "noise.layers."),
        (r"^add_noise\.T_tail\.", "noise.conv_noise."),
        (r"^add_noise\.q_ext\.", "noise.quantization_features."),
        (r"^add_noise\.q_tail\.", "noise.conv_quantization."),
        *(
            rename
            for theirs, ours in (("dep", "dependent"), ("indep", "independent"), ("quantization", "quantization"))
            for rename in (
                (rf"^add_noise\.{theirs}_merge\.", f"noise.{ours}.merge."),
                (rf"^add_noise\.pipe_{theirs}_1\.", f"noise.{ours}.pointwise."),
                (rf"^add_noise\.pipe_{theirs}_3\.", f"noise.{ours}.spatial."),
            )
        ),
        *RESIDUALS,
    ],
    "MPGNetDiscriminator": [
        (r"^conv0\.", "conv_first."),
        (r"^conv9\.", "conv_last."),
        *((rf"^conv{i + 1}\.", f"downs.{i}.") for i in range(3)),
        *((rf"^conv{i + 4}\.", f"ups.{i}.") for i in range(3)),
        *((rf"^conv{i + 7}\.", f"convs.{i}.") for i in range(2)),
        (r"\.weight_orig$", ".weight"),
        (r"\.weight_u$", ".left"),
        (r"\.weight_v$", ".right"),
    ],
}
