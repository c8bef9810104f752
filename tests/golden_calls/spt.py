"""SPT: the quantizer, the two parts of a layer, and whole language models."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from hf_ext.ops.routed_ffn import Projection, routed_ffn
from hf_ext.ops.sparse_attention import (
    count_matches,
    product_codes,
    quantize,
    quantizer_loss,
    select_keys,
    sparse_attention,
)
from tests.goldens import call_arguments, run_model


def run(case: dict[str, Any]) -> Any:
    arguments = case["arguments"]
    if "family" in arguments:
        return run_model(case)
    if "n_subspaces" in arguments:
        return quantizer(case)
    return attention(case) if "sparse_coeff" in arguments else feed_forward(case)


def quantizer(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    z, weight = call_arguments(case)["z"], case["state_dict"]["weight"].requires_grad_()
    codes, loss = product_codes(z, weight), quantizer_loss(z, weight)
    (grad,) = torch.autograd.grad(loss, weight)
    return {"codes": codes, "quantized": quantize(codes, weight), "loss": loss, "grad_weight": grad}


def feed_forward(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    arguments, state, x = case["arguments"], case["state_dict"], call_arguments(case)["hidden_states"]

    def part(name: str) -> Projection:
        left = state.get(f"{name}.lora.left.weight")
        right = state.get(f"{name}.lora.right.weight")
        return Projection(state[f"{name}.weight"], state.get(f"{name}.bias"), None if left is None else left.T, right)

    parts = ["side", "down", "gate"] if "gate.weight" in state else ["fc1", "fc2"]
    plain = "lora" not in arguments["kind"]
    blocks = arguments["d_feedforward"] // arguments["block_size"]
    active = blocks // (4 if plain and len(parts) == 3 else 2)
    options = {"activation": getattr(F, arguments["activation"]), "active_blocks": active, "weighted": not plain}
    probabilities = F.linear(x, state["router.0.weight"], state["router.0.bias"]).sigmoid()
    return {"output": routed_ffn(x, probabilities, *map(part, parts), **options)}


def attention(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    arguments, codebooks = case["arguments"], case["state_dict"]["quantizer.weight"]
    q, k, v = (x.transpose(1, 2) for x in call_arguments(case).values())
    if arguments["kind"] == "rotary":
        q, k = (rotate(x, arguments["rope_base"]) for x in (q, k))
    coefficient, tokens = arguments["sparse_coeff"], q.shape[2]
    o = sparse_attention(q, k, v, codebooks, sparse_coeff=coefficient)
    matches = count_matches(*(product_codes(x, codebooks).movedim(-1, 2) for x in (q, k)))
    visible = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    _, counts = select_keys(matches, visible, max(1, tokens // coefficient))
    return {"o": o.transpose(1, 2), "selected_counts": counts}


def rotate(x: torch.Tensor, base: float) -> torch.Tensor:
    """Half-split rotary positions"""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[2])[:, None] * base ** (-torch.arange(half) / half)
    cos, sin, (a, b) = angles.cos(), angles.sin(), x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
