"""xinghaochen/SLAB -> SlabForImageClassification and SlabLlamaForCausalLM.

The authors have a class for each architecture, with arguments of its own, and pass norms as classes, which arguments cannot say. So
`complete` reads from the weights which class it was: `architecture`, `norm_type`, and where linear attention is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming

from hf_ext.models.slab import SlabConfig, SlabImageProcessor

from .slab_llama import llama_config

UNWRAP = ("model_ema", "model")

# a tensor of the checkpoint, as a pattern -> what it is; the first that is there decides
MARKS = {
    "model.embed_tokens.weight": "llama",
    "stage1_conv_embed.0.weight": "cswin",
    "layers.0.blocks.0.mlp.fc1.weight": "swin",
    "block1.0.mlp.dwconv.dwconv.weight": "pvt_v2",
    "block1.0.mlp.fc1.weight": "pvt",
    "blocks.0.mlp.fc1.weight": "deit",
}
COMPLETED = ("architecture", "norm_type", "has_linear", "has_class_token")  # what `complete` adds

# reference argument -> (our field, the reference's default), for arguments that mean the same in all classes ...
COMMON = {
    "img_size": ("image_size", 224),
    "in_chans": ("num_channels", 3),
    "num_classes": ("num_labels", 1000),
    "qk_scale": ("attention_scale", None),
    "drop_rate": ("hidden_dropout_prob", 0.0),
    "attn_drop_rate": ("attention_probs_dropout_prob", 0.0),
    "kernel_size": ("kernel_size", 5),
}
# ... and the others with their defaults
DEFAULTS: dict[str, dict[str, Any]] = {
    "swin": {
        "patch_size": 4,
        "embed_dim": 96,
        "depths": (2, 2, 6, 2),
        "num_heads": (3, 6, 12, 24),
        "window_size": 7,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "drop_path_rate": 0.1,
        "ape": False,
        "patch_norm": True,
    },
    "deit": {
        "patch_size": 16,
        "embed_dim": 768,
        "depth": 12,
        "num_heads": 12,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "drop_path_rate": 0.0,
    },
    "pvt": {
        "patch_size": 16,
        "embed_dims": (64, 128, 256, 512),
        "depths": (3, 4, 6, 3),
        "num_heads": (1, 2, 4, 8),
        "mlp_ratios": (4, 4, 4, 4),
        "qkv_bias": False,
        "drop_path_rate": 0.0,
        "sr_ratios": (8, 4, 2, 1),
        "la_sr_ratios": "1111",
    },
    "cswin": {
        "embed_dim": 96,
        "depth": (2, 2, 6, 2),
        "num_heads": (2, 4, 8, 16),
        "split_size": (1, 2, 7, 7),
        "la_split_size": "1-2-7-7",
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "drop_path_rate": 0.0,
    },
}
DEFAULTS["pvt_v2"] = DEFAULTS["pvt"]
# the steps that the authors' models were made with; a checkpoint's own are in its buffers
STEPS = {"swin": 60_000, "deit": 60_000, "pvt": 300_000, "pvt_v2": 300_000, "cswin": 120_000}
# Read by nothing in the networks, or only while the authors' class is made
UNUSED = ("focusing_factor", "fused_window_process", "use_checkpoint", "use_chk", "num_stages", "patch_size")
STAGES = 8  # more than any network has


def complete(arguments: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The arguments, with what only the weights tell; an `architecture` and a `norm_type` given stay."""
    architecture = next((name for mark, name in MARKS.items() if mark in state_dict), None)
    if architecture is None:
        raise ValueError(f"No network of SLAB has these weights: there is none of {', '.join(MARKS)}")
    if architecture == "llama":
        return {"architecture": "llama", **arguments}
    leaves = {name.rpartition(".")[2] for name in state_dict}
    positions = state_dict.get("pos_embed")
    norm_type = "prepbn" if "total_step" in leaves else "repbn" if "alpha" in leaves else "layernorm"
    return {
        "architecture": architecture,
        "norm_type": norm_type,
        "has_linear": "positional_encoding" in leaves,
        "has_class_token": positions is not None and _is_grid_and_one(positions.shape[1]),
        **arguments,
    }


