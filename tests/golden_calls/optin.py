"""Rankings, the search and the pruned model; and the losses alone."""

from __future__ import annotations

from typing import Any

import torch

from hf_ext.convert import convert_checkpoint
from hf_ext.convert.optin import scoring
from hf_ext.surgery import apply
from hf_ext.surgery.optin import indices, rank, search
from hf_ext.surgery.trajectory import logit_loss, manifold_loss
from tests.goldens import call_arguments


@torch.no_grad()
def run(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    call = call_arguments(case)
    return prune(case, call) if "config" in case["arguments"] else losses(call)


def losses(call: dict[str, Any]) -> dict[str, torch.Tensor]:
    """All as the reference returns them: negated"""
    teacher, student = call["teacher"], call["student"]
    logits = (call[name].log_softmax(1) for name in ("teacher_logits", "student_logits"))
    return {
        "mmd_sum": -manifold_loss(teacher, student),
        "mmd_mean": -manifold_loss(teacher, student, "mean"),
        "kl": -logit_loss(*logits, call.get("temperature", 4)),
        "patch_mmd": -manifold_loss(teacher, student, relations="samples"),
    }


def prune(case: dict[str, Any], call: dict[str, Any]) -> dict[str, torch.Tensor]:
    settings = case["arguments"].get("prune", {})
    length = call.pop("seq_length", settings.get("seq_length"))
    dense = convert_checkpoint("optin", case["state_dict"], case["arguments"])
    scores = rank(dense, call, scoring(settings), sequence_length=length)
    recipe = search(scores, settings.get("mac_constraint", 0.6))
    masks = {}
    for kind in ("heads", "neurons"):
        masks[kind] = torch.zeros(len(dense.bert.encoder.layer), len(getattr(scores, kind)[0]))
        for row, entry in zip(masks[kind], getattr(recipe, kind)):
            row[indices(entry)] = 1
    pruned = scores.macs_of(masks["heads"].sum(1).tolist(), masks["neurons"].sum(1).tolist())
    return {
        "head_scores": torch.stack(scores.heads),
        "neuron_scores": torch.stack(scores.neurons),
        "head_mask": masks["heads"],
        "neuron_mask": masks["neurons"],
        "logits_dense": dense(**call).logits,
        "logits": apply(dense, recipe)(**call).logits,
        "mac": torch.tensor([scores.macs, scores.head_macs[0], scores.neuron_macs[0], pruned]),
    }
