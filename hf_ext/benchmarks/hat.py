"""HAT against the authors' network (`--reference`: a checkout of XPixelGroup/HAT), one thread, fp32, batch 1, 64x64 input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import torch

from hf_ext.benchmarks import Contest
from hf_ext.convert import convert_checkpoint

PUBLISHED = {
    "img_size": 64,
    "window_size": 16,
    "depths": [6] * 6,
    "num_heads": [6] * 6,
    "mlp_ratio": 2,
    "upscale": 4,
    "upsampler": "pixelshuffle",
}
VARIANTS = {
    "HAT x4": {**PUBLISHED, "embed_dim": 180, "compress_ratio": 3, "squeeze_factor": 30},
    "HAT-S x4": {**PUBLISHED, "embed_dim": 144, "compress_ratio": 24, "squeeze_factor": 24},
}


def contests(reference: Path | None) -> Iterator[Contest]:
    if reference is None:
        return
    reference_class = load_reference(reference)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name, arguments in VARIANTS.items():
        torch.manual_seed(0)
        peer = reference_class(**arguments).eval()
        ours = convert_checkpoint("hat", peer.state_dict(), arguments)
        yield Contest(
            name=f"{name}, 64x64, forward",
            ours=partial(_forward, ours, images),
            peer=partial(_forward, peer, images),
            peer_name="XPixelGroup/HAT",
            threads=1,
        )


def _forward(model: torch.nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        model(images)


def load_reference(folder: str | Path) -> type[torch.nn.Module]:
    """The authors' class `HAT`. What it imports from BasicSR (a registry and two helpers) and einops is stood in for where absent."""
    path = Path(folder) / "hat" / "archs" / "hat_arch.py"
    if not path.is_file():
        raise ValueError(f"'{folder}' is no checkout of XPixelGroup/HAT: it has no hat/archs/hat_arch.py")
    spec = spec_from_file_location("hat_reference", path)
    module = module_from_spec(spec)
    with _stand_ins():
        spec.loader.exec_module(module)
    return module.HAT


@contextmanager
def _stand_ins() -> Iterator[None]:
    modules = {name: ModuleType(name) for name in ("basicsr", "basicsr.utils", "basicsr.archs")}
    registry = modules["basicsr.utils.registry"] = ModuleType("basicsr.utils.registry")
    registry.ARCH_REGISTRY = type("Registry", (), {"register": staticmethod(lambda: lambda cls: cls)})()
    helpers = modules["basicsr.archs.arch_util"] = ModuleType("basicsr.archs.arch_util")
    helpers.to_2tuple = lambda x: x if isinstance(x, tuple) else (x, x)
    helpers.trunc_normal_ = torch.nn.init.trunc_normal_
    einops = modules["einops"] = ModuleType("einops")
    einops.rearrange = _rearrange
    added = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def _rearrange(x: torch.Tensor, pattern: str, nc: int, ch: int, owh: int, oww: int) -> torch.Tensor:
    """The one rearrangement that the network asks einops for: 'b (nc ch owh oww) nw -> nc (b nw) (owh oww) ch'."""
    batch, _, windows = x.shape
    x = x.view(batch, nc, ch, owh * oww, windows)
    return x.permute(1, 0, 4, 3, 2).reshape(nc, batch * windows, owh * oww, ch)
