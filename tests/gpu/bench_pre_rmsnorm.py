"""RMSNorm and CRMSNorm on a GPU: the Triton kernels against the definition, then norms and whole models beside torch's LayerNorm.

    python -m tests.gpu.bench_pre_rmsnorm

Exits with 1 if a kernel is wrong. Models are ViT-Base (batch 64) and GPT-2 small (8 x 1024 tokens) in bf16, eager and compiled.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
import torch.nn.functional as F

from hf_ext.ops.rms_norm import reference, rms_norm
from tests.gpu.recurrence import check, exit_without_a_gpu, milliseconds, table

SHAPES = [(64 * 197, 768), (8192, 768), (8192, 767), (4096, 4096), (32, 768)]
CHECKS = [((300, 37), None), ((64, 768), None), ((512, 767), None), ((100, 4096), None)]  # rows, channels


def draw(rows, channels, dtype):
    shapes = (rows, channels), (channels,), (channels,)
    return [torch.randn(shape, device="cuda", dtype=dtype).requires_grad_() for shape in shapes]


def as_pair(form, compressed):
    return lambda *x, cu_seqlens=None: (form(*x, 1e-3, compressed), None)


def models() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

    from hf_ext.surgery.pre_rmsnorm import convert_pre_ln

    cases = {
        "GPT-2 small, 8 x 1024": (GPT2LMHeadModel(GPT2Config()), {"input_ids": torch.zeros(8, 1024, dtype=torch.long)}),
        "ViT-Base, batch 64": (ViTForImageClassification(ViTConfig()), {"pixel_values": torch.randn(64, 3, 224, 224)}),
    }
    for name, (model, inputs) in cases.items():
        inputs = {k: x.cuda().bfloat16() if x.is_floating_point() else x.cuda() for k, x in inputs.items()}
        model = model.eval()
        forms = {
            "LayerNorm": model,
            "RMS": convert_pre_ln(model),
            "RMS, folded": convert_pre_ln(model, fold_affine=True),
            "CRMS, folded": convert_pre_ln(model, "crms", fold_affine=True),
        }
        for form, converted in forms.items():
            converted = converted.cuda().bfloat16()
            times = []
            for run in (converted, torch.compile(converted)):
                with torch.inference_mode():
                    times.append(milliseconds(lambda run=run, inputs=inputs: run(**inputs)))
            print(f"{name}  {form:>14}  eager {times[0]:8.3f} ms, compiled {times[1]:8.3f} ms")


if __name__ == "__main__":
    exit_without_a_gpu()
    if not all([check(as_pair(rms_norm, form), as_pair(reference, form), CHECKS, draw) for form in (False, True)]):
        sys.exit(1)
    peers = {
        "rms_norm": rms_norm,
        "compressed": lambda x, weight, bias: rms_norm(x, weight, bias, compressed=True),
        "F.layer_norm": lambda x, weight, bias: F.layer_norm(x, x.shape[-1:], weight, bias),
        "F.rms_norm": lambda x, weight, bias: F.rms_norm(x, x.shape[-1:], weight, 1e-5),
    }
    for dtype in (torch.bfloat16, torch.float32):
        table(str(dtype), [(f"{rows} x {width}", partial(draw, rows, width, dtype)) for rows, width in SHAPES], peers)
    models()
