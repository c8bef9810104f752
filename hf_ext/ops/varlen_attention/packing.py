"""Which tokens of a padded batch are real, and where they go when the padding is left out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class Packing:
    """The real tokens of a padded batch.

    Attributes:
        places: (tokens,) their indices in the flattened batch (batch * length).
        cu_seqlens: (batch + 1,) borders of the sequences in the pack, int32, on the CPU.
        batch, length: of the padded batch.
    """

    places: torch.Tensor
    cu_seqlens: torch.Tensor
    batch: int
    length: int

    @classmethod
    def of(cls, mask: torch.Tensor) -> Packing:
        """From a mask (batch, length), nonzero at real tokens, which may stand anywhere. Waits once for a GPU."""
        mask = mask.bool()
        return cls(
            places=mask.flatten().nonzero()[:, 0],
            cu_seqlens=F.pad(mask.sum(1).cumsum(0), (1, 0)).to("cpu", torch.int32),
            batch=mask.shape[0],
            length=mask.shape[1],
        )

    @property
    def tokens(self) -> int:
        return int(self.cu_seqlens[-1])

    @property
    def padding(self) -> float:
        """The share of places that hold no real token."""
        return 1 - self.tokens / max(self.batch * self.length, 1)

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length, ...) -> (tokens, ...)"""
        return x.flatten(0, 1).index_select(0, self.places.to(x.device))

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, ...) -> (batch, length, ...), zeros in the padding"""
        padded = x.new_zeros(self.batch * self.length, *x.shape[1:])
        return padded.index_copy(0, self.places.to(x.device), x).unflatten(0, (self.batch, self.length))
