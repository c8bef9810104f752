"""Golden cases: what a method's reference implementation computes.

A case is a folder with `case.json` and `tensors.safetensors`. The reference's weights are not stored: each floating-point entry is
drawn from a generator seeded by its name (`filled`), so that a case of a full-size model stays small.
"""

from __future__ import annotations

import json
import math
import zlib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from hf_ext.convert import convert_checkpoint

FOLDER = Path(__file__).parent / "goldens"


def filled(name: str, shape: list[int]) -> torch.Tensor:
    """The float32 tensor that stands for the state-dict entry `name`: normal, scaled by what kind of entry it is."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    x = np.asarray(generator.standard_normal(tuple(shape), dtype=np.float32))
    leaf = name.rpartition(".")[2]
    if leaf == "running_var":
        x = 1 + 0.1 * np.abs(x)
    elif leaf == "running_mean":
        x = 0.1 * x
    elif x.ndim > 1:
        x = x * max(1 / math.sqrt(math.prod(shape[1:])), 0.02)
    else:
        x = 0.1 * x + (leaf == "weight")
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def read_case(folder: str | Path) -> dict[str, Any]:
    """The case's JSON, with its "inputs", "outputs" and the reference's "state_dict" as tensors."""
    folder = Path(folder)
    case = json.loads((folder / "case.json").read_text())
    parts: dict[str, dict[str, torch.Tensor]] = {"input": {}, "output": {}, "state": {}}
    for key, tensor in load_file(folder / "tensors.safetensors").items():
        part, _, name = key.partition(".")
        parts[part][name] = tensor
    state = {
        name: parts["state"][name] if name in parts["state"] else filled(name, shape).to(getattr(torch, dtype))
        for name, (shape, dtype) in case["state"].items()
    }
    state |= {alias: state[name] for alias, name in case["tied"].items()}
    return case | {"inputs": parts["input"], "outputs": parts["output"], "state_dict": state}


def call_arguments(case: dict[str, Any]) -> dict[str, Any]:
    """The case's call: tensors by name, JSON literals after "=", and dotted names gathered into dicts."""
    arguments: dict[str, Any] = {}
    for name, source in case["call"].items():
        value = json.loads(source[1:]) if source.startswith("=") else case["inputs"][source].clone()
        *outer, leaf = name.split(".")
        target = arguments
        for key in outer:
            target = target.setdefault(key, {})
        target[leaf] = value
    return arguments


def dig(output: Any, path: str) -> torch.Tensor:
    """`dig(output, "hidden_states.2")` is `output["hidden_states"][2]`, or the attribute where there is no such entry."""
    if isinstance(output, dict) and path in output:
        return output[path]
    for key in path.split("."):
        if isinstance(output, (list, tuple)) and key.isdigit():
            output = output[int(key)]
        elif isinstance(output, dict):
            output = output[key]
        else:
            output = getattr(output, key)
    return output


def run_case(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Builds the port from the case's weights and arguments, calls it, and returns the tensors that `expect` names."""
    slug = case["method"]
    if find_spec(f"tests.golden_calls.{slug}"):
        output = import_module(f"tests.golden_calls.{slug}").run(case)
    else:
        output = run_model(case)
    return {name: torch.as_tensor(dig(output, path)).detach() for path, name in case["expect"].items()}


def run_model(case: dict[str, Any]) -> Any:
    """One forward of the converted model, in eval mode."""
    model = convert_checkpoint(case["method"], case["state_dict"], case["arguments"])
    arguments = call_arguments(case)
    if arguments.get("output_attentions") and hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(**arguments)


def check_case(case: dict[str, Any]) -> None:
    """Holds every expected tensor to the reference, within the case's own tolerance."""
    outputs = run_case(case)
    for name, expected in case["outputs"].items():
        torch.testing.assert_close(
            outputs[name],
            expected,
            atol=case["atol"],
            rtol=case["rtol"],
            check_dtype=False,
            msg=lambda m, n=name: f"{n}: {m}",
        )
