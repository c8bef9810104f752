"""`hf-ext doctor`: what this installation has, and what each op will run on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from hf_ext import ops
from hf_ext.ops.native import compiler, why_not

PACKAGES = (
    "hf-ext",
    "torch",
    "transformers",
    "diffusers",
    "accelerate",
    "peft",
    "bitsandbytes",
    "safetensors",
    "huggingface_hub",
    "numpy",
)
EXTRAS = {
    "data": ("matplotlib", "pandas", "skimage", "sklearn", "statsmodels"),
    "audio": ("soundfile",),
    "chem": ("rdkit",),
    "graph": ("torch_geometric",),
    "net": ("scapy",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "native": ("ninja",),
}


def command() -> None:
    """Show versions, devices, the forms of the ops in use, and which extras are installed."""
    for title, facts in (("versions", versions()), ("machine", machine()), ("ops", op_forms()), ("extras", extras())):
        print(title)
        for name, value in facts:
            print(f"  {name}: {value}")


def versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for package in PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "missing"


def machine() -> Iterator[tuple[str, str]]:
    import torch

    yield "cpu threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    yield "gpu", torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    yield "compiler", compiler() or "none: native ops stay in their torch form"
    yield (
        "hub",
        "offline (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE") else os.environ.get("HF_ENDPOINT", "default"),
    )


def op_forms(folder: Path = Path(ops.__file__).parent) -> Iterator[tuple[str, str]]:
    """Op -> the form that runs on the CPU, the one that runs on a GPU, and why."""
    for path in sorted(folder.glob("*/reference.py")):
        forms = {file.stem for file in path.parent.iterdir()}
        cpu = "native" if "native" in forms and not why_not() else "eager" if "eager" in forms else "reference"
        gpu = "triton" if "triton" in forms and find_spec("triton") else "eager" if "eager" in forms else "reference"
        why = f" (native.cpp is not used: {why_not()})" if "native" in forms and cpu != "native" else ""
        why += " (triton is not installed)" if "triton" in forms and gpu != "triton" else ""
        yield path.parent.name, f"{cpu} on the CPU, {gpu} on a GPU{why}"


def extras() -> Iterator[tuple[str, str]]:
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        yield extra, f"missing {', '.join(missing)}: pip install hf-ext[{extra}]" if missing else "installed"
