"""What chunked recurrences share: cutting tokens into chunks, walking along them with a state, and the numeric types they compute in.

Letters in names of dimensions: B batch, T tokens, C tokens of a chunk, H heads of k and v, G query heads per head of k, K key channels,
V value channels, N chunks of all sequences together, L = N*H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import torch
import torch.nn.functional as F

CHUNK_SIZE = 64


@dataclass
class Chunks:
    """How the tokens of a batch, or of packed sequences, are cut into chunks of `size` tokens.

    Chunks stand in the order of their place in the sequence: the first chunks of all sequences, then the second ones, and so on.
    `steps[i]` is the range of the i-th ones and the indices of the sequences that are so long, None for all of them. With packed
    sequences `slots` gives each token its place among the N*C places.
    """

    size: int
    steps: list[tuple[slice, torch.Tensor | None]]
    slots: torch.Tensor | None = None

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, ...) -> (steps, B, C, ...), zeros behind each sequence's end; packed sequences (1, T, ...) -> (N, 1, C, ...)"""
        if self.slots is not None:
            places = x.new_zeros(self.steps[-1][0].stop * self.size, *x.shape[2:])
            return places.index_copy(0, self.slots, x[0]).unflatten(0, (-1, 1, self.size))
        missing = -x.shape[1] % self.size
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing)) if missing else x
        return x.unflatten(1, (-1, self.size)).transpose(0, 1)

    def join(self, x: torch.Tensor, length: int) -> torch.Tensor:
        """The inverse of `split`"""
        if self.slots is not None:
            return x.flatten(0, 2)[self.slots].unsqueeze(0)
        return x.transpose(0, 1).flatten(1, 2)[:, :length]

    def fold(self, x: torch.Tensor, heads: int, dtype: torch.dtype) -> torch.Tensor:
        """(B, T, H*G, ...) -> (L, C, G, ...)"""
        return self.split(x).to(dtype).unflatten(3, (heads, -1)).transpose(2, 3).flatten(0, 2).contiguous()

    def unfold(self, x: torch.Tensor, like: torch.Tensor, heads: int) -> torch.Tensor:
        """(L, C, G, ...) -> (B, T, H*G, ...), B, T and the type those of `like`"""
        batch = 1 if self.slots is not None else like.shape[0]
        x = x.unflatten(0, (-1, batch, heads)).transpose(2, 3).flatten(3, 4)
        return self.join(x, like.shape[1]).to(like.dtype).contiguous()

    def walk(
        self, state: torch.Tensor, step: Callable[[slice, torch.Tensor], torch.Tensor], backwards: bool = False
    ) -> torch.Tensor:
        """`state = step(rows, state)` along the chunks of each sequence; returns the last one.

        state is (sequences, H, K, V); `step` gets the rows of the folded tensors that come next, and their states (rows, K, V).
        """
        heads = state.shape[1]
        for chunk, sequences in self.steps[:: -1 if backwards else 1]:
            before = (state if sequences is None else state[sequences]).flatten(0, 1)
            after = step(slice(chunk.start * heads, chunk.stop * heads), before).unflatten(0, (-1, heads))
            state = after if sequences is None else state.index_copy(0, sequences, after)
        return state


def cut(batch: int, length: int, cu_seqlens: torch.Tensor | None, size: int = CHUNK_SIZE) -> Chunks:
    if cu_seqlens is None:
        size = min(size, 1 << (length - 1).bit_length())
        return Chunks(size, [(slice(i * batch, (i + 1) * batch), None) for i in range(-(-length // size))])
    lengths = cu_seqlens.long().diff()
    sequence = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    position = torch.arange(length, device=lengths.device) - cu_seqlens[sequence]
    alive = (
        torch.arange(-(-int(lengths.max()) // size), device=lengths.device)[:, None] * size < lengths
    )  # (steps, sequences)
    chunk = alive.flatten().cumsum(0).view_as(alive) - 1
    stops = alive.sum(1).cumsum(0).tolist()
    steps = [(slice(*border), rows.nonzero()[:, 0]) for border, rows in zip(zip([0, *stops], stops), alive)]
    return Chunks(size, steps, chunk[position // size, sequence] * size + position % size)


def halves(x: torch.Tensor, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(L, C, ...) -> left and right halves of its blocks, (L, C/2m, m, ...) each"""
    return x.unflatten(1, (-1, 2 * m)).split(m, 2)


def precision(*tensors: torch.Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def starting_state(
    tokens: torch.Tensor,
    shape: tuple[int, ...],
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(sequences, *shape): the state given, or zeros for each sequence of `tokens` (B, T, ...)"""
    if initial_state is not None:
        return initial_state.to(dtype)
    sequences = tokens.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return tokens.new_zeros(sequences, *shape, dtype=dtype)


def without_autocast(function: Callable) -> Callable:
    """Autocast would round the states to half precision, which these ops promise not to do."""

    @wraps(function)
    def wrapper(*arguments):
        device = arguments[0].device.type
        if not torch.is_autocast_enabled(device):
            return function(*arguments)
        with torch.autocast(device, enabled=False):
            return function(*arguments)

    return wrapper


def check_borders(tokens: torch.Tensor, cu_seqlens: torch.Tensor | None) -> int:
    """The number of sequences in `tokens` (B, T, ...): the batch, or the number of packed ones; a `ValueError` where borders do not fit."""
    if cu_seqlens is None:
        return tokens.shape[0]
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2 or cu_seqlens.is_floating_point() or tokens.shape[0] != 1:
        raise ValueError(
            "cu_seqlens holds the integer borders 0 ... tokens of sequences packed in a batch of 1; "
            f"got shape {tuple(cu_seqlens.shape)}, type {cu_seqlens.dtype} with a batch of {tokens.shape[0]}"
        )
    if not torch.compiler.is_compiling() and cu_seqlens.device.type == "cpu":
        borders = cu_seqlens.tolist()
        if borders[0] != 0 or borders[-1] != tokens.shape[1] or sorted(borders) != borders:
            raise ValueError(f"cu_seqlens must rise from 0 to the number of tokens, {tokens.shape[1]}; got {borders}")
    return cu_seqlens.shape[0] - 1


def flat_borders(tokens: torch.Tensor, cu_seqlens: torch.Tensor | None) -> torch.Tensor:
    """Where each sequence of `tokens` (B, T, ...) starts when all tokens lie along one axis, and the end: (sequences + 1,) int64"""
    if cu_seqlens is not None:
        return cu_seqlens.long().contiguous()
    batch, length = tokens.shape[:2]
    return torch.arange(0, batch * length + 1, length, device=tokens.device)


def check_state(expected: tuple[int, ...], names: str, initial_state: torch.Tensor | None) -> None:
    if initial_state is not None and tuple(initial_state.shape) != expected:
        raise ValueError(f"initial_state must be ({names}) = {expected}; got {tuple(initial_state.shape)}")
