"""Gated linear attention: every form against the token loop."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops.gla import gated_linear_attention, reference
from tests.ops.recurrence import MatrixStateOpTests, apart, assert_same_with_gradients, gradients
from tests.ops.triton_form import assert_kernel_compiles, assert_kernels_equal_eager, needs_triton

NAMES = ("q", "k", "v", "g", "initial_state")
with_state = partial(gated_linear_attention, output_final_state=True)


def inputs(
    batch=2,
    tokens=70,
    heads=2,
    groups=1,
    key_channels=8,
    value_channels=12,
    dtype=torch.float64,
    strength=1.0,
    seed=0,
    sequences=None,
):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator)

    tensors = (
        draw(batch, tokens, heads * groups, key_channels),
        draw(batch, tokens, heads, key_channels),
        draw(batch, tokens, heads, value_channels),
        F.logsigmoid(draw(batch, tokens, heads, key_channels)) * strength,
        draw(sequences or batch, heads, key_channels, value_channels),
    )
    return {name: x.requires_grad_() for name, x in zip(NAMES, tensors)}


class TestGatedLinearAttention(MatrixStateOpTests):
    op = staticmethod(gated_linear_attention)
    reference = staticmethod(reference)
    name = "gated_linear_attention"
    inputs = staticmethod(inputs)


def assert_equal_to_loop(tensors, **tolerance):
    assert_same_with_gradients(with_state, reference, tensors, **tolerance)


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 130])
@pytest.mark.parametrize("groups", [1, 3])
def test_chunk_form_and_its_gradients_equal_the_token_loop(tokens, groups):
    assert_equal_to_loop(inputs(tokens=tokens, groups=groups), atol=1e-11, rtol=1e-11)


def test_a_thousand_tokens_in_float32_stay_close_to_the_loop():
    tensors = inputs(batch=1, tokens=1000, dtype=torch.float32, strength=1 / 16)
    ours, _ = gated_linear_attention(**tensors)
    theirs, _ = reference(**tensors)
    assert (ours - theirs).abs().max() / theirs.abs().max() < 2e-5


@pytest.mark.parametrize("strength", [0.0, 1 / 16, 10.0])
def test_gate_strength_does_not_cost_precision(strength):
    assert_equal_to_loop(inputs(tokens=100, strength=strength), atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("log_gate", [0.0, -50.0, -1e4, -math.inf])
def test_extreme_gates_give_finite_outputs_and_gradients(log_gate):
    tensors = inputs(tokens=100, dtype=torch.float32)
    with torch.no_grad():
        tensors["g"].fill_(log_gate)
    outputs, grads = gradients(gated_linear_attention, tensors, output_final_state=True)
    assert all(x.isfinite().all() for x in (*outputs, *grads))
    torch.testing.assert_close(outputs[0], reference(**tensors)[0], atol=1e-4, rtol=1e-4)


def test_strong_and_weak_gates_in_one_chunk_do_not_cancel():
    tensors = inputs(tokens=64, dtype=torch.float32, strength=1 / 16)
    with torch.no_grad():
        tensors["g"][:, ::7] = -1e4
    expected, _ = reference(**{name: x.double() for name, x in tensors.items()})
    o, _ = gated_linear_attention(**tensors)
    torch.testing.assert_close(o.double(), expected, atol=2e-6, rtol=2e-5)


def test_packed_sequences_with_shared_heads_equal_separate_ones():
    borders = [0, 1, 1, 18, 88, 100]
    packed = partial(with_state, cu_seqlens=torch.tensor(borders))
    tensors = inputs(batch=1, tokens=100, groups=2, sequences=5)
    assert_same_with_gradients(packed, apart(reference, borders), tensors, atol=1e-11, rtol=1e-11)


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 80),
    heads=st.integers(1, 2),
    groups=st.integers(1, 3),
    key_channels=st.integers(1, 9),
    value_channels=st.integers(1, 9),
    strength=st.sampled_from([0.0, 0.1, 3.0]),
)
def test_any_shape_equals_the_loop(**shape):
    assert_equal_to_loop(inputs(**shape), atol=1e-10, rtol=1e-10)


WRONG = {
    "four dimensions": {"q": (2, 5, 8)},
    "share one shape": {"g": (2, 5, 2, 7)},
    "a multiple": {"q": (2, 5, 3, 8)},
    "initial_state": {"initial_state": (2, 2, 12, 8)},
    "cu_seqlens": {"cu_seqlens": (3,)},
}


@pytest.mark.parametrize("message", WRONG)
def test_shapes_that_do_not_fit_are_named(message):
    tensors = inputs(tokens=5) | {
        name: torch.zeros(shape, dtype=torch.long if name == "cu_seqlens" else torch.float64)
        for name, shape in WRONG[message].items()
    }
    with pytest.raises(ValueError, match=message):
        gated_linear_attention(**tensors)


TRITON_CASES = {
    "recurrent": {"tokens": 6, "batch": 2},
    "recurrent, shared heads, packed": {"tokens": 9, "batch": 1, "groups": 2, "borders": [0, 1, 5, 9]},
    "chunk": {"tokens": 70, "batch": 1, "heads": 1, "strength": 1 / 16},
    "chunk, shared heads, packed, strong gates": {
        "tokens": 80,
        "batch": 1,
        "heads": 1,
        "groups": 2,
        "borders": [0, 3, 80],
        "strength": 50.0,
    },
}


@needs_triton
def test_triton_kernels_equal_the_chunk_form_in_the_interpreter():
    assert_kernels_equal_eager("gla", TRITON_CASES, bound=2e-5)


KERNELS = [
    "recurrent_forward",
    "recurrent_backward",
    "chunk_states",
    "chunk_dstates",
    "chunk_scores",
    "chunk_output",
    "chunk_dscores",
    "chunk_dv",
    "chunk_dq",
    "chunk_dk",
]


@needs_triton
@pytest.mark.parametrize("kernel", KERNELS)
def test_triton_kernels_compile_for_a_gpu_that_is_not_there(kernel):
    assert_kernel_compiles("gla", kernel, constants={"C": 64})
