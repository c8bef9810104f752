"""Layers that read a sequence whole, or as a stream in pieces of any length with what they must remember in a `StreamCache`.

Tokens are (batch, time, channels), and may be none at all in a piece. Both ways give the same: a stream is complete when `closed` is set
before its last piece.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from hf_ext.ops.spiking_neuron import lif


class StreamCache:
    """What the layers of a model remember of a stream, by the names that `name_states` gave them.

    Attributes:
        states: name -> tensor. They are replaced, never written to, so a copy of the dict is a copy of the stream.
        closed: whether the piece being read is the last one.
    """

    def __init__(self) -> None:
        self.states: dict[str, torch.Tensor] = {}
        self.closed = False

    def reset(self) -> None:
        """Forgets everything, for a new stream."""
        self.states.clear()
        self.closed = False


class StreamLayer(nn.Module):
    """A layer with a state; `state_name` is its place in the cache."""

    state_name = ""

    def remembered(self, cache: StreamCache | None) -> torch.Tensor | None:
        return None if cache is None else cache.states.get(self.state_name)

    def remember(self, cache: StreamCache | None, state: torch.Tensor) -> None:
        if cache is not None:
            cache.states[self.state_name] = state


def name_states(model: nn.Module) -> None:
    """Gives every layer with a state its name within `model`."""
    for name, module in model.named_modules():
        if isinstance(module, StreamLayer):
            module.state_name = name


class FrameContext(StreamLayer):
    """One more token at either side of the sequence, zeros, for a convolution of three that follows.

    In a stream what comes before a piece is what came before; and its last token waits for the next piece, or for the end.
    """

    def forward(self, tokens: torch.Tensor, cache: StreamCache | None = None) -> torch.Tensor:
        if cache is None:
            return F.pad(tokens, (0, 0, 1, 1))
        before = self.remembered(cache)
        tokens = F.pad(tokens, (0, 0, 1, 0)) if before is None else torch.cat((before, tokens), 1)
        if cache.closed:
            tokens = F.pad(tokens, (0, 0, 0, 1))
        self.remember(cache, tokens[:, -2:])
        return tokens


class FrameConv(nn.Conv1d):
    """Convolution of three tokens each, without bias, on what `FrameContext` gives: (B, N + 2, in) -> (B, N, out)"""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if tokens.shape[1] < 3:
            return tokens.new_empty(len(tokens), 0, self.out_channels)
        return super().forward(tokens.mT).mT


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over all tokens of a batch, (B, N, C).

    On rows of C numbers: torch's gradient of BatchNorm is wrong for a batch of one whose axes were transposed (seen in 2.13).
    """

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens.flatten(0, 1)).view(tokens.shape)


class SpikingNeurons(StreamLayer):
    """Leaky integrate-and-fire neurons, one per channel, whose time is that of the tokens; see `hf_ext.ops.spiking_neuron.lif`."""

    def __init__(self, tau: float = 2.0, threshold: float = 1.0, alpha: float = 4.0):
        super().__init__()
        self.tau, self.threshold, self.alpha = tau, threshold, alpha

    def forward(self, tokens: torch.Tensor, cache: StreamCache | None = None) -> torch.Tensor:
        if not tokens.shape[1]:
            return tokens
        spikes, membrane = lif(tokens, self.remembered(cache), self.tau, self.threshold, alpha=self.alpha)
        self.remember(cache, membrane)
        return spikes

    def extra_repr(self) -> str:
        return f"tau={self.tau}, threshold={self.threshold}, alpha={self.alpha}"


class NormActivation(nn.Module):
    """A norm, then an activation with or without a state."""

    def __init__(self, norm: nn.Module, activation: nn.Module):
        super().__init__()
        self.norm = norm
        self.activation = activation

    def forward(self, tokens: torch.Tensor, cache: StreamCache | None = None) -> torch.Tensor:
        tokens = self.norm(tokens)
        return self.activation(tokens, cache) if isinstance(self.activation, StreamLayer) else self.activation(tokens)
