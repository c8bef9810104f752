"""Prints, for each case given as JSON, the largest difference between Triton kernels and chunk form, over the largest value or 1."""

import json
import sys

import torch

from hf_ext.ops.gla import eager, triton
from tests.ops.test_gla import NAMES, inputs

torch.set_num_threads(1)


def largest_error(borders=None, **shape):
    sequences = None if borders is None else len(borders) - 1
    cu_seqlens = None if borders is None else torch.tensor(borders)
    tensors = inputs(dtype=torch.float32, sequences=sequences, **shape)
    arguments = (*(tensors[name].detach() for name in NAMES[:4]), 0.3, tensors["initial_state"].detach(), cu_seqlens)
    forward = [form.forward(*arguments) for form in (triton, eager)]
    grads = [torch.randn_like(x) for x in forward[0]]
    backward = [form.backward(*grads, *arguments) for form in (triton, eager)]
    pairs = zip((*forward[0], *backward[0]), (*forward[1], *backward[1]))
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1)).item() for a, b in pairs)


if __name__ == "__main__":
    print(json.dumps({name: largest_error(**case) for name, case in json.loads(sys.argv[1]).items()}))
