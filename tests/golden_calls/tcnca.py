"""Golden cases of `tcnca`: a language model, in one pass or token by token through its cache, and the parts of a layer."""

from __future__ import annotations

from typing import Any

import torch

from hf_ext.convert import convert_checkpoint
from tests.goldens import call_arguments


@torch.no_grad()
def run(case: dict[str, Any]) -> dict[str, Any]:
    model = convert_checkpoint(case["method"], case["state_dict"], case["arguments"])
    arguments = call_arguments(case)
    if "hidden_states" in arguments:
        return {"o": model(**arguments)[0]}
    steps = arguments.pop("step_input_ids", None)
    output = model(**arguments)
    if steps is None:
        return output
    mask, logits = arguments.get("attention_mask"), []
    for step in steps.split(1, 1):
        mask = None if mask is None else torch.cat((mask, torch.ones_like(step)), 1)
        logits.append(model(step, attention_mask=mask, past_key_values=output.past_key_values).logits)
    return {"logits": output.logits, "step_logits": torch.cat(logits, 1)}
