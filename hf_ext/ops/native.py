"""The ops' C++ forms: `<op>/native.cpp`, compiled at first use and kept in torch's cache of extensions.

`HF_EXT_NATIVE=0` in the environment keeps every op in its torch form.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from filelock import FileLock
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
    """The compiled module of an op, from the cache where it was built before.

    Raises:
        ValueError: the compiler is missing or does not accept the source.
    """
    name = f"hf_ext_{op}"
    library = build_root() / f"{name}-{fingerprint(source)}.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{library}.lock"):  # the system lets go of it when a process is killed, unlike of torch's own
        if not library.is_file():
            _build(name, source, library)
    spec = spec_from_file_location(name, library)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_root() -> Path:
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()) / "hf_ext"


def fingerprint(source: Path) -> str:
    """Of everything that a library depends on: source, flags, torch, python, kind of CPU."""
    import torch

    facts = (FLAGS, torch.__version__, sys.version, torch.backends.cpu.get_cpu_capability())
    return hashlib.sha256(source.read_bytes() + repr(facts).encode()).hexdigest()[:16]


def _build(name: str, source: Path, library: Path) -> None:
    from torch.utils.cpp_extension import load

    with TemporaryDirectory(dir=library.parent) as folder:
        try:
            load(name, [str(source)], extra_cflags=FLAGS, extra_ldflags=["-fopenmp"], build_directory=folder)
        except (RuntimeError, OSError, ImportError) as error:
            op = name.removeprefix("hf_ext_")
            raise ValueError(f"{op} cannot be built: {str(error).strip().splitlines()[0]}") from None
        os.replace(Path(folder) / f"{name}.so", library)


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
