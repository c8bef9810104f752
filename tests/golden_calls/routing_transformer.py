"""The language model's cases are forwards; `kmeans_step` is a call of the centroids' update."""

from __future__ import annotations

from typing import Any

from hf_ext.ops.routed_attention import kmeans_step
from tests.goldens import call_arguments, run_model


def run(case: dict[str, Any]) -> Any:
    if case["state"]:
        return run_model(case)
    step = kmeans_step(**call_arguments(case))
    return step._asdict() | {"loss": step.loss.view(1)}
