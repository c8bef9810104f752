"""Padding-free encoders: the mode on upstream's models, and on the reference's own layers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertModel

from hf_ext.convert import convert_checkpoint
from hf_ext.surgery.bytetransformer import enable_padding_free
from tests.goldens import call_arguments


@torch.no_grad()
def run(case: dict[str, Any]) -> Any:
    model = convert_checkpoint("bytetransformer", case["state_dict"], case["arguments"])
    call = call_arguments(case)
    if "head_num" not in case["arguments"]:
        return enable_padding_free(model)(**call)
    host = BertModel(model.config)
    host.encoder = model
    return enable_padding_free(host).eval().encoder(**call)
