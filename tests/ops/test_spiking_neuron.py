"""Spiking neurons: the C++ form and the torch form against the loop with autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops import native
from hf_ext.ops.spiking_neuron import lif, reference
from tests.threads import with_threads


def currents(batch=2, time=65, channels=7, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(batch, time, channels, dtype=dtype, generator=generator)
    return {"x": x, "membrane": torch.rand(batch, 1, channels, dtype=dtype, generator=generator)}


def results(form, tensors, **options):
    """Spikes, last membrane and the gradients of a random projection of both."""
    tensors = {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}
    outputs = form(**tensors, **options)
    generator = torch.Generator().manual_seed(9)
    loss = sum((x * torch.randn(x.shape, dtype=x.dtype, generator=generator)).sum() for x in outputs)
    return *outputs, *torch.autograd.grad(loss, list(tensors.values()))


def assert_equal_to_loop(tensors, atol=1e-10, **options):
    ours, theirs = (results(form, tensors, **options) for form in (lif, reference))
    for name, a, b in zip(("spikes", "membrane", *(f"gradient of {x}" for x in tensors)), ours, theirs):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(params=["C++", "torch"], autouse=True)
def form(request, monkeypatch):
    """Either form of the op, for CPU tensors."""
    if request.param == "torch":
        monkeypatch.setattr(native, "load_native", lambda name: None)
    elif native.load_native("spiking_neuron") is None:
        pytest.skip("no compiler here: the torch form is all there is")
    return request.param


OPTIONS = {
    "as in LMUFormer": {},
    "of another time constant and threshold": {"tau": 3.5, "threshold": 0.4, "alpha": 2.0},
    "that do not decay at all": {"tau": 1.0},
    "with a reset below rest": {"reset": -0.3},
    "whose reset takes the threshold off": {"reset": None},
    "whose input does not decay": {"decay_input": False},
    "whose reset has a gradient": {"detach_reset": False},
    "whose soft reset has a gradient": {"detach_reset": False, "reset": None, "decay_input": False},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_neurons_equal_the_loop(kind):
    assert_equal_to_loop(currents(), **OPTIONS[kind])


@pytest.mark.parametrize("time", [1, 63, 64, 1000])
def test_neurons_of_any_length_equal_the_loop(time):
    assert_equal_to_loop(currents(time=time, channels=3))


def test_float32_equals_the_loop_spike_by_spike():
    assert_equal_to_loop(currents(channels=300, dtype=torch.float32), atol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e6, 1e30])
def test_extreme_currents_stay_finite(size):
    tensors = {name: x * size for name, x in currents(dtype=torch.float32).items()}
    for result in results(lif, tensors):
        assert result.isfinite().all()


def test_a_membrane_at_the_threshold_fires():
    spikes, membrane = lif(torch.full((1, 1, 1), 2.0))
    assert spikes.item() == 1 and membrane.item() == 0


def test_membranes_of_all_steps_are_those_after_the_reset():
    tensors = currents()
    for ours, theirs in zip(*(form(**tensors, output_membranes=True) for form in (lif, reference))):
        torch.testing.assert_close(ours, theirs)


def test_a_sequence_may_be_cut_anywhere_and_continued():
    x, membrane = currents(time=90).values()
    whole, last = lif(x, membrane)
    parts = []
    for part in (slice(0, 1), slice(1, 71), slice(71, 90)):
        spikes, membrane = lif(x[:, part], membrane)
        parts.append(spikes)
    assert torch.equal(torch.cat(parts, 1), whole) and torch.equal(membrane, last)


def test_half_precision_comes_back_as_given_with_a_float32_membrane():
    x = currents()["x"].bfloat16()
    spikes, membrane = lif(x)
    assert spikes.dtype == torch.bfloat16 and membrane.dtype == torch.float32
    assert torch.equal(spikes.float(), reference(x.float())[0])


def test_transposed_inputs_and_gradients_are_understood():
    x = currents()["x"].transpose(0, 1)
    grads = [torch.autograd.grad(f(y)[0].sum(), y)[0] for f in (lif, reference) for y in [x.requires_grad_()]]
    torch.testing.assert_close(*grads)


def test_threads_share_channels_and_batch_without_a_trace():
    with_threads(3, lambda: assert_equal_to_loop(currents(batch=3, channels=300)))


def test_the_library_op_passes_opcheck():
    x, membrane = currents(time=3, dtype=torch.float32).values()
    arguments = (x.requires_grad_(), membrane, 2.0, 1.0, 0.0, True, True, 4.0, True)
    torch.library.opcheck(torch.ops.hf_ext.lif.default, arguments)


def test_an_exported_program_needs_nothing_of_this_package():
    class Module(torch.nn.Module):
        def forward(self, x):
            return lif(x)[0]

    x = currents()["x"]
    program = torch.export.export(Module(), (x,))
    assert not [node for node in program.graph.nodes if "hf_ext" in str(node.target)]
    torch.testing.assert_close(program.module()(x), lif(x)[0])


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(
    batch=st.integers(1, 3),
    time=st.integers(1, 40),
    channels=st.integers(1, 140),
    tau=st.sampled_from([1.0, 2.0, 7.0]),
    reset=st.sampled_from([None, 0.0, 0.2]),
    decay_input=st.booleans(),
    detach_reset=st.booleans(),
)
def test_any_neuron_equals_the_loop(batch, time, channels, **options):
    assert_equal_to_loop(currents(batch, time, channels), **options)


WRONG = {
    "x must be": {"x": torch.zeros(2, 0, 3)},
    "initial_state must be \\(batch, 1, channels\\)": {"x": torch.zeros(2, 4, 3), "membrane": torch.zeros(2, 3)},
    "tau must be 1 or more": {"x": torch.zeros(2, 4, 3), "tau": 0.5},
    "alpha above 0": {"x": torch.zeros(2, 4, 3), "alpha": 0.0},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        lif(**WRONG[message])
