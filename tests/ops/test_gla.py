"""Gated linear attention: every form against the token loop."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops.gla import gated_linear_attention, reference

NAMES = ("q", "k", "v", "g", "initial_state")


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


def gradients(function, tensors, seed=9, **options):
    outputs = function(**tensors, **options)
    generator = torch.Generator().manual_seed(seed)
    loss = sum((x * torch.randn(x.shape, dtype=x.dtype, generator=generator)).sum() for x in outputs)
    return outputs, torch.autograd.grad(loss, [tensors[name] for name in NAMES])


def assert_equal_to_loop(tensors, **tolerance):
    ours, our_gradients = gradients(gated_linear_attention, tensors, output_final_state=True)
    theirs, their_gradients = gradients(reference, tensors)
    for name, a, b in zip(("o", "final_state", *NAMES), (*ours, *our_gradients), (*theirs, *their_gradients)):
        torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


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


def test_packed_sequences_equal_separate_ones():
    borders = [0, 1, 1, 18, 88, 100]
    tensors = inputs(batch=1, tokens=100, groups=2, sequences=5)
    packed, packed_gradients = gradients(
        gated_linear_attention, tensors, output_final_state=True, cu_seqlens=torch.tensor(borders)
    )

    def apart(q, k, v, g, initial_state):
        parts = [
            reference(*(x[:, a:b] for x in (q, k, v, g)), initial_state=initial_state[i : i + 1]) if b > a else None
            for i, (a, b) in enumerate(pairwise(borders))
        ]
        states = [initial_state[i : i + 1] if part is None else part[1] for i, part in enumerate(parts)]
        return torch.cat([part[0] for part in parts if part], 1), torch.cat(states)

    expected, expected_gradients = gradients(apart, tensors)
    for a, b in zip((*packed, *packed_gradients), (*expected, *expected_gradients)):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


def test_a_sequence_may_be_cut_anywhere_and_continued_from_the_state():
    tensors = inputs(tokens=90)
    whole, final = gated_linear_attention(**tensors, output_final_state=True)
    state = tensors.pop("initial_state")
    parts = []
    for part in (slice(0, 1), slice(1, 71), slice(71, 90)):
        cut = {name: x[:, part] for name, x in tensors.items()}
        o, state = gated_linear_attention(**cut, initial_state=state, output_final_state=True)
        parts.append(o)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, final)


def test_scale_replaces_the_default():
    tensors = inputs()
    o, _ = gated_linear_attention(**tensors, scale=1.0)
    torch.testing.assert_close(o, reference(**tensors, scale=1.0)[0])


def test_no_final_state_unless_asked():
    assert gated_linear_attention(**inputs())[1] is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_as_given_with_a_float32_state(dtype):
    tensors = {name: x.detach().to(dtype).requires_grad_() for name, x in inputs(dtype=torch.float32).items()}
    (o, state), grads = gradients(gated_linear_attention, tensors, output_final_state=True)
    assert o.dtype == dtype and state.dtype == torch.float32 and {x.dtype for x in grads} == {dtype}
    expected, _ = reference(**{name: x.float() for name, x in tensors.items()})
    torch.testing.assert_close(o.float(), expected, atol=0.05, rtol=0.02)


def test_autocast_leaves_the_state_in_float32():
    tensors = inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        o, state = gated_linear_attention(**tensors, output_final_state=True)
    torch.testing.assert_close(o, reference(**tensors)[0], atol=1e-4, rtol=1e-4)
    assert state.dtype == torch.float32


def test_the_library_op_passes_opcheck():
    x = inputs(batch=1, tokens=9, dtype=torch.float32)
    arguments = (*(x[name] for name in NAMES[:4]), 0.5, x["initial_state"], None)
    torch.library.opcheck(torch.ops.hf_ext.gated_linear_attention.default, arguments)


def test_compiles_without_graph_breaks_with_gradients():
    tensors = inputs(dtype=torch.float32)
    compiled = torch.compile(gated_linear_attention, backend="aot_eager", fullgraph=True)
    ours, our_gradients = gradients(compiled, tensors, output_final_state=True)
    theirs, their_gradients = gradients(gated_linear_attention, tensors, output_final_state=True)
    for a, b in zip((*ours, *our_gradients), (*theirs, *their_gradients)):
        torch.testing.assert_close(a, b)


def test_an_exported_program_needs_nothing_of_this_package():
    class Module(torch.nn.Module):
        def forward(self, q, k, v, g):
            return gated_linear_attention(q, k, v, g)[0]

    tensors = [x.detach() for name, x in inputs(dtype=torch.float32).items() if name != "initial_state"]
    program = torch.export.export(Module(), tuple(tensors))
    assert not [node for node in program.graph.nodes if "hf_ext" in str(node.target)]
    torch.testing.assert_close(program.module()(*tensors), gated_linear_attention(*tensors)[0])


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


def test_borders_that_do_not_cover_the_tokens_are_refused():
    with pytest.raises(ValueError, match="rise from 0"):
        gated_linear_attention(**inputs(batch=1, tokens=9, sequences=2), cu_seqlens=torch.tensor([0, 4, 8]))


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


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_kernels_equal_the_chunk_form_in_the_interpreter():
    """In a process of its own: the interpreter is chosen when Triton is imported."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.ops.gla_in_interpreter", json.dumps(TRITON_CASES)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    errors = json.loads(run.stdout.splitlines()[-1])
    assert set(errors) == set(TRITON_CASES)
    assert max(errors.values()) < 2e-5, errors


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
TYPES = {name: "*bf16" for name in ("q", "k", "v", "g", "o", "do", "dv")} | {"scale": "fp32"}
TYPES |= {name: "*i64" for name in ("borders", "chunks", "starts", "ends")}
TYPES |= {name: "i32" for name in ("H", "G", "K", "V", "tokens")}
CONSTANTS = {"C": 64, "R": 16, "BK": 128, "BV": 32, "HAS_START": True}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("kernel", KERNELS)
def test_triton_kernels_compile_for_a_gpu_that_is_not_there(kernel):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hf_ext.ops.gla import triton as kernels

    function = getattr(kernels, kernel)
    constants = {name: CONSTANTS[name] for name in function.arg_names if name in CONSTANTS}
    types = {name: "constexpr" if name in constants else TYPES.get(name, "*fp32") for name in function.arg_names}
    compiled = triton.compile(ASTSource(function, types, constants), target=GPUTarget("cuda", 90, 32))
    assert compiled.metadata.shared <= 227 * 1024, "more shared memory than an H100 has"
