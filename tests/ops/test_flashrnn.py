"""FlashRNN's four cells: the C++ form and the torch form against the token loop; the solver of integer constraints."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops import native
from hf_ext.ops.flashrnn import CELLS, flashrnn, reference
from hf_ext.ops.flashrnn.constrint import solve
from tests.ops.triton_form import assert_kernel_compiles, assert_kernels_equal_eager, needs_triton
from tests.threads import with_threads

NAMES = ("Wx", "R", "b", "states")


def inputs(function, batch=2, tokens=9, heads=2, channels=5, dtype=torch.float64, strength=1.0, seed=0):
    cell, generator = CELLS[function], torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator)

    states = draw(len(cell.states), batch, 1, heads, channels)
    if function == "slstm":
        states[2] = states[2].abs() + 1
    tensors = (
        draw(batch, tokens, cell.num_inputs, heads, channels) * strength,
        draw(cell.num_recurrent, heads, channels, channels) * channels**-0.5,
        draw(cell.pre_activations, heads, channels),
        states,
    )
    return {name: x.requires_grad_() for name, x in zip(NAMES, tensors)}


def gradients(form, tensors, seed=9, **options):
    outputs = form(**tensors, **options)
    generator = torch.Generator().manual_seed(seed)
    loss = sum((x * torch.randn(x.shape, dtype=x.dtype, generator=generator)).sum() for x in outputs)
    return outputs, torch.autograd.grad(loss, list(tensors.values()), allow_unused=True, materialize_grads=True)


def assert_equal_to_loop(tensors, atol=1e-11, rtol=1e-11, **options):
    ours, our_gradients = gradients(flashrnn, tensors, **options)
    theirs, their_gradients = gradients(reference, tensors, **options)
    names = ("states", "last_states", *tensors)
    for name, a, b in zip(names, (*ours, *our_gradients), (*theirs, *their_gradients)):
        torch.testing.assert_close(a, b, atol=atol, rtol=rtol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(params=["C++", "torch"])
def form(request, monkeypatch):
    """Either form of the op, for CPU tensors."""
    if request.param == "torch":
        monkeypatch.setattr(native, "load_native", lambda name: None)
    elif native.load_native("flashrnn") is None:
        pytest.skip("no compiler here: the torch form is all there is")
    return request.param


def with_form(function):
    return pytest.mark.usefixtures("form")(pytest.mark.parametrize("function", CELLS)(function))


@with_form
@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65])
def test_states_and_all_gradients_equal_the_token_loop(function, tokens):
    assert_equal_to_loop(inputs(function, tokens=tokens), function=function)


@with_form
@pytest.mark.parametrize("channels", [1, 8, 16, 33, 64])
def test_any_number_of_channels_fits(function, channels):
    assert_equal_to_loop(inputs(function, tokens=4, channels=channels), function=function)


@with_form
@pytest.mark.parametrize("batch", [1, 7, 300])
def test_any_batch_fits(function, batch):
    assert_equal_to_loop(inputs(function, batch=batch, tokens=3), function=function)


@with_form
def test_gradients_are_those_of_finite_differences(function):
    tensors = inputs(function, tokens=4, channels=3)
    assert torch.autograd.gradcheck(lambda *x: flashrnn(*x, function=function), tuple(tensors.values()))


@with_form
def test_the_first_step_may_start_from_nothing(function):
    tensors = inputs(function)
    del tensors["states"]
    assert_equal_to_loop(tensors, function=function)


@with_form
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_recurrent_cut": True},
        {"gradient_recurrent_clipval": 0.1},
        {"forward_clipval": 0.3},
        {"attention_mask": torch.tensor([[0, 0, 1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0, 0]])},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_equal_the_token_loop(function, options):
    assert_equal_to_loop(inputs(function), function=function, **options)


@with_form
@pytest.mark.parametrize("strength", [0.0, 30.0, 200.0])
def test_extreme_inputs_stay_finite_and_close_in_float32(function, strength):
    tensors = inputs(function, tokens=20, dtype=torch.float32, strength=strength)
    del tensors["states"]
    outputs, grads = gradients(flashrnn, tensors, function=function)
    assert all(x.isfinite().all() for x in (*outputs, *grads))
    expected, _ = reference(**{name: x.double() for name, x in tensors.items()}, function=function)
    torch.testing.assert_close(outputs[0].double(), expected, atol=1e-4, rtol=1e-4)


@with_form
def test_a_thousand_steps_in_float32_stay_close_to_the_loop(function):
    tensors = inputs(function, batch=1, tokens=1000, heads=1, channels=16, dtype=torch.float32)
    states, _ = flashrnn(**tensors, function=function)
    expected, _ = reference(**{name: x.double() for name, x in tensors.items()}, function=function)
    assert (states[0] - expected[0]).abs().max() < 1e-5


@with_form
def test_a_sequence_may_be_cut_anywhere_and_continued(function):
    tensors = inputs(function, tokens=12)
    whole, last = flashrnn(**tensors, function=function)
    Wx, states, parts = tensors.pop("Wx"), tensors.pop("states"), []
    for part in (slice(0, 1), slice(1, 8), slice(8, 12)):
        outputs, states = flashrnn(Wx[:, part], **tensors, states=states, function=function)
        parts.append(outputs)
    torch.testing.assert_close(torch.cat(parts, 2), whole)
    torch.testing.assert_close(states, last)


@with_form
def test_packed_sequences_equal_separate_ones(function):
    borders = [0, 3, 3, 4, 11]
    tensors = inputs(function, batch=1, tokens=11)
    states = inputs(function, batch=4)["states"].detach().requires_grad_()

    def apart(Wx, R, b, states):
        parts = [
            flashrnn(Wx[:, first:last], R, b, states[:, i : i + 1], function) if last > first else None
            for i, (first, last) in enumerate(itertools.pairwise(borders))
        ]
        lasts = [part[1] if part else states[:, i : i + 1] for i, part in enumerate(parts)]
        return torch.cat([part[0] for part in parts if part], 2), torch.cat(lasts, 1)

    tensors["states"] = states
    packed, packed_gradients = gradients(flashrnn, tensors, function=function, cu_seqlens=torch.tensor(borders))
    expected, expected_gradients = gradients(apart, tensors)
    for a, b in zip((*packed, *packed_gradients), (*expected, *expected_gradients)):
        torch.testing.assert_close(a, b)


@with_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_as_given_with_float32_last_states(function, dtype):
    tensors = {name: x.detach().to(dtype) for name, x in inputs(function).items()}
    states, last = flashrnn(**tensors, function=function)
    assert states.dtype == dtype and last.dtype == torch.float32
    expected, _ = reference(**{name: x.float() for name, x in tensors.items()}, function=function)
    torch.testing.assert_close(states.float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.usefixtures("form")
def test_threads_share_heads_and_batch_without_a_trace():
    tensors = inputs("lstm", batch=25, heads=1)
    with_threads(3, lambda: assert_equal_to_loop(tensors, function="lstm"))


@pytest.mark.parametrize("function", ["lstm", "gru"])
def test_one_head_equals_the_layers_of_torch(function):
    layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[function](7, 10, batch_first=True)
    x = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    Wx, recurrent = x @ layer.weight_ih_l0.T, layer.weight_hh_l0.view(-1, 1, 10, 10)
    inside, outside = layer.bias_ih_l0.view(-1, 1, 10), layer.bias_hh_l0.view(-1, 1, 10)
    if function == "lstm":
        R, b = recurrent, inside + outside
    else:
        R, b = recurrent.roll(1, 0), torch.cat((outside[2:], (inside + outside)[:2], inside[2:]))
    states, _ = flashrnn(Wx.unflatten(-1, (-1, 1, 10)), R, b, function=function)
    torch.testing.assert_close(states[0].squeeze(2), layer(x)[0], atol=1e-6, rtol=1e-6)


def test_autocast_leaves_the_states_in_float32():
    tensors = inputs("slstm", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        states, last = flashrnn(**tensors, function="slstm")
    torch.testing.assert_close(states, reference(**tensors, function="slstm")[0], atol=1e-5, rtol=1e-5)
    assert last.dtype == torch.float32


@with_form
def test_the_library_op_passes_opcheck(function):
    x = inputs(function, tokens=3, dtype=torch.float32)
    arguments = (*x.values(), None, function, False, None, None, True)
    torch.library.opcheck(torch.ops.hf_ext.flashrnn.default, arguments)


def test_compiles_without_graph_breaks_with_gradients():
    tensors = inputs("lstm")
    compiled = torch.compile(flashrnn, backend="aot_eager", fullgraph=True)
    ours, our_gradients = gradients(compiled, tensors, function="lstm")
    theirs, their_gradients = gradients(flashrnn, tensors, function="lstm")
    for a, b in zip((*ours, *our_gradients), (*theirs, *their_gradients)):
        torch.testing.assert_close(a, b)


def test_an_exported_program_needs_nothing_of_this_package():
    class Module(torch.nn.Module):
        def forward(self, Wx, R, b):
            return flashrnn(Wx, R, b, function="gru")[0]

    tensors = [x.detach() for name, x in inputs("gru").items() if name != "states"]
    program = torch.export.export(Module(), tuple(tensors))
    assert not [node for node in program.graph.nodes if "hf_ext" in str(node.target)]
    torch.testing.assert_close(program.module()(*tensors), flashrnn(*tensors, function="gru")[0])


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    function=st.sampled_from(list(CELLS)),
    batch=st.integers(1, 8),
    tokens=st.integers(1, 12),
    heads=st.integers(1, 3),
    channels=st.integers(1, 20),
    strength=st.sampled_from([0.0, 1.0, 5.0]),
    seed=st.integers(0, 3),
)
def test_any_shape_equals_the_loop(function, **shape):
    assert_equal_to_loop(inputs(function, **shape), atol=1e-10, rtol=1e-10, function=function)


def results(form, function, masked=False, started=True, cut=False, gradient_clip=None, forward_clip=None, **shape):
    """What `forward` and `backward` of a form return, for the kernels' test"""
    Wx, R, b, states = (x.detach() for x in inputs(function, dtype=torch.float32, **shape).values())
    states, generator = states if started else None, torch.Generator().manual_seed(1)
    mask = torch.rand(Wx.shape[:2], generator=generator) < 0.6 if masked else None
    options = (function, cut, gradient_clip, forward_clip)
    outputs, last, pre = form.forward(Wx, R, b, states, mask, *options, True)
    grads = (torch.randn(x.shape, generator=generator) for x in (outputs, last))
    return outputs, last, pre, *form.backward(*grads, R, states, mask, outputs, pre, *options)


