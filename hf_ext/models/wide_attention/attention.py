"""The ten kinds of attention. Each is a module with q_proj, k_proj, v_proj and o_proj around `attend`.

Letters in names of dimensions: B batch, L tokens, H heads, D channels of a head, N blocks, S tokens of a block.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit.modeling_vit import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from hf_ext.layers.linear import token_linear

from .configuration_wide_attention import WideAttentionConfig

EXCLUDED = -1e10  # what the reference adds to the score of a pair that may not see each other
BIGBIRD_EXCLUDED = -1e4
BIGBIRD_LAST_TOKEN = 1024  # random blocks lie before it (the plan of the original BigBird)
PERFORMER_OFFSET = 1e-3
LINEAR_EPS = 1e-6


def additive(allowed: torch.Tensor, dtype: torch.dtype, excluded: float = EXCLUDED) -> torch.Tensor:
    """0 where allowed. A row without anything allowed becomes uniform, as in the reference: the score is lost in rounding."""
    zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return zeros.masked_fill(~allowed, max(excluded, torch.finfo(dtype).min))


class Attention(nn.Module):
    """Projections without biases around `attend(q, k, v, mask)`, (B, H, L, D) each, with a mask (B, L), None where all is real."""

    projections = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: WideAttentionConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        inner_size = config.num_attention_heads * config.head_dim
        for name in self.projections:
            self.add_module(name, nn.Linear(config.hidden_size, inner_size, bias=False))
        self.o_proj = nn.Linear(inner_size, config.hidden_size, bias=False)

    @property
    def dropout(self) -> float:
        return self.attention_dropout if self.training else 0.0

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, L, hidden_size), (B, L) True at real tokens -> (B, L, hidden_size), and the weights where "eager" keeps them"""
        qkv = (
            token_linear(getattr(self, name), hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for name in self.projections
        )
        o, weights = self.attend(*qkv, mask, **kwargs)
        return token_linear(self.o_proj, o.transpose(1, 2).flatten(2)), weights

    def softmax(self, q, k, v, allowed, excluded: float = EXCLUDED) -> torch.Tensor:
        mask = None if allowed is None else additive(allowed, q.dtype, excluded)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout, scale=self.scaling)


class DotProductAttention(Attention):
    """softmax(q k^T / sqrt(D)) v over the pairs of a pattern whose ends are both real, through Transformers' interface."""

    def pattern(self, length: int, device: torch.device) -> torch.Tensor | None:
        """(L, L) True where the row's token may see the column's; None for all pairs"""
        return None

    def attend(self, q, k, v, mask, **kwargs):
        allowed = self.pattern(q.shape[2], q.device)
        if mask is not None:
            pairs = (mask[:, :, None] & mask[:, None])[:, None]
            allowed = pairs if allowed is None else allowed & pairs
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        o, weights = attention_interface(
            self,
            q,
            k,
            v,
            None if allowed is None else additive(allowed, q.dtype).expand(len(q), 1, -1, -1),
            dropout=self.dropout,
            scaling=self.scaling,
            **kwargs,
        )
        return o.transpose(1, 2), weights


class SparseAttention(DotProductAttention):
    """The fixed pattern of Sparse Transformers (arXiv 1904.10509): the own block, and the last columns of every block."""

    def pattern(self, length, device):
        size = self.config.block_size
        first = int(self.config.pooling == "cls")  # a class token sees all and is seen by all
        i = torch.arange(length - first, device=device)
        allowed = i[:, None] // size == i // size
        allowed = allowed | (i % size >= size - self.config.num_fixed_columns)
        if self.config.reference_quirks:
            allowed = (allowed | (i % size == 0)) & (i <= i[:, None])
        return F.pad(allowed, (first, 0, first, 0), value=True)


