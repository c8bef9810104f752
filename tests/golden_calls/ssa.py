"""Cases of `ssa` are calls of a function: the noise is given, so the draw is too."""

from __future__ import annotations

from typing import Any

import torch

from hf_ext.ops.subsampled_attention import SSAConfig, subsampled_attention
from tests.goldens import call_arguments


def run(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    settings = dict(case["arguments"])
    options = {name: settings.pop(name) for name in ("causal", "scaling") if name in settings}
    o, sources = subsampled_attention(**call_arguments(case), **options, settings=SSAConfig(**settings))
    return {"o": o, "source_indices": sources}
