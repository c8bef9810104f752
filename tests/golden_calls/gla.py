"""Golden cases of `gla` that are no single forward: the op with its gradients, and decoding step by step."""

from __future__ import annotations

from typing import Any

from hf_ext.ops.gla import gated_linear_attention
from tests.golden_calls.recurrence import run_decoding, run_op
from tests.goldens import run_model


def run(case: dict[str, Any]) -> Any:
    if not case["state"]:
        return run_op(case, gated_linear_attention)
    return run_decoding(case) if "step_input_ids" in case["call"] else run_model(case)