TRITON_CASES = {
    "plain": {"tokens": 3},
    "masked": {"masked": True, "batch": 3, "tokens": 4, "heads": 1},
    "one token from nothing": {"started": False, "tokens": 1, "heads": 1, "channels": 16},
    "two blocks of the batch": {"batch": 17, "tokens": 2, "heads": 1, "channels": 33},
    "weights from memory": {"tokens": 2, "heads": 1, "channels": 100},
    "wider than the kernels": {"tokens": 2, "heads": 1, "channels": 130},
    "gradient cut": {"cut": True, "tokens": 3, "heads": 1},
    "gradient clipped": {"gradient_clip": 0.1, "tokens": 3, "heads": 1},
    "masked and clipped": {"masked": True, "gradient_clip": 0.1, "forward_clip": 0.3, "tokens": 4, "heads": 1},
    "extreme": {"started": False, "strength": 200.0, "tokens": 4, "heads": 1},
}


@needs_triton
def test_triton_kernels_equal_the_torch_form_in_the_interpreter():
    cases = {f"{f}, {name}": {"function": f} | case for f in CELLS for name, case in TRITON_CASES.items()}
    assert_kernels_equal_eager("flashrnn", cases, bound=2e-5)


@needs_triton
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(("function", "channels"), [("slstm", 64), ("gru", 64), ("lstm", 128)])
def test_triton_kernels_compile_for_a_gpu_that_is_not_there(function, channels, direction):
    from hf_ext.ops.flashrnn import triton

    _, _, constants = triton.launch(function, 16, 1024, 2, channels)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    constants["STEP"] = triton.STEPS[function][direction == "backward"]
    constants |= {"FIRST": CELLS[function].inputs.start, "SAVE": True, "CUT": False}
    types = {"mask": "*i1", "clip": "fp32", "gradient_clip": "fp32"}
    types |= {name: "i32" for name in ("B", "T", "of_token", "of_states", "of_start", "of_matrix")}
    assert_kernel_compiles("flashrnn", f"{direction}_steps", types, constants, options)


