"""SLAB: a case is a model, or one PRepBN norm through the steps of its schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hf_ext.layers.repbn import LinearNorm, RepBatchNorm
from tests.goldens import call_arguments, run_model


def run(case: dict[str, Any]) -> Any:
    return run_schedule(case) if "norm" in case["arguments"] else run_model(case)


@torch.no_grad()
def run_schedule(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """One forward pass in training for each step of `hidden_states` (T, B, N, C), then one in eval mode."""
    arguments = {"eps": 1e-5, "warm": 0, "step": 300_000, "r0": 1.0, "update_every": 1} | case["arguments"]
    language = arguments["norm"] == "rmsnorm"
    norm1 = (LlamaRMSNorm if language else nn.LayerNorm)(arguments["dim"], eps=arguments["eps"])
    # the reference's RepBN takes the eps of RMSNorm in the language model, and BatchNorm's own in the vision models
    norm2 = RepBatchNorm(arguments["dim"], eps=arguments["eps"] if language else 1e-5, zero_init=language)
    norm = LinearNorm(norm1, norm2, *(arguments[name] for name in ("warm", "step", "r0", "update_every")))
    norm.load_state_dict(case["state_dict"])
    call = call_arguments(case)
    steps, mask = call["hidden_states"], call.get("attention_mask")
    outputs, remaining, warm = [], [], []
    for index, hidden_states in enumerate(steps):
        outputs.append(norm.train()(hidden_states, mask if index % 2 else None))
        remaining.append(norm.iter.clone())
        warm.append(norm.warm.clone())
    return {
        "train_outputs": torch.stack(outputs[::3] if language else outputs),
        "eval_output": norm.eval()(steps[1 if language else 0]),
        "running_mean": norm.norm2.bn.running_mean,
        "running_var": norm.norm2.bn.running_var,
        "remaining": torch.stack(remaining),
        "warm": torch.stack(warm),
    }
