"""Long Range Arena's classifiers: their logits, and what their encoder gives."""

from __future__ import annotations

from typing import Any

import torch

from hf_ext.convert import convert_checkpoint
from tests.goldens import call_arguments


@torch.no_grad()
def run(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    model = convert_checkpoint("wide_attention", case["state_dict"], case["arguments"])
    output = model(**call_arguments(case), output_hidden_states=True)
    return {"last_hidden_state": output.hidden_states[-1], **output}
