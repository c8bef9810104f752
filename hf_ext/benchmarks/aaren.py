"""The op against the token loop and against causal SDPA of a repeated query; a stream against a Transformer's. float32, one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import DynamicCache

from hf_ext.models.aaren import AarenConfig, AarenModel
from hf_ext.ops.prefix_scan_attention import prefix_softmax_attention, reference

from . import Contest
from .gla import forward, forward_backward

STEPS = 16


def contests(reference_folder: Path | None = None) -> Iterator[Contest]:
    """The op at B4 H8 D64; 16 steps of a stream, batch 1, four layers of width 256, after 64 and after 10,000 steps."""
    torch.manual_seed(0)
    for tokens in (512, 2048):
        inputs = [x.requires_grad_() for x in (torch.randn(8, 64), *torch.randn(2, 4, tokens, 8, 64))]
        yield from op_contests(f"B4 T{tokens} H8 D64", inputs, "token loop", reference)
        yield from op_contests(f"B4 T{tokens} H8 D64", inputs, "causal SDPA", sdpa)
    for position in (64, 10_000):
        yield Contest(
            f"{STEPS} steps after {position}",
            aaren_stream(position),
            transformer_stream(position),
            "attention with a cache",
            1,
        )
    yield Contest(f"{STEPS} steps after 10000", aaren_stream(10_000), aaren_stream(64), "the same after 64", 1)


def op_contests(name: str, inputs: list[torch.Tensor], peer_name: str, peer: Callable) -> Iterator[Contest]:
    for work, run in (("forward", forward), ("forward + backward", forward_backward)):
        yield Contest(f"{name}, {work}", run(prefix_softmax_attention, inputs), run(peer, inputs), peer_name, 1)


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, None]:
    """What a user would do without the op: every token asks the same."""
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    queries = q[:, None].expand(*k.shape).contiguous()
    return nn.functional.scaled_dot_product_attention(queries, k, v, is_causal=True), None


@torch.no_grad()
def aaren_stream(position: int) -> Callable[[], None]:
    """A function that reads 16 more steps after `position` steps; time is as long wherever the stream stands."""
    model = AarenModel(AarenConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4)).eval()
    tokens = torch.randn(STEPS, 1, 256)
    cache = model(inputs_embeds=torch.randn(1, position, 256), use_cache=True).past_key_values

    @torch.no_grad()
    def run() -> None:
        for token in tokens:
            model.update(token, cache)

    return run


class CachedAttention(nn.TransformerEncoderLayer):
    """A layer of the same sizes with causal attention over everything read, kept in a cache."""

    def __init__(self, layer_idx: int):
        super().__init__(256, 4, 1024, batch_first=True)
        self.layer_idx = layer_idx

    def forward(self, x: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        q, k, v = nn.functional.linear(x, self.self_attn.in_proj_weight, self.self_attn.in_proj_bias).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (4, 64)).transpose(1, 2) for part in (q, k, v))
        k, v = cache.update(k, v, self.layer_idx)
        o = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
        x = self.norm1(x + self.self_attn.out_proj(o.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.linear2(self.linear1(x).relu()))


@torch.no_grad()
def transformer_stream(position: int) -> Callable[[], None]:
    layers = nn.ModuleList(CachedAttention(layer_idx) for layer_idx in range(4)).eval()
    tokens = torch.randn(STEPS, 1, 1, 256)
    cache = DynamicCache()

    def read(x: torch.Tensor) -> None:
        for layer in layers:
            x = layer(x, cache)

    for start in range(
        0, position, 256
    ):  # what a prefix leaves in the cache; attention over it would take its time here
        for layer in layers:
            size = min(256, position - start)
            cache.update(*torch.randn(2, 1, 4, size, 64), layer.layer_idx)

    @torch.no_grad()
    def run() -> None:
        for token in tokens:
            read(token)
        cache.crop(-STEPS)

    return run
