"""The delta rule: every form against the token loop."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops.delta_rule import delta_rule, reference
from hf_ext.ops.native import load_native, why_not
from tests.ops.recurrence import MatrixStateOpTests, assert_same_with_gradients
from tests.ops.triton_form import assert_kernel_compiles, assert_kernels_equal_eager, needs_triton

TENSORS = ("q", "k", "v", "beta", "initial_state")
with_state = partial(delta_rule, output_final_state=True)


def inputs(
    batch=2,
    tokens=70,
    heads=2,
    key_channels=8,
    value_channels=12,
    dtype=torch.float64,
    step=None,
    seed=0,
    sequences=None,
):
    """Keys and queries of length 1, step sizes in (0, 2) or all equal to `step`."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    q, k = (F.normalize(draw(batch, tokens, heads, key_channels), dim=-1) for _ in range(2))
    v, beta = draw(batch, tokens, heads, value_channels), 2 * draw(batch, tokens, heads).sigmoid()
    beta = beta if step is None else torch.full_like(beta, step)
    state = draw(sequences or batch, heads, key_channels, value_channels)
    return {name: x.to(dtype).requires_grad_() for name, x in zip(TENSORS, (q, k, v, beta, state))}


class TestDeltaRule(MatrixStateOpTests):
    op = staticmethod(delta_rule)
    reference = staticmethod(reference)
    name = "delta_rule"
    inputs = staticmethod(inputs)


@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 63, 64, 65, 130])
def test_chunk_form_and_its_gradients_equal_the_token_loop(tokens):
    assert_same_with_gradients(with_state, reference, inputs(tokens=tokens), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("step", [0.0, 1.0, 2.0])
def test_extreme_step_sizes_equal_the_token_loop(step):
    assert_same_with_gradients(with_state, reference, inputs(tokens=100, step=step), atol=1e-9, rtol=1e-9)


def relative_error_in_float32(tensors):
    """Of the output, against the loop in float64 on the same, rounded, inputs."""
    rounded = {name: x.detach().float() for name, x in tensors.items()}
    exact, _ = reference(**{name: x.double() for name, x in rounded.items()})
    return ((delta_rule(**rounded)[0] - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("native", [True, False])
def test_a_thousand_tokens_in_float32_stay_close_to_the_loop(monkeypatch, seed, native):
    if not native:
        monkeypatch.setattr("hf_ext.ops.delta_rule.load_native", lambda op: None)
    assert relative_error_in_float32(inputs(batch=1, tokens=1000, seed=seed)) < 1e-5


def test_the_state_starts_at_zero_unless_given():
    tensors = inputs(tokens=40)
    zeros = tensors | {"initial_state": torch.zeros_like(tensors["initial_state"])}
    del tensors["initial_state"]
    torch.testing.assert_close(delta_rule(**tensors)[0], delta_rule(**zeros)[0])


def test_queries_and_keys_are_normalised_on_request():
    tensors = inputs()
    long = tensors | {name: 5 * tensors[name] for name in ("q", "k")}
    short = {
        name: x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for name, x in long.items() if name in ("q", "k")
    }
    expected, _ = reference(**tensors | short)
    torch.testing.assert_close(delta_rule(**long, use_qk_l2norm_in_kernel=True)[0], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.skipif(why_not() != "", reason=f"no C++ form: {why_not()}")
@pytest.mark.parametrize("tokens", [2, 63, 64, 65, 1000])
@pytest.mark.parametrize(("key_channels", "value_channels"), [(7, 5), (16, 32), (3, 70)])
def test_cpp_form_equals_the_token_loop(tokens, key_channels, value_channels):
    assert load_native("delta_rule") is not None
    tensors = inputs(batch=2, tokens=tokens, key_channels=key_channels, value_channels=value_channels)
    assert relative_error_in_float32(tensors) < 1e-5


def test_without_a_compiler_the_chunk_form_serves(monkeypatch):
    tensors = inputs(dtype=torch.float32)
    expected = with_state(**tensors)
    monkeypatch.setattr("hf_ext.ops.delta_rule.load_native", lambda op: None)
    for a, b in zip(with_state(**tensors), expected):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("step", [1.0, 1.9, 2.0])
def test_the_chunk_form_stays_tame_where_keys_are_equal(monkeypatch, step):
    monkeypatch.setattr("hf_ext.ops.delta_rule.load_native", lambda op: None)
    tensors = inputs(batch=1, tokens=500, step=step)
    tensors["k"] = tensors["k"][:, :1].expand_as(tensors["k"])
    assert relative_error_in_float32(tensors) < 1e-4


@pytest.mark.parametrize("tokens", [10**2, 10**5])
def test_the_sign_of_one_number_is_the_parity_of_any_length(tokens):
    """A step size of 2 at a 1 and of 0 at a 0 (arXiv 2411.12537, section 4)."""
    bits = torch.randint(0, 2, (1, tokens, 1), generator=torch.Generator().manual_seed(tokens))
    ones, zeros = torch.ones(1, tokens, 1, 1), torch.zeros(1, tokens, 1, 1)
    o, _ = delta_rule(ones, ones, zeros, 2.0 * bits, initial_state=torch.ones(1, 1, 1, 1))
    assert torch.equal(o[0, :, 0, 0], 1.0 - 2 * (bits.cumsum(1) % 2)[0, :, 0])


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 80),
    heads=st.integers(1, 3),
    key_channels=st.integers(1, 9),
    value_channels=st.integers(1, 9),
    step=st.sampled_from([None, 0.0, 1.0, 2.0]),
)
def test_any_shape_equals_the_loop(**shape):
    assert_same_with_gradients(with_state, reference, inputs(**shape), atol=1e-9, rtol=1e-9)


WRONG = {
    "four dimensions": {"q": (2, 5, 8)},
    "q and k share one shape": {"k": (2, 5, 2, 7)},
    "beta has no channels": {"beta": (2, 5, 3)},
    "may be 0": {"v": (2, 5, 2, 0)},
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
        delta_rule(**tensors)


TRITON_CASES = {
    "recurrent": {"tokens": 6, "batch": 2},
    "recurrent, packed, many value channels": {
        "tokens": 9,
        "batch": 1,
        "heads": 1,
        "value_channels": 40,
        "borders": [0, 1, 5, 9],
    },
    "chunk": {"tokens": 70, "batch": 1, "heads": 1},
    "chunk, packed, step size 2": {"tokens": 80, "batch": 1, "heads": 1, "borders": [0, 3, 80], "step": 2.0},
}
KERNELS = [
    "recurrent_forward",
    "recurrent_backward",
    "chunk_inverse",
    "chunk_errors",
    "chunk_output",
    "chunk_dstates",
    "chunk_gradients",
]


@needs_triton
def test_triton_kernels_equal_the_chunk_form_in_the_interpreter():
    assert_kernels_equal_eager("delta_rule", TRITON_CASES, bound=2e-5)


@needs_triton
@pytest.mark.parametrize("kernel", KERNELS)
def test_triton_kernels_compile_for_a_gpu_that_is_not_there(kernel):
    assert_kernel_compiles("delta_rule", kernel, constants={"C": 64})
