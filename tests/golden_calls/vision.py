"""Classifiers: their cases also name what the model below the classifier returns."""

from __future__ import annotations

from typing import Any

import torch

from hf_ext.convert import convert_checkpoint
from tests.goldens import call_arguments


def run_classifier(case: dict[str, Any]) -> dict[str, Any]:
    """One forward of the converted model: its output, with what its base model returned where the output has no such entry."""
    model = convert_checkpoint(case["method"], case["state_dict"], case["arguments"])
    below: dict[str, Any] = {}
    if model.base_model is not model:
        model.base_model.register_forward_hook(lambda module, arguments, output: below.update(output))
    with torch.no_grad():
        output = model(**call_arguments(case))
    return below | dict(output)
