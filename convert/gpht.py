"""icantnamemyself/GPHT checkpoints (`checkpoint.pth`, a bare state dict).

`arguments` is the reference's namespace, `vars(args)` of its run.py; what has no bearing on this model is accepted and ignored.
"""

from __future__ import annotations

from typing import Any

from transformers.core_model_loading import WeightConverter, WeightRenaming

from hf_ext.models.gpht import GPHTConfig

from .operations import Flatten

MODEL = "GPHTForPrediction"
# reference argument -> (our field, the reference's default)
FIELDS = {
    "seq_len": ("context_length", 336),
    "token_len": ("token_length", 48),
    "GT_pooling_rate": ("pooling_rates", (8, 4, 2, 1)),
    "GT_d_model": ("hidden_size", 512),
    "GT_e_layers": ("num_hidden_layers", 3),
    "n_heads": ("num_attention_heads", 8),
    "GT_d_ff": ("intermediate_size", 2048),
    "activation": ("hidden_act", "gelu"),
    "dropout": ("dropout", 0.1),
}
OTHERS = ("depth", "pred_len", "output_attention")
# The rest of run.py: the training run, the files, and the baselines of the same repository.
IGNORED_NAMES = """
    ar_pred_len ar_seq_len batch_size c_out checkpoints d_ff d_layers d_model data data_path dec_in des devices
    device_ids distil e_layers embed enc_in factor features freq gpu inverse is_training itr label_len learning_rate load_pretrain
    loss lradj model model_id moving_avg num_kernels num_workers p_hidden_dims p_hidden_layers patience percent
    pretrain_batch_size root_path seasonal_patterns target task_name top_k train_epochs transfer_data
    transfer_data_path transfer_root_path use_amp use_gpu use_multi_gpu
"""
IGNORED = frozenset(IGNORED_NAMES.split())
IGNORE = ["*.position_embedding.pe"]  # sinusoids, computed here
RULES = [
    WeightRenaming(r"^encoders\.", "model.stages."),
    WeightRenaming(r"\.patch_embedding\.", ".embeddings."),
    WeightRenaming(r"\.encoder\.attn_layers\.", ".layers."),
    WeightRenaming(r"\.encoder\.norm\.", ".layernorm."),
    *(
        WeightRenaming(rf"\.{theirs}_projection\.", f".{ours}_proj.")
        for theirs, ours in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))
    ),
    WeightRenaming(r"\.norm1\.", ".attention_norm."),
    WeightRenaming(r"\.norm2\.", ".mlp_norm."),
    WeightRenaming(r"\.conv1\.", ".mlp.fc1."),
    WeightRenaming(r"\.conv2\.", ".mlp.fc2."),
    *(WeightConverter(f"mlp.{name}.weight", f"mlp.{name}.weight", [Flatten(1)]) for name in ("fc1", "fc2")),
]


def config(arguments: dict[str, Any]) -> GPHTConfig:
    """
    Raises:
        ValueError: an argument that the reference does not have, tokens that differ from the prediction, or fewer pooling rates
            than stages.
    """
    if unknown := sorted(set(arguments) - set(FIELDS) - set(OTHERS) - IGNORED):
        known = ", ".join((*FIELDS, *OTHERS))
        raise ValueError(f"GPHT has no argument {', '.join(unknown)}; those with an effect are {known}")
    fields = {field: arguments.get(name, default) for name, (field, default) in FIELDS.items()}
    if (steps := arguments.get("pred_len", fields["token_length"])) != fields["token_length"]:
        raise ValueError(
            f"`pred_len` must equal `token_len` ({fields['token_length']}) as in the reference, got {steps}"
        )
    rates, depth = fields["pooling_rates"], arguments.get("depth", 4)
    if not 1 <= depth <= len(rates):
        raise ValueError(f"`depth` must be 1 to {len(rates)}, the number of `GT_pooling_rate`, got {depth}")
    fields["pooling_rates"] = list(rates[:depth])
    fields["hidden_act"] = "relu" if fields["hidden_act"] == "relu" else "gelu"
    if arguments.get("output_attention"):
        fields |= {"output_attentions": True, "attn_implementation": "eager"}
    return GPHTConfig(**fields)
