"""Attention of upstream models on a GPU, bf16: padding-free BERT, SSA, routing heads and SPT, each first checked, then beside torch's SDPA.

    python -m tests.gpu.bench_attention

Exits with 1 if a result is wrong. Sizes: BERT-base, batch 16 up to 512 tokens; Llama of 4 layers, 1024 wide, 1024 tokens (SSA); one head of
64 channels (routing); OPT of 4 layers, 768 wide, batch 8 of 1024 tokens (SPT).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BertConfig, BertModel, LlamaConfig, OPTConfig

from hf_ext.ops.routed_attention import normalize, routed_attention
from hf_ext.surgery.bytetransformer import enable_padding_free
from hf_ext.surgery.spt import apply_spt, spt_lora_config
from hf_ext.training.ssa import use_ssa
from tests.gpu.recurrence import exit_without_a_gpu, milliseconds

BF16 = {"device": "cuda", "dtype": torch.bfloat16}


def show(label: str, sides: dict[str, Callable[[], object]]) -> None:
    """Milliseconds and the peak memory beyond what the models hold."""
    for name, run in sides.items():
        time = milliseconds(run)
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        peak = (torch.cuda.max_memory_allocated() - held) / 2**20
        print(f"{label}  {name:>22}  {time:8.3f} ms  {peak:8.0f} MiB", flush=True)


@torch.inference_mode()
def padding_free() -> bool:
    good = True
    padded = BertModel(BertConfig(vocab_size=1000)).to(**BF16).eval()
    free = enable_padding_free(deepcopy(padded))
    for share in (0.2, 0.6, 1.0):
        spread = min(share - 0.1, 1 - share)
        lengths = torch.linspace(share - spread, share + spread, 16, device="cuda").mul(512).long()
        lengths[-1] = 512
        mask = torch.arange(512, device="cuda") < lengths[:, None]
        inputs = {"input_ids": torch.randint(1, 1000, (16, 512), device="cuda") * mask, "attention_mask": mask.long()}
        ours, theirs = (model(**inputs).last_hidden_state[mask].float() for model in (free, padded))
        error = ((ours - theirs).norm() / theirs.norm()).item()
        good &= error < 2e-2
        print(
            f"{'ok   ' if error < 2e-2 else 'WRONG'} padding-free BERT, {share:.0%} real tokens: {error:.1e} of the norm"
        )
        show(
            f"BERT-base, 16 x 512, {share:.0%} real",
            {"padding-free": lambda i=inputs: free(**i), "padded, SDPA": lambda i=inputs: padded(**i)},
        )
    return good


def step(model: torch.nn.Module, batch: int, vocabulary: int) -> Callable[[], None]:
    ids = torch.randint(3, vocabulary, (batch, 1024), device="cuda")
    model.train()

    def run() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad()

    return run


def subsampled() -> None:
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=4,
        num_attention_heads=16,
        use_cache=False,
    )
    dense = {
        kind: AutoModelForCausalLM.from_config(config, attn_implementation=kind).to(**BF16)
        for kind in ("sdpa", "eager")
    }
    ours = use_ssa(AutoModelForCausalLM.from_config(config).to(**BF16), ratio=4)
    show(
        "Llama training step, 8 x 1024",
        {name: step(model, 8, 512) for name, model in {"SSA, ratio 4": ours, **dense}.items()},
    )


def routing() -> None:
    for tokens in (4096, 16384):
        q, v = (torch.randn(4, 8, tokens, 64, **BF16) for _ in range(2))
        q = normalize(q).requires_grad_()
        v.requires_grad_()
        means = normalize(torch.randn(8, tokens // 512, 64, device="cuda")).to(torch.bfloat16)
        sides = {
            "routed": lambda q=q, v=v, means=means: routed_attention(q, None, v, means, 512),
            "SDPA, causal": lambda q=q, v=v: F.scaled_dot_product_attention(q, q, v, is_causal=True),
        }
        show(
            f"8 heads, 4 x {tokens}, forward + backward",
            {
                name: lambda run=run, q=q, v=v: torch.autograd.grad(run().float().sum(), (q, v))
                for name, run in sides.items()
            },
        )


def sparse_fine_tuning() -> None:
    config = OPTConfig(
        vocab_size=512,
        hidden_size=768,
        ffn_dim=3072,
        num_hidden_layers=4,
        num_attention_heads=12,
        max_position_embeddings=1024,
        word_embed_proj_dim=768,
        dropout=0.0,
        use_cache=False,
    )
    sides = {}
    ours = apply_spt(AutoModelForCausalLM.from_config(config))
    sides["SPT"] = get_peft_model(ours, spt_lora_config(ours, r=16)).to(**BF16)
    for kind in ("sdpa", "eager"):
        dense = AutoModelForCausalLM.from_config(config, attn_implementation=kind)
        sides[f"dense LoRA, {kind}"] = get_peft_model(dense, LoraConfig(r=16, target_modules="all-linear")).to(**BF16)
    show("OPT fine-tuning step, 8 x 1024", {name: step(model, 8, 512) for name, model in sides.items()})


if __name__ == "__main__":
    exit_without_a_gpu()
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, bf16")
    good = padding_free()
    for measure in (subsampled, routing, sparse_fine_tuning):
        measure()
    sys.exit(not good)