class LongformerAttention(DotProductAttention):
    """The sliding window of Longformer (arXiv 2004.05150), without tokens of global attention, of which the reference has none."""

    def pattern(self, length, device):
        size = self.config.sliding_window_size
        i = torch.arange(length, device=device)
        distance = i - i[:, None]
        return (distance > size // 2 - size) & (distance <= size // 2)


class LinearAttention(Attention):
    """phi(q) (phi(k)^T v) / (phi(q) sum phi(k)), phi(x) = elu(x) + 1 (arXiv 2006.16236)"""

    eps = LINEAR_EPS

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.elu(x) + 1

    def attend(self, q, k, v, mask, **kwargs):
        q, k = self.features(q), self.features(k)
        if mask is not None and not self.config.reference_quirks:
            k = k * mask[:, None, :, None]
        o = q @ (k.transpose(2, 3) @ v)
        return o / (q @ k.sum(2)[..., None] + self.eps), None


class PerformerAttention(LinearAttention):
    """The generalised attention of Performers (arXiv 2009.14794) with phi(x) = relu(x) + 0.001 and no random features."""

    eps = 0.0

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x) + PERFORMER_OFFSET


class LinformerAttention(Attention):
    """Softmax over keys and values projected along the sequence by one matrix for all heads (arXiv 2006.04768)"""

    def __init__(self, config: WideAttentionConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.projection = nn.Parameter(torch.empty(config.num_positions, config.projected_length))

    def attend(self, q, k, v, mask, **kwargs):
        projection = self.projection[: q.shape[2]].T
        if mask is not None and not self.config.reference_quirks:
            k, v = (x * mask[:, None, :, None] for x in (k, v))
        return self.softmax(q, projection @ k, projection @ v, None), None


class SynthesizerAttention(Attention):
    """Softmax over logits that are learned for each pair of positions (arXiv 2005.00743), alone or added to the dot product"""

    def __init__(self, config: WideAttentionConfig, layer_idx: int):
        self.projections = ("v_proj",) if config.ignore_dot_product else Attention.projections
        super().__init__(config, layer_idx)
        heads, length, rank = config.num_attention_heads, config.num_positions, config.synthesizer_rank
        if config.synthesizer_mode == "random":
            self.random = nn.Parameter(torch.empty(heads, length, length))
        else:
            self.random1 = nn.Parameter(torch.empty(heads, length, rank))
            self.random2 = nn.Parameter(torch.empty(heads, rank, length))

    def attend(self, *qkv, **kwargs):
        *qk, v, mask = qkv
        length = v.shape[2]
        if self.config.synthesizer_mode == "random":
            logits = self.random[:, :length, :length]
        else:
            logits = self.random1[:, :length] @ self.random2[:, :, :length]
        logits = logits[None].to(v.dtype)
        if mask is not None and not (self.config.ignore_dot_product and self.config.reference_quirks):
            logits = logits + additive((mask[:, :, None] & mask[:, None])[:, None], v.dtype)
        if qk:
            q, k = qk
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=logits, dropout_p=self.dropout, scale=self.scaling
            ), None
        return F.dropout(logits.softmax(-1), self.dropout) @ v, None


class BlockAttention(Attention):
    """What attention in blocks shares: cutting tokens into blocks, strided ones in the reference."""

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, L, D), L a multiple of S -> (B, H, N, S, D)"""
        if self.config.reference_quirks:
            return x.unflatten(2, (self.config.block_size, -1)).transpose(2, 3)
        return x.unflatten(2, (-1, self.config.block_size))

    def join(self, x: torch.Tensor) -> torch.Tensor:
        return (x.transpose(2, 3) if self.config.reference_quirks else x).flatten(2, 3)

    def pairs(self, mask: torch.Tensor) -> torch.Tensor:
        """(B, L) -> (B, 1, N, S, S), both ends real; always in blocks of neighbours"""
        blocks = mask.unflatten(1, (-1, self.config.block_size))
        return (blocks[..., None] & blocks[..., None, :])[:, None]

    def padded(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Zeros behind the end, up to the next multiple of S: a whole block in the reference where it is one already"""
        missing = -tensors[0].shape[2] % self.config.block_size
        if self.config.reference_quirks:
            missing = missing or self.config.block_size
        return tuple(F.pad(x, (0, 0, 0, missing)) for x in tensors)

    def padded_mask(self, mask: torch.Tensor | None, q: torch.Tensor, length: int) -> torch.Tensor | None:
        """The mask of `length` tokens; those appended count as real in the reference"""
        appended = length - q.shape[2]
        if mask is None and (not appended or self.config.reference_quirks):
            return None
        mask = torch.ones(len(q), q.shape[2], dtype=torch.bool, device=q.device) if mask is None else mask
        return F.pad(mask, (0, appended), value=self.config.reference_quirks)


