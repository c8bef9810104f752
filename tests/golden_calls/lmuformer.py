"""Golden cases of `lmuformer` that are no model: the spiking neuron with its gradient, and single cells."""

from __future__ import annotations

from typing import Any

import torch

from hf_ext.convert import convert_checkpoint
from hf_ext.ops.spiking_neuron import lif
from tests.goldens import call_arguments, run_model


def run(case: dict[str, Any]) -> Any:
    if not case["state"]:
        return run_neuron(case)
    return run_cell(case) if "memory_size" in case["arguments"] else run_model(case)


def run_neuron(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Time comes first in these cases."""
    arguments, constants = call_arguments(case), dict(case["arguments"])
    if (surrogate := constants.pop("surrogate")) != "sigmoid":
        raise ValueError(f"the surrogate of `lif` is a sigmoid, not {surrogate!r}")
    constants |= {"threshold": constants.pop("v_threshold"), "reset": constants.pop("v_reset")}
    x = arguments["x"].requires_grad_()
    spikes, membranes = lif(x.transpose(0, 1), **constants, output_membranes=True)
    spikes = spikes.transpose(0, 1)
    (spikes * arguments["grad_spikes"]).sum().backward()
    return {"spikes": spikes, "membrane": membranes.transpose(0, 1), "x.grad": x.grad}


@torch.no_grad()
def run_cell(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    o, final_state = convert_checkpoint(case["method"], case["state_dict"], case["arguments"])(**call_arguments(case))
    return {"o": o, "final_state": final_state}
