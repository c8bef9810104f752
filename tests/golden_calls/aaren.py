"""Golden cases of `aaren` that are no single forward: the op with its gradients, and a stream read token by token."""

from __future__ import annotations

from typing import Any

import torch

from hf_ext.convert import convert_checkpoint
from hf_ext.ops.prefix_scan_attention import PrefixState, prefix_softmax_attention
from tests.goldens import call_arguments, run_model


def run(case: dict[str, Any]) -> Any:
    if not case["state"]:
        return run_op(case)
    return run_stream(case) if "step_inputs_embeds" in case["call"] else run_model(case)


def run_op(case: dict[str, Any]) -> dict[str, Any]:
    arguments = call_arguments(case) | case["arguments"]
    grad_o = arguments.pop("grad_o", None)
    if "initial_state" in arguments:
        arguments["initial_state"] = PrefixState(**arguments["initial_state"])
    inputs = {name: arguments[name].requires_grad_() for name in "qkv"}
    o, state = prefix_softmax_attention(**arguments)
    output = {"o": o, "state": state}
    if grad_o is not None:
        (o * grad_o).sum().backward()
        output |= {f"{name}.grad": x.grad for name, x in inputs.items()}
    return output


@torch.no_grad()
def run_stream(case: dict[str, Any]) -> dict[str, Any]:
    model = convert_checkpoint(case["method"], case["state_dict"], case["arguments"])
    arguments = call_arguments(case)
    steps = arguments.pop("step_inputs_embeds")
    prefill = model(**arguments | {"use_cache": True})
    cache = prefill.past_key_values
    outputs = [model.update(token, cache).last_hidden_state for token in steps.unbind(1)]
    return {
        "last_hidden_state": prefill.last_hidden_state,
        "step_last_hidden_state": torch.cat(outputs, 1),
        "past_key_values": [cache.state(layer_idx) for layer_idx in range(len(cache.layers))],
    }
