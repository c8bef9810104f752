"""The stack of dilated convolutions: the C++ form, the torch form and decoding against the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops.ema_tcn import ACTIVATIONS, TCNState, ema_tcn, reference, ring_sizes
from hf_ext.ops.native import load_native, why_not
from tests.ops.recurrence import assert_same_with_gradients

TENSORS = ("x", "weight", "bias", "omega")


def inputs(
    batch=2, tokens=40, channels=6, kernel_size=4, depth=3, layers=1, dtype=torch.float64, seed=0
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, tokens, channels), (depth, layers, channels, kernel_size), (depth, layers, channels), (channels,))
    draws = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return {name: x.to(dtype).requires_grad_() for name, x in zip(TENSORS, draws)}


def first(function):
    def run(**arguments):
        output = function(**arguments)
        return (output[0] if isinstance(output, tuple) else output,)

    return run


@pytest.fixture(params=["C++", "torch"])
def form(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr("hf_ext.ops.native.load_native", lambda op: None)
    elif why_not():
        pytest.skip(f"no C++ form: {why_not()}")
    else:
        assert load_native("ema_tcn") is not None


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize(("kernel_size", "layers", "channels"), [(5, 1, 3), (4, 2, 17)])
def test_output_and_gradients_equal_the_definition(tokens, kernel_size, layers, channels, causal):
    tensors = inputs(tokens=tokens, kernel_size=kernel_size, layers=layers, channels=channels)
    options = {"dilation_factor": 3, "causal": causal}
    ours, theirs = (first(lambda f=f, **x: f(**x, **options)) for f in (ema_tcn, reference))
    assert_same_with_gradients(ours, theirs, tensors, atol=1e-9, rtol=1e-9)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_has_its_gradient(activation):
    ours, theirs = (first(lambda f=f, **x: f(**x, activation=activation)) for f in (ema_tcn, reference))
    assert_same_with_gradients(ours, theirs, inputs(), atol=1e-9, rtol=1e-9)


@pytest.mark.usefixtures("form")
def test_padding_is_a_zero_to_the_first_block():
    mask = torch.arange(40) < torch.tensor([[30], [40]])
    ours, theirs = (first(lambda f=f, **x: f(**x, causal=False, attention_mask=mask)) for f in (ema_tcn, reference))
    assert_same_with_gradients(ours, theirs, inputs(), atol=1e-9, rtol=1e-9)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("cuts", [(1,) * 40, (13, 1, 1, 20, 5), (39, 1), (40,)], ids=str)
@pytest.mark.parametrize("kernel_size", [1, 4])
def test_a_sequence_may_be_cut_anywhere_and_continued_from_the_state(cuts, kernel_size):
    tensors = {name: x.detach() for name, x in inputs(kernel_size=kernel_size, layers=2).items()}
    x, state, parts = tensors.pop("x"), None, []
    for part in x.split(cuts, 1):
        output, state = ema_tcn(part, **tensors, state=state, output_final_state=True)
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts, 1), reference(x, **tensors), atol=1e-10, rtol=1e-10)
    assert state.seen.tolist() == [40, 40]


def test_weights_get_gradients_through_what_a_state_holds(monkeypatch):
    tensors = inputs(tokens=24)
    x = tensors.pop("x").detach()
    grads = []
    for native in (True, False):
        if not native:
            monkeypatch.setattr("hf_ext.ops.native.load_native", lambda op: None)
        with torch.no_grad():
            _, state = ema_tcn(x[:, :14], **tensors, output_final_state=True)
        output, _ = ema_tcn(x[:, 14:], **tensors, state=state)
        grads.append(torch.autograd.grad(output.square().sum(), list(tensors.values())))
    for ours, theirs in zip(*grads):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("tokens", [1, 6])
def test_padding_behind_the_tokens_does_not_advance_a_state(tokens):
    tensors = {name: x.detach() for name, x in inputs(tokens=20).items()}
    x = tensors.pop("x")
    mask = torch.arange(tokens) < torch.tensor([[0], [tokens]])
    _, state = ema_tcn(x[:, :12], **tensors, output_final_state=True)
    start = state.rings.clone()
    _, state = ema_tcn(x[:, 12 : 12 + tokens], **tensors, attention_mask=mask, state=state, output_final_state=True)
    assert torch.equal(state.rings[0], start[0]) and state.seen.tolist() == [12, 12 + tokens]
    _, whole = ema_tcn(x[:, : 12 + tokens], **tensors, output_final_state=True)
    torch.testing.assert_close(state.rings[1], whole.rings[1])


def test_the_receptive_field_is_one_and_all_rings():
    tensors = inputs(batch=1, tokens=60, kernel_size=3, layers=2)
    field = 1 + sum(ring_sizes(3, 2, 3, 2))
    x = tensors["x"]
    output, _ = ema_tcn(**tensors, activation="none")
    (gradient,) = torch.autograd.grad(output[:, -1].sum(), x)
    read = gradient[0].abs().sum(1).nonzero()
    assert 60 - int(read[0]) == field


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_as_given_and_is_computed_in_float32(dtype):
    tensors = {name: x.detach().to(dtype) for name, x in inputs().items()}
    output, state = ema_tcn(**tensors, output_final_state=True)
    assert output.dtype == dtype and state.rings.dtype == torch.float32
    expected = reference(**{name: x.float() for name, x in tensors.items()})
    torch.testing.assert_close(output, expected.to(dtype))


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_inputs_give_finite_outputs(scale):
    tensors = {name: x.detach() for name, x in inputs(dtype=torch.float32).items()}
    tensors["x"] = tensors["x"] * scale
    assert ema_tcn(**tensors)[0].isfinite().all()


def test_the_library_op_passes_opcheck():
    tensors = inputs(batch=1, tokens=9, dtype=torch.float32)
    arguments = (tensors["x"], tensors["weight"], tensors["bias"], None, 2, "relu", True, True)
    torch.library.opcheck(torch.ops.hf_ext.ema_tcn.default, arguments)


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(
    tokens=st.integers(1, 70),
    kernel_size=st.integers(1, 6),
    depth=st.integers(1, 3),
    layers=st.integers(1, 2),
    channels=st.integers(1, 20),
    factor=st.integers(1, 9),
    causal=st.booleans(),
)
def test_any_stack_equals_the_definition(tokens, kernel_size, depth, layers, channels, factor, causal):
    tensors = inputs(1, tokens, channels, kernel_size, depth, layers)
    ours, theirs = (first(lambda f=f, **x: f(**x, dilation_factor=factor, causal=causal)) for f in (ema_tcn, reference))
    assert_same_with_gradients(ours, theirs, tensors, atol=1e-8, rtol=1e-8)


WRONG = {
    "activation must be one of": {"activation": "tanh"},
    "dilation_factor must be": {"dilation_factor": 0},
    "x must be": {"x": torch.zeros(2, 6)},
    "nothing of size 0": {"x": torch.zeros(2, 0, 6)},
    "same number of channels": {"omega": torch.zeros(5)},
    "attention_mask must be": {"attention_mask": torch.ones(2, 39)},
    "have a state": {"causal": False, "state": TCNState(torch.zeros(2, 21, 6), torch.zeros(2, dtype=torch.long))},
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_input_is_refused(message):
    with pytest.raises(ValueError, match=message):
        ema_tcn(**inputs() | WRONG[message])