def _is_grid_and_one(positions: int) -> bool:
    """Whether there is one position more than in a square grid."""
    return round((positions - 1) ** 0.5) ** 2 + 1 == positions


def config(arguments: Mapping[str, Any]) -> PreTrainedConfig:
    architecture = arguments["architecture"]
    if architecture == "llama":
        return llama_config({name: value for name, value in arguments.items() if name not in COMPLETED})
    defaults = DEFAULTS[architecture]
    known = (*COMMON, *defaults, "attn_type")
    if unknown := arguments.keys() - {*known, *UNUSED, *COMPLETED}:
        raise ValueError(
            f"SLAB's {architecture} has no arguments {sorted(unknown)}; it has {', '.join(dict.fromkeys((*known, *UNUSED)))}"
        )
    fields = {field: arguments.get(name, default) for name, (field, default) in COMMON.items()}
    fields["image_size"] = _edge(fields["image_size"])
    fields |= FIELDS[architecture]({**defaults, **arguments})
    fields["linear_depths"] = linear_depths(arguments, fields["depths"])
    return SlabConfig(
        architecture=architecture, norm_type=arguments["norm_type"], norm_decay_steps=STEPS[architecture], **fields
    )


def _edge(size: int | list[int] | tuple[int, ...]) -> int:
    edges = {size} if isinstance(size, int) else set(size)
    if len(edges) != 1:
        raise ValueError(f"SLAB's `img_size` and `patch_size` must be square, not {size}")
    return edges.pop()


def linear_depths(arguments: Mapping[str, Any], depths: list[int]) -> list[int]:
    """How many layers of each stage, from its first, have linear attention: `attn_type` has a letter a stage, L, S, or M, of which the
    first few layers have, as the digits at its end say."""
    attention = arguments.get("attn_type") or ("L" if arguments["has_linear"] else "S") * len(depths)
    match = re.fullmatch(rf"([LSM]{{{len(depths)}}})(\d*)", attention)
    if match is None or ("M" in match[1]) != bool(match[2]):
        raise ValueError(
            f"SLAB's `attn_type` must have a letter L, S or M for each of {len(depths)} stages and, with an M, a number at the end, "
            f"not {attention!r}"
        )
    letters, mixed = match[1], int(match[2] or 0)
    return [{"L": depth, "S": 0, "M": min(mixed, depth)}[letter] for letter, depth in zip(letters, depths)]


