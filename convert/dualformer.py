"""facebookresearch/dualformer: `EncoderDecoder(HyperParams(**encoder), HyperParams(**decoder))`."""

from __future__ import annotations

from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from hf_ext.models.dualformer import DualformerConfig, DualformerStackConfig
from hf_ext.models.dualformer.configuration_dualformer import swiglu_width

from .operations import only_tensor

MODEL = "DualformerForConditionalGeneration"
UNWRAP = ("model",)
IGNORE = ["*rope.cos_param", "*rope.sin_param"]  # rotary tables, repeated in every layer and never trained

DEFAULTS = {
    "multiple_of": 256,
    "norm_eps": 1e-5,
    "norm_affine": True,
    "dropout": 0.0,
    "rope_freq": 10000,
    "max_seq_len": 65536,
}
REQUIRED = ("dim", "n_layers", "n_heads", "vocab_size")
KNOWN = {*DEFAULTS, *REQUIRED, "name", "output_size"}
STACKS = ("encoder", "decoder")
SWITCHES = (
    "encoder_padding_mask",
    "plan_token_id",
    "create_token_id",
)  # of ours, which the reference leaves to its callers


def config(arguments: dict[str, Any]) -> DualformerConfig:
    """From the `HyperParams` of both sides, {"encoder": {...}, "decoder": {...}}."""
    if unknown := sorted(set(arguments) - {*STACKS, *SWITCHES}):
        raise ValueError(f"Dualformer has no argument {', '.join(unknown)}; it has {', '.join((*STACKS, *SWITCHES))}")
    sides = {}
    for name in STACKS:
        if name not in arguments:
            raise ValueError(f"The arguments must hold '{name}', the HyperParams of that side")
        side = sides[name] = DEFAULTS | arguments[name]
        if unknown := sorted(set(side) - KNOWN):
            raise ValueError(f"HyperParams has no argument {', '.join(unknown)}; it has {', '.join(sorted(KNOWN))}")
        if missing := [field for field in REQUIRED if field not in side]:
            raise ValueError(f"The HyperParams of the {name} lack {', '.join(missing)}")
    encoder, decoder = sides["encoder"], sides["decoder"]
    sizes = {
        "encoder.output_size": (encoder.get("output_size", decoder["dim"]), "decoder.dim", decoder["dim"]),
        "decoder.output_size": (decoder.get("output_size", decoder["vocab_size"]), "decoder.vocab_size", decoder["vocab_size"]),
        "encoder.vocab_size": (encoder["vocab_size"], "decoder.vocab_size", decoder["vocab_size"]),
    }  # fmt: skip
    for name, (value, other, expected) in sizes.items():
        if value != expected:
            raise ValueError(f"`{name}` must equal `{other}` = {expected}, got {value}")
    return DualformerConfig(
        encoder=stack(encoder),
        decoder=stack(decoder),
        vocab_size=decoder["vocab_size"],
        **{name: arguments[name] for name in SWITCHES if name in arguments},
    )


def stack(side: dict[str, Any]) -> DualformerStackConfig:
    return DualformerStackConfig(
        hidden_size=side["dim"],
        num_hidden_layers=side["n_layers"],
        num_attention_heads=side["n_heads"],
        intermediate_size=swiglu_width(side["dim"], side["multiple_of"]),
        rms_norm_eps=side["norm_eps"],
        norm_affine=side["norm_affine"],
        attention_dropout=side["dropout"],
        max_position_embeddings=side["max_seq_len"],
        rope_parameters={"rope_type": "default", "rope_theta": float(side["rope_freq"])},
    )


class PairsToHalves(ConversionOps):
    """Rows of each head (x0, x1), (x2, x3), ... that rotate together become (x0, x2, ...), (x1, x3, ...), as Llama has them."""

    def __init__(self, num_heads: int):
        self.num_heads = num_heads

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs) -> dict[str, torch.Tensor]:
        weight = only_tensor(input_dict)
        return {target_patterns[0]: weight.unflatten(0, (self.num_heads, -1, 2)).transpose(1, 2).reshape(weight.shape)}


def RULES(arguments: dict[str, Any]) -> list:
    return [
        WeightRenaming(r"^model\.(encoder|decoder)\.", r"\1."),  # the loss module's prefix
        WeightRenaming(r"^decoder\.output\.1\.", "lm_head."),
        WeightRenaming(r"^encoder\.output\.1\.", "encoder.output_proj."),
        WeightRenaming(r"^(encoder|decoder)\.output\.0\.", r"\1.norm."),
        WeightRenaming(r"^(encoder|decoder)\.embedding\.", r"\1.embed_tokens."),
        WeightRenaming(r"\.attention_feat_norm\.", ".cross_attn_norm."),
        WeightRenaming(r"\.attention_norm\.", ".self_attn_norm."),
        WeightRenaming(r"\.ffn_norm\.", ".mlp_norm."),
        WeightRenaming(r"\.attention_feat\.w([qkvo])\.", r".cross_attn.\1_proj."),
        WeightRenaming(r"\.attention\.w([vo])\.", r".self_attn.\1_proj."),
        WeightRenaming(r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
        WeightRenaming(r"\.feed_forward\.w2\.", ".mlp.down_proj."),
        WeightRenaming(r"\.feed_forward\.w3\.", ".mlp.up_proj."),
        *(WeightRenaming(rf"^{side}\.layers\.(\d+)\.attention\.", rf"{side}.layers.\1.{side}_attention.") for side in STACKS),
        WeightRenaming(r"^(encoder|decoder)\.", r"model.\1."),
        *(
            WeightConverter(f"{side}_attention.w{x}.weight", f"self_attn.{x}_proj.weight", operations=[halves])
            for side, halves in ((side, PairsToHalves(arguments[side]["n_heads"])) for side in STACKS)
            for x in "qk"
        ),
    ]  # fmt: skip
