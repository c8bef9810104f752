"""The state dict of FMViT's definition -> FMViTForImageClassification and FMViTBackbone. The authors published no checkpoints; the names
are those that a training form written from the definition has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from transformers.core_model_loading import WeightConverter, WeightRenaming

from hf_ext.layers.widths import split_width
from hf_ext.models.fmvit import FMViTConfig

from .operations import Flatten, SplitParts

FIELDS = (
    "num_channels",
    "stem_sizes",
    "hidden_sizes",
    "out_sizes",
    "depths",
    "pool_ratios",
    "head_dim",
    "mix_block_ratio",
    "cfb_mlp_ratio",
    "fmb_mlp_ratio",
    "mlp_groups",
    "drop_path_rate",
)


NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def config(arguments: Mapping[str, Any]) -> FMViTConfig:
    known = (*FIELDS, "num_labels", "out_features")
    if unknown := arguments.keys() - set(known):
        raise ValueError(f"FMViT has no arguments {sorted(unknown)}; it has {', '.join(known)}")
    fields = {name: arguments[name] for name in FIELDS if name in arguments}
    if is_backbone(arguments):
        return FMViTConfig(**fields, out_features=[f"stage{index + 1}" for index in arguments["out_features"]])
    return FMViTConfig(**fields, num_labels=arguments.get("num_labels", 1000))


def is_backbone(arguments: Mapping[str, Any]) -> bool:
    return arguments.get("out_features") is not None


def model_class(arguments: Mapping[str, Any]) -> str:
    return "FMViTBackbone" if is_backbone(arguments) else "FMViTForImageClassification"


def RULES(arguments: Mapping[str, Any]) -> list[WeightRenaming | WeightConverter]:
    prefix = "" if is_backbone(arguments) else "fmvit."
    return [
        WeightRenaming(r"^stem\.(\d)\.0\.", rf"{prefix}encoder.stem.\1.conv."),
        WeightRenaming(r"^stem\.(\d)\.1\.", rf"{prefix}encoder.stem.\1.norm."),
        *(WeightRenaming(rf"^stages\.{stage}\.", f"{prefix}encoder.stages.{stage}.layers.") for stage in range(4)),
        WeightRenaming(r"^norm\.", f"{prefix}norm."),
        WeightRenaming(r"^head\.", "classifier."),
        WeightRenaming(r"\.patch_embed\.", ".patch_embedding."),
        WeightRenaming(r"\.mixer\.mix\.point\.", ".mixer.conv.branches.2.conv."),
        WeightRenaming(r"\.mixer\.mix\.point_norm\.", ".mixer.conv.branches.2.norm."),
        WeightRenaming(r"\.mixer\.mix\.", ".mixer.conv."),
        WeightRenaming(r"\.mixer\.proj\.", ".mixer.projection."),
        WeightRenaming(r"\.attn\.(q|k|v)\.", r".attention.\1_proj."),
        WeightRenaming(r"\.attn\.proj\.", ".attention.o_proj."),
        WeightRenaming(r"(?<![kv]_proj)\.convs\.(\d+)\.", r".branches.\1.conv."),
        WeightRenaming(r"(?<![kv]_proj)\.norms\.(\d+)\.", r".branches.\1.norm."),
        WeightConverter("attention.o_proj.weight", "attention.o_proj.weight", [Flatten(1)]),
        *split_norms(config(arguments)),
    ]


def split_norms(config: FMViTConfig) -> Iterator[WeightConverter]:
    """The norms of keys and values: here one for each pooling factor."""
    for stage in range(1, len(config.depths)):
        width, _ = split_width(config.out_sizes[stage], config.mix_block_ratio)
        sizes = [size for _, size in config.pooled_parts(stage, width)]
        for projection, group, kind in product("kv", range(len(config.mlp_groups)), NORM):
            norm = f"stages.{stage}.layers.{config.depths[stage] - 1}.attention.{projection}_proj.norms.{group}"
            yield WeightConverter(
                f"{norm}.{kind}", [f"{norm}.{part}.{kind}" for part in range(len(sizes))], [SplitParts(sizes)]
            )
