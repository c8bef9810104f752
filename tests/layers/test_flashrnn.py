"""The FlashRNN layer in the place of torch's."""

import pytest
import torch
from torch import nn

from hf_ext.layers.flashrnn import FlashRNN
from hf_ext.ops.flashrnn import CELLS


@pytest.mark.parametrize("torch_class", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{"batch_first": True}, {"batch_first": False}, {"bias": False}], ids=str)
def test_a_torch_layer_taken_over_computes_the_same_from_any_state(torch_class, options):
    torch.manual_seed(0)
    layer, x = torch_class(7, 10, **options), torch.randn(3, 5, 7)
    own = FlashRNN.from_torch(layer)
    y, state = layer(x)
    ours, our_state = own(x)
    torch.testing.assert_close((ours, our_state), (y, state), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(own(x, our_state), layer(x, state), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(4, 6, 2),
        nn.GRU(4, 6, bidirectional=True),
        nn.LSTM(4, 6, proj_size=2),
        nn.RNN(4, 6, nonlinearity="relu"),
        nn.LSTMCell(4, 6),
    ],
    ids=["two layers", "two directions", "projection", "relu", "another class"],
)
def test_torch_layers_that_differ_are_refused(layer):
    with pytest.raises(ValueError, match="can be taken over"):
        FlashRNN.from_torch(layer)


@pytest.mark.parametrize("function", CELLS)
def test_heads_do_not_mix(function):
    torch.manual_seed(0)
    layer = FlashRNN(6, 8, num_heads=2, function=function)
    with torch.no_grad():
        layer.input_projection.weight.unflatten(0, (-1, 2, 4))[:, 0] = 0  # the first head sees no input
    y, state = layer(torch.randn(2, 5, 6))
    assert len(state) == len(CELLS[function].states) if isinstance(state, tuple) else CELLS[function].states == "h"
    torch.testing.assert_close(y[0, :, :4], y[1, :, :4])
    assert not torch.allclose(y[0, :, 4:], y[1, :, 4:])


def test_wrong_arguments_and_inputs_are_named():
    with pytest.raises(ValueError, match="function must be one of"):
        FlashRNN(4, 6, function="ltsm")
    with pytest.raises(ValueError, match="num_heads must divide hidden_size=6"):
        FlashRNN(4, 6, num_heads=4)
    with pytest.raises(ValueError, match="three axes, the last of 4 channels"):
        FlashRNN(4, 6)(torch.zeros(3, 4))