WRONG = {
    "function must be one of lstm": {"function": "rnn"},
    "Wx must be": {"Wx": torch.zeros(2, 9, 4, 5)},
    "Wx of a lstm": {"Wx": torch.zeros(2, 9, 3, 2, 5)},
    "R of a lstm": {"R": torch.zeros(4, 2, 5, 4)},
    "b of a lstm": {"b": torch.zeros(4, 10)},
    "states of a lstm": {"states": torch.zeros(1, 2, 1, 2, 5)},
    "attention_mask of a lstm": {"attention_mask": torch.ones(2, 8)},
    "forward_clipval must be above 0": {"forward_clipval": 0.0},
    "gradient_recurrent_clipval must be above 0": {"gradient_recurrent_clipval": -1.0},
    "cu_seqlens": {"cu_seqlens": torch.tensor([0, 4, 9])},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_is_named(message):
    with pytest.raises(ValueError, match=message):
        flashrnn(**inputs("lstm") | WRONG[message])


def test_a_mask_beside_borders_is_refused():
    with pytest.raises(ValueError, match="not both"):
        flashrnn(**inputs("lstm", batch=1), cu_seqlens=torch.tensor([0, 9]), attention_mask=torch.ones(1, 9))


def every_solution(flags, largest, holds):
    ranges = [range(largest, 0, -1) if flag else range(1, largest + 1) for flag in flags]
    return [values for values in itertools.product(*ranges) if holds(*values)]


@pytest.mark.parametrize("flags", [(False, False, False), (True, False, True), (False, True, True)])
def test_solutions_come_in_the_order_of_enumeration(flags):
    text = "A + B * 2 <= 20; C == [1, 4, 9, 16]; A ^ 2 % C * B == 0 | B == 7; A <= 30; (C) <= B * 3;"
    expected = every_solution(
        flags,
        30,
        lambda a, b, c: a + 2 * b <= 20 and c in (1, 4, 9, 16) and (a**2 % (c * b) == 0 or b == 7) and c <= 3 * b,
    )
    assert solve(text, ["A", "B", "C"], flags, 5) == expected[:5]


def test_variables_that_only_constraints_name_are_found_too():
    assert solve("A * B == 12; B <= 3;", ["A"], [True], 4) == [(12,), (6,), (4,)]


def test_constraints_without_a_solution_have_none():
    assert solve("A + B == 3; A == B;", ["A"], [False]) == []


@pytest.mark.parametrize(
    ("text", "variables", "message"),
    [
        ("A - B <= 3;", ["A"], "neither a name nor a number"),
        ("A < 3;", ["A"], "none of a == b"),
        ("A <= 3;", ["B"], "no constraint names B"),
        ("A <= 3;", ["A", "A"], "one entry for each"),
    ],
)
def test_constraints_outside_the_language_are_named(text, variables, message):
    with pytest.raises(ValueError, match=message):
        solve(text, variables, [False])
