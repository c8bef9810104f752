"""Checkpoints of ZixuanJiang/pre-rmsnorm-transformer: its ViT and GPT become ViT and GPT-2 of Transformers, in the form of their `method`.

Transformers' own GPT-2 and ViT state dicts, with the arguments of their configurations, are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedConfig, ViTConfig, ViTForImageClassification
from transformers.core_model_loading import Chunk, ConversionOps, Transpose, WeightConverter, WeightRenaming

from hf_ext.layers.mean_free import expand
from hf_ext.surgery import surgical_class, surgical_config

from .operations import only_tensor

VIT_PRESETS = {  # dim, heads, depth, mlp_dim
    "Tiny": (192, 3, 12, None),
    "Small": (384, 6, 12, None),
    "Base": (768, 12, 12, None),
    "Large": (1024, 16, 24, None),
    "Huge": (1280, 16, 32, None),
    "Giant": (1664, 16, 48, 8192),
    "22B": (6144, 48, 48, None),
}
GPT_PRESETS = {  # depth, dim, heads, dim_head
    "Small": (12, 768, 12, 64),
    "Medium": (24, 1024, 16, 64),
    "Large": (24, 1536, 16, 96),
    "XL": (24, 2048, 24, 128),
    "2.7B": (32, 2560, 32, 80),
    "6.7B": (32, 4096, 32, 128),
    "13B": (40, 5140, 40, 128),
    "175B": (96, 12288, 96, 128),
}
METHODS = {  # method -> norm_variant
    "pre-ln": "layernorm",
    "pre-apex-ln": "layernorm",
    "pre-customized-ln": "layernorm",
    "pre-rms": "rms",
    "pre-apex-rms": "rms",
    "pre-crms": "crms",
}
SHARED = ("dim", "depth", "heads", "mlp_dim", "dim_head", "variant", "method", "pre_rms_training")
OWN = {
    "vit": ("image_size", "patch_size", "num_classes", "pool", "channels"),
    "gpt": ("vocab_size", "max_seq_length"),
}
UPSTREAM = {"hf_vit": (ViTConfig, ViTForImageClassification), "hf_gpt2": (GPT2Config, GPT2LMHeadModel)}
KIND = "_kind"  # what `complete` found out


def complete(arguments: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The arguments, and whose checkpoint it is."""
    known = {
        "to_patch_embedding.1.weight": "vit",
        "wte.weight": "gpt",
        "vit.embeddings.cls_token": "hf_vit",
        "transformer.wte.weight": "hf_gpt2",
    }
    kind = next((kind for name, kind in known.items() if name in state_dict), None)
    if kind is None:
        raise ValueError(
            f"The state dict has none of {', '.join(known)}: it is neither the reference's nor a ViT or GPT-2"
        )
    return dict(arguments) | {KIND: kind}


def config(arguments: Mapping[str, Any]) -> PreTrainedConfig:
    arguments = dict(arguments)
    kind = arguments.pop(KIND, "vit" if "image_size" in arguments else "gpt")
    if kind in UPSTREAM:
        return UPSTREAM[kind][0](**arguments)
    if unknown := set(arguments) - {*OWN[kind], *SHARED}:
        raise ValueError(f"unknown arguments {sorted(unknown)}; known: {', '.join((*OWN[kind], *SHARED))}")
    if (method := arguments.get("method", "pre-ln")) not in METHODS:
        raise ValueError(f"method='{method}' is not one of {', '.join(METHODS)}")
    return (_vit_config if kind == "vit" else _gpt_config)(arguments, _conversion(arguments, METHODS[method]))


def _conversion(arguments: dict[str, Any], variant: str) -> list[dict[str, Any]]:
    """The entry of `surgery` for weights that are converted already"""
    trains = variant == "rms" and arguments.get("pre_rms_training", False)
    entry = {"name": "pre_rmsnorm", "norm_variant": variant, "fold_affine": True, "train_recentered": trains}
    return [] if variant == "layernorm" else [entry]


def _preset(arguments: dict[str, Any], presets: dict[str, tuple], default: str) -> tuple:
    if (variant := arguments.get("variant", default)) not in presets:
        raise ValueError(f"variant='{variant}' is not one of {', '.join(presets)}")
    return presets[variant]


def _head_dim(dim: int, heads: int, head_dim: int | None) -> int:
    if head_dim is None and dim % heads:
        raise ValueError(f"dim={dim} is no multiple of heads={heads}; give dim_head")
    return head_dim or dim // heads


def _vit_config(arguments: dict[str, Any], conversion: list[dict[str, Any]]) -> PreTrainedConfig:
    if "dim" in arguments:
        dim, heads, depth, mlp_dim = (arguments[name] for name in ("dim", "heads", "depth", "mlp_dim"))
    else:
        dim, heads, depth, mlp_dim = _preset(arguments, VIT_PRESETS, "Base")
    if (pool := arguments.get("pool", "cls")) not in ("cls", "mean"):
        raise ValueError(f"pool='{pool}' is not one of cls, mean")
    sizes = {name: arguments[name] for name in ("image_size", "patch_size")}
    return surgical_config("vit")(
        **{name: tuple(size) if isinstance(size, (list, tuple)) else size for name, size in sizes.items()},
        num_labels=arguments["num_classes"],
        num_channels=arguments.get("channels", 3),
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        head_dim=_head_dim(dim, heads, arguments.get("dim_head")),
        intermediate_size=mlp_dim or 4 * dim,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-5,
        surgery=[{"name": "prenorm_reference", "pool": pool}, *conversion],
    )


