"""Water2sea/TPGN checkpoints (a bare state dict).

`arguments` is the reference's namespace, `vars(args)` of its run.py.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from hf_ext.models.tpgn import TPGNConfig

from .operations import Flatten, only_tensor

MODEL = "TPGNForPrediction"
# reference argument -> (our field, the reference's default)
FIELDS = {
    "seq_len": ("context_length", 168),
    "pred_len": ("prediction_length", 168),
    "TPGN_period": ("period", 24),
    "enc_in": ("num_input_channels", 1),
    "d_model": ("hidden_size", 32),
}
TIME_FEATURES = {"t": 5, "h": 4, "d": 3}
OTHERS = ("norm", "freq", "need_short", "c_out")


class TimeMajor(ConversionOps):
    """A convolution over its whole input as a matrix: (out, in, time) -> (out, time * in)."""

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs) -> dict[str, torch.Tensor]:
        return {target_patterns[0]: only_tensor(input_dict).transpose(1, 2).flatten(1)}


RULES = [
    WeightRenaming(r"^TPGN\.LNN_dim\.hidden_MLP\.", "model.long_branch.pgn.history."),
    WeightRenaming(r"^TPGN\.LNN_dim\.gate\.", "model.long_branch.pgn.gate."),
    WeightRenaming(r"^TPGN\.LNN_dim\.fc\.", "model.long_branch.collapse."),
    WeightRenaming(r"^TPGN\.s_t_p_e\.fc_row\.", "model.short_branch.row."),
    WeightRenaming(r"^TPGN\.s_t_p_e\.fc_col\.", "model.short_branch.collapse."),
    WeightRenaming(r"^TPGN\.fc\.", "head."),
    *(
        WeightConverter(f"{name}.weight", f"{name}.weight", [operation])
        for name, operation in (
            ("pgn.history", TimeMajor()),
            ("pgn.gate", Flatten(1)),
            ("collapse", TimeMajor()),
            ("short_branch.row", TimeMajor()),
            ("head", Flatten(1)),
        )
    ),
]


def config(arguments: dict[str, Any]) -> TPGNConfig:
    """
    Raises:
        ValueError: an argument that does not bear on the model, or a `freq` that the reference has no calendar features for.
    """
    if unknown := sorted(set(arguments) - set(FIELDS) - set(OTHERS)):
        raise ValueError(f"TPGN has no argument {', '.join(unknown)}; it has {', '.join((*FIELDS, *OTHERS))}")
    frequency = arguments.get("freq", "h")
    if frequency not in TIME_FEATURES:
        raise ValueError(f"`freq` must be one of {', '.join(TIME_FEATURES)}, got {frequency!r}")
    fields = {field: arguments.get(name, default) for name, (field, default) in FIELDS.items()}
    return TPGNConfig(
        **fields,
        num_time_features=TIME_FEATURES[frequency],
        scaling="std" if arguments.get("norm", 0) else None,
        use_short_branch=bool(arguments.get("need_short", 1)),
    )
