"""RMSNorm and CRMSNorm: every form equals the definition, and LayerNorm of what stands behind a mean-free or compressed vector."""

import os
import subprocess
import sys
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops import native
from hf_ext.ops.rms_norm import eager, reference, rms_norm
from tests.ops.triton_form import assert_kernel_compiles, needs_triton

AFFINE = ("none", "weight", "both")
FORMS = ("native", "torch")


def inputs(rows=6, channels=37, affine="both", dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (
        torch.randn(size, generator=generator).to(dtype) for size in ((rows, channels), channels, channels)
    )
    drawn = {"x": x, "weight": None if affine == "none" else weight, "bias": bias if affine == "both" else None}
    return {name: t.requires_grad_() for name, t in drawn.items() if t is not None}


def arguments(tensors):
    return tensors["x"], tensors.get("weight"), tensors.get("bias"), 1e-3


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(native, "load_native", lambda op: None)
    elif native.load_native("rms_norm") is None:
        pytest.skip(native.why_not())
    return request.param


def outputs(function, tensors, compressed):
    y = function(*arguments(tensors), compressed)
    grads = torch.autograd.grad(y, list(tensors.values()), torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))
    return y, *grads


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("affine", AFFINE)
def test_output_and_gradients_equal_the_definition(form, affine, compressed):
    tensors = inputs(affine=affine)
    torch.testing.assert_close(outputs(rms_norm, tensors, compressed), outputs(reference, tensors, compressed))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("affine", AFFINE)
@torch.no_grad()
def test_inference_equals_the_definition(form, affine, compressed):
    x, weight, bias, eps = arguments(inputs(affine=affine))
    expected = reference(x, weight, bias, eps, compressed)
    torch.testing.assert_close(rms_norm(x, weight, bias, eps, compressed), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3), (torch.float32, 1e-5)])
@pytest.mark.parametrize("compressed", [False, True])
def test_lower_precision_is_rounded_once(form, dtype, tolerance, compressed):
    exact, rounded = inputs(channels=200), inputs(channels=200, dtype=dtype)
    expected, found = (outputs(f, t, compressed) for f, t in ((reference, exact), (rms_norm, rounded)))
    assert all(tensor.dtype == dtype for tensor in found)
    for ours, theirs in zip(found, expected):
        assert (ours.double() - theirs).norm() / theirs.norm() < tolerance


def test_of_a_mean_free_vector_it_is_layer_norm():
    x, weight, bias, eps = arguments(inputs())
    expected = F.layer_norm(x, (37,), weight, bias, eps)
    torch.testing.assert_close(rms_norm(x - x.mean(-1, keepdim=True), weight, bias, eps), expected)


