"""thuml/iTransformer and thuml/Time-Series-Library checkpoints (`checkpoint.pth`, a bare state dict).

`arguments` is the reference's namespace, `vars(args)` of its run.py; what has no bearing on this model is accepted and ignored.
`task_name` (Time-Series-Library only) selects the head.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from hf_ext.models.itransformer import ITransformerConfig

FORECAST, RECONSTRUCTION = "ITransformerForPrediction", "ITransformerForReconstruction"
HEADS = {
    "long_term_forecast": FORECAST,
    "short_term_forecast": FORECAST,
    "imputation": RECONSTRUCTION,
    "anomaly_detection": RECONSTRUCTION,
    "classification": "ITransformerForTimeSeriesClassification",
}
DEFAULTS = {
    "task_name": None,
    "data": "custom",
    "seq_len": 96,
    "pred_len": 96,
    "d_model": 512,
    "n_heads": 8,
    "e_layers": 2,
    "d_ff": 2048,
    "dropout": 0.1,
    "activation": "gelu",
    "use_norm": True,
    "output_attention": False,
    "enc_in": 7,
    "num_class": 2,
    "embed": "timeF",
    "freq": "h",
    "features": "M",
}
# The rest of both run.py files: the training run, the files, and other models of the same repositories.
IGNORED_NAMES = """
    alpha anomaly_ratio augmentation_ratio batch_size c_out channel_independence checkpoints class_strategy
    conv_channel d_conv d_layers data_path dec_in decomp_method des detail_freq devices device_ids discdtw discsdtw
    distil do_predict down_sampling_layers down_sampling_method down_sampling_window dtwwarp efficient_training
    exp_name expand extra_tag factor gcn_depth gcn_dropout gpu gpu_type individual inverse is_training itr jitter
    label_len learning_rate loss lradj magwarp mask_rate model model_id moving_avg no_use_gpu node_dim num_kernels
    num_workers p_hidden_dims p_hidden_layers partial_start_index patch_len patience permutation pos propalpha
    randompermutation root_path rotation scaling seasonal_patterns seed seg_len shapedtwwarp skip_channel spawner
    target target_data_path target_root_path timewarp top_k top_p train_epochs tv_B tv_dt use_D use_amp use_dtw
    use_gpu use_multi_gpu wdba windowslice windowwarp
"""
IGNORED = frozenset(IGNORED_NAMES.split())
CALENDAR_FEATURES = {
    "h": 4,
    "t": 5,
    "min": 5,
    "s": 6,
    "m": 1,
    "a": 1,
    "w": 2,
    "d": 3,
    "b": 3,
}  # the reference's `freq_map`


class Squeeze(ConversionOps):
    """Drops the last axis of a 1x1 convolution's weight, which then is a Linear's."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        (tensors,) = input_dict.values()
        tensor = tensors[0] if isinstance(tensors, list) else tensors
        return {target_patterns[0]: tensor.squeeze(-1)}


RULES = [
    WeightRenaming(r"^module\.", ""),  # saved under DataParallel
    WeightRenaming(r"^enc_embedding\.", "model.embeddings."),
    WeightRenaming(r"^encoder\.attn_layers\.", "model.layers."),
    WeightRenaming(r"^encoder\.norm\.", "model.layernorm."),
    WeightRenaming(r"\.query_projection\.", ".q_proj."),
    WeightRenaming(r"\.key_projection\.", ".k_proj."),
    WeightRenaming(r"\.value_projection\.", ".v_proj."),
    WeightRenaming(r"\.out_projection\.", ".o_proj."),
    WeightRenaming(r"\.norm1\.", ".attention_norm."),
    WeightRenaming(r"\.norm2\.", ".mlp_norm."),
    WeightRenaming(r"\.conv1\.", ".mlp.fc1."),
    WeightRenaming(r"\.conv2\.", ".mlp.fc2."),
    WeightRenaming(r"^projector\.", "head."),
    WeightRenaming(r"^projection\.", "head."),
    WeightConverter("mlp.fc1.weight", "mlp.fc1.weight", [Squeeze()]),
    WeightConverter("mlp.fc2.weight", "mlp.fc2.weight", [Squeeze()]),
]


def model_class(arguments: dict[str, Any]) -> str:
    task = arguments.get("task_name")
    if task is not None and task not in HEADS:
        raise ValueError(f"`task_name` must be one of {', '.join(HEADS)}, or left out for a forecast; got {task!r}")
    return HEADS[task] if task else FORECAST


def config(arguments: dict[str, Any]) -> ITransformerConfig:
    """
    Raises:
        ValueError: an argument that neither repository has, or a `task_name` without a head.
    """
    if unknown := sorted(set(arguments) - set(DEFAULTS) - IGNORED):
        known = ", ".join(DEFAULTS)
        raise ValueError(f"iTransformer has no argument {', '.join(unknown)}; those with an effect are {known}")
    head = model_class(arguments)
    given = DEFAULTS | arguments
    fields: dict[str, Any] = {
        "context_length": given["seq_len"],
        "num_input_channels": given["enc_in"],
        "num_time_features": _num_time_features(given),
        "hidden_size": given["d_model"],
        "num_hidden_layers": given["e_layers"],
        "num_attention_heads": given["n_heads"],
        "intermediate_size": given["d_ff"],
        "hidden_act": "relu" if given["activation"] == "relu" else "gelu",
        "dropout": given["dropout"],
        "scaling": "std" if given["use_norm"] else None,
        "loss_channels": [-1] if given["features"] == "MS" else None,
    }
    if given[
        "task_name"
    ]:  # Time-Series-Library knows no `use_norm` here: its classification never scales, the rest always do
        fields["scaling"] = None if given["task_name"] == "classification" else "std"
    if head == FORECAST:
        fields["prediction_length"] = given["pred_len"]
    if given["task_name"] == "classification":
        fields["num_labels"] = given["num_class"]
    if given["output_attention"]:
        fields |= {"output_attentions": True, "attn_implementation": "eager"}
    return ITransformerConfig(**fields)


def _num_time_features(given: dict[str, Any]) -> int:
    """Calendar features that the reference's data loaders add: none for Solar and PEMS, and none for these two tasks.

    With an `embed` other than "timeF" it adds raw month, day, weekday and hour, which the pipeline does not build: 0 then.
    """
    without = given["task_name"] in ("classification", "anomaly_detection") or given["data"] in ("Solar", "PEMS")
    if without or given["embed"] != "timeF":
        return 0
    return CALENDAR_FEATURES.get(given["freq"].lower().lstrip("0123456789"), 0)
