"""One wide layer against six narrow ones with as many heads: the byte classifier of the paper, fp32, batch 1, one thread."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from hf_ext.models.wide_attention import WideAttentionConfig, WideAttentionForSequenceClassification

from . import Contest

LENGTHS = (128, 1000)


def contests(reference: Path | None = None) -> Iterator[Contest]:
    """The paper's 48 heads as 1 x 48 and 6 x 8 (its Table 4: 3.1 times on a CPU); the reference is JAX code and is not run."""
    for attention_type in ("transformer", "linear_transformer", "local"):
        for length in LENGTHS:
            wide, deep = (classifier(preset, attention_type) for preset in ("text-1x48", "text-6x8"))
            ids = torch.randint(1, 257, (1, length), generator=torch.Generator().manual_seed(0))
            ours, peer = (partial(torch.inference_mode()(model), ids) for model in (wide, deep))
            yield Contest(f"{attention_type}, {length} bytes, 1 x 48 heads", ours, peer, "6 x 8 heads", threads=1)


def classifier(preset: str, attention_type: str) -> WideAttentionForSequenceClassification:
    torch.manual_seed(0)
    config = WideAttentionConfig.from_preset(preset, attention_type=attention_type)
    return WideAttentionForSequenceClassification(config).eval()
