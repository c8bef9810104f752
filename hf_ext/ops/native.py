"""The ops' C++ forms: `<op>/native.cpp`, compiled at first use and kept in torch's cache of extensions.

`HF_EXT_NATIVE=0` in the environment keeps every op in its torch form.
"""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path
from types import ModuleType

from transformers.utils import logging

logger = logging.get_logger(__name__)

FOLDER = Path(__file__).parent
FLAGS = ["-O3", "-march=native", "-fopenmp"]


def native_sources(folder: Path = FOLDER) -> dict[str, Path]:
    """Op -> its `native.cpp`, for the ops that have one."""
    return {path.parent.name: path for path in sorted(folder.glob("*/native.cpp"))}


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++"))


def why_not() -> str:
    """Why no native form can be used here; "" if they can."""
    if os.environ.get("HF_EXT_NATIVE") == "0":
        return "HF_EXT_NATIVE=0"
    if compiler() is None:
        return "there is no C++ compiler"
    from torch.utils.cpp_extension import is_ninja_available

    return "" if is_ninja_available() else "ninja is missing: pip install hf-ext[native]"


def compile_native(op: str, source: Path) -> ModuleType:
    """The compiled module of an op.

    Raises:
        ValueError: the compiler is missing or does not accept the source.
    """
    from torch.utils.cpp_extension import load

    try:
        return load(name=f"hf_ext_{op}", sources=[str(source)], extra_cflags=FLAGS, extra_ldflags=["-fopenmp"])
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{op} cannot be built: {str(error).strip().splitlines()[0]}") from None


@cache
def load_native(op: str) -> ModuleType | None:
    """The compiled form of an op, or None where its torch form has to serve (`hf-ext doctor` says why)."""
    if why_not():
        return None
    try:
        return compile_native(op, FOLDER / op / "native.cpp")
    except ValueError as error:
        logger.warning(f"{error}. Its slower torch form is used instead.")
        return None
