"""CrossViT against the authors' network (`--reference`: a checkout of IBM/CrossViT), one thread, fp32, batch 1."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from hf_ext.benchmarks import Contest
from hf_ext.convert import convert_checkpoint
from hf_ext.layers.drop_path import DropPath
from hf_ext.models.crossvit import CrossVitConfig

PRESETS = ("crossvit-tiny-224", "crossvit-15-224", "crossvit-15-dagger-224")


def contests(reference: Path | None) -> Iterator[Contest]:
    if reference is None:
        return
    reference_class = load_reference(reference)
    for name in PRESETS:
        arguments = reference_arguments(CrossVitConfig.from_preset(name))
        torch.manual_seed(0)
        peer = reference_class(**build_arguments(arguments)).eval()
        ours = convert_checkpoint("crossvit", peer.state_dict(), arguments)
        images = torch.rand(1, 3, 240, 240, generator=torch.Generator().manual_seed(0))
        yield Contest(
            name=f"{name}, forward",
            ours=partial(_forward, ours, images),
            peer=partial(_forward, peer, images),
            peer_name="IBM/CrossViT",
            threads=1,
        )


def _forward(model: nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        model(images)


def reference_arguments(config: CrossVitConfig) -> dict[str, Any]:
    """The authors' arguments for one of our presets, with `norm_eps` for the layer norm."""
    return {
        "img_size": config.image_sizes,
        "patch_size": config.patch_sizes,
        "embed_dim": config.hidden_sizes,
        "depth": config.depths,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": [*config.mlp_ratios, 1],
        "qkv_bias": config.qkv_bias,
        "norm_eps": config.layer_norm_eps,
        "multi_conv": config.patch_embedding == "conv_stem",
        "num_classes": config.num_labels,
    }


def build_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """What the authors' constructor takes: a layer norm instead of `norm_eps`."""
    arguments = dict(arguments)
    return arguments | {"norm_layer": partial(nn.LayerNorm, eps=arguments.pop("norm_eps", 1e-5))}


def load_reference(folder: str | Path) -> type[nn.Module]:
    """The authors' class `VisionTransformer`. What it imports from timm 0.4.12 is stood in for, with the same arithmetic."""
    path = Path(folder) / "models" / "crossvit.py"
    if not path.is_file():
        raise ValueError(f"'{folder}' is no checkout of IBM/CrossViT: it has no models/crossvit.py")
    with _stand_ins():
        package = sys.modules["crossvit_reference"] = ModuleType("crossvit_reference")
        package.__path__ = [str(path.parent)]
        spec = spec_from_file_location("crossvit_reference.crossvit", path)
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    return module.VisionTransformer


@contextmanager
def _stand_ins() -> Iterator[None]:
    names = ("timm", "timm.models", "timm.models.layers", "timm.models.registry", "timm.models.vision_transformer")
    modules = {name: ModuleType(name) for name in names}
    layers, registry, vision_transformer = (modules[name] for name in names[2:])
    layers.DropPath, layers.trunc_normal_ = DropPath, nn.init.trunc_normal_
    layers.to_2tuple = lambda x: x if isinstance(x, (list, tuple)) else (x, x)
    registry.register_model = lambda function: function
    vision_transformer._cfg, vision_transformer.Mlp, vision_transformer.Block = dict, Mlp, Block
    previous = {name: sys.modules[name] for name in names if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(previous)


class Mlp(nn.Module):
    """timm 0.4.12's, with its parameter names."""

    def __init__(self, in_features: int, hidden_features: int, act_layer: Callable = nn.GELU, drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_features, in_features)
        self.drop = nn.Dropout(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Attention(nn.Module):
    """timm 0.4.12's: fused projection, softmax written out."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, attn_drop: float, proj_drop: float):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = self.attn_drop(((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1))
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).reshape(B, N, C)))


class Block(nn.Module):
    """timm 0.4.12's pre-norm block."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        drop: float,
        attn_drop: float,
        drop_path: float,
        norm_layer: Callable,
    ):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(dim, num_heads, qkv_bias, attn_drop, drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))
