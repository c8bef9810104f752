"""`hf-ext build`: compiles the ops' C++ forms ahead of their first use."""

from __future__ import annotations

from hf_ext.ops.native import compile_native, native_sources


def command() -> None:
    """Compile the native forms of the ops into torch's cache of extensions."""
    sources = native_sources()
    if not sources:
        print("no op has a native form in this version: nothing to build")
    for op, source in sources.items():
        compile_native(op, source)
        print(f"built {op}")
