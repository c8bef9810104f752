"""The smallest sensible instance of each method: what the passport, and other suites, run on.

`TINY[slug]()` gives `(config, inputs)`: a configuration for every class of `METHODS[slug].model_classes()`, and forward arguments with a
batch of two or more, labels included. For Diffusers models the configuration is the dict that `from_config` takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(size: int, channels: int = 3, batch: int = 2) -> torch.Tensor:
    """(batch, channels, size, size) in [0, 1]."""
    return torch.rand(batch, channels, size, size, generator=seeded())


def series(batch: int, length: int, channels: int, seed: int = 0) -> torch.Tensor:
    """(batch, length, channels), roughly standardised."""
    return torch.randn(batch, length, channels, generator=seeded(seed))


def tokens(vocab_size: int, batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(1, vocab_size, (batch, length), generator=seeded())


def llm_drop():
    from hf_ext.surgery import SurgicalLlamaConfig

    config = SurgicalLlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        surgery=[{"name": "llm_drop", "attention": [0, 2], "mlp": [1]}],
    )
    input_ids = tokens(64)
    return config, {"input_ids": input_ids, "labels": input_ids, "use_cache": False}


TINY: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "llm_drop": llm_drop,
}
