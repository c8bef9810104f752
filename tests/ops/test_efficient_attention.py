"""Linear, Performer, Linformer, window-global and Nyström attention: the fast forms, and the switch on models of other hands."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, StaticCache

from hf_ext.ops.efficient_attention import (
    linear_attention,
    linformer_attention,
    nystrom_attention,
    performer_attention,
    random_features,
    reference,
    window_global_attention,
)
from hf_ext.ops.efficient_attention.interface import SETTINGS

DOUBLE = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(0)}


def draw(tokens=37, channels=8, batch=2, heads=2, generator=None):
    generator = generator or torch.Generator().manual_seed(tokens)
    return torch.randn(3, batch, heads, tokens, channels, generator=generator, dtype=torch.float64).unbind()


FORMS = {
    "linear": (linear_attention, reference.linear_attention),
    "performer": (
        lambda q, k, v, **x: performer_attention(q, k, v, random_features(16, 8).double(), **x),
        lambda q, k, v, **x: reference.performer_attention(q, k, v, random_features(16, 8).double(), **x),
    ),
    "window_global": (
        lambda q, k, v, **x: window_global_attention(q, k, v, 3, 2, **x),
        lambda q, k, v, **x: reference.window_global_attention(q, k, v, 3, 2, **x),
    ),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=8, derandomize=True, deadline=None)
@given(tokens=st.integers(1, 150))
def test_fast_form_equals_the_definition(form, causal, tokens):
    fast, definition = FORMS[form]
    qkv = draw(tokens)
    torch.testing.assert_close(fast(*qkv, causal=causal), definition(*qkv, causal=causal))


@settings(max_examples=10, derandomize=True, deadline=None)
@given(tokens=st.integers(1, 60), window=st.integers(0, 70), num_global=st.integers(0, 5), causal=st.booleans())
def test_window_global_equals_masked_softmax(tokens, window, num_global, causal):
    qkv = draw(tokens)
    expected = reference.window_global_attention(*qkv, window, num_global, causal)
    torch.testing.assert_close(window_global_attention(*qkv, window, num_global, causal), expected)


def test_linformer_equals_the_definition():
    qkv, projections = draw(12), torch.randn(2, 4, 20, **DOUBLE)
    expected = reference.linformer_attention(*qkv, *projections[:, :, :12])
    torch.testing.assert_close(linformer_attention(*qkv, *projections), expected)


def test_nystrom_with_equal_runs_equals_the_definition():
    torch.testing.assert_close(
        nystrom_attention(*draw(12), 4), reference.nystrom_attention(*draw(12), 4), rtol=1e-4, atol=1e-5
    )


def test_nystrom_with_a_landmark_for_each_token_is_full_attention():
    qkv = draw(10)
    expected = torch.nn.functional.scaled_dot_product_attention(*qkv)
    torch.testing.assert_close(nystrom_attention(*qkv, 10), expected, rtol=1e-3, atol=1e-4)


def test_nystrom_iterations_approach_the_exact_inverse():
    qkv = draw(48)
    exact = nystrom_attention(*qkv, 6)
    errors = [(nystrom_attention(*qkv, 6, iterations=n) - exact).abs().max() for n in (4, 12)]
    assert errors[1] < errors[0]


def test_performer_approaches_softmax_with_more_features():
    q, k, v = (x / 2 for x in draw(32, 16))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    errors = [
        (performer_attention(q, k, v, random_features(number, 16).double()) - expected).abs().mean()
        for number in (16, 4096)
    ]
    assert errors[1] < errors[0] / 4


def test_performer_does_not_overflow_in_half_precision():
    q, k, v = (20 * x.half() for x in draw(16))
    assert performer_attention(q, k, v, random_features(32, 8)).isfinite().all()


PADDED = {
    "linear": lambda q, k, v, m: linear_attention(q, k, v, attention_mask=m),
    "causal linear": lambda q, k, v, m: linear_attention(q, k, v, True, m),
    "performer": lambda q, k, v, m: performer_attention(q, k, v, random_features(16, 8).double(), attention_mask=m),
    "window_global": lambda q, k, v, m: window_global_attention(q, k, v, 4, 1, attention_mask=m),
    "linformer": lambda q, k, v, m: linformer_attention(q, k, v, *PROJECTIONS, attention_mask=m),
}
PROJECTIONS = torch.randn(2, 4, 64, **DOUBLE)


@pytest.mark.parametrize("form", PADDED)
def test_padding_on_the_right_changes_nothing(form):
    q, k, v = draw(30)
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, 21:] = 0
    found = PADDED[form](q, k, v, mask)
    alone = PADDED[form](*(x[1:, :, :21] for x in (q, k, v)), torch.ones(1, 21))
    torch.testing.assert_close(found[1:, :, :21], alone)
    assert found.isfinite().all()


def test_nystrom_ignores_what_stands_at_padding():
    q, k, v = draw(24)
    mask = torch.ones(2, 24)
    mask[:, 15:] = 0
    found = nystrom_attention(q, k, v, 4, mask)
    for x in (q, k, v):
        x[:, :, 15:] = 7.0
    torch.testing.assert_close(nystrom_attention(q, k, v, 4, mask)[:, :, :15], found[:, :, :15])


@pytest.mark.parametrize("form", PADDED)
def test_gradients_are_right(form):
    qkv = [x.requires_grad_() for x in draw(7, 8, 1, 1)]
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 1]])
    assert torch.autograd.gradcheck(lambda *x: PADDED[form](*x, mask), qkv)


@pytest.mark.parametrize(
    "call",
    [
        lambda q, k, v: linear_attention(q[0], k, v),
        lambda q, k, v: linear_attention(q[:, :1], k, v),
        lambda q, k, v: linear_attention(q[:, :, :3], k, v, causal=True),
        lambda q, k, v: linear_attention(q, k, v, attention_mask=torch.ones(2, 3)),
        lambda q, k, v: performer_attention(q, k, v, torch.ones(4, 3)),
        lambda q, k, v: linformer_attention(q, k, v, torch.ones(4, 5), torch.ones(4, 37)),
        lambda q, k, v: window_global_attention(q, k, v, -1),
        lambda q, k, v: nystrom_attention(q, k, v, 38),
    ],
)
def test_bad_input_is_a_value_error(call):
    with pytest.raises(ValueError, match=r"got|must"):
        call(*draw())


BERT = BertConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=64
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)


@pytest.mark.parametrize("name", SETTINGS)
def test_any_encoder_switches_and_padding_is_seen(name):
    torch.manual_seed(0)
    model = BertModel(BERT).eval()
    model.set_attn_implementation(name)
    ids = torch.randint(3, 64, (2, 40))
    mask = torch.ones_like(ids)
    mask[1, 25:] = 0
    with torch.no_grad():
        found = model(ids, attention_mask=mask).last_hidden_state
        ids[1, 25:] = 5
        again = model(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[1, :25], again[1, :25])


@pytest.mark.parametrize("name", ["linear_elu", "performer", "window_global"])
def test_cached_decoding_equals_one_pass(name):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2).eval()
    model.set_attn_implementation(name)
    model.config.window_global = {"window": 5, "num_global": 1}
    ids = torch.randint(3, 64, (2, 20))
    with torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :12])
        several = model(ids[:, 12:17], past_key_values=first.past_key_values)
        last = model(ids[:, 17:18], past_key_values=several.past_key_values)
    torch.testing.assert_close(several.logits, whole[:, 12:17], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(last.logits, whole[:, 17:18], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["linear_elu", "window_global"])
def test_left_padded_generation_with_grouped_heads_equals_generation_alone(name):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    }
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, eos_token_id=None, **sizes)
    config.window_global = {"window": 4, "num_global": 0}
    model = LlamaForCausalLM(config).eval()
    model.set_attn_implementation(name)
    ids = torch.randint(3, 64, (2, 12))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    together = model.generate(ids * mask, attention_mask=mask, max_new_tokens=6, do_sample=False)
    alone = model.generate(ids[:1, 5:], attention_mask=mask[:1, 5:], max_new_tokens=6, do_sample=False)
    assert torch.equal(together[0, 12:], alone[0, 7:])


def test_a_static_cache_is_refused():
    model = GPT2LMHeadModel(GPT2).eval()
    model.set_attn_implementation("linear_elu")
    with pytest.raises(ValueError, match="a cache that grows"):
        model(torch.tensor([[3, 4]]), past_key_values=StaticCache(config=GPT2, max_cache_len=8))


def test_a_window_over_everything_is_full_attention():
    torch.manual_seed(0)
    model = BertModel(BERT).eval()
    ids = torch.randint(3, 64, (2, 40))
    expected = model(ids).last_hidden_state
    model.set_attn_implementation("window_global")
    torch.testing.assert_close(model(ids).last_hidden_state, expected, rtol=1e-4, atol=1e-4)


def test_nystrom_refuses_a_decoder():
    model = GPT2LMHeadModel(GPT2).eval()
    model.set_attn_implementation("nystrom")
    with pytest.raises(ValueError, match="never causal"):
        model(torch.tensor([[3, 4, 5]]))


def test_unknown_setting_is_refused():
    model = BertModel(BERT)
    model.set_attn_implementation("performer")
    model.config.performer = {"features": 3}
    with pytest.raises(ValueError, match="num_features"):
        model(torch.tensor([[3, 4, 5]]))


def test_linear_attention_exports():
    class Wrapper(torch.nn.Module):
        def forward(self, q, k, v):
            return linear_attention(q, k, v, causal=True) + window_global_attention(q, k, v, 3, 1)

    qkv = draw(20)
    program = torch.export.export(Wrapper(), qkv)
    torch.testing.assert_close(program.module()(*qkv), Wrapper()(*qkv))
