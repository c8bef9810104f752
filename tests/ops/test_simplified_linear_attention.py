"""Simplified linear attention: the fast form equals the definition, and mistakes are named."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops.simplified_linear_attention import reference, simplified_linear_attention


def tensors(batch=2, heads=3, width=4, kernel=3, size=(3, 5), keys=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    tokens = size[0] * size[1]
    shapes = (
        (batch, tokens, heads, width),
        *[(batch, keys or tokens, heads, width)] * 2,
        (width, 1, kernel, kernel),
        (width,),
    )
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    width=st.sampled_from([1, 4, 40]),
    kernel=st.sampled_from([1, 3, 5]),
    height=st.integers(1, 5),
    length=st.integers(1, 5),
    keys=st.none() | st.integers(1, 30),
)
@settings(max_examples=25, derandomize=True, deadline=None)
def test_the_fast_form_equals_the_definition(batch, heads, width, kernel, height, length, keys):
    inputs = tensors(batch, heads, width, kernel, (height, length), keys)
    torch.testing.assert_close(
        simplified_linear_attention(*inputs, (height, length)), reference(*inputs, (height, length))
    )


@pytest.mark.parametrize("size", [(2, 1), (3, 5)], ids=["tokens first", "channels first"])
def test_gradients_are_those_of_the_definition(size):
    inputs = [x.requires_grad_() for x in tensors(size=size)]
    ours, theirs = (
        torch.autograd.grad(form(*inputs, size).square().sum(), inputs)
        for form in (simplified_linear_attention, reference)
    )
    torch.testing.assert_close(ours, theirs)


def test_a_key_of_minus_infinity_counts_for_nothing():
    query, key, value, weight, bias = tensors(size=(2, 3))
    value[:, 4:] = 0
    key[:, 4:] = -torch.inf
    output = simplified_linear_attention(query, key, value, weight * 0, bias * 0, (2, 3))
    expected = reference(query, key[:, :4], value[:, :4], weight * 0, bias * 0, (2, 3))
    torch.testing.assert_close(output, expected)


def test_a_query_without_positive_entries_reads_the_neighbours_only():
    query, key, value, weight, bias = tensors()
    output = simplified_linear_attention(-query.abs(), key, value, weight, bias, (3, 5))
    local = reference(torch.zeros_like(query), key, value, weight, bias, (3, 5))
    torch.testing.assert_close(output, local)


def test_half_precision_keeps_its_type_and_is_computed_in_float32():
    inputs = [x.bfloat16() for x in tensors(size=(16, 16), width=32)]
    output = simplified_linear_attention(*inputs, (16, 16))
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(
        output, reference(*(x.float() for x in inputs), (16, 16)).bfloat16(), atol=0.02, rtol=0.02
    )


def test_autocast_does_not_reach_inside():
    inputs = tensors(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = simplified_linear_attention(*inputs, (3, 5))
    assert torch.equal(output, simplified_linear_attention(*inputs, (3, 5)))


@pytest.mark.parametrize(
    "wrong", [{"size": (3, 4)}, {"kernel": 4}], ids=["tokens that do not fill the map", "an even kernel"]
)
def test_shapes_that_do_not_fit_are_refused(wrong):
    inputs = tensors(**({"size": (3, 5)} | {k: v for k, v in wrong.items() if k == "kernel"}))
    with pytest.raises(ValueError, match="with an odd k"):
        simplified_linear_attention(*inputs, wrong.get("size", (3, 5)))
