"""Masks, fake quantization, smoothing and merging of tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune

from hf_ext.layers.compression import (
    fake_quantize_activation,
    fake_quantize_weight,
    magnitude_mask,
    mask_2_4,
    merge_tokens,
    row_mask,
    smooth_scale,
)

ALIKE = settings(max_examples=15, derandomize=True, deadline=None)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@ALIKE
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), amount=st.floats(0, 1))
def test_masks_zero_the_share_that_is_asked_for(rows, columns, amount):
    weight = draw(rows, columns)
    assert (magnitude_mask(weight, amount) == 0).sum() == round(amount * weight.numel())
    assert (row_mask(weight, amount)[:, 0] == 0).sum() == round(amount * rows)


def test_magnitude_mask_keeps_the_larger_weights():
    weight = draw(20, 20)
    mask = magnitude_mask(weight, 0.3)
    assert weight[mask == 0].abs().max() <= weight[mask == 1].abs().min()


def test_masks_serve_torchs_pruning():
    linear = torch.nn.Linear(8, 8)
    prune.custom_from_mask(linear, "weight", mask_2_4(linear.weight))
    assert ((linear.weight != 0).unflatten(1, (2, 4)).sum(-1) == 2).all()


@ALIKE
@given(rows=st.integers(1, 8), columns=st.integers(1, 40), scale=st.floats(1e-3, 1e3))
def test_rounding_moves_nothing_by_more_than_half_a_step(rows, columns, scale):
    x = draw(rows, columns) * scale
    low, high = min(x.min().item(), 0), max(x.max().item(), 0)
    assert (fake_quantize_activation(x) - x).abs().max() <= (high - low) / 255 * 1.01
    step = x.abs().amax(1, keepdim=True) / 127
    assert ((fake_quantize_weight(x) - x).abs() <= step * 0.5001).all()


def test_rounding_keeps_zeros_and_survives_them():
    for function in (fake_quantize_activation, fake_quantize_weight):
        assert function(torch.zeros(3, 4)).count_nonzero() == 0
    x = draw(4, 8)
    x[0, 0] = 0
    assert fake_quantize_activation(x)[0, 0] == 0


def test_rounding_lets_gradients_through():
    weight = draw(4, 8).requires_grad_()
    fake_quantize_weight(weight).sum().backward()
    torch.testing.assert_close(weight.grad, torch.ones_like(weight))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_leaves_the_product(alpha):
    x, weight = draw(5, 6, 16) * torch.logspace(-2, 2, 16), draw(8, 16, seed=1)
    scale = smooth_scale(x, weight, alpha)
    torch.testing.assert_close((x / scale) @ (weight * scale).T, x @ weight.T, rtol=1e-4, atol=1e-4)


def test_smoothing_evens_out_the_outliers():
    x, weight = draw(50, 16) * torch.logspace(-2, 2, 16), draw(8, 16, seed=1)
    smoothed = (x / smooth_scale(x, weight, 1.0)).abs().amax(0)
    assert smoothed.max() / smoothed.min() < 1.001


@ALIKE
@given(tokens=st.integers(1, 20), data=st.data())
def test_merging_keeps_the_sum_of_what_the_tokens_stand_for(tokens, data):
    most = (tokens + 1) // 2 - 1 if tokens > 1 else 0
    merge = data.draw(st.integers(0, most))
    x = draw(2, tokens, 4, seed=tokens)
    merged, size = merge_tokens(x, merge)
    assert merged.shape == (2, tokens - merge, 4)
    torch.testing.assert_close((merged * size).sum(1), x.sum(1))
    torch.testing.assert_close(size.sum((1, 2)), torch.full((2,), float(tokens)))
    torch.testing.assert_close(merged[:, 0], x[:, 0])


def test_equal_tokens_merge_first_and_stay_what_they_are():
    x = draw(1, 8, 4)
    x[:, 4] = x[:, 5]
    merged, size = merge_tokens(x, 1)
    assert size.flatten().tolist() == [1, 1, 1, 1, 1, 2, 1]
    torch.testing.assert_close(merged[:, 5], x[:, 5])


def test_sizes_weigh_the_mean():
    x, size = draw(1, 4, 2), torch.tensor([1.0, 1.0, 3.0, 1.0]).view(1, 4, 1)
    merged, sizes = merge_tokens(x, 1, size, metric=x[:, [0, 1, 2, 2]])
    torch.testing.assert_close(merged[0, 2], (3 * x[0, 2] + x[0, 3]) / 4)
    assert sizes.flatten().tolist() == [1, 1, 4]


@pytest.mark.parametrize(
    "call",
    [
        lambda: magnitude_mask(draw(4, 4), 1.5),
        lambda: row_mask(draw(4), 0.5),
        lambda: mask_2_4(draw(4, 6)),
        lambda: smooth_scale(draw(3, 4), draw(3, 5)),
        lambda: smooth_scale(draw(3, 4), draw(3, 4), 2.0),
        lambda: merge_tokens(draw(4, 4), 1),
        lambda: merge_tokens(draw(1, 5, 4), 3),
    ],
)
def test_bad_input_is_a_value_error(call):
    with pytest.raises(ValueError, match=r"got|not"):
        call()
