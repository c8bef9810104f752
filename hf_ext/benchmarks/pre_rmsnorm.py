"""Converted models against the untouched ones, fp32 on one thread: norms alone, ViT, GPT-2 reading and decoding, a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

from hf_ext.ops.rms_norm import rms_norm
from hf_ext.surgery.pre_rmsnorm import convert_pre_ln

from . import Contest

PEER = "untouched"
NEW_TOKENS = 16
NORMS = 100  # calls of a norm in one run


def contests(reference: Path | None = None) -> Iterator[Contest]:
    """ViT-Tiny whole, others at full width with fewer layers (time is linear in layers)."""
    for shape in ((197, 192), (512, 768), (1, 768)):
        yield norm(*shape)
    tiny, base = vit(192, 3, 12), vit(768, 12, 3)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=4, vocab_size=2048, bos_token_id=0, eos_token_id=0)).eval()
    for name, model, batch in (("ViT-Tiny", tiny, 1), ("ViT-Tiny", tiny, 8), ("ViT-Base width, 3 layers", base, 1)):
        images = torch.randn(batch, 3, 224, 224)
        yield from forwards(f"{name}, batch {batch}", model, pixel_values=images)
    yield from forwards("GPT-2 width, 4 layers, 256 tokens", gpt2, input_ids=torch.arange(256)[None])
    converted = convert_pre_ln(gpt2)
    ours, peer = decoder(converted), decoder(gpt2)
    yield Contest(f"GPT-2 width, 4 layers, decode {NEW_TOKENS} tokens after 128", ours, peer, PEER, threads=1)
    inputs = {"pixel_values": torch.randn(4, 3, 224, 224), "labels": torch.arange(4)}
    ours, peer = (training(model, **inputs) for model in (convert_pre_ln(tiny, train_recentered=True), tiny))
    yield Contest("ViT-Tiny, batch 4, training step with train_recentered", ours, peer, PEER, threads=1)


def norm(rows: int, width: int) -> Contest:
    x, weight, bias = torch.randn(rows, width), torch.randn(width), torch.randn(width)

    def repeated(function: Callable[[], Any]) -> Callable[[], None]:
        @torch.inference_mode()
        def run() -> None:
            for _ in range(NORMS):
                function()

        return run

    ours = repeated(lambda: rms_norm(x, weight, bias, 1e-5))
    peer = repeated(lambda: F.layer_norm(x, (width,), weight, bias, 1e-5))
    return Contest(f"{NORMS} norms of {rows} x {width}", ours, peer, "F.layer_norm", threads=1)


def vit(width: int, heads: int, layers: int) -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        intermediate_size=4 * width,
        num_labels=1000,
        hidden_dropout_prob=0.0,
    )
    return ViTForImageClassification(config).eval()


def forwards(name: str, model: Any, **inputs: torch.Tensor) -> Iterator[Contest]:
    variants = {
        "RMS": convert_pre_ln(model),
        "RMS, folded": convert_pre_ln(model, fold_affine=True),
        "CRMS, folded": convert_pre_ln(model, "crms", fold_affine=True),
    }
    for variant, converted in variants.items():
        yield Contest(f"{name}, {variant}", forward(converted, **inputs), forward(model, **inputs), PEER, threads=1)


def forward(model: Any, **inputs: torch.Tensor) -> Callable[[], None]:
    @torch.inference_mode()
    def run() -> None:
        model(**inputs)

    return run


def decoder(model: Any) -> Callable[[], None]:
    """A function that decodes after a context that was read once, beforehand."""
    with torch.no_grad():
        prompt = torch.arange(128)[None]
        cache = DynamicCache(config=model.config)
        model(prompt, past_key_values=cache)

    @torch.no_grad()
    def decode() -> None:
        token = prompt[:, -1:]
        for _ in range(NEW_TOKENS):
            token = model(token, past_key_values=cache).logits[:, -1:].argmax(-1)
        cache.crop(-NEW_TOKENS)

    return decode


def training(model: Any, **inputs: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        model.train().zero_grad()
        model(**inputs).loss.backward()
        model.eval()

    return step
