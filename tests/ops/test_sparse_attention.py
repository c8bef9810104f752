"""Sparse attention by product codes: the fast form against the loop over queries, and who is chosen."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops.sparse_attention import (
    count_matches,
    eager,
    product_codes,
    quantize,
    quantizer_loss,
    reference,
    select_keys,
    sparse_attention,
)


def inputs(tokens, batch=2, heads=2, channels=8, dtype=torch.float64, seed=0, codewords=4):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, tokens, channels)
    q, k, v = (torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for _ in range(3))
    return q, k, v, torch.randn(channels // 4, codewords, 4, dtype=dtype, generator=generator)


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 63, 64, 65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_reference(tokens, dtype):
    q, k, v, codebooks = inputs(tokens, dtype=dtype)
    torch.testing.assert_close(sparse_attention(q, k, v, codebooks), reference(q, k, v, codebooks))


@settings(max_examples=15, derandomize=True, deadline=None)
@given(st.integers(1, 24), st.integers(1, 9), st.integers(1, 3), st.integers(1, 6), st.integers(0, 99))
def test_equals_the_reference_over_sizes(tokens, coefficient, heads, codewords, seed):
    q, k, v, codebooks = inputs(tokens, heads=heads, seed=seed, codewords=codewords)
    o = sparse_attention(q, k, v, codebooks, sparse_coeff=coefficient)
    torch.testing.assert_close(o, reference(q, k, v, codebooks, coefficient))


def test_gradients_equal_those_of_the_reference():
    q, k, v, codebooks = inputs(33)
    weights = torch.randn(q.shape, dtype=q.dtype, generator=torch.Generator().manual_seed(1))
    ours, expected = (
        torch.autograd.grad((form(q, k, v, codebooks) * weights).sum(), (q, k, v))
        for form in (sparse_attention, reference)
    )
    torch.testing.assert_close(ours, expected)


def test_chunks_of_queries_change_nothing(monkeypatch):
    q, k, v, codebooks = inputs(40)
    whole = sparse_attention(q, k, v, codebooks)
    monkeypatch.setattr(eager, "CHUNK_ELEMENTS", 500)
    torch.testing.assert_close(sparse_attention(q, k, v, codebooks), whole)


def test_padding_is_never_attended_to():
    q, k, v, codebooks = inputs(24)
    visible = torch.ones(24, 24, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    visible[0, ..., :9] = False
    expected = reference(q, k, v, codebooks, 4, visible.expand(2, 2, 24, 24))
    o = sparse_attention(q, k, v, codebooks, sparse_coeff=4, attention_mask=visible)
    torch.testing.assert_close(o, expected)
    assert not o[0, :, :9].any()


def test_added_mask_hides_as_a_bool_one_does():
    q, k, v, codebooks = inputs(12)
    visible = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    added = torch.zeros(1, 1, 12, 12, dtype=q.dtype).masked_fill(~visible, torch.finfo(q.dtype).min)
    results = [sparse_attention(q, k, v, codebooks, sparse_coeff=3, attention_mask=mask) for mask in (visible, added)]
    torch.testing.assert_close(*results)


def test_keeping_every_key_is_dense_attention():
    q, k, v, codebooks = inputs(20)
    o = sparse_attention(q, k, v, codebooks, sparse_coeff=1)
    torch.testing.assert_close(o, F.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_later_tokens_change_nothing():
    q, k, v, codebooks = inputs(16)
    changed = [x.detach().clone() for x in (q, k, v)]
    for x in changed:
        x[:, :, 10:] += 1
    torch.testing.assert_close(
        sparse_attention(*changed, codebooks)[:, :, :10], sparse_attention(q, k, v, codebooks)[:, :, :10]
    )


def test_last_query_alone_gets_what_it_gets_among_all():
    q, k, v, codebooks = inputs(19)
    alone = sparse_attention(q[:, :, -1:], k, v, codebooks)
    torch.testing.assert_close(alone, sparse_attention(q, k, v, codebooks)[:, :, -1:])


def test_shared_keys_serve_several_heads():
    q, k, v, codebooks = inputs(16, heads=4)
    k, v = k[:, :2], v[:, :2]
    repeated = [x.repeat_interleave(2, 1) for x in (k, v)]
    torch.testing.assert_close(sparse_attention(q, k, v, codebooks), reference(q, *repeated, codebooks))


def test_of_equal_matches_the_later_keys_are_chosen():
    positions, matches = select_keys(torch.tensor([[2, 2, 1, 2]]), torch.tensor(True), 2)
    assert positions.tolist() == [[3, 1]]
    assert matches.tolist() == [[2, 2]]


def test_missing_keys_are_marked():
    _, matches = select_keys(torch.tensor([[3, 1, 2]]), torch.tensor([[True, False, False]]), 2)
    assert matches.tolist()[0][0] == 3
    assert matches.tolist()[0][1] == -1


def test_without_codebooks_the_best_scores_are_chosen():
    q, k, v, _ = inputs(16)
    scores = (q @ k.mT * 8**-0.5).masked_fill(~torch.ones(16, 16, dtype=torch.bool).tril(), -torch.inf)
    limit = scores.topk(4).values[..., -1:]
    expected = scores.masked_fill(scores < limit, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(sparse_attention(q, k, v, sparse_coeff=4), expected)


def test_large_scores_are_clamped():
    q, k, v, codebooks = inputs(16, dtype=torch.float32)
    assert sparse_attention(q * 1e4, k, v, codebooks).isfinite().all()


def test_a_codeword_is_its_own_code():
    codebooks = inputs(1, codewords=6)[3]
    codes = torch.tensor([[0, 3], [5, 1]])
    assert torch.equal(product_codes(quantize(codes, codebooks), codebooks), codes)
    assert count_matches(codes.T, codes.T).tolist() == [[2, 0], [0, 2]]


def test_quantizer_loss_reaches_vectors_and_codebooks():
    q, _, _, codebooks = inputs(16)
    grads = torch.autograd.grad(quantizer_loss(q, codebooks.requires_grad_()), (q, codebooks))
    assert all(grad.isfinite().all() and grad.any() for grad in grads)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(2, 2, 5, 8, dtype=torch.float64)}, "k and v"),
        ({"codebooks": torch.zeros(3, 4, 4)}, "subspaces"),
        ({"sparse_coeff": 0}, "sparse_coeff=0"),
        ({"q": torch.zeros(2, 2, 9, 8, dtype=torch.float64)}, "at least as many keys"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = dict(zip(("q", "k", "v", "codebooks"), inputs(8))) | change
    with pytest.raises(ValueError, match=message):
        sparse_attention(**arguments)
