"""ProbSparse attention: every form against the query loop, full attention and plain averages; as `attn_implementation` upstream."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, ViTConfig, ViTModel

from hf_ext.ops.native import load_native
from hf_ext.ops.prob_sparse_attention import count, eager, prob_sparse_attention, reference, sample_keys, sparsity

quick = settings(max_examples=20, deadline=None, derandomize=True)


def inputs(queries=40, keys=None, batch=2, heads=3, channels=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, length, heads, channels) for length in (queries, keys or queries, keys or queries)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def full_attention(q, k, v, is_causal=False):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(1, 2)


def samples(queries, keys=None, factor=2, seed=3):
    return sample_keys(queries, keys or queries, factor, torch.Generator().manual_seed(seed))


# --- against the definition


@quick
@given(
    queries=st.integers(2, 50),
    keys=st.one_of(st.none(), st.integers(2, 50)),
    factor=st.integers(1, 6),
    is_causal=st.booleans(),
)
def test_equals_the_definition(queries, keys, factor, is_causal):
    keys = queries if is_causal else keys
    q, k, v = inputs(queries, keys)
    index = samples(queries, keys, factor)
    o, _ = prob_sparse_attention(q, k, v, index, factor, is_causal)
    expected, measure, _ = reference(q, k, v, index, factor, is_causal)
    torch.testing.assert_close(o, expected)
    torch.testing.assert_close(sparsity(q, k, index), measure)


@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_equal_those_of_the_definition(is_causal):
    tensors = [x.requires_grad_() for x in inputs()]
    index, weight = samples(40), torch.randn(2, 40, 3, 8, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((function(*tensors, index, 2, is_causal)[0] * weight).sum(), tensors)
        for function in (prob_sparse_attention, reference)
    ]
    for ours, expected in zip(*gradients):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("is_causal", [False, True])
def test_with_every_query_selected_it_is_full_attention(is_causal):
    q, k, v = inputs()
    o, _ = prob_sparse_attention(q, k, v, samples(40, factor=50), 50, is_causal)
    torch.testing.assert_close(o, full_attention(q, k, v, is_causal))


def test_queries_that_do_not_attend_get_the_mean():
    q, k, v = inputs()
    o, weights = prob_sparse_attention(q, k, v, samples(40), 2, output_weights=True)
    lazy = (weights == 1 / 40).all(-1)  # (B, H, Q)
    assert lazy.sum(-1).eq(40 - count(2, 40)).all()
    expected = v.mean(1)[:, :, None].expand(-1, -1, 40, -1)
    torch.testing.assert_close(o.transpose(1, 2)[lazy], expected[lazy])


def test_weights_of_queries_that_attend_give_their_output():
    q, k, v = inputs()
    o, weights = prob_sparse_attention(q, k, v, samples(40), 2, output_weights=True)
    torch.testing.assert_close(torch.einsum("bhij,bjhd->bihd", weights, v), o)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 40, dtype=torch.float64))


def test_causal_form_sums_and_sees_no_future():
    q, k, v = inputs()
    changed = [x.clone() for x in (q, k, v)]
    for x in changed[1:]:
        x[:, 30:] += 1
    # the same queries attend as long as who attends is not up to the later keys
    index = samples(40).clamp(max=29)
    o, _ = prob_sparse_attention(q, k, v, index, 2, is_causal=True)
    torch.testing.assert_close(prob_sparse_attention(*changed, index, 2, is_causal=True)[0][:, :30], o[:, :30])
    first = ~reference(q, k, v, index, 2, True)[2][..., 5]
    torch.testing.assert_close(o[:, 5][first], v[:, :6].sum(1)[first])


@quick
@given(queries=st.integers(1, 70), keys=st.integers(1, 70), masked=st.booleans(), seed=st.integers(0, 5))
def test_native_form_equals_the_torch_form(queries, keys, masked, seed):
    native = load_native("prob_sparse_attention")
    if native is None:
        pytest.skip("no C++ compiler here")
    q, k, _ = inputs(queries, keys, channels=19, dtype=torch.float32, seed=seed)
    mask = torch.rand(2, keys, generator=torch.Generator().manual_seed(seed)) > 0.3 if masked else None
    index = samples(queries, keys, seed=seed)
    torch.testing.assert_close(native.measure(q, k, index, mask), eager.measure(q, k, index, mask))


INTERPRETED = """
import torch
from hf_ext.ops.prob_sparse_attention import eager, sample_keys, triton
for queries, keys, channels, masked in ((40, 33, 19, True), (70, 70, 16, False)):
    q, k = torch.randn(2, queries, 3, channels), torch.randn(2, 3, keys, channels).transpose(1, 2)
    mask = torch.rand(2, keys) > 0.3 if masked else None
    index = sample_keys(queries, keys, 2)
    torch.testing.assert_close(triton.measure(q, k, index, mask), eager.measure(q, k, index, mask), atol=1e-5, rtol=1e-5)
