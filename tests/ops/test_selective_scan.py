"""The selective scan: the C++ form, the torch form and decoding against the token loop."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops.native import load_native, why_not
from hf_ext.ops.selective_scan import reference, selective_scan
from tests.ops.recurrence import apart, assert_continues_from_its_state, assert_same_with_gradients, gradients
from tests.ops.triton_form import assert_kernel_compiles, assert_kernels_equal_eager, needs_triton

TENSORS = ("x", "dt", "A", "B", "C", "initial_state")
with_state = partial(selective_scan, output_final_state=True)


def inputs(batch=2, tokens=40, channels=6, state_size=5, dtype=torch.float64, strength=1.0, seed=0, sequences=None):
    """Time steps are softplus(normal) times `strength`."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, dt = draw(batch, tokens, channels), F.softplus(draw(batch, tokens, channels)) * strength
    A, B, C = -draw(channels, state_size).exp(), draw(batch, tokens, state_size), draw(batch, tokens, state_size)
    state = draw(sequences or batch, channels, state_size)
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in zip(TENSORS, (x, dt, A, B, C, state))}


@pytest.fixture(params=[False, True], ids=["eigenvalues in [0, 1]", "eigenvalues in [-1, 1]"])
def signed(request):
    return request.param


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65])
def test_torch_form_and_its_gradients_equal_the_token_loop(tokens, signed):
    ours, theirs = (partial(function, allow_neg_eigval=signed) for function in (with_state, reference))
    assert_same_with_gradients(ours, theirs, inputs(tokens=tokens), atol=1e-10, rtol=1e-10)


@pytest.mark.skipif(why_not() != "", reason=f"no C++ form: {why_not()}")
@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 1000])
@pytest.mark.parametrize(("channels", "state_size"), [(5, 16), (17, 3)])
def test_cpp_form_and_its_gradients_equal_the_token_loop(tokens, channels, state_size, signed):
    assert load_native("selective_scan") is not None
    exact = inputs(tokens=tokens, channels=channels, state_size=state_size, batch=1)
    single = {name: x.detach().float().requires_grad_() for name, x in exact.items()}
    (ours, our_gradients), (theirs, their_gradients) = (
        gradients(partial(function, allow_neg_eigval=signed), tensors)
        for function, tensors in ((with_state, single), (reference, exact))
    )
    for a, b in zip((*ours, *our_gradients), (*theirs, *their_gradients)):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max().clamp_min(1)