def swin_fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Beside linear attention, windows for softmax have 7 tokens an edge, or 12 where the others have more than 56."""
    stages, window = len(arguments["depths"]), arguments["window_size"]
    softmax_window = window if "attn_type" not in arguments else 12 if window > 56 else 7
    return {
        "patch_size": _edge(arguments["patch_size"]),
        "hidden_sizes": [arguments["embed_dim"] * 2**stage for stage in range(stages)],
        "depths": list(arguments["depths"]),
        "num_attention_heads": list(arguments["num_heads"]),
        "mlp_ratios": arguments["mlp_ratio"],
        "window_sizes": softmax_window,
        "linear_window_sizes": window,
        "qkv_bias": arguments["qkv_bias"],
        "drop_path_rate": arguments["drop_path_rate"],
        "use_absolute_embeddings": arguments["ape"],
        "patch_norm": arguments["patch_norm"],
    }


def deit_fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "patch_size": _edge(arguments["patch_size"]),
        "hidden_sizes": [arguments["embed_dim"]],
        "depths": [arguments["depth"]],
        "num_attention_heads": [arguments["num_heads"]],
        "mlp_ratios": arguments["mlp_ratio"],
        "qkv_bias": arguments["qkv_bias"],
        "drop_path_rate": arguments["drop_path_rate"],
        "use_class_token": arguments["has_class_token"],
        "layer_norm_eps": 1e-6,
    }


def pvt_fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "patch_size": _edge(arguments["patch_size"]),
        "hidden_sizes": list(arguments["embed_dims"]),
        "depths": list(arguments["depths"]),
        "num_attention_heads": list(arguments["num_heads"]),
        "mlp_ratios": list(arguments["mlp_ratios"]),
        "sr_ratios": list(arguments["sr_ratios"]),
        "linear_sr_ratios": [int(digit) for digit in arguments["la_sr_ratios"]],
        "qkv_bias": arguments["qkv_bias"],
        "drop_path_rate": arguments["drop_path_rate"],
        "layer_norm_eps": 1e-6,
    }


def cswin_fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    stages = len(arguments["depth"])
    return {
        "hidden_sizes": [arguments["embed_dim"] * 2**stage for stage in range(stages)],
        "depths": list(arguments["depth"]),
        "num_attention_heads": list(arguments["num_heads"]),
        "mlp_ratios": arguments["mlp_ratio"],
        "window_sizes": list(arguments["split_size"]),
        "linear_window_sizes": [int(width) for width in arguments["la_split_size"].split("-")],
        "qkv_bias": arguments["qkv_bias"],
        "drop_path_rate": arguments["drop_path_rate"],
    }


FIELDS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "swin": swin_fields,
    "deit": deit_fields,
    "pvt": pvt_fields,
    "pvt_v2": pvt_fields,
    "cswin": cswin_fields,
}


def processor(arguments: Mapping[str, Any]) -> SlabImageProcessor | None:
    """The images of a network: CSWin sees 0.9 of their shorter edge; none for the language model."""
    if "hidden_size" in arguments or arguments.get("architecture") == "llama":
        return None
    size = _edge(arguments.get("img_size", 224))
    share = 0.9 if "split_size" in arguments or "la_split_size" in arguments else 0.875
    return SlabImageProcessor(size={"shortest_edge": int(size / share)}, crop_size={"height": size, "width": size})


def model_class(arguments: Mapping[str, Any]) -> str:
    return "SlabLlamaForCausalLM" if arguments["architecture"] == "llama" else "SlabForImageClassification"


def IGNORE(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """What follows from the arguments, and what the authors' networks hold and do not use."""
    return {
        "swin": ("*.relative_position_index", "*.attn_mask"),
        "deit": () if arguments.get("has_class_token") else ("cls_token",),
        "cswin": ("*.attns.*.scale",),
        "llama": ("*.rotary_emb.inv_freq",),
    }.get(arguments["architecture"], ())


BLOCK = [
    ("norm1", "norm_before"),
    ("norm2", "norm_after"),
    ("mlp", "mlp"),
    ("attn", "attention"),
]
ATTENTION = [
    (r"\.attention\.proj\.", ".attention.o_proj."),
    (r"\.attention\.q\.", ".attention.q_proj."),
    (r"\.attention\.sr\.", ".attention.reduction.conv."),
    (r"\.attention\.norm\.", ".attention.reduction.norm."),
    (r"\.attention\.relative_position_bias_table$", ".attention.relative_position_bias.relative_position_bias_table"),
    (r"\.attention\.positional_encoding$", ".attention.linear.positional_encoding"),
    (r"\.attention\.dwc\.", ".attention.linear.conv_"),
    (r"\.stripes\.(\d)\.positional_encoding$", r".stripes.\1.linear.positional_encoding"),
    (r"\.stripes\.(\d)\.dwc\.", r".stripes.\1.linear.conv_"),
    (r"\.stripes\.(\d)\.get_v\.", r".stripes.\1.local_enhancement."),
    (r"\.mlp\.dwconv\.dwconv\.", ".mlp.conv."),
]
ENDS = [
    (r"^patch_embed\.proj\.", "slab.encoder.stem.projection."),
    (r"^patch_embed\.norm\.", "slab.encoder.stem.norm."),
    (r"^norm\.", "slab.pooler.norm."),
    (r"^head\.", "classifier."),
]