class LocalAttention(BlockAttention):
    """Softmax within blocks"""

    def attend(self, q, k, v, mask, **kwargs):
        padded = self.padded(q, k, v)
        mask = self.padded_mask(mask, q, padded[0].shape[2])
        o = self.softmax(*(self.split(x) for x in padded), None if mask is None else self.pairs(mask))
        return self.join(o)[:, :, : q.shape[2]], None


class SinkhornAttention(BlockAttention):
    """Softmax within blocks, plus the same queries over blocks that a learned sorting brings there (arXiv 2002.11296).

    In the reference an index of the sorting is summed over, so that every block reads the sum of all of them.
    """

    def __init__(self, config: WideAttentionConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        if not config.reference_quirks:
            self.sort = nn.Linear(config.head_dim, config.num_sort_buckets, bias=False)

    def attend(self, q, k, v, mask, **kwargs):
        length, size = q.shape[2], self.config.block_size
        if length % size or (not self.config.reference_quirks and length // size > self.config.num_sort_buckets):
            raise ValueError(
                f"'sinkhorn' takes a multiple of `block_size` = {size} tokens, at most `num_sort_buckets` = {self.config.num_sort_buckets} "
                f"blocks; got {length}"
            )
        q, k, v = (self.split(x) for x in (q, k, v))
        allowed = None if mask is None else self.pairs(mask)
        local = self.softmax(q, k, v, allowed)
        if self.config.reference_quirks:
            k, v = (x.sum(2, keepdim=True).expand_as(q) for x in (k, v))
            allowed = None if allowed is None else allowed.any(2, keepdim=True)
            return self.join(local + self.softmax(q, k, v, allowed)), None
        if mask is not None:
            real = mask.unflatten(1, (-1, size))[:, None, ..., None]
            k, v = k * real, v * real
        places = self.sort(k.sum(3))[..., : k.shape[2]].softmax(
            -1
        )  # (B, H, N, N): how much of block n comes to place m
        k, v = (torch.einsum("bhnm,bhnsd->bhmsd", places, x) for x in (k, v))
        return self.join(local + self.softmax(q, k, v, None)), None


class BigBirdAttention(BlockAttention):
    """Blocks read the first, the last, their neighbours and a few random ones (arXiv 2007.14062); the first and last read all."""

    def split(self, x):
        return x.unflatten(2, (-1, self.config.block_size))

    def join(self, x):
        return x.flatten(2, 3)

    def attend(self, q, k, v, mask, **kwargs):
        length = q.shape[2]
        padded = self.padded(q, k, v)
        real = self.padded_mask(mask, q, padded[0].shape[2])
        if real is None:
            real = torch.ones(len(q), padded[0].shape[2], dtype=torch.bool, device=q.device)
        q, k, v = (self.split(x) for x in padded)
        n = q.shape[2]
        chosen = self.random_blocks(n).to(q.device)  # (H, N - 2, R)
        whole = (x.flatten(2, 3) for x in (q[:, :, [0, n - 1]], k, v))
        ends = self.softmax(*whole, real[:, None, None], BIGBIRD_EXCLUDED).unflatten(2, (2, -1))
        rows = (
            ([1, n - 2], [[0, 1, 2, n - 1], [0, n - 3, n - 2, n - 1]], slice(0, 4)),
            (list(range(2, n - 2)), [[0, n - 1, i - 1, i, i + 1] for i in range(2, n - 2)], slice(0, 2)),
        )
        parts = {0: ends[:, :, :1], n - 1: ends[:, :, 1:]}
        for numbers, fixed, for_all in rows:
            if not numbers:
                continue
            o = self.read(q, k, v, real, numbers, torch.tensor(fixed, device=q.device), chosen, for_all)
            for place, number in enumerate(numbers):
                parts[number] = o[:, :, place : place + 1]
        o = self.join(torch.cat([parts[number] for number in range(n)], 2)) * real[:, None, :, None]
        return o[:, :, :length], None

    def read(self, q, k, v, real, numbers, fixed, chosen, for_all):
        """Rows of query blocks `numbers` over their fixed and random key blocks; only reality of the key counts in blocks `for_all`"""
        heads = q.shape[1]
        blocks = torch.cat((fixed.expand(heads, *fixed.shape), chosen[:, [number - 1 for number in numbers]]), -1)
        head = torch.arange(heads, device=q.device)[:, None, None]
        keys, values = (x[:, head, blocks].flatten(3, 4) for x in (k, v))  # (B, H, rows, blocks * S, D)
        real = real.unflatten(1, (-1, self.config.block_size))
        seen = real[:, blocks]  # (B, H, rows, blocks, S)
        asked = real[:, numbers][:, None, :, :, None, None]  # (B, 1, rows, S, 1, 1)
        ask = torch.ones(blocks.shape[-1], dtype=torch.bool, device=q.device)
        ask[for_all] = False
        allowed = seen[:, :, :, None] & (asked | ~ask[:, None])
        return self.softmax(q[:, :, numbers], keys, values, allowed.flatten(4), BIGBIRD_EXCLUDED)

    def random_blocks(self, n: int) -> torch.Tensor:
        """(H, N - 2, R): the plan that the original draws with numpy, seeded by the layer's number

        Raises:
            ValueError: too few blocks to draw from.
        """
        count = self.config.num_random_blocks
        generator = np.random.RandomState(self.layer_idx)
        blocks = np.arange(1, n - 1)
        last = n - 1
        if n * self.config.block_size > BIGBIRD_LAST_TOKEN > 2 * self.config.block_size:
            last = BIGBIRD_LAST_TOKEN // self.config.block_size - 1
        plan = np.zeros((self.config.num_attention_heads, max(n - 2, 0), count), dtype=np.int64)
        for head in plan:
            for row in range(1, n - 1):
                drawn = generator.permutation(self.candidates(blocks, row, n, last))[:count]
                if n < 5 or len(drawn) < count:
                    raise ValueError(
                        f"'bigbird' draws {count} random blocks for each block; {n} blocks of {self.config.block_size} tokens are too few "
                        "for that: take a smaller `block_size` or longer sequences"
                    )
                head[row - 1] = drawn
        return torch.from_numpy(plan)

    @staticmethod
    def candidates(blocks: np.ndarray, row: int, n: int, last: int) -> np.ndarray:
        start, end = row - 2, row
        if row == 1:
            return blocks[2:last]
        if row == 2:
            return blocks[3:last]
        if row == n - 3:
            return blocks[: last - 4]
        if row == n - 2:
            return blocks[: last - 3]
        if start > last:
            return blocks[:last]
        if end + 1 == last:
            return blocks[:start]
        return np.concatenate((blocks[:start], blocks[end + 1 : last]))


ATTENTIONS = {
    "transformer": DotProductAttention,
    "bigbird": BigBirdAttention,
    "linear_transformer": LinearAttention,
    "linformer": LinformerAttention,
    "local": LocalAttention,
    "longformer": LongformerAttention,
    "performer": PerformerAttention,
    "sinkhorn": SinkhornAttention,
    "sparse_transformer": SparseAttention,
    "synthesizer": SynthesizerAttention,
}
