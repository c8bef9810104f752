"""Dynamic convolution: the fast form equals the definition, and mistakes are named."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops.dynamic_convolution import dynamic_convolution, reference


def tensors(batch=2, channels=6, groups=3, features=4, kernel=3, height=5, width=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (batch, channels, height, width),
        (batch, features, height, width),
        (groups, kernel, kernel, features),
        (groups, kernel, kernel),
    )
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@given(
    batch=st.integers(1, 2),
    groups=st.integers(1, 3),
    group_size=st.integers(1, 3),
    features=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 5]),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
)
@settings(max_examples=25, derandomize=True, deadline=None)
def test_the_fast_form_equals_the_definition(batch, groups, group_size, features, kernel, height, width):
    inputs = tensors(batch, groups * group_size, groups, features, kernel, height, width)
    torch.testing.assert_close(dynamic_convolution(*inputs), reference(*inputs))


def test_gradients_are_those_of_the_definition():
    inputs = [x.requires_grad_() for x in tensors()]
    ours, theirs = (
        torch.autograd.grad(form(*inputs).square().sum(), inputs) for form in (dynamic_convolution, reference)
    )
    torch.testing.assert_close(ours, theirs)


def test_filters_that_do_not_depend_on_the_pixel_are_a_depthwise_convolution():
    images, features, weight, bias = tensors(groups=6)
    expected = torch.nn.functional.conv2d(images, bias.unsqueeze(1), padding=1, groups=6)
    torch.testing.assert_close(dynamic_convolution(images, features, weight * 0, bias), expected)


def test_half_precision_keeps_its_type_and_sums_in_float32():
    inputs = tensors(kernel=7, dtype=torch.float32)
    output = dynamic_convolution(*(x.bfloat16() for x in inputs))
    expected = reference(*(x.bfloat16().double() for x in inputs))
    assert output.dtype == torch.bfloat16
    assert (output.double() - expected).norm() / expected.norm() < 0.01


def test_it_exports_with_any_size():
    class Module(torch.nn.Module):
        forward = staticmethod(dynamic_convolution)

    inputs, larger = tensors(), tensors(height=9, width=8)
    size = {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
    program = torch.export.export(Module(), tuple(inputs), dynamic_shapes=(size, size, None, None))
    torch.testing.assert_close(program.module()(*larger), dynamic_convolution(*larger))


@pytest.mark.parametrize(
    "wrong",
    [{"groups": 4}, {"kernel": 4}],
    ids=["groups that do not divide the channels", "an even kernel"],
)
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="odd k and G dividing C"):
        dynamic_convolution(*tensors(**wrong))


def test_features_of_another_size_are_refused():
    images, features, weight, bias = tensors()
    with pytest.raises(ValueError, match=r"\(2, 4, 5, 6\)"):
        dynamic_convolution(images, features[..., :-1], weight, bias)