def test_compressed_it_is_layer_norm_without_the_last_channel():
    x = inputs(affine="none")["x"]
    y = rms_norm((x - x.mean(-1, keepdim=True))[..., :-1], eps=1e-3, compressed=True)
    torch.testing.assert_close(y, F.layer_norm(x, (37,), eps=1e-3)[..., :-1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_what_is_not_finite_stays_visible(form, value, dtype):
    x = torch.ones(2, 70, dtype=dtype)
    x[0, 3] = value
    y = rms_norm(x)
    assert y[0].isnan().any() and y[1].isfinite().all()


def test_strided_and_many_axed_inputs_and_no_rows(form):
    x = torch.randn(3, 8, 5, 4, dtype=torch.float64).transpose(1, 3)
    torch.testing.assert_close(rms_norm(x), reference(x))
    assert rms_norm(x[:0]).shape == (0, 4, 5, 8)


@pytest.mark.parametrize("compressed", [False, True])
def test_gradients_equal_finite_differences(form, compressed):
    tensors = inputs(rows=2, channels=5)
    assert torch.autograd.gradcheck(lambda *t: rms_norm(*t, 1e-3, compressed), tuple(tensors.values()))


def test_registered_ops_keep_the_rules_of_torch_library():
    x, weight, bias = inputs().values()
    for op, arguments_ in (
        (torch.ops.hf_ext.rms_norm.default, (x, weight, bias, 1e-3, True)),
        (torch.ops.hf_ext.rms_norm.default, (x, None, None, 1e-3, False)),
    ):
        torch.library.opcheck(
            op, arguments_, test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
        )


def test_compiled_whole_and_exported_as_plain_operations():
    x, weight, bias = (t.detach() for t in inputs(dtype=torch.float32).values())

    class Norm(torch.nn.Module):
        def forward(self, x, weight, bias):
            return rms_norm(x, weight, bias)

    expected = reference(x, weight, bias)
    compiled = torch.compile(Norm(), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, weight, bias), expected)
    program = torch.export.export(Norm(), (x, weight, bias))
    assert "hf_ext" not in str(program.graph)
    torch.testing.assert_close(program.module()(x, weight, bias), expected)


def test_gradients_per_sample_through_torch_func():
    x, weight, bias = (t.detach() for t in inputs().values())
    found = torch.func.vmap(torch.func.grad(lambda w, row: rms_norm(row, w, bias).square().sum()), (None, 0))(weight, x)
    weight.requires_grad_()
    expected = [torch.autograd.grad(reference(row, weight, bias).square().sum(), weight)[0] for row in x]
    torch.testing.assert_close(found, torch.stack(expected))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 200), st.integers(1, 9), st.sampled_from(AFFINE), st.booleans(), st.integers(0, 99))
def test_any_shape_equals_the_definition(channels, rows, affine, compressed, seed):
    tensors = inputs(rows, channels, affine, seed=seed)
    torch.testing.assert_close(outputs(rms_norm, tensors, compressed), outputs(reference, tensors, compressed))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rms_norm(torch.ones(2, 3), torch.ones(4)), r"weight \(4,\)"),
        (lambda: rms_norm(torch.ones(2, 3), torch.ones(3), torch.ones(1)), r"bias \(1,\)"),
        (lambda: rms_norm(torch.ones(2, 0)), r"x \(2, 0\)"),
        (lambda: rms_norm(torch.ones(2, 3), bias=torch.ones(3)), "together with a weight"),
    ],
)
def test_bad_input_says_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@needs_triton
def test_kernels_equal_the_torch_form():
    """In a process of its own, since Triton chooses its interpreter when it is imported."""
    code = "from tests.ops.test_rms_norm import largest_difference; print(largest_difference())"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.splitlines()[-1]) < 1e-4  # float32 sums over 300 rows, in another order


def largest_difference() -> float:
    """Between the kernels and the torch form, forward and backward"""
    from hf_ext.ops.rms_norm import triton

    torch.set_num_threads(1)
    worst = 0.0
    for affine, rows, compressed in product(AFFINE, (5, 300), (False, True)):
        tensors = {name: t.detach() for name, t in inputs(rows, affine=affine, dtype=torch.float32).items()}
        x, weight, bias = tensors["x"], tensors.get("weight"), tensors.get("bias")
        found, expected = ((*form.forward(x, weight, bias, 1e-3, compressed),) for form in (triton, eager))
        grad = torch.linspace(-1, 1, x.numel()).view_as(x)
        found += triton.backward(grad, x, weight, expected[1], compressed)
        expected += eager.backward(grad, x, weight, expected[1], compressed)
        differences = [(a - b).abs().max() / b.abs().max().clamp_min(1) for a, b in zip(found, expected) if b.numel()]
        worst = max(worst, *(d.item() for d in differences))
    return worst


@needs_triton
@pytest.mark.parametrize("kernel", ["norm_forward", "norm_backward"])
@pytest.mark.parametrize("compressed", [False, True])
def test_kernels_compile_for_a_gpu(kernel, compressed):
    types = {name: "*bf16" for name in ("x", "y", "grad", "dx")} | {"eps": "fp32", "width": "i32", "rows": "i32"}
    constants = {"COMPRESSED": compressed, "HAS_WEIGHT": True, "HAS_BIAS": True, "BLOCK": 1024}
    assert_kernel_compiles("rms_norm", kernel, types, constants)
