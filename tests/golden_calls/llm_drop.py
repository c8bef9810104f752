"""Similarities of the dense model, what they choose to drop, and the models after that."""

from __future__ import annotations

from typing import Any

import torch

from hf_ext.convert import convert_checkpoint
from hf_ext.convert.llm_drop import indices
from hf_ext.surgery import LlmDrop, apply
from hf_ext.surgery.llm_drop import choose, compute_similarities, rank
from tests.goldens import call_arguments


@torch.no_grad()
def run(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    call = call_arguments(case)
    ids, n = call["input_ids"], call.get("drop_n", 1)
    dense = convert_checkpoint("llm_drop", case["state_dict"], case["arguments"])
    found = compute_similarities(dense, ids.split(1))
    dropped = {
        "attn": rank(found, n, "attention"),
        "mlp": rank(found, n, "mlp"),
        "joint": rank(found, n, "joint"),
        "blocks": rank(found, n, "block"),
        "blocks_consecutive": rank(found, n, "block_consecutive", reference_gap=True),
    }
    model = apply(dense, LlmDrop(indices(call.get("drop_attn_list")), indices(call.get("drop_mlp_list"))))
    new_tokens = case["outputs"]["generated"].shape[1] - ids.shape[1] if "generated" in case["outputs"] else 1
    return {
        "attn_similarity": found.attention,
        "mlp_similarity": found.mlp,
        "attn_similarity_after_norm": found.attention_after_norm,
        "mlp_similarity_after_norm": found.mlp_after_norm,
        "block_similarity": found.block[:, None],
        "block_similarity_consecutive": found.consecutive.clamp_min(-2),
        **{f"dropped_{name}": torch.tensor(indices) for name, indices in dropped.items()},
        "logits_dense": dense(ids).logits,
        "logits_drop_attn": apply(dense, choose(found, n, "attention"))(ids).logits,
        "logits_drop_mlp": apply(dense, choose(found, n, "mlp"))(ids).logits,
        "logits": model(ids).logits,
        "generated": model.generate(ids, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0),
    }
