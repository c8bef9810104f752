"""DLGSANet against upstream's Swin2SR of the same class and, with `--reference` (a checkout of NeonLeexiang/DLGSANet), against the
authors' network; one thread, fp32, batch 1, 64x64 input.

The authors' dynamic convolution is a CUDA kernel, so on a CPU two plain forms of it stand in: gathered neighbourhoods (`unfold`),
and shifted sums, as ours, over filters that lie in memory whole.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import nn
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

from hf_ext.benchmarks import Contest
from hf_ext.convert import convert_checkpoint
from hf_ext.models.dlgsanet import DLGSANetConfig, DLGSANetForImageSuperResolution

from .references import load_module

REPOSITORY = "NeonLeexiang/DLGSANet"
SIZE = 64
PUBLISHED = {"buildblock_type": "sparseedge", "upscale": 4, "upsampler": "pixelshuffledirect"}
VARIANTS = {
    "Light x4": {**PUBLISHED, "dim": 48, "groups": 4, "blocks": 3},
    "DLGSANet x4": {**PUBLISHED, "dim": 90, "groups": 6, "blocks": 4},
}


def contests(reference: Path | None) -> Iterator[Contest]:
    images = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    yield Contest(
        name=f"Light x2, {SIZE}x{SIZE}, forward",
        ours=_forward(DLGSANetForImageSuperResolution(DLGSANetConfig.from_preset("dlgsanet-light-x2")).eval(), images),
        peer=_forward(swin2sr_lightweight(), images),
        peer_name="Swin2SR lightweight",
        threads=1,
    )
    for kernel_name, kernel in KERNELS.items() if reference else ():
        for name, arguments in VARIANTS.items():
            torch.manual_seed(0)
            peer = load_reference(reference, kernel).DLGSANet(**arguments).eval()
            ours = convert_checkpoint("dlgsanet", peer.state_dict(), arguments)
            yield Contest(
                name=f"{name}, {SIZE}x{SIZE}, forward",
                ours=_forward(ours, images),
                peer=_forward(peer, images),
                peer_name=f"{REPOSITORY} with {kernel_name}",
                threads=1,
            )


def swin2sr_lightweight() -> nn.Module:
    """As published for x2: 1.0 million parameters."""
    config = Swin2SRConfig(
        embed_dim=60,
        depths=[6] * 4,
        num_heads=[6] * 4,
        window_size=8,
        mlp_ratio=2.0,
        upscale=2,
        upsampler="pixelshuffledirect",
    )
    return Swin2SRForImageSuperResolution(config).eval()


def _forward(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    return partial(torch.inference_mode()(model), images)


def by_unfolding(images: torch.Tensor, filters: torch.Tensor, padding: int, **_) -> torch.Tensor:
    batch, channels, height, width = images.shape
    groups, size = filters.shape[1], filters.shape[2]
    patches = nn.functional.unfold(images, size, padding=padding)
    patches = patches.view(batch, groups, channels // groups, size**2, height, width)
    return (patches * filters.flatten(2, 3).unsqueeze(2)).sum(3).flatten(1, 2)


def by_shifting(images: torch.Tensor, filters: torch.Tensor, padding: int, **_) -> torch.Tensor:
    height, width = images.shape[2:]
    padded = nn.functional.pad(images, (padding,) * 4).unflatten(1, (filters.shape[1], -1))
    output = padded.new_zeros(*padded.shape[:3], height, width)
    for i in range(filters.shape[2]):
        for j in range(filters.shape[3]):
            output.addcmul_(filters[:, :, None, i, j], padded[..., i : i + height, j : j + width])
    return output.flatten(1, 2)


KERNELS = {"unfold": by_unfolding, "shifted sums": by_shifting}


def load_reference(folder: str | Path, kernel: Callable[..., torch.Tensor]) -> ModuleType:
    """The authors' module, which runs without BasicSR, einops and cupy."""
    file = "basicsr/archs/dlgsanet_arch.py"
    package = "reference_neonleexiang_dlgsanet"
    registry = SimpleNamespace(register=lambda: lambda cls: cls)
    stand_ins = {
        "basicsr": {},
        "basicsr.utils": {},
        "basicsr.utils.registry": {"ARCH_REGISTRY": registry},
        f"{package}.arch_util": {"to_2tuple": None, "trunc_normal_": nn.init.trunc_normal_},
        "einops": {"rearrange": _rearrange},
        "cupy": {"_util": SimpleNamespace(memoize=lambda **_: lambda function: function)},
    }
    module = load_module(REPOSITORY, folder, file, stand_ins)
    module.F = nn.functional  # used, but not imported there
    sys.modules[f"{package}.dlgsanet_idynamicdwconv_util"]._idynamic_cuda = lambda images, filters, padding=0, **_: (
        kernel(images, filters, padding)
    )
    return module


REARRANGEMENTS = {
    "b c h w -> b (h w) c": lambda x: x.flatten(2).transpose(1, 2),
    "b (h w) c -> b c h w": lambda x, h, w: x.transpose(1, 2).unflatten(2, (h, w)),
    "b (head c) h w -> b head c (h w)": lambda x, head: x.flatten(2).unflatten(1, (head, -1)),
    "b head c (h w) -> b (head c) h w": lambda x, head, h, w: x.flatten(1, 2).unflatten(2, (h, w)),
}


def _rearrange(x: torch.Tensor, pattern: str, **sizes: int) -> torch.Tensor:
    return REARRANGEMENTS[pattern](x, **sizes)
