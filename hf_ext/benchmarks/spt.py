"""Fine-tuning with SPT against dense LoRA of PEFT, 1024 tokens: peak memory (the MiB columns) and time of a step; and the FFN alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from hf_ext.ops.routed_ffn import Projection, routed_ffn
from hf_ext.surgery.spt import apply_spt, spt_lora_config

from . import Contest

TOKENS, WIDTH, HIDDEN = 1024, 512, 2048
COMMON = {
    "vocab_size": 512,
    "hidden_size": WIDTH,
    "num_attention_heads": 8,
    "max_position_embeddings": TOKENS,
    "use_cache": False,
}
FAMILIES = {
    "gpt2": {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "opt": {"ffn_dim": HIDDEN, "dropout": 0.0, "word_embed_proj_dim": WIDTH},
    "llama": {"intermediate_size": HIDDEN},
}


def contests(reference: Path | None = None) -> Iterator[Contest]:
    """Steps of 2 layers (and of 12, as OPT-125M has) 512 wide, hidden size 2048, batch 1, LoRA of rank 16; one thread."""
    for family in FAMILIES:
        for peer in ("sdpa", "eager"):
            yield Contest(
                f"{family} fine-tuning step", step(family), step(family, peer), f"dense LoRA, {peer}", threads=1
            )
    deep = step("opt", layers=12), step("opt", "sdpa", layers=12)
    yield Contest("opt fine-tuning step, 12 layers", *deep, "dense LoRA, sdpa", threads=1)
    yield feed_forward()


def step(family: str, dense: str | None = None, layers: int = 2) -> Callable[[], None]:
    """Forward, backward and an SGD update of what trains: SPT, or dense LoRA with that attention."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **COMMON, **FAMILIES[family], num_hidden_layers=layers)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=dense or "sdpa")
    if dense:
        lora = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", fan_in_fan_out=family == "gpt2")
    else:
        model = apply_spt(model)
        lora = spt_lora_config(model, r=16)
    model = get_peft_model(model, lora).train()
    ids = torch.randint(3, COMMON["vocab_size"], (1, TOKENS), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def run() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def feed_forward() -> Contest:
    """Forward and backward of 2 of 4 blocks against the dense network, 2048 tokens, frozen weights: the spec's experiment (c)."""
    torch.manual_seed(0)
    x = torch.randn(2048, WIDTH, requires_grad=True)
    up, down = (Projection(torch.randn(a, b) * b**-0.5) for a, b in ((HIDDEN, WIDTH), (WIDTH, HIDDEN)))
    router = torch.randn(4, WIDTH) * WIDTH**-0.5

    def routed() -> None:
        y = routed_ffn(x, F.linear(x, router).sigmoid(), up, down, activation=F.relu, active_blocks=2)
        torch.autograd.grad(y.sum(), x)

    def dense() -> None:
        torch.autograd.grad(down(F.relu(up(x))).sum(), x)

    return Contest("routed FFN, 2 of 4 blocks", routed, dense, "dense FFN", threads=1)
