"""Golden cases of `flashrnn`: the op with its gradients, and the solver of integer constraints."""

from __future__ import annotations

from typing import Any

import torch

from hf_ext.ops.flashrnn import flashrnn
from hf_ext.ops.flashrnn.constrint import solve
from tests.goldens import call_arguments


def run(case: dict[str, Any]) -> dict[str, Any]:
    arguments = call_arguments(case)
    return {"solutions": solve(**arguments)} if "constraints" in arguments else run_op(arguments | case["arguments"])


def run_op(arguments: dict[str, Any]) -> dict[str, torch.Tensor | None]:
    grad_h = arguments.pop("grad_h", None)
    inputs = {n: x.requires_grad_() for n, x in arguments.items() if torch.is_tensor(x) and x.is_floating_point()}
    states, last_states = flashrnn(**arguments)
    output = {"states": states, "last_states": last_states}
    if grad_h is not None:
        (states[0] * grad_h).sum().backward()
        output |= {f"{name}.grad": x.grad for name, x in inputs.items()}
    return output
