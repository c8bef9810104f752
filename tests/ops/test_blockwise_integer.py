"""Blockwise integers: every form gives what the definition gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops import blockwise_integer as op
from hf_ext.ops import native
from hf_ext.ops.blockwise_integer import definition, eager
from hf_ext.ops.blockwise_integer.interface import attention_forward
from tests.threads import with_threads

FORMS = {"eager": eager, "native": None}


@pytest.fixture(params=FORMS)
def form(request):
    found = FORMS[request.param] or native.load_native("blockwise_integer")
    if found is None:
        pytest.skip(f"no native form: {native.why_not()}")
    return found


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_power_of_two_takes_the_middle_of_the_range():
    q, shift = op.quantize(torch.tensor([1.0, -0.5]), 8, 64)
    assert (q.tolist(), shift.tolist()) == ([64, -32], [6])


def test_the_largest_value_is_clamped():
    q, shift = op.quantize(torch.tensor([0.999, 0.0]), 4, 8)
    assert (q.tolist(), shift.tolist()) == ([7, 0], [3])


def test_halves_are_rounded_to_even():
    q, _ = op.quantize(torch.tensor([1.0, 0.5 / 64, 1.5 / 64, -2.5 / 64]), 8, 4)
    assert q.tolist() == [64, 0, 2, -2]


def test_a_block_of_zeros_has_shift_zero():
    q, shift = op.quantize(torch.zeros(3, 5), 4, (2, 2))
    assert not q.any() and not shift.any() and shift.shape == (2, 3)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    bits=st.integers(2, 8),
    block=st.tuples(st.integers(1, 9), st.integers(1, 17)),
    exponent=st.integers(-140, 120),
)
def test_error_is_half_a_step_and_rounding_again_changes_nothing(shape, bits, block, exponent):
    x = numbers(*shape) * 2.0**exponent
    q, shift = op.quantize(x, bits, block)
    once = op.dequantize(q, shift, block)
    assert q.abs().max() <= 2 ** (bits - 1) - 1
    step = torch.exp2(-definition.spread(shift, x.shape, block).double())
    clamped = q.abs() == 2 ** (bits - 1) - 1
    assert ((x.double() - once).abs() <= step * (0.5 + 0.5 * clamped)).all()
    again = op.quantize(once, bits, block)
    torch.testing.assert_close(op.dequantize(*again, block), once, atol=0, rtol=0)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 33))
def test_packed_integers_come_back(rows, columns):
    q = torch.randint(-7, 8, (rows, columns), generator=torch.Generator().manual_seed(rows), dtype=torch.int8)
    packed = op.pack(q)
    assert packed.shape == (rows, -(-columns // 2))
    assert torch.equal(op.unpack(packed, columns), q)


def test_low_nibble_is_the_even_column():
    assert op.pack(torch.tensor([[1, 2, 3]], dtype=torch.int8)).tolist() == [[0x21, 0x03]]


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-40, 1e30, 3e38])
@pytest.mark.parametrize("block", [8, 64])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_of_activations_is_the_definition(form, bits, block, scale):
    for shape in ((3, 5, 24), (7, 130), (64,), (4, 1)):
        x = numbers(*shape).clamp(-1, 1) * scale
        x.view(-1)[0] = 0
        assert torch.equal(form.rounded(x, bits, block), definition.rounded(x, bits, block))


def test_a_block_without_a_number_has_no_number(form):
    x = torch.ones(2, 8)
    x[0, 0], x[1, 7] = float("nan"), float("inf")
    lost = form.rounded(x, 8, 4).isnan()
    assert lost.tolist() == [[True] * 4 + [False] * 4, [False] * 4 + [True] * 4]


@pytest.mark.parametrize("tokens", [1, 4, 7])
@pytest.mark.parametrize("sizes", [(64, 128), (70, 130), (9, 77), (1, 1), (200, 320), (4, 65)])
@pytest.mark.parametrize(("bits", "packed"), [(8, False), (4, False), (4, True), (2, True)])
@pytest.mark.parametrize("block", [64, 128])
def test_linear_is_the_definition(form, block, bits, packed, sizes, tokens):
    if form is not eager and not form.has_linear(block):
        pytest.skip("this processor has no byte products")
    q, shift = op.quantize(numbers(*sizes), bits, (block, block))
    x, bias = numbers(2, tokens, sizes[1], seed=1), numbers(sizes[0], seed=2)
    weight = op.pack(q) if packed else q
    y = form.linear(x, weight, shift, bias, packed, 8, block)
    expected = definition.linear(x.double(), q, shift, bias.double(), 8, block).float()
    assert (y != expected).float().mean() <= 0.005  # a sum that lies on the border of two integers
    torch.testing.assert_close(y, expected, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("bits", [8, None])
def test_linear_treats_tokens_alone(block, bits):
    q, shift = op.quantize(numbers(96, 128), 4, (block, block))
    x = numbers(9, 128, seed=1)
    whole = op.linear(x, op.pack(q), shift, None, True, bits, block)
    single = torch.cat([op.linear(row, op.pack(q), shift, None, True, bits, block) for row in x.split(1)])
    torch.testing.assert_close(single, whole, atol=1e-4 if bits is None else 0, rtol=0)


def test_threads_change_nothing():
    q, shift = op.quantize(numbers(200, 320), 4, (64, 64))
    arguments = (numbers(9, 320, seed=1), op.pack(q), shift, numbers(200, seed=2), True)
    expected = op.linear(*arguments)

    def check():
        assert torch.equal(op.linear(*arguments), expected)

    with_threads(2, check)


def test_linear_never_makes_all_weights_floats(monkeypatch):
    monkeypatch.setattr(eager, "FLOATS", 1024)
    q, shift = op.quantize(numbers(100, 40), 4, (8, 8))
    x, bias = numbers(3, 40, seed=1), numbers(100, seed=2)
    pieces = eager.linear(x, q, shift, bias, False, 8, 8)
    monkeypatch.setattr(eager, "FLOATS", 2**20)
    torch.testing.assert_close(pieces, eager.linear(x, q, shift, bias, False, 8, 8), atol=1e-5, rtol=0)


def test_embedding_gives_the_rows_of_the_table():
    q, shift = op.quantize(numbers(50, 23), 4, (8, 8))
    ids = torch.tensor([[0, 49], [7, 8]])
    rows = op.embedding(ids, op.pack(q), shift, True, 8, 23, torch.float32)
    assert torch.equal(rows, op.dequantize(q, shift, (8, 8))[ids])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_of_eight_bits_lose_nothing_in_half_precision(dtype):
    x = numbers(4, 128).to(dtype)
    assert torch.equal(op.rounded(x, 8, 64).float(), op.rounded(x.float(), 8, 64))


def test_operations_pass_the_checks_of_torch():
    q, shift = op.quantize(numbers(70, 130), 4, (64, 64))
    arguments = (numbers(3, 130), op.pack(q), shift, numbers(70), True, 8, 64)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.hf_ext.blockwise_linear.default, arguments, test_utils=tests)
    torch.library.opcheck(torch.ops.hf_ext.blockwise_rounded.default, (numbers(3, 130), 8, 64), test_utils=tests)


def test_a_gradient_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="dequantize"):
        op.rounded(numbers(2, 8).requires_grad_(), 8, 4).sum().backward()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: op.quantize(torch.ones(2, 2), 9, 4), "bits is 2 to 8, got 9"),
        (lambda: op.quantize(torch.ones(2, 2), 8, (0, 4)), "block is 1 or more, got 0"),
        (lambda: op.quantize(torch.ones(0, 2), 8, 4), "nothing to quantize"),
        (lambda: op.quantize(torch.ones(4), 8, (2, 2)), "one row tall"),
        (lambda: op.quantize(torch.tensor([1.0, float("nan")]), 8, 4), "NaN"),
        (lambda: op.rounded(torch.ones(2), 1, 4), "bits is 2 to 8, got 1"),
        (
            lambda: op.linear(torch.ones(2, 5), torch.ones(3, 4).char(), torch.ones(1, 1).char()),
            r"need weight \(3, 5\)",
        ),
        (
            lambda: op.linear(torch.ones(2, 5), torch.ones(3, 5).char(), torch.ones(2, 1).char()),
            r"weight_shift \(1, 1\)",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_causal_query_does_not_depend_on_later_keys():
    module = torch.nn.Module()
    module.is_causal = True
    q, k, v = (numbers(1, 2, 6, 8, seed=seed) for seed in range(3))
    k[:, :, 4:] *= 100
    mask = torch.full((6, 6), torch.finfo(torch.float32).min).triu(1)[None, None]
    whole, weights = attention_forward(module, q, k, v, mask)
    first, _ = attention_forward(module, q[:, :, :4], k[:, :, :4], v[:, :, :4], mask[..., :4, :4])
    torch.testing.assert_close(whole[:, :4], first, atol=0.02, rtol=0)
    assert not weights.triu(1).any()


def test_attention_sinks_are_refused():
    q = numbers(1, 2, 6, 8)
    with pytest.raises(ValueError, match="quantize_attention=False"):
        attention_forward(torch.nn.Module(), q, q, q, None, s_aux=torch.zeros(2))
