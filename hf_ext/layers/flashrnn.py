"""FlashRNN as a layer: an LSTM, GRU, Elman network or sLSTM with one recurrent matrix per head, in the place of torch's.

Paper: "FlashRNN: Optimizing Traditional RNNs on Modern Hardware", arXiv 2412.07752.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization as init

from hf_ext.layers.linear import token_linear
from hf_ext.ops.flashrnn import CELLS, flashrnn

FORGET_GATE = 1  # of lstm and slstm


class FlashRNN(nn.Module):
    """A recurrent layer whose heads never mix; with one head it is `nn.LSTM`, `nn.GRU` or `nn.RNN` of one layer (see `from_torch`).

    Args:
        input_size, hidden_size: channels of inputs and outputs.
        num_heads: a divisor of `hidden_size`.
        function: "lstm", "slstm", "gru" or "elman".
        batch_first: whether inputs are (batch, tokens, channels), or (tokens, batch, channels).
        gradient_recurrent_cut, gradient_recurrent_clipval, forward_clipval: as in `hf_ext.ops.flashrnn.flashrnn`.

    Raises:
        ValueError: an unknown function, or heads that do not divide the channels.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_heads: int = 1,
        function: str = "lstm",
        batch_first: bool = True,
        gradient_recurrent_cut: bool = False,
        gradient_recurrent_clipval: float | None = None,
        forward_clipval: float | None = None,
    ):
        super().__init__()
        if function not in CELLS:
            raise ValueError(f"function must be one of {', '.join(CELLS)}; got {function!r}")
        if num_heads < 1 or hidden_size % num_heads:
            raise ValueError(f"num_heads must divide hidden_size={hidden_size}; got {num_heads}")
        self.num_heads, self.function, self.batch_first = num_heads, function, batch_first
        self.options = {
            "gradient_recurrent_cut": gradient_recurrent_cut,
            "gradient_recurrent_clipval": gradient_recurrent_clipval,
            "forward_clipval": forward_clipval,
        }
        cell, head_dim = CELLS[function], hidden_size // num_heads
        self.input_projection = nn.Linear(input_size, cell.num_inputs * hidden_size, bias=False)
        self.weight_hh = nn.Parameter(torch.empty(cell.num_recurrent, num_heads, head_dim, head_dim))
        self.bias = nn.Parameter(torch.empty(cell.pre_activations, num_heads, head_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Recurrent weights uniform within head_dim ** -0.5; biases 0, but 1 for a forget gate."""
        bound = self.weight_hh.shape[-1] ** -0.5
        init.uniform_(self.weight_hh, -bound, bound)
        init.zeros_(self.bias)
        if self.function in ("lstm", "slstm"):
            init.ones_(self.bias[FORGET_GATE])

    def forward(
        self,
        x: torch.Tensor,
        state: torch.Tensor | tuple[torch.Tensor, ...] | None = None,
        attention_mask: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | tuple[torch.Tensor, ...]]:
        """x (batch, tokens, input_size) -> y (batch, tokens, hidden_size) and the state after the last token.

        A state is what torch's layers have: (1, batch, hidden_size), for lstm a tuple of two (h, c), for slstm of four (h, c, n, m);
        it comes back in float32 where inputs have half precision. `attention_mask` and `cu_seqlens` are those of the op.
        """
        if x.ndim != 3 or x.shape[-1] != self.input_projection.in_features:
            raise ValueError(
                f"the input must have three axes, the last of {self.input_projection.in_features} channels; got {tuple(x.shape)}"
            )
        if state is not None:
            state = torch.stack(state if isinstance(state, (tuple, list)) else (state,))  # (S, 1, B, hidden)
            state = state.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        x = x if self.batch_first else x.transpose(0, 1)
        states, last = flashrnn(
            token_linear(self.input_projection, x).unflatten(-1, (-1, *self.bias.shape[1:])),
            self.weight_hh,
            self.bias,
            state,
            function=self.function,
            attention_mask=attention_mask,
            cu_seqlens=cu_seqlens,
            **self.options,
        )
        y, last = states[0].flatten(2), last.transpose(1, 2).flatten(3).unbind()
        return y if self.batch_first else y.transpose(0, 1), last[0] if len(last) == 1 else last

    @classmethod
    @torch.no_grad()
    def from_torch(cls, layer: nn.LSTM | nn.GRU | nn.RNN) -> FlashRNN:
        """The layer with one head that computes what a torch layer does.

        Raises:
            ValueError: another class, more than one layer, two directions, an LSTM with projections, or an RNN with ReLU.
        """
        function = {nn.LSTM: "lstm", nn.GRU: "gru", nn.RNN: "elman"}.get(type(layer))
        if function is None:
            raise ValueError(f"only nn.LSTM, nn.GRU and nn.RNN can be taken over; got {type(layer).__name__}")
        if (
            layer.num_layers > 1
            or layer.bidirectional
            or layer.proj_size
            or getattr(layer, "nonlinearity", "tanh") != "tanh"
        ):
            raise ValueError(
                f"only one layer of one direction, without projection, with tanh, can be taken over; got {layer}"
            )
        own = cls(layer.input_size, layer.hidden_size, function=function, batch_first=layer.batch_first)
        own.input_projection.weight.copy_(layer.weight_ih_l0)
        recurrent = layer.weight_hh_l0.unflatten(0, (-1, layer.hidden_size))
        zero = layer.weight_hh_l0.new_zeros(recurrent.shape[:2])
        inputs, hidden = (
            bias.view_as(zero) if layer.bias else zero
            for bias in ((layer.bias_ih_l0, layer.bias_hh_l0) if layer.bias else (None, None))
        )
        if function == "gru":  # torch has r, z, n; what n gets from the state is a pre-activation of its own here
            own.weight_hh.copy_(recurrent.roll(1, 0).unsqueeze(1))
            own.bias.copy_(torch.cat((hidden[2:], inputs[:2] + hidden[:2], inputs[2:])).unsqueeze(1))
        else:
            own.weight_hh.copy_(recurrent.unsqueeze(1))
            own.bias.copy_((inputs + hidden).unsqueeze(1))
        return own.to(layer.weight_hh_l0)
