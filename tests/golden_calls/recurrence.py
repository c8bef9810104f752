"""Calls that the cases of linear recurrences share: an op with its gradients, and decoding step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hf_ext.convert import convert_checkpoint
from tests.goldens import call_arguments


def run_op(case: dict[str, Any], op: Callable) -> dict[str, torch.Tensor | None]:
    arguments = call_arguments(case) | case["arguments"]
    grad_o, grad_final_state = arguments.pop("grad_o", None), arguments.pop("grad_final_state", None)
    inputs = {n: x.requires_grad_() for n, x in arguments.items() if torch.is_tensor(x) and x.is_floating_point()}
    o, final_state = op(**arguments)
    output = {"o": o, "final_state": final_state}
    losses = [(x * grad).sum() for x, grad in ((o, grad_o), (final_state, grad_final_state)) if grad is not None]
    if losses:
        sum(losses).backward()
        output |= {f"{name}.grad": x.grad for name, x in inputs.items()}
    return output


@torch.no_grad()
def run_decoding(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A prefill, then one token at a time; states in the reference's layout, one per query head."""
    model = convert_checkpoint(case["method"], case["state_dict"], case["arguments"])
    arguments = call_arguments(case)
    steps = arguments.pop("step_input_ids")
    prefill = model(**arguments | {"use_cache": True})
    cache = prefill.past_key_values
    mask = arguments.get("attention_mask")
    logits = []
    for step in steps.split(1, dim=1):
        if mask is not None:
            mask = torch.cat((mask, mask.new_ones(mask.shape[0], 1)), 1)
        logits.append(model(step, attention_mask=mask, past_key_values=cache, use_cache=True).logits)
    groups = model.config.num_heads // (getattr(model.config, "num_kv_heads", None) or model.config.num_heads)
    states = {
        f"past_key_values.{index}.recurrent_state": layer.recurrent_states[0].repeat_interleave(groups, 1)
        for index, layer in enumerate(cache.layers)
        if layer.recurrent_states[0] is not None
    }
    return {"logits": prefill.logits, "step_logits": torch.cat(logits, 1), **states}
