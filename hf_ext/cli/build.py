"""`hf-ext build`: compiles the ops' C++ forms ahead of their first use."""

from __future__ import annotations

from pathlib import Path

from hf_ext import ops


def command() -> None:
    """Compile the native forms of the ops into torch's cache of extensions."""
    sources = native_sources()
    if not sources:
        print("no op has a native form in this version: nothing to build")
    for op, source in sources.items():
        compile_native(op, source)
        print(f"built {op}")


def native_sources(folder: Path = Path(ops.__file__).parent) -> dict[str, Path]:
    """Op -> its `native.cpp`, for the ops that have one."""
    return {path.parent.name: path for path in sorted(folder.glob("*/native.cpp"))}


def compile_native(op: str, source: Path):
    """The compiled module of an op; a `ValueError` where the compiler is missing or does not accept the source."""
    from torch.utils.cpp_extension import load

    try:
        return load(name=f"hf_ext_{op}", sources=[str(source)], extra_cflags=["-O3"])
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{op} cannot be built: {str(error).strip().splitlines()[0]}") from None
