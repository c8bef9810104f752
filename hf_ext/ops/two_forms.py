"""Registration of ops whose torch (`eager`), C++ (`native.cpp`) and Triton (`triton`) forms have functions of one signature."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch.library import CustomOpDef

from . import native


def register(name: str, eager: ModuleType) -> tuple[CustomOpDef, CustomOpDef]:
    """`hf_ext::NAME` and `hf_ext::NAME_backward`, from `forward` and `backward` of the op's module `eager`.

    On a CPU the C++ form serves, where there is one, with contiguous tensors; on a GPU the module `triton` beside `eager`, where there
    is one; everywhere else `eager` does.
    """
    op = eager.__name__.split(".")[-2]

    def on_cpu(direction: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            form = native.load_native(op) or eager
            return getattr(form, direction)(*(x.contiguous() if torch.is_tensor(x) else x for x in arguments))

        return run

    def on_gpu(direction: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            return getattr(gpu_form(eager, arguments), direction)(*arguments)

        return run

    forward = torch.library.custom_op(f"hf_ext::{name}", eager.forward, mutates_args=())
    backward = torch.library.custom_op(f"hf_ext::{name}_backward", eager.backward, mutates_args=())
    forward.register_kernel("cpu")(on_cpu("forward"))
    backward.register_kernel("cpu")(on_cpu("backward"))
    if find_spec(f"{eager.__package__}.triton"):
        forward.register_kernel("cuda")(on_gpu("forward"))
        backward.register_kernel("cuda")(on_gpu("backward"))
    return forward, backward


def gpu_form(eager: ModuleType, arguments: Iterable[Any]) -> ModuleType:
    """The module whose kernels serve these CUDA tensors: `triton` beside `eager`, or `eager` for float64 and without Triton."""
    if any(x.dtype == torch.float64 for x in arguments if torch.is_tensor(x)):
        return eager
    try:
        return import_module(f"{eager.__package__}.triton")
    except ImportError:
        return eager


def for_export(tokens: int) -> bool:
    """Whether to lay the op out as plain torch operations: an exported program then runs where hf_ext is not installed, and
    converts to ONNX. A length that is left open cannot be laid out."""
    return torch.compiler.is_exporting() and isinstance(tokens, int)
