"""What a technique changes: size, work, time and answers of a model before and after, on the same inputs."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from hf_ext.benchmarks import peak_mib
from hf_ext.measuring import parameters


def _attention_on_cpu(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


_attention_on_cpu._get_raw = True  # it takes tensors, not their shapes
# what torch's counter does not know
UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_on_cpu}


def call(model: Callable[..., Any], inputs: Any) -> torch.Tensor:
    """The model's first result that is a tensor: logits, where it gives those. `inputs` is a dict of arguments, or the one argument."""
    with torch.no_grad():
        outputs = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    found = getattr(outputs, "logits", None)
    return found if found is not None else next(x for x in tree_leaves(outputs) if isinstance(x, torch.Tensor))


def saved_mib(model: nn.Module) -> float:
    """The size of the saved weights in MiB."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell() / 2**20


def flops(model: nn.Module, inputs: Any) -> int:
    """Floating-point operations of one call, as torch counts them; quantized products are not counted."""
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        call(model, inputs)
    return counter.get_total_flops()


def latency(model: Callable[..., Any], inputs: Any, rounds: int = 5) -> float:
    """Median seconds of one call, after a first one that does not count."""
    call(model, inputs)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call(model, inputs)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """|found - expected| / |expected|, Euclidean norms"""
    expected, found = expected.double(), found.double()
    return ((found - expected).norm() / expected.norm().clamp_min(1e-12)).item()


def agreement(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Share of places whose most likely class is the same."""
    return (expected.argmax(-1) == found.argmax(-1)).float().mean().item()


def measured(model: Callable[..., Any], inputs: Any, rounds: int = 5) -> dict[str, float]:
    """ms, MiB at the peak of a call; and for modules parameters and MiB saved."""
    numbers = {"milliseconds": latency(model, inputs, rounds) * 1000, "peak MiB": peak_mib(lambda: call(model, inputs))}
    if isinstance(model, nn.Module):
        numbers |= {"parameters": parameters(model), "saved MiB": saved_mib(model)}
    return numbers


def compare(model: nn.Module, changed: Callable[..., Any], inputs: Any) -> dict[str, float]:
    """`measured` and operations of both, as "before: ..." and "after: ...", and the "difference" of results that have one shape."""
    numbers = {}
    for when, one in (("before", model), ("after", changed)):
        numbers |= {f"{when}: {name}": value for name, value in measured(one, inputs).items()}
        numbers[f"{when}: operations"] = flops(one, inputs)
    expected, found = call(model, inputs), call(changed, inputs)
    if expected.shape == found.shape:
        numbers["difference"] = difference(expected, found)
    return numbers
