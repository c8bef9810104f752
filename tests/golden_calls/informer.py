"""Golden cases of `informer` that are no single forward: the ProbSparse operator with given samples."""

from __future__ import annotations

from typing import Any

import torch

from hf_ext.ops.prob_sparse_attention import count, prob_sparse_attention, sparsity
from tests.goldens import call_arguments, run_model


def run(case: dict[str, Any]) -> Any:
    if case["state"]:
        return run_model(case)
    arguments = call_arguments(case)
    o, _ = prob_sparse_attention(**arguments)
    measure = sparsity(arguments["q"], arguments["k"], arguments["index_sample"])
    top = measure.topk(count(arguments["factor"], measure.shape[-1])).indices
    selected = torch.zeros_like(measure, dtype=torch.bool).scatter_(-1, top, True)
    return {"o": o, "sparsity": measure, "selected": selected}
