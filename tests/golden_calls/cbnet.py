"""CBNet: in eval mode the assistants' pyramid is computed on request only."""

from __future__ import annotations

from typing import Any

import torch

from hf_ext.convert import convert_checkpoint
from tests.goldens import call_arguments


@torch.no_grad()
def run(case: dict[str, Any]) -> Any:
    model = convert_checkpoint(case["method"], case["state_dict"], case["arguments"])
    return model(**call_arguments(case), output_assistant_feature_maps=True)