def _gpt_config(arguments: dict[str, Any], conversion: list[dict[str, Any]]) -> PreTrainedConfig:
    if "dim" in arguments:
        depth, dim, heads, head_dim = (
            *(arguments[name] for name in ("depth", "dim", "heads")),
            arguments.get("dim_head"),
        )
    else:
        depth, dim, heads, head_dim = _preset(arguments, GPT_PRESETS, "Small")
    head_dim = _head_dim(dim, heads, head_dim)
    shape = {"heads": heads, "head_dim": head_dim} if heads * head_dim != dim else {}
    return surgical_config("gpt2")(
        vocab_size=arguments["vocab_size"],
        n_positions=arguments["max_seq_length"],
        n_embd=dim,
        n_layer=depth,
        n_head=heads if dim % heads == 0 else 1,  # GPT-2 divides; `prenorm_reference` has the last word
        n_inner=arguments.get("mlp_dim") or 4 * dim,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        layer_norm_epsilon=1e-5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        surgery=[{"name": "prenorm_reference", **shape}, *conversion],
    )


def build(arguments: Mapping[str, Any]) -> Any:
    made = config(arguments)
    kind = arguments.get(KIND)
    if kind in UPSTREAM:
        return UPSTREAM[kind][1](made)
    base = GPT2LMHeadModel if made.model_type == "surgical_gpt2" else ViTForImageClassification
    return surgical_class(base)(made)


class PadWithZeros(ConversionOps):
    """Appends an input that counts for nothing: the reference's compressed heads read compressed vectors, ours whole ones."""

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs) -> dict[str, torch.Tensor]:
        return {target_patterns[0]: F.pad(only_tensor(input_dict), (0, 1))}


class PositionsOfPatches(ConversionOps):
    """(1, patches, channels) -> the same after a class token, which has no position."""

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs) -> dict[str, torch.Tensor]:
        return {target_patterns[0]: F.pad(only_tensor(input_dict), (0, 0, 1, 0))}


class PatchKernel(ConversionOps):
    """Linear on patches flattened as (p1 p2 c) -> convolution (out, c, p1, p2)"""

    def __init__(self, patch_size: int | tuple[int, int]):
        self.patch = tuple(patch_size) if isinstance(patch_size, (list, tuple)) else (patch_size, patch_size)

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs) -> dict[str, torch.Tensor]:
        weight = only_tensor(input_dict).unflatten(1, (*self.patch, -1))
        return {target_patterns[0]: weight.permute(0, 3, 1, 2).contiguous()}


class ExpandTable(ConversionOps):
    """Compressed rows (..., d - 1) -> whole ones: our compressed GPT-2 keeps its tables whole, since it compresses in the first layer."""

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs) -> dict[str, torch.Tensor]:
        return {target_patterns[0]: expand(only_tensor(input_dict))}


def in_place(name: str, operation: ConversionOps) -> WeightConverter:
    return WeightConverter(name, name, operations=[operation])


def RULES(arguments: Mapping[str, Any]) -> list:
    kind = arguments[KIND]
    if kind in UPSTREAM:
        return []
    rules = _vit_rules(arguments) if kind == "vit" else _gpt_rules()
    if METHODS[arguments.get("method", "pre-ln")] == "crms":
        rules += [in_place(name, PadWithZeros()) for name in ("classifier.weight", "lm_head.weight")]
        rules += [in_place(f"transformer.{name}.weight", ExpandTable()) for name in ("wte", "wpe")]
    return rules


def _vit_rules(arguments: Mapping[str, Any]) -> list:
    embeddings, layer = "vit.embeddings.", r"vit.layers.\1."
    renamings = {
        r"^cls_token$": embeddings + "cls_token",
        r"^pos_embedding$": embeddings + "position_embeddings",
        r"^to_patch_embedding\.1\.": embeddings + "patch_embeddings.projection.",
        r"^transformer\.layers\.(\d+)\.1\.to_qkv\.": layer + "attention.to_qkv.",
        r"^transformer\.layers\.(\d+)\.1\.to_out\.": layer + "attention.o_proj.",
        r"^transformer\.layers\.(\d+)\.3\.net\.0\.": layer + "mlp.fc1.",
        r"^transformer\.layers\.(\d+)\.3\.net\.2\.": layer + "mlp.fc2.",
        r"^mlp_head\.1\.": "classifier.",
    }
    return [
        *(WeightRenaming(source, target) for source, target in renamings.items()),
        in_place(embeddings + "position_embeddings", PositionsOfPatches()),
        in_place(embeddings + "patch_embeddings.projection.weight", PatchKernel(arguments["patch_size"])),
        *(
            WeightConverter(
                f"attention.to_qkv.{name}",
                [f"attention.{part}_proj.{name}" for part in "qkv"],
                operations=[Chunk(dim=0)],
            )
            for name in ("weight", "bias")
        ),
    ]


def _gpt_rules() -> list:
    layer = r"^transformer\.layers\.(\d+)\."
    linears = {
        r"1\.to_qkv": "attn.c_attn",
        r"1\.to_out": "attn.c_proj",
        r"3\.net\.0": "mlp.c_fc",
        r"3\.net\.2": "mlp.c_proj",
    }
    return [
        WeightRenaming(r"^(wte|wpe)\.", r"transformer.\1."),
        WeightRenaming(r"^final_linear\.", "lm_head."),
        *(WeightRenaming(rf"{layer}{source}\.", rf"transformer.h.\1.{target}.") for source, target in linears.items()),
        *(in_place(f"{target}.weight", Transpose(0, 1)) for target in linears.values()),
    ]
