"""zeyuliu1037/LMUFormer checkpoints (`best_audio_model.pth`, a state dict), and single cells of its `src/blocks/lmu_cell.py`.

`arguments` is what the reference's registered model functions take, and `model`, the name of the function. For a cell it is the arguments
of `LMUFFTCell`, and `spiking`.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.core_model_loading import WeightConverter, WeightRenaming, WeightTransform

from hf_ext.layers.legendre_memory import LegendreMemoryCell
from hf_ext.layers.streaming import SpikingNeurons
from hf_ext.models.lmuformer import LMUFormerConfig, LMUFormerForAudioClassification

from .operations import Flatten

MODELS = {
    "lmu_rnn_conv1d": {},
    "slmu_rnn_conv1d": {"spiking": True, "membrane_shortcut": False},
    "slmu_rnn_ms_conv1d": {"spiking": True},
    "attn_ms_conv1d": {"spiking": True, "mixer": "attention"},
}
# reference argument -> our field and the default; the reference's own where a model can be built with it, or else its gsc.yml's
FIELDS = {
    "in_channels": ("num_mel_bins", 1),
    "embed_dims": ("hidden_size", 256),
    "num_heads": ("num_attention_heads", 16),
    "depths": ("num_hidden_layers", 1),
    "num_classes": ("num_labels", 35),
}
# Without effect; "all_seq" of test_mode is `frame_logits`
IGNORED_NAMES = """
    img_size_h img_size_w patch_size qkv_bias qk_scale drop_rate attn_drop_rate drop_path_rate norm_layer sr_ratios T test_mode
"""
IGNORED = IGNORED_NAMES.split()
CELL = ("input_size", "hidden_size", "memory_size", "seq_len", "theta", "spiking")
IGNORE = [prefix + name for prefix in ("", "*.lmu.") for name in ("A", "B", "H", "fft_H")]  # computed here
CELL_RULES = [
    WeightRenaming(r"W_u\.", "u_proj."),
    WeightRenaming(r"W_h\.", "h_proj."),
    *(WeightRenaming(rf"bn_{name}\.", f"{name}_activation.norm.") for name in "umh"),
]
POINTWISE = [
    WeightRenaming(r"\.attn\.proj_conv\.", ".mixer.o_proj."),
    *(WeightRenaming(rf"\.{name}_conv\.", f".{name}_proj.") for name in "qkv"),
    *(WeightRenaming(rf"\.{name}_conv\.", f".{name}.") for name in ("fc1", "fc2")),
]
MODEL_RULES = [
    *POINTWISE,
    WeightRenaming(r"^block\.", "model.layers."),
    WeightRenaming(r"\.attn\.lmu\.", ".mixer.cell."),
    *(WeightRenaming(rf"\.attn\.{name}_bn\.", ".mixer.input_norm.norm.") for name in ("prev", "pre")),
    WeightRenaming(r"\.attn\.proj_bn\.", ".mixer.norm.norm."),
    *(WeightRenaming(rf"\.attn\.{name}_bn\.", f".mixer.{name}_norm.norm.") for name in "qkv"),
    WeightRenaming(r"\.attn\.", ".mixer."),
    *(WeightRenaming(rf"\.fc{i}_bn\.", f".norm{i}.norm.") for i in (1, 2)),
    WeightRenaming(r"^patch_embed\.rpe_conv\.", "model.embeddings.position_conv."),
    WeightRenaming(r"^patch_embed\.rpe_bn\.", "model.embeddings.position_norm.norm."),
    *(
        WeightRenaming(rf"^patch_embed\.{theirs}\.", f"model.embeddings.layers.{i}.{ours}.")
        for i in range(4)
        for theirs, ours in (
            (rf"conv_layers\.{i}\.0", "conv"),
            (rf"conv_layers\.{i}\.3", "norm.norm"),
            (f"proj_conv{i or ''}", "conv"),
            (f"proj_bn{i or ''}", "norm.norm"),
        )
    ),
    WeightRenaming(r"^head_bn\.", "model.norm.norm."),
    WeightRenaming(r"^head\.", "classifier."),
    *CELL_RULES,
    *(
        WeightConverter(f"{name}.weight", f"{name}.weight", [Flatten(1)])
        for name in ("o_proj", "q_proj", "k_proj", "v_proj", "fc1", "fc2")
    ),
]


def is_cell(arguments: dict[str, Any]) -> bool:
    return "memory_size" in arguments


def RULES(arguments: dict[str, Any]) -> list[WeightTransform]:
    return CELL_RULES if is_cell(arguments) else MODEL_RULES


def build(arguments: dict[str, Any]) -> nn.Module:
    if not is_cell(arguments):
        return LMUFormerForAudioClassification(config(arguments))
    check_names(arguments, CELL)
    sizes = [arguments[name] for name in ("input_size", "hidden_size", "memory_size", "theta")]
    return LegendreMemoryCell(*sizes, SpikingNeurons if arguments.get("spiking") else None)


def config(arguments: dict[str, Any]) -> LMUFormerConfig:
    """
    Raises:
        ValueError: an argument or a model that the reference does not have, or a width that "slmu_rnn_conv1d" cannot be built with.
    """
    check_names(arguments, ("model", "mlp_ratios", *FIELDS, *IGNORED))
    model = arguments.get("model", "lmu_rnn_conv1d")
    if model not in MODELS:
        raise ValueError(f"`model` must be one of {', '.join(MODELS)}, got {model!r}")
    fields = {field: arguments.get(name, default) for name, (field, default) in FIELDS.items()}
    if model == "slmu_rnn_conv1d":  # its embedding is written for one size
        fields["num_mel_bins"] = 128
        if fields["hidden_size"] != 256:
            raise ValueError(f"`embed_dims` of slmu_rnn_conv1d must be 256, got {fields['hidden_size']}")
    fields["intermediate_size"] = int(fields["hidden_size"] * arguments.get("mlp_ratios", 4))
    return LMUFormerConfig(**fields, **MODELS[model])


def check_names(arguments: dict[str, Any], known: tuple[str, ...]) -> None:
    if unknown := sorted(set(arguments) - set(known)):
        raise ValueError(f"LMUFormer has no argument {', '.join(unknown)}; it has {', '.join(known)}")