print("equal")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_form_equals_the_torch_form_in_the_interpreter():
    """In a process of its own: the interpreter is chosen when Triton is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert run.stdout.endswith("equal\n"), run.stderr


@pytest.mark.parametrize("masked", [False, True])
def test_triton_form_compiles_for_a_gpu_that_is_not_there(masked):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hf_ext.ops.prob_sparse_attention.triton import measure_rows

    constants = {"D": 64, "BD": 64, "R": 32, "MASKED": masked}
    types = {"q": "*bf16", "k": "*bf16", "index": "*i64", "mask": "*u8", "out": "*fp32"}
    types = {name: "constexpr" if name in constants else types.get(name, "i32") for name in measure_rows.arg_names}
    triton.compile(ASTSource(measure_rows, types, constants), target=GPUTarget("cuda", 90, 32))


def test_blocks_change_nothing(monkeypatch):
    q, k, _ = inputs()
    expected = eager.measure(q, k, samples(40))
    monkeypatch.setattr(eager, "BLOCK_SCORES", 7 * 2 * 3 * 40)
    torch.testing.assert_close(eager.measure(q, k, samples(40)), expected)


def test_half_precision_selects_in_float32():
    q, k, v = inputs(dtype=torch.bfloat16)
    assert sparsity(q, k, samples(40)).dtype == torch.float32
    o, _ = prob_sparse_attention(q, k, v, samples(40), 2)
    expected, _ = prob_sparse_attention(q.float(), k.float(), v.float(), samples(40), 2)
    assert o.dtype == torch.bfloat16
    torch.testing.assert_close(o.float(), expected, atol=0.03, rtol=0.03)


def test_samples_are_those_of_the_authors_under_a_seed():
    torch.manual_seed(7)
    expected = torch.randint(48, (48, 3 * 4))
    assert torch.equal(sample_keys(48, 48, 3, torch.Generator().manual_seed(7)), expected)


def test_operator_passes_torchs_own_checks():
    q, k, _ = inputs(dtype=torch.float32)
    torch.library.opcheck(torch.ops.hf_ext.prob_sparse_measure, (q, k, samples(40), None))


def test_memory_stays_below_the_gathered_keys():
    from hf_ext.benchmarks import peak_mib

    q, k, v = inputs(queries=600, channels=32, dtype=torch.float32)
    index = samples(600, factor=5)
    gathered = 2 * 3 * 600 * index.shape[1] * 32 * 4 / 2**20
    assert peak_mib(lambda: prob_sparse_attention(q, k, v, index)) < gathered / 3


# --- padding


def test_padding_is_as_if_it_were_not_there():
    q, k, v = inputs()
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[1, 25:] = False
    other = [torch.where(mask[:, :, None, None], x, 9.0) for x in (q, k, v)]
    o, _ = prob_sparse_attention(q, k, v, samples(40), 2, padding_mask=mask)
    o_other, _ = prob_sparse_attention(*other, samples(40), 2, padding_mask=mask)
    torch.testing.assert_close(o_other[mask], o[mask])
    unmasked, _ = prob_sparse_attention(q, k, v, samples(40), 2)
    torch.testing.assert_close(o[0], unmasked[0])


# --- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, i: (q[0], k, v, i), "four dimensions"),
        (lambda q, k, v, i: (q, k[:, :0], v[:, :0], i), "none of size 0"),
        (lambda q, k, v, i: (q, k[..., :4], v, i), "length alone"),
        (lambda q, k, v, i: (q, k, v[:, :5], i), "channels alone"),
        (lambda q, k, v, i: (q, k, v, i[:7]), "index_sample"),
        (lambda q, k, v, i: (q, k, v, i.float()), "index_sample"),
        (lambda q, k, v, i: (q, k, v, i, 0), "factor"),
        (lambda q, k, v, i: (q[:, :9], k, v, i[:9], 2, True), "as many queries as keys"),
        (lambda q, k, v, i: (q, k, v, i, 2, False, None, torch.ones(2, 40)), "padding_mask"),
        (lambda q, k, v, i: (q, k, v, i, 2, True, None, torch.ones(2, 40).bool()), "padding_mask"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        prob_sparse_attention(*change(*inputs(), samples(40)))


def test_samples_beyond_the_keys_are_refused():
    q, k, v = inputs(dtype=torch.float32)
    with pytest.raises((IndexError, RuntimeError), match="index"):
        prob_sparse_attention(q, k, v, samples(40) + 40, 2)


# --- as `attn_implementation` of upstream's models


def vit(**fields):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=4, **fields
    )  # fmt: skip
    return ViTModel(config).eval(), torch.randn(2, 3, 32, 32)


@torch.no_grad()
def test_vit_with_prob_sparse_attention_repeats_itself_and_differs_from_full():
    model, images = vit()
    expected = model(images).last_hidden_state
    model.set_attn_implementation("prob_sparse")
    ours = model(images).last_hidden_state
    assert torch.equal(model(images).last_hidden_state, ours)
    assert not torch.equal(ours, expected)


@torch.no_grad()
def test_vit_with_a_large_factor_equals_full_attention():
    model, images = vit(sampling_factor=20)
    expected = model(images).last_hidden_state
    model.set_attn_implementation("prob_sparse")
    torch.testing.assert_close(model(images).last_hidden_state, expected)


def test_vit_trains_and_shows_its_weights():
    model, images = vit()
    model.set_attn_implementation("prob_sparse")
    output = model.train()(images, output_attentions=True)
    output.last_hidden_state.sum().backward()
    assert [weights.shape for weights in output.attentions] == [(2, 2, 65, 65)] * 2
    assert model.layers[0].attention.q_proj.weight.grad.isfinite().all()


@torch.no_grad()
def test_bert_does_not_see_padding():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    model = BertModel(config).eval()
    model.set_attn_implementation("prob_sparse")
    ids = torch.randint(0, 50, (2, 40))
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    expected = model(ids, attention_mask=mask).last_hidden_state
    ids[1, 30:] = 7
    torch.testing.assert_close(model(ids, attention_mask=mask).last_hidden_state[1, :30], expected[1, :30])


def test_causal_models_are_refused():
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = LlamaModel(config)
    model.set_attn_implementation("prob_sparse")
    with pytest.raises(ValueError, match="among all tokens"):
        model(torch.zeros(1, 9, dtype=torch.long))