def test_without_a_compiler_the_torch_form_serves(monkeypatch, signed):
    tensors = inputs(dtype=torch.float32)
    expected = gradients(partial(with_state, allow_neg_eigval=signed), tensors)
    monkeypatch.setattr("hf_ext.ops.selective_scan.load_native", lambda op: None)
    ours = gradients(partial(with_state, allow_neg_eigval=signed), tensors)
    for a, b in zip((*ours[0], *ours[1]), (*expected[0], *expected[1])):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("strength", [0.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_time_steps_give_finite_outputs_and_gradients(strength, dtype, signed):
    tensors = inputs(dtype=dtype, strength=strength)
    outputs, grads = gradients(partial(with_state, allow_neg_eigval=signed), tensors)
    assert all(x.isfinite().all() for x in (*outputs, *grads))
    torch.testing.assert_close(outputs[0], reference(**tensors, allow_neg_eigval=signed)[0], atol=2e-2, rtol=1e-4)


def test_a_time_step_of_zero_leaves_the_state_as_it_is(signed):
    tensors = inputs(strength=0.0)
    _, state = with_state(**tensors, allow_neg_eigval=signed)
    torch.testing.assert_close(state, tensors["initial_state"])


def test_a_long_time_step_turns_the_state_over_only_in_the_wider_range():
    tensors = inputs(tokens=1, strength=1e3) | {"x": torch.zeros(2, 1, 6, dtype=torch.float64)}
    for signed, factor in ((False, 0), (True, -1)):
        _, state = with_state(**tensors, allow_neg_eigval=signed)
        torch.testing.assert_close(state, factor * tensors["initial_state"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packed_sequences_equal_separate_ones(dtype, signed):
    borders = [0, 1, 1, 18, 88, 100]
    packed = partial(with_state, cu_seqlens=torch.tensor(borders), allow_neg_eigval=signed)
    theirs = apart(partial(reference, allow_neg_eigval=signed), borders, fixed=("A",))
    tolerance = {"atol": 1e-10, "rtol": 1e-10} if dtype == torch.float64 else {"atol": 1e-3, "rtol": 1e-4}
    assert_same_with_gradients(packed, theirs, inputs(batch=1, tokens=100, sequences=5, dtype=dtype), **tolerance)


def test_a_sequence_may_be_cut_anywhere_and_continued_from_the_state(signed):
    op = partial(selective_scan, allow_neg_eigval=signed)
    assert_continues_from_its_state(op, inputs(tokens=90), fixed=("A",))


def test_no_final_state_unless_asked():
    assert selective_scan(**inputs())[1] is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_as_given_with_a_float32_state(dtype):
    tensors = {name: x.detach().to(dtype).requires_grad_() for name, x in inputs().items()}
    (y, state), grads = gradients(with_state, tensors)
    assert y.dtype == dtype and state.dtype == torch.float32 and {x.dtype for x in grads} == {dtype}


def test_the_library_op_passes_opcheck():
    x = inputs(batch=1, tokens=9, dtype=torch.float32)
    arguments = (*(x[name] for name in TENSORS), None, True)
    torch.library.opcheck(torch.ops.hf_ext.selective_scan.default, arguments)


def test_compiles_without_graph_breaks_with_gradients():
    compiled = torch.compile(with_state, backend="aot_eager", fullgraph=True)
    assert_same_with_gradients(compiled, with_state, inputs(dtype=torch.float32), atol=1e-5, rtol=1e-4)


def test_an_exported_program_needs_nothing_of_this_package():
    class Module(torch.nn.Module):
        def forward(self, x, dt, A, B, C):
            return selective_scan(x, dt, A, B, C, allow_neg_eigval=True)[0]

    tensors = [x.detach() for name, x in inputs(tokens=5).items() if name != "initial_state"]
    program = torch.export.export(Module(), tuple(tensors))
    assert not [node for node in program.graph.nodes if "hf_ext" in str(node.target)]
    torch.testing.assert_close(program.module()(*tensors), Module()(*tensors))


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 20),
    channels=st.integers(1, 9),
    state_size=st.integers(1, 9),
    strength=st.sampled_from([0.0, 1.0, 10.0]),
    signed=st.booleans(),
)
def test_any_shape_equals_the_loop(signed, **shape):
    ours, theirs = (partial(function, allow_neg_eigval=signed) for function in (with_state, reference))
    assert_same_with_gradients(ours, theirs, inputs(**shape), atol=1e-9, rtol=1e-9)


WRONG = {
    r"A \(channels, state_size\)": {"x": (2, 5)},
    "x and dt share one shape": {"dt": (2, 40, 7)},
    "may be 0": {"B": (2, 40, 0), "C": (2, 40, 0), "A": (6, 0)},
    "initial_state": {"initial_state": (2, 5, 6)},
    "cu_seqlens": {"cu_seqlens": (3,)},
}


@pytest.mark.parametrize("message", WRONG)
def test_shapes_that_do_not_fit_are_named(message):
    tensors = inputs() | {
        name: torch.zeros(shape, dtype=torch.long if name == "cu_seqlens" else torch.float64)
        for name, shape in WRONG[message].items()
    }
    with pytest.raises(ValueError, match=message):
        selective_scan(**tensors)


def arguments(tensors, cu_seqlens):
    """Of the forms, for the kernels' test"""
    return *tensors.values(), cu_seqlens, True


TRITON_CASES = {
    "batch": {"tokens": 5, "channels": 18, "state_size": 3},
    "packed": {"tokens": 9, "batch": 1, "state_size": 4, "borders": [0, 1, 5, 9]},
}


@needs_triton
def test_triton_kernels_equal_the_torch_form_in_the_interpreter():
    assert_kernels_equal_eager("selective_scan", TRITON_CASES, bound=2e-5)


@needs_triton
@pytest.mark.parametrize("kernel", ["scan_forward", "scan_backward"])
def test_triton_kernels_compile_for_a_gpu_that_is_not_there(kernel):
    assert_kernel_compiles("selective_scan", kernel, types={"x": "*bf16", "B": "*bf16", "C": "*bf16"})
