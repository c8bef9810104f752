"""What `model.fuse()` changes: nothing in the output, and the time."""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import torch
from transformers import PreTrainedModel

from hf_ext.benchmarks import Contest, compare

from . import Row


@torch.no_grad()
def settle_statistics(model: PreTrainedModel, size: int, batches: int = 3) -> PreTrainedModel:
    """Gives the batch norms of a new model the statistics of random images, so that activations keep unit scale and folding has
    something to do. Returns the model in eval mode."""
    norms = [module for module in model.modules() if hasattr(module, "running_var")]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
        norm.reset_running_stats()
    model.train()
    for _ in range(batches):
        model(torch.randn(4, model.config.num_channels, size, size))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return model.eval()


def fusion_rows(name: str, model: PreTrainedModel, size: int) -> list[Row]:
    """A classifier in eval mode against its fused copy: parameters, the worst relative difference of a logit, the speed-up."""
    fused = deepcopy(model).fuse()
    images = torch.randn(1, model.config.num_channels, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain_logits, fused_logits = model(images).logits, fused(images).logits
    difference = ((fused_logits - plain_logits).abs().max() / plain_logits.abs().max()).item()
    forward = {kind: partial(torch.inference_mode()(m), images) for kind, m in (("plain", model), ("fused", fused))}
    contest = Contest("fuse", ours=forward["fused"], peer=forward["plain"], peer_name="plain", threads=1)
    return [
        Row(f"{name}: parameters after `fuse()`", fused.num_parameters()),
        Row(f"{name}: largest difference of a logit, fused against plain, over the largest logit", difference),
        Row(f"{name}: speed-up by `fuse()`, {size}x{size}, batch 1, one thread", compare(contest).ratio),
    ]
