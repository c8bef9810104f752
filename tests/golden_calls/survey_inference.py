"""The survey's building blocks, and which leaves of its taxonomy have an entry."""

from __future__ import annotations

from typing import Any

import torch

from hf_ext.layers.compression import (
    fake_quantize_activation,
    fake_quantize_weight,
    magnitude_mask,
    mask_2_4,
    merge_tokens,
    row_mask,
    smooth_scale,
)
from hf_ext.training.distillation import distillation_loss
from tests.golden_calls.taxonomies import covered
from tests.goldens import call_arguments


def run(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    return covered(case) if "leaves" in case["arguments"] else blocks(**call_arguments(case))


def blocks(
    student_logits, teacher_logits, labels, weight, hidden_states, temperature, alpha, amount, merge, smooth_alpha
) -> dict[str, torch.Tensor]:
    scale = smooth_scale(hidden_states, weight, smooth_alpha)
    merged, size = merge_tokens(hidden_states, merge)
    return {
        "distillation_loss": distillation_loss(student_logits, teacher_logits, labels, temperature, alpha),
        "magnitude_mask": magnitude_mask(weight, amount),
        "row_mask": row_mask(weight, amount),
        "mask_2_4": mask_2_4(weight),
        "activation_uint8": fake_quantize_activation(hidden_states),
        "weight_int8": fake_quantize_weight(weight),
        "smooth_scale": scale,
        "smooth_input": hidden_states / scale,
        "smooth_weight": weight * scale,
        "merged_tokens": merged,
        "merged_size": size,
    }
