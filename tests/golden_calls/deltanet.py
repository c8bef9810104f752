"""Golden cases of `deltanet` that are no single forward: tasks, the op with its gradients, and decoding step by step."""

from __future__ import annotations

from typing import Any

from hf_ext.data.state_tracking import samples, shifted
from hf_ext.ops.delta_rule import delta_rule
from tests.golden_calls.recurrence import run_decoding, run_op
from tests.goldens import call_arguments, run_model


def run(case: dict[str, Any]) -> Any:
    if "task" in case["call"]:
        return dict(zip(("input_ids", "labels"), shifted(*samples(**call_arguments(case)))))
    if not case["state"]:
        return run_op(case, delta_rule)
    return run_decoding(case) if "step_input_ids" in case["call"] else run_model(case)
