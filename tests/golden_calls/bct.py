"""BCT: the quantizer, one operation each, and whole models."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForSequenceClassification

from hf_ext.ops import blockwise_integer as blockwise
from hf_ext.quantizers.bct import BCTConfig, quantize_model
from tests.goldens import call_arguments


@torch.no_grad()
def run(case: dict[str, Any]) -> dict[str, Any]:
    if "bct" in case["arguments"]:
        return model(case)
    return quantizer(case) if "bits" in case["arguments"] else operations(case)


def quantizer(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    call = call_arguments(case)
    block = call["block_size"]
    block = block if isinstance(block, int) else tuple(block)
    q, shift = blockwise.quantize(call["x"], call["bits"], block)
    dequantized = blockwise.dequantize(q, shift, (1, block) if isinstance(block, int) else block)
    return {"quantized": q, "shift": shift, "dequantized": dequantized}


def operations(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    arguments, call = case["arguments"], call_arguments(case)
    block, bits = arguments["block_size"], arguments["activation_bits"]
    x = call["hidden_states"]
    bias, gamma, beta = (
        blockwise.rounded(call[name], arguments["vector_bits"], block) for name in ("bias", "norm_weight", "norm_bias")
    )
    weight, shift = blockwise.quantize(call["weight"], arguments["weight_bits"], (block, block))
    packed = arguments["weight_bits"] <= 4
    weight = blockwise.pack(weight) if packed else weight

    def both_ends(function: Any) -> torch.Tensor:
        return blockwise.rounded(function(blockwise.rounded(x, bits, block)), bits, block)

    return {
        "linear": blockwise.linear(x, weight, shift, bias, packed, bits, block),
        "gelu": both_ends(F.gelu),
        "softmax": both_ends(lambda x: x.softmax(-1)),
        "layer_norm": both_ends(lambda x: F.layer_norm(x, x.shape[-1:], gamma, beta, 1e-12)),
    }


def model(case: dict[str, Any]) -> dict[str, Any]:
    arguments, call = case["arguments"], call_arguments(case)
    dense = BertForSequenceClassification(BertConfig(**arguments["config"])).eval()
    dense.load_state_dict(case["state_dict"], strict=False)
    output = quantize_model(dense, BCTConfig(**arguments["bct"]))(**call, output_hidden_states=True)
    layers = len(output.hidden_states)
    states = {f"hidden_states.{i}": output.hidden_states[i] for i in range(-layers, layers)}
    return states | {"logits": output.logits, "logits_dense": dense(**call).logits}
