"""Counting instead of measuring: operations and memory of attention families by length, and a roofline of a model's operations.

The growth rates are those that "A Practical Survey on Faster and Lighter Transformers" (arXiv 2103.14636) compares; a roofline bounds each
operation by a device's arithmetic or its memory (Williams et al. 2009), as the survey on inference (arXiv 2307.07982) uses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .measure import UNCOUNTED, call


@dataclass(frozen=True)
class Family:
    """(n, d, settings) -> multiplications and additions of attention in one head, and numbers held at once besides q, k, v and o"""

    formula: str
    operations: Callable[..., float]
    memory: Callable[..., float]


DEFAULTS = {"window": 256, "rank": 256, "features": 256, "landmarks": 64}
# two for each product and sum; softmax and masks are left out
FAMILIES = {
    "full": Family("n^2 d / n^2", lambda n, d, **s: 4 * n * n * d, lambda n, d, **s: n * n),
    "window": Family(
        "n w d / n w",
        lambda n, d, window, **s: 4 * n * min(2 * window + 1, n) * d,
        lambda n, d, window, **s: n * min(2 * window + 1, n),
    ),
    "linformer": Family(
        "n k d / n k", lambda n, d, rank, **s: 8 * n * min(rank, n) * d, lambda n, d, rank, **s: n * min(rank, n)
    ),
    "linear": Family("n d^2 / n d", lambda n, d, **s: 4 * n * d * (d + 1), lambda n, d, **s: 2 * n * d + d * (d + 1)),
    "performer": Family(
        "n m d / n m",
        lambda n, d, features, **s: 4 * n * features * (2 * d + 1),
        lambda n, d, features, **s: 2 * n * features + features * (d + 1),
    ),
    "nystrom": Family(
        "n m d / n m",
        lambda n, d, landmarks, **s: 8 * n * min(landmarks, n) * d + 20 * min(landmarks, n) ** 3,
        lambda n, d, landmarks, **s: 2 * n * min(landmarks, n),
    ),
    "lsh": Family(
        "n log n d / n log n", lambda n, d, **s: 4 * n * math.log2(n + 1) * d, lambda n, d, **s: n * math.log2(n + 1)
    ),
    "routing": Family("n^1.5 d / n^1.5", lambda n, d, **s: 4 * n**1.5 * d, lambda n, d, **s: n**1.5),
}


def complexity_report(
    config: Any, lengths: Iterable[int] = (512, 2048, 8192), **settings: int
) -> dict[str, dict[int, tuple[float, float]]]:
    """Family -> length -> (operations, MiB of float32 scores, features or states) of the attention of all layers and heads, batch 1.

    Projections and MLPs are the same for all families and are left out.

    Args:
        config: a model, or its configuration, with `hidden_size`, `num_attention_heads` and `num_hidden_layers`.
        lengths: numbers of tokens.
        settings: `window` (one-sided), `rank`, `features`, `landmarks`; the others have `DEFAULTS`.

    Raises:
        ValueError: an unknown setting, or one below 1.
    """
    config = getattr(config, "config", config)
    if unknown := set(settings) - set(DEFAULTS):
        raise ValueError(f"complexity_report takes {', '.join(DEFAULTS)}, not {', '.join(sorted(unknown))}")
    if small := [name for name, value in settings.items() if value < 1]:
        raise ValueError(f"{', '.join(small)} must be at least 1")
    heads = config.num_attention_heads
    channels = getattr(config, "head_dim", None) or config.hidden_size // heads
    settings = DEFAULTS | settings
    copies = heads * config.num_hidden_layers
    return {
        name: {
            n: (
                copies * family.operations(n, channels, **settings),
                heads * family.memory(n, channels, **settings) * 4 / 2**20,
            )
            for n in lengths
        }
        for name, family in FAMILIES.items()
    }


@dataclass(frozen=True)
class Device:
    """Peak floating-point operations in a second, and bytes to or from its memory in a second."""

    name: str
    flops: float
    bytes_per_second: float


@dataclass(frozen=True)
class Operation:
    """One operation of a model, and the least seconds that it takes on a device."""

    name: str
    flops: int
    bytes: int
    seconds: float
    bound: str  # "arithmetic" or "memory"


COUNTS = flop_registry | UNCOUNTED


class _Recorder(TorchDispatchMode):
    """Name, floating-point operations and bytes of every operation that touches memory."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[str, int, int]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if not function.is_view:
            tensors = {id(x): x for x in tree_leaves((args, kwargs, output)) if isinstance(x, torch.Tensor)}
            size = sum(x.numel() * x.element_size() for x in tensors.values())
            count = COUNTS.get(function._overloadpacket)
            self.seen.append((str(function), count(*args, **kwargs, out_val=output) if count else 0, size))
        return output


def roofline(model: nn.Module, inputs: Any, device: Device) -> list[Operation]:
    """Every operation of one call in order, bounded by arithmetic or memory, whichever takes longer on `device`.

    Products are counted as torch's flop counter does; an operation without products is bounded by memory. Sizes are those of this
    model's types: give it in bfloat16 to ask about bfloat16.
    """
    if device.flops <= 0 or device.bytes_per_second <= 0:
        raise ValueError(f"a device does more than 0 operations and bytes in a second, got {device}")
    with _Recorder() as recorder:
        call(model, inputs)
    operations = []
    for name, count, size in recorder.seen:
        arithmetic, memory = count / device.flops, size / device.bytes_per_second
        bound = "arithmetic" if arithmetic > memory else "memory"
        operations.append(Operation(name, int(count), int(size), max(arithmetic, memory), bound))
    return operations
