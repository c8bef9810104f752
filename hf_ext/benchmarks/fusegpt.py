"""A quarter of the blocks fused and folded, against the dense model; and what the weighting costs until it is folded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hf_ext.surgery import FuseGPT, apply
from hf_ext.surgery.fusegpt import fold, similarity_without

from . import Contest
from .llm_drop import NEW_TOKENS, decoder

PROMPT = 256


def contests(reference: Path | None = None) -> Iterator[Contest]:
    """A 12-layer Llama (width 512, 8 heads) with 3 blocks fused: a prompt, and 16 tokens after a context of 1024, batch 1."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=512, intermediate_size=1376, num_hidden_layers=12, num_attention_heads=8
    )
    dense = LlamaForCausalLM(config).eval()
    unfolded = apply(dense, FuseGPT(layers=[4, 7, 9])).eval()
    folded = fold(unfolded)
    share = f"{folded.num_parameters():,} of {dense.num_parameters():,} parameters"
    ids = torch.randint(0, config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    yield Contest(
        f"prompt of {PROMPT} tokens, 9 of 12 layers ({share})",
        reader(folded, ids),
        reader(dense, ids),
        "dense model",
        threads=1,
    )
    yield Contest(
        f"decode {NEW_TOKENS} tokens after 1024, 9 of 12 layers",
        decoder(folded, 1024),
        decoder(dense, 1024),
        "dense model",
        threads=1,
    )
    yield Contest(
        f"prompt of {PROMPT} tokens, folded", reader(folded, ids), reader(unfolded, ids), "not folded", threads=1
    )
    batches = [{"input_ids": ids[:, :64]}]
    yield Contest(
        "macro influence of 12 blocks, 64 tokens",
        partial(similarity_without, dense, batches),
        partial(whole_passes, dense, batches),
        "a pass for each block, as the reference does",
        threads=1,
    )


def reader(model: PreTrainedModel, ids: torch.Tensor) -> partial:
    return partial(torch.no_grad()(model), ids, use_cache=False)


@torch.no_grad()
def whole_passes(model: PreTrainedModel, batches: list[dict[str, torch.Tensor]]) -> None:
    """The whole stack, and the stack without each block from its beginning."""
    from hf_ext.surgery.families import layers_of
    from hf_ext.surgery.fusegpt import record, run

    layers = layers_of(model)
    for batch in batches:
        found = record(model, batch)
        for index in range(len(layers)):
            kept = [i for i in range(len(layers)) if i != index]
            without = run([layers[i] for i in kept], [found.calls[i] for i in kept], found.entered[0])
            torch.cosine_similarity(found.last, without, dim=-1).mean()
