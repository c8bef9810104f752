"""Prefix softmax attention: the C++ form and the chunk form against the token loop, and that against softmax itself."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops import native
from hf_ext.ops.prefix_scan_attention import PrefixState, prefix_softmax_attention, reference
from tests.ops.triton_form import assert_kernel_compiles, assert_kernels_equal_eager, needs_triton
from tests.threads import with_threads


def inputs(
    batch=2, tokens=70, heads=2, key_channels=5, value_channels=3, dtype=torch.float64, strength=1.0, seed=0, state=True
):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator)

    tensors = {
        "q": draw(heads, key_channels) * strength,
        "k": draw(batch, tokens, heads, key_channels),
        "v": draw(batch, tokens, heads, value_channels),
    }
    if state:
        tensors |= {"a": draw(batch, heads, value_channels), "c": draw(batch, heads).abs() + 1, "m": draw(batch, heads)}
    return {name: x.requires_grad_(name != "m") for name, x in tensors.items()}


def call(form, q, k, v, a=None, c=None, m=None, **options):
    o, state = form(q, k, v, initial_state=None if a is None else PrefixState(a, c, m), **options)
    return o, *state


def gradients(form, tensors, seed=9, **options):
    outputs = call(form, **tensors, **options)
    generator = torch.Generator().manual_seed(seed)
    loss = sum((x * torch.randn(x.shape, dtype=x.dtype, generator=generator)).sum() for x in outputs[:3])
    return outputs, torch.autograd.grad(loss, [x for x in tensors.values() if x.requires_grad])


def assert_equal_to_loop(tensors, atol=1e-10, rtol=1e-10, **options):
    ours, our_gradients = gradients(prefix_softmax_attention, tensors, **options)
    theirs, their_gradients = gradients(reference, tensors, **options)
    names = ("o", "state.a", "state.c", "state.m", *tensors)
    for name, a, b in zip(names, (*ours, *our_gradients), (*theirs, *their_gradients)):
        torch.testing.assert_close(a, b, atol=atol, rtol=rtol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(params=["C++", "torch"], autouse=True)
def form(request, monkeypatch):
    """Either form of the op, for CPU tensors."""
    if request.param == "torch":
        monkeypatch.setattr(native, "load_native", lambda name: None)
    elif native.load_native("prefix_scan_attention") is None:
        pytest.skip("no compiler here: the torch form is all there is")
    return request.param


def test_every_prefix_has_the_softmax_of_its_own_scores():
    x = inputs(state=False)
    o, _ = prefix_softmax_attention(**x)
    scores = torch.einsum("hd,bthd->bht", x["q"], x["k"]) * 5**-0.5
    for t in (0, 1, 40, 69):
        expected = torch.einsum("bht,bthv->bhv", scores[..., : t + 1].softmax(-1), x["v"][:, : t + 1])
        torch.testing.assert_close(o[:, t], expected)


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("state", [False, True])
def test_outputs_states_and_gradients_equal_the_token_loop(tokens, state):
    assert_equal_to_loop(inputs(tokens=tokens, state=state))


@pytest.mark.parametrize("strength", [0.0, 30.0, 300.0])
def test_no_spread_of_scores_costs_precision(strength):
    assert_equal_to_loop(inputs(strength=strength), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("strength", [100.0, 1e6])
def test_extreme_scores_stay_finite_in_float32(strength):
    tensors = inputs(tokens=1000, batch=1, dtype=torch.float32, strength=strength)
    outputs, grads = gradients(prefix_softmax_attention, tensors)
    assert all(x.isfinite().all() for x in (*outputs, *grads))
    expected = call(reference, **{name: x.double() for name, x in tensors.items()})
    assert (outputs[0] - expected[0]).abs().median() < 1e-4


def test_rising_scores_do_not_underflow():
    """The shortcut cumsum(exp(s - max) v) / cumsum(exp(s - max)) gives 0 / 0 here."""
    x = inputs(batch=1, tokens=200, heads=1, key_channels=1, dtype=torch.float32, state=False)
    with torch.no_grad():
        x["q"].fill_(1.0)
        x["k"].copy_(torch.linspace(-500, 500, 200).view(1, 200, 1, 1))
    o, _ = prefix_softmax_attention(**x)
    torch.testing.assert_close(
        o, reference(**{name: t.double() for name, t in x.items()})[0].float(), atol=1e-5, rtol=1e-5
    )


def test_a_zero_query_gives_running_means():
    x = inputs(strength=0.0, state=False)
    o, _ = prefix_softmax_attention(**x)
    torch.testing.assert_close(o, x["v"].cumsum(1) / torch.arange(1, 71).view(1, -1, 1, 1))


MASK = torch.rand(2, 70, generator=torch.Generator().manual_seed(1)) > 0.4
MASK[0, :20], MASK[1, -20:] = False, False


@pytest.mark.parametrize("state", [False, True])
def test_masked_tokens_equal_the_token_loop(state):
    assert_equal_to_loop(inputs(state=state), attention_mask=MASK)


def test_masked_tokens_might_as_well_not_be_there():
    x = inputs(state=False)
    o, state = prefix_softmax_attention(**x, attention_mask=MASK)
    for i, real in enumerate(MASK):
        alone, alone_state = prefix_softmax_attention(x["q"], x["k"][i : i + 1, real], x["v"][i : i + 1, real])
        torch.testing.assert_close(o[i, real], alone[0])
        torch.testing.assert_close([s[i] for s in state], [s[0] for s in alone_state])
    assert (o[0, :20] == 0).all()


def test_a_batch_without_any_real_token_gives_zeros_and_zero_gradients():
    x = inputs(state=False)
    outputs, grads = gradients(prefix_softmax_attention, x, attention_mask=torch.zeros(2, 70))
    assert (outputs[0] == 0).all() and all((g == 0).all() for g in grads)
    assert (outputs[3] == -math.inf).all()


def test_gradients_are_those_of_finite_differences():
    x = inputs(tokens=4)
    m = x.pop("m")
    assert torch.autograd.gradcheck(
        lambda q, k, v, a, c: prefix_softmax_attention(q, k, v, initial_state=PrefixState(a, c, m))[0],
        tuple(x.values()),
    )


def test_a_sequence_may_be_cut_anywhere_and_continued():
    x = inputs(tokens=90, state=False)
    whole, last = prefix_softmax_attention(**x)
    state, parts = None, []
    for part in (slice(0, 1), slice(1, 71), slice(71, 90)):
        o, state = prefix_softmax_attention(x["q"], x["k"][:, part], x["v"][:, part], initial_state=state)
        parts.append(o)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, last)


def test_gradients_flow_through_the_state_from_part_to_part():
    x = inputs(tokens=90, state=False)

    def in_parts(q, k, v):
        first, state = prefix_softmax_attention(q, k[:, :40], v[:, :40])
        second, state = prefix_softmax_attention(q, k[:, 40:], v[:, 40:], initial_state=state)
        return torch.cat((first, second), 1)

    weights = torch.randn(2, 90, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = torch.autograd.grad((prefix_softmax_attention(**x)[0] * weights).sum(), list(x.values()))
    parts = torch.autograd.grad((in_parts(**x) * weights).sum(), list(x.values()))
    torch.testing.assert_close(parts, whole)


def test_threads_share_heads_and_batch_without_a_trace():
    with_threads(3, lambda: assert_equal_to_loop(inputs(batch=4, heads=5)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_as_given_with_a_float32_state(dtype):
    x = {name: t.detach().to(dtype) for name, t in inputs(state=False).items()}
    o, state = prefix_softmax_attention(**x)
    assert o.dtype == dtype and {s.dtype for s in state} == {torch.float32}
    torch.testing.assert_close(o.float(), reference(**{n: t.float() for n, t in x.items()})[0], atol=0.02, rtol=0.02)


def test_autocast_leaves_the_state_in_float32():
    x = inputs(dtype=torch.float32, state=False)
    with torch.autocast("cpu", torch.bfloat16):
        o, _ = prefix_softmax_attention(**x)
    torch.testing.assert_close(o, reference(**x)[0], atol=1e-5, rtol=1e-5)


def test_the_library_op_passes_opcheck():
    x = inputs(tokens=3, dtype=torch.float32)
    arguments = (x["q"], x["k"], x["v"], None, x["a"], x["c"], x["m"], 0.5, True)
    torch.library.opcheck(torch.ops.hf_ext.prefix_softmax_attention.default, arguments)


def test_compiles_without_graph_breaks_with_gradients():
    x = inputs()
    compiled = torch.compile(prefix_softmax_attention, backend="aot_eager", fullgraph=True)
    ours, our_gradients = gradients(compiled, x)
    theirs, their_gradients = gradients(prefix_softmax_attention, x)
    torch.testing.assert_close((*ours, *our_gradients), (*theirs, *their_gradients))


def test_an_exported_program_needs_nothing_of_this_package():
    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return prefix_softmax_attention(q, k, v)[0]

    x = [t.detach() for t in inputs(state=False).values()]
    program = torch.export.export(Module(), tuple(x))
    assert not [node for node in program.graph.nodes if "hf_ext" in str(node.target)]
    torch.testing.assert_close(program.module()(*x), prefix_softmax_attention(*x)[0])


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 80),
    heads=st.integers(1, 3),
    key_channels=st.integers(1, 20),
    value_channels=st.integers(1, 20),
    strength=st.sampled_from([0.0, 1.0, 20.0]),
    state=st.booleans(),
)
def test_any_shape_equals_the_loop_in_the_form_that_serves(**shape):
    assert_equal_to_loop(inputs(**shape), atol=1e-9, rtol=1e-9)


WRONG = {
    "q must be": {"q": torch.zeros(2, 4)},
    "k \\(batch, tokens": {"v": torch.zeros(2, 69, 2, 3)},
    "no dimension may be 0": {"k": torch.zeros(2, 0, 2, 5), "v": torch.zeros(2, 0, 2, 3)},
    "attention_mask must be": {"attention_mask": torch.ones(2, 69)},
    "initial_state.a must be": {"a": torch.zeros(2, 2, 4)},
}


@pytest.mark.parametrize("message", WRONG)
def test_shapes_that_do_not_fit_are_named(message):
    with pytest.raises(ValueError, match=message):
        call(prefix_softmax_attention, **inputs() | WRONG[message])


def results(form, mask=False, **shape):
    """Outputs, states and gradients of one form as the op calls it"""
    drawn = {name: x.detach() for name, x in inputs(dtype=torch.float32, **shape).items()}
    q, k, v, *state = drawn.values()
    state = state or [None] * 3
    kept = torch.rand(k.shape[:2], generator=torch.Generator().manual_seed(1)) > 0.4 if mask else None
    o, *last, scores, normalizers = form.forward(q, k, v, kept, *state, 0.3, True)
    grads = [torch.randn(x.shape, generator=torch.Generator().manual_seed(2)) for x in (o, *last[:2])]
    return o, *last, *form.backward(*grads, q, k, v, state[2], o, last[1], scores, normalizers, 0.3)


@needs_triton
def test_triton_kernels_equal_the_torch_form_in_the_interpreter():
    cases = {
        "one token": {"batch": 2, "tokens": 1, "state": False},
        "one chunk": {"tokens": 64, "key_channels": 16, "value_channels": 16},
        "two chunks, odd channels": {"tokens": 70, "mask": True},
        "several blocks of channels": {
            "batch": 1,
            "tokens": 130,
            "key_channels": 70,
            "value_channels": 80,
            "state": False,
        },
        "large scores": {"strength": 100.0, "mask": True},
    }
    assert_kernels_equal_eager("prefix_scan_attention", cases, bound=2e-5)


@needs_triton
@pytest.mark.parametrize("kernel", ["scan_forward", "scan_backward", "key_gradients"])
def test_triton_kernels_compile_without_a_gpu(kernel):
    types = {name: "*bf16" for name in ("grad_o", "dk")} | {
        "mask": "*i1",
        "T": "i32",
        "B": "i32",
        "size": "i32",
        "parts": "i32",
    }
    constants = {"C": 64, "BK": 64, "BV": 64, "HAS_MASK": True, "SAVE": True, "EXACT": False}
    assert_kernel_compiles("prefix_scan_attention", kernel, types, constants)
