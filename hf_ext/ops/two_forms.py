"""Registration of ops whose torch form (module `eager`) and C++ form (`native.cpp`) have functions of one signature."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch.library import CustomOpDef

from . import native


def register(name: str, eager: ModuleType) -> tuple[CustomOpDef, CustomOpDef]:
    """`hf_ext::NAME` and `hf_ext::NAME_backward`, from `forward` and `backward` of the op's module `eager`.

    On a CPU the C++ form serves, where there is one, with contiguous tensors; everywhere else `eager` does.
    """
    op = eager.__name__.split(".")[-2]

    def on_cpu(direction: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            form = native.load_native(op) or eager
            return getattr(form, direction)(*(x.contiguous() if torch.is_tensor(x) else x for x in arguments))

        return run

    forward = torch.library.custom_op(f"hf_ext::{name}", eager.forward, mutates_args=())
    backward = torch.library.custom_op(f"hf_ext::{name}_backward", eager.backward, mutates_args=())
    forward.register_kernel("cpu")(on_cpu("forward"))
    backward.register_kernel("cpu")(on_cpu("backward"))
    return forward, backward


def for_export(tokens: int) -> bool:
    """Whether to lay the op out as plain torch operations: an exported program then runs where hf_ext is not installed, and
    converts to ONNX. A length that is left open cannot be laid out."""
    return torch.compiler.is_exporting() and isinstance(tokens, int)