def _block(theirs: str, ours: str) -> list[tuple[str, str]]:
    """The parts of the blocks that the pattern `theirs` finds, below `ours`."""
    return [(rf"^{theirs}\.{part}\.", rf"{ours}.{name}.") for part, name in BLOCK]


def _stages(rename: Callable[[int], list[tuple[str, str]]]) -> list[tuple[str, str]]:
    return [pair for stage in range(STAGES) for pair in rename(stage)]


def _embedding(stage: int) -> str:
    return f"slab.encoder.stages.{stage}.downsample" if stage else "slab.encoder.stem"


RENAMINGS: dict[str, list[tuple[str, str]]] = {
    "swin": [
        (r"^absolute_pos_embed$", "slab.encoder.stem.position_embeddings"),
        *_stages(
            lambda i: [
                (rf"^layers\.{i}\.downsample\.", f"{_embedding(i + 1)}."),
                *_block(rf"layers\.{i}\.blocks\.(\d+)", rf"slab.encoder.stages.{i}.layers.\1"),
            ]
        ),
        *ENDS,
    ],
    "deit": [
        (r"^pos_embed$", "slab.encoder.stem.position_embeddings"),
        (r"^cls_token$", "slab.encoder.stem.class_token"),
        *_block(r"blocks\.(\d+)", r"slab.encoder.stages.0.layers.\1"),
        *ENDS,
    ],
    "pvt": [
        *_stages(
            lambda i: [
                (rf"^pos_embed{i + 1}$", f"{_embedding(i)}.position_embeddings"),
                (rf"^patch_embed{i + 1}\.proj\.", f"{_embedding(i)}.projection."),
                (rf"^patch_embed{i + 1}\.norm\.", f"{_embedding(i)}.norm."),
                (rf"^norm{i + 1}\.", f"slab.encoder.stages.{i}.norm."),
                *_block(rf"block{i + 1}\.(\d+)", rf"slab.encoder.stages.{i}.layers.\1"),
            ]
        ),
        (r"^head\.", "classifier."),
    ],
    "cswin": [
        (r"^stage1_conv_embed\.0\.", "slab.encoder.stem.projection."),
        (r"^stage1_conv_embed\.2\.", "slab.encoder.stem.norm."),
        *_stages(
            lambda i: [
                (rf"^merge{i}\.conv\.", f"{_embedding(i)}.projection."),
                (rf"^merge{i}\.norm\.", f"{_embedding(i)}.norm."),
                (rf"^stage{i + 1}\.(\d+)\.qkv\.", rf"slab.encoder.stages.{i}.layers.\1.attention.qkv."),
                (rf"^stage{i + 1}\.(\d+)\.proj\.", rf"slab.encoder.stages.{i}.layers.\1.attention.proj."),
                (rf"^stage{i + 1}\.(\d+)\.attns\.", rf"slab.encoder.stages.{i}.layers.\1.attention.stripes."),
                *_block(rf"stage{i + 1}\.(\d+)", rf"slab.encoder.stages.{i}.layers.\1"),
            ]
        ),
        *ENDS,
    ],
}
RENAMINGS["pvt_v2"] = RENAMINGS["pvt"]


def RULES(arguments: Mapping[str, Any]) -> list[WeightRenaming | WeightConverter]:
    if arguments["architecture"] == "llama":
        return []  # the authors keep Transformers' names
    renamings = [*RENAMINGS[arguments["architecture"]], *ATTENTION]
    return [
        *(WeightRenaming(*pair) for pair in renamings),
        *(
            WeightConverter(
                f"attention.{names}.{kind}",
                [f"attention.{name}_proj.{kind}" for name in names],
                operations=[Chunk(dim=0)],
            )
            for names in ("qkv", "kv")
            for kind in ("weight", "bias")
        ),
    ]
