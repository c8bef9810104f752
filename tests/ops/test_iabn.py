"""Instance-aware batch normalisation: the fast form is the definition, whatever the layout; a model's batch norms can be wrapped."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_ext.layers.iabn import InstanceAwareBatchNorm, convert_batch_norms
from hf_ext.ops.iabn import instance_aware_normalization, reference


def arguments(*shape, seed=0, dtype=torch.float64, affine=True):
    """Instances whose statistics differ by a lot."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, *positions = shape
    scale = torch.rand(batch, channels, *[1] * len(positions), generator=generator, dtype=dtype) * 3
    x = torch.randn(shape, generator=generator, dtype=dtype) * scale + scale - 1
    mean, weight, bias = (torch.randn(channels, generator=generator, dtype=dtype) for _ in range(3))
    var = torch.rand(channels, generator=generator, dtype=dtype) + 0.5
    return x, mean, var, *((weight, bias) if affine else (None, None))


@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    k=st.floats(0, 5),
    skip=st.integers(1, 4),
    affine=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_fast_form_is_the_definition(shape, k, skip, affine, seed):
    given = arguments(*shape, seed=seed, affine=affine)
    results = []
    for form in (instance_aware_normalization, reference):
        leaves = [x.clone().requires_grad_() if x is not None else None for x in given]
        y = form(*leaves, k=k, skip_threshold=skip)
        y.square().sum().backward()
        results.append((y, leaves[0].grad, *(leaf.grad for leaf in leaves[3:] if leaf is not None)))
    for ours, definition in zip(*results):
        torch.testing.assert_close(ours, definition)


def test_channels_last_gives_the_same():
    x, *rest = arguments(2, 5, 7, 6)
    ours = instance_aware_normalization(x.contiguous(memory_format=torch.channels_last), *rest)
    torch.testing.assert_close(ours, instance_aware_normalization(x, *rest))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_precision_keeps_its_type_and_statistics_in_single(dtype, layout):
    given = arguments(2, 4, 20, 20, dtype=torch.float32)
    half = [x.to(dtype) for x in given]
    half[0] = half[0].contiguous(memory_format=layout)
    y = instance_aware_normalization(*half)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), reference(*given), atol=0.1, rtol=0.05)


def test_it_compiles_and_exports():
    module = InstanceAwareBatchNorm(nn.BatchNorm2d(3)).eval()
    x = torch.randn(2, 3, 5, 5)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x), module(x))
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))


@torch.no_grad()
def test_a_large_k_leaves_a_plain_batch_norm():
    x, mean, var, weight, bias = arguments(3, 4, 5, 5)
    plain = nn.functional.batch_norm(x, mean, var, weight, bias)
    torch.testing.assert_close(instance_aware_normalization(x, mean, var, weight, bias, k=1e6), plain)


@torch.no_grad()
def test_k_of_zero_is_an_instance_norm():
    x, mean, var, *_ = arguments(3, 4, 50)
    own = (x - x.mean(-1, True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(instance_aware_normalization(x, mean, var, k=0.0), own)


@torch.no_grad()
def test_one_position_has_no_statistics_of_its_own():
    norm = nn.BatchNorm1d(4).eval()
    norm.running_mean.fill_(3.0)
    x = torch.randn(5, 4)
    torch.testing.assert_close(InstanceAwareBatchNorm(norm).eval()(x), norm(x))


def test_training_uses_the_batch_and_moves_the_running_statistics_as_a_batch_norm_does():
    norms = [nn.BatchNorm2d(3, momentum=0.3) for _ in range(2)]
    module, x = InstanceAwareBatchNorm(norms[0]).train(), torch.randn(4, 3, 6, 6)
    y = module(x)
    norms[1](x)
    for name, buffer in norms[1].named_buffers():
        torch.testing.assert_close(getattr(norms[0], name), buffer)
    var, mean = torch.var_mean(x, (0, 2, 3))
    torch.testing.assert_close(y, reference(x, mean, var, norms[0].weight, norms[0].bias))


@torch.no_grad()
def test_without_running_statistics_the_batchs_serve():
    module, x = InstanceAwareBatchNorm(nn.BatchNorm2d(3, track_running_stats=False)), torch.randn(4, 3, 6, 6)
    torch.testing.assert_close(module.eval()(x), module.train()(x))


def test_a_models_batch_norms_are_wrapped_once_under_their_names():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    norm = model[1]
    assert convert_batch_norms(model.eval(), k=2.0) == ["1", "2.0"] and convert_batch_norms(model) == []
    assert model[1]._bn is norm and not model[1].training and "1._bn.running_mean" in model.state_dict()


@pytest.mark.parametrize("shapes", [((2, 3, 4), (4,), (3,)), ((2, 3, 4), (3,), (1, 3)), ((3,), (3,), (3,))], ids=str)
def test_shapes_that_do_not_fit_are_named(shapes):
    with pytest.raises(ValueError, match="channels"):
        instance_aware_normalization(*map(torch.rand, shapes))


@pytest.mark.parametrize("options", [{"k": -1.0}, {"skip_threshold": 0}])
def test_impossible_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        InstanceAwareBatchNorm(nn.BatchNorm2d(3), **options)
