"""Loading the authors' networks from a checkout, to run against them.

Many import a few helpers from timm; where timm is not installed these are stood in for, with the same arithmetic.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hf_ext.benchmarks import Contest
from hf_ext.layers.drop_path import DropPath

TIMM = {
    "timm": {},
    "timm.data": {"IMAGENET_DEFAULT_MEAN": IMAGENET_DEFAULT_MEAN, "IMAGENET_DEFAULT_STD": IMAGENET_DEFAULT_STD},
    "timm.models": {},
    "timm.models.helpers": {"load_pretrained": None},
    "timm.models.layers": {
        "DropPath": DropPath,
        "to_2tuple": lambda x: tuple(x) if isinstance(x, (list, tuple)) else (x, x),
        "trunc_normal_": nn.init.trunc_normal_,
        "lecun_normal_": nn.init.kaiming_normal_,  # for initial values only
    },
    "timm.models.layers.helpers": {"to_2tuple": lambda x: tuple(x) if isinstance(x, (list, tuple)) else (x, x)},
    "timm.models.vision_transformer": {"VisionTransformer": nn.Module, "_cfg": dict},
    "timm.models.registry": {"register_model": lambda function: function},
}


def load_module(
    repository: str, folder: str | Path, file: str, stand_ins: Mapping[str, Mapping[str, object]] | None = None
) -> ModuleType:
    """Runs `file` of the checkout `folder`, as part of a package, so that it may import its neighbours.

    `stand_ins` maps the names of further modules that it imports to what they hold.

    Raises:
        ValueError: there is no such file, so `folder` is no checkout of `repository`.
    """
    path = Path(folder) / file
    if not path.is_file():
        raise ValueError(f"'{folder}' is no checkout of {repository}: it has no {file}")
    name = "reference_" + repository.lower().replace("/", "_").replace("-", "_")
    package = sys.modules[name] = ModuleType(name)
    package.__path__ = [str(path.parent)]
    spec = spec_from_file_location(f"{name}.{path.stem}", path)
    module = module_from_spec(spec)
    with _modules((stand_ins or {}) | ({} if find_spec("timm") else TIMM)):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _modules(contents: Mapping[str, Mapping[str, object]]) -> Iterator[None]:
    """Puts modules with these contents where there are none of their names, for as long as the block runs."""
    added = {name: ModuleType(name) for name in contents if name not in sys.modules}
    for name, module in added.items():
        vars(module).update(contents[name])
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def image_contests(
    name: str, ours: nn.Module, peer: nn.Module, peer_name: str, size: int, batches: tuple[int, ...] = (1, 8)
) -> Iterator[Contest]:
    """Forward passes of two image models on two cores in fp32. Ours gets its images channels last, as it keeps its weights."""
    ours = ours.to(memory_format=torch.channels_last)
    for batch in batches:
        images = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        yield Contest(
            name=f"{name}, batch {batch}",
            ours=_forward(ours, images.contiguous(memory_format=torch.channels_last)),
            peer=_forward(peer, images),
            peer_name=peer_name,
            threads=2,
        )


def _forward(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    return partial(torch.inference_mode()(model), images)
