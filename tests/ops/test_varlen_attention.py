"""Attention over packed sequences: every form against the reference, and as `attn_implementation` on models of other hands."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ViTConfig,
    ViTModel,
)

from hf_ext.ops.varlen_attention import Packing, reference, varlen_attention


def borders(lengths):
    return torch.tensor([0, *torch.tensor(lengths, dtype=torch.long).cumsum(0).tolist()])


def drawn(lengths, heads=4, groups=2, channels=8, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    shapes = ((tokens, heads, channels), (tokens, heads // groups, channels), (tokens, heads // groups, channels + 3))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    groups=st.sampled_from([1, 2, 4]),
    is_causal=st.booleans(),
    scale=st.sampled_from([None, 0.0, 3.0]),
)
def test_equals_the_reference(lengths, groups, is_causal, scale):
    q, k, v = drawn(lengths, groups=groups)
    o = varlen_attention(q, k, v, borders(lengths), scale, is_causal)
    torch.testing.assert_close(o, reference(q, k, v, borders(lengths), scale, is_causal), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lengths", [[1], [63, 64, 65], [1000, 1, 1], [64, 64]])
def test_long_and_short_sequences_equal_the_reference(lengths):
    q, k, v = drawn(lengths)
    expected = reference(*(x.double() for x in (q, k, v)), borders(lengths))
    torch.testing.assert_close(varlen_attention(q, k, v, borders(lengths)).double(), expected, atol=1e-5, rtol=1e-4)


def test_bfloat16_is_near_the_reference():
    q, k, v = drawn([5, 12], dtype=torch.bfloat16)
    o = varlen_attention(q, k, v, borders([5, 12]))
    expected = reference(*(x.float() for x in (q, k, v)), borders([5, 12]))
    assert o.dtype == torch.bfloat16
    torch.testing.assert_close(o.float(), expected, atol=3e-2, rtol=3e-2)


def test_gradients_equal_the_reference():
    lengths = [3, 0, 5, 3]
    inputs = [x.requires_grad_() for x in drawn(lengths, dtype=torch.float64)]
    weights = torch.randn(sum(lengths), 4, 11, dtype=torch.float64)
    ours = torch.autograd.grad((varlen_attention(*inputs, borders(lengths)) * weights).sum(), inputs)
    theirs = torch.autograd.grad((reference(*inputs, borders(lengths)) * weights).sum(), inputs)
    for our, their in zip(ours, theirs):
        torch.testing.assert_close(our, their)


def test_dropout_drops():
    q, k, v = drawn([30, 12])
    assert (
        varlen_attention(q, k, v, borders([30, 12]), dropout=0.5) != varlen_attention(q, k, v, borders([30, 12]))
    ).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, b: (q[None], k, v, b), "three dimensions"),
        (lambda q, k, v, b: (q[:, :3], k, v, b), "of which q has a multiple"),
        (lambda q, k, v, b: (q, k[:, :, :4], v, b), "same channels"),
        (lambda q, k, v, b: (q, k, v, b.float()), "one row of integers"),
        (lambda q, k, v, b: (q, k, v, b + 1), "rise from 0 to the number of tokens, 8"),
        (lambda q, k, v, b: (q, k, v, b[[0, 2, 1]]), "rise from 0"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        varlen_attention(*change(*drawn([3, 5]), borders([3, 5])))


@settings(max_examples=20, derandomize=True, deadline=None)
@given(mask=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_what_is_packed_is_put_back_with_zeros_between(mask):
    mask = torch.tensor(mask)
    x = torch.randn(*mask.shape, 3)
    packing = Packing.of(mask)
    assert packing.tokens == mask.sum() == len(packing.pack(x))
    torch.testing.assert_close(packing.unpack(packing.pack(x)), x * mask[..., None])


# --- on models of other hands

SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
CAUSAL = [
    LlamaConfig(**SMALL, num_key_value_heads=2),
    MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=4),
    GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4),
]


def padded(vocabulary=50, left=False):
    ids = torch.randint(1, vocabulary, (3, 10), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(10) < torch.tensor([10, 4, 7])[:, None]).long()
    return ids, mask.flip(1) if left else mask


@pytest.mark.parametrize("config", CAUSAL, ids=lambda config: config.model_type)
def test_causal_model_computes_and_generates_as_under_sdpa(config, tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    ours, sdpa = (
        AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name).eval()
        for name in ("bytetransformer", "sdpa")
    )
    ids, mask = padded(left=True)
    real = mask.bool()
    with torch.no_grad():
        logits = [model(ids, attention_mask=mask).logits[real] for model in (ours, sdpa)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-4)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    written = [model.generate(ids, attention_mask=mask, **options) for model in (ours, sdpa)]
    assert torch.equal(*written)


def test_encoder_computes_as_under_sdpa():
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SMALL)).eval()
    ids, mask = padded()
    expected = model(ids, attention_mask=mask).last_hidden_state[mask.bool()]
    model.set_attn_implementation("bytetransformer")
    found = model(ids, attention_mask=mask).last_hidden_state[mask.bool()]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_model_without_masks_computes_as_under_sdpa():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4
    )
    model = ViTModel(config).eval()
    pixels = torch.rand(2, 3, 16, 16)
    expected = model(pixels).last_hidden_state
    model.set_attn_implementation("bytetransformer")
    torch.testing.assert_close(model(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-4)
