"""The delta rule and the selective scan against their token loops, and a training step of Mamba against upstream's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from hf_ext.models.deltanet import SignedMambaConfig, SignedMambaForCausalLM
from hf_ext.ops import delta_rule, selective_scan

from . import Contest
from .gla import forward, forward_backward


def contests(reference_folder: Path | None = None) -> Iterator[Contest]:
    """One thread, float32: the delta rule at B1 T1024 H4 K128 V128, the scan at B1 T1024 D256 N16, Mamba at batch 2 of 64 tokens."""
    torch.manual_seed(0)
    scan = {
        name: partial(getattr(selective_scan, name), allow_neg_eigval=True) for name in ("selective_scan", "reference")
    }
    for name, ours, loop, inputs in (
        ("delta rule", delta_rule.delta_rule, delta_rule.reference, delta_rule_inputs()),
        ("selective scan", scan["selective_scan"], scan["reference"], scan_inputs()),
    ):
        yield Contest(f"{name}, forward", forward(ours, inputs), forward(loop, inputs), "token loop", 1)
        yield Contest(
            f"{name}, forward + backward",
            forward_backward(ours, inputs),
            forward_backward(loop, inputs),
            "token loop with autograd",
            1,
        )
    sizes = {"vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 2}
    signed, upstream = SignedMambaForCausalLM(SignedMambaConfig(**sizes)), MambaForCausalLM(MambaConfig(**sizes))
    yield Contest("Mamba, training step", training_step(signed), training_step(upstream), "Transformers' Mamba", 1)


def delta_rule_inputs(batch=1, tokens=1024, heads=4, key_channels=128, value_channels=128) -> list[torch.Tensor]:
    q, k = (F.normalize(torch.randn(batch, tokens, heads, key_channels), dim=-1) for _ in range(2))
    v, beta = torch.randn(batch, tokens, heads, value_channels), 2 * torch.rand(batch, tokens, heads)
    return [x.requires_grad_() for x in (q, k, v, beta)]


def scan_inputs(batch=1, tokens=1024, channels=256, state_size=16) -> list[torch.Tensor]:
    x, dt = torch.randn(batch, tokens, channels), F.softplus(torch.randn(batch, tokens, channels))
    A = -torch.arange(1.0, state_size + 1).repeat(channels, 1)
    B, C = (torch.randn(batch, tokens, state_size) for _ in range(2))
    return [tensor.requires_grad_() for tensor in (x, dt, A, B, C)]


def training_step(model: PreTrainedModel) -> Callable[[], None]:
    ids = torch.randint(0, model.config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(0))

    def run() -> None:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()

    return run
