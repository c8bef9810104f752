"""Subsampled self-attention: the fast form against the loop over targets, and what a draw looks like."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops.subsampled_attention import SSAConfig, choose_sources, draw_noise, reference, subsampled_attention

CASES = {
    "unbiased": ({"num_sources": 5}, 20),
    "unbiased by ratio": ({"ratio": 3.5}, 23),
    "windows": ({"kind": "local1d", "window_size": 4}, 20),
    "windows, the last one short": ({"kind": "local1d", "window_size": 6, "sigma": 9.0}, 20),
    "windows that read both neighbours": ({"kind": "local1d", "window_size": 5, "look_back": 2, "look_ahead": 1}, 23),
    "a window longer than the sequence": ({"kind": "local1d", "window_size": 50}, 9),
    "windows of a grid": ({"kind": "local2d", "grid": (4, 6), "window": (2, 3)}, 24),
    "ragged windows of a grid": ({"kind": "local2d", "grid": (5, 4), "window": (2, 3), "sigma": 3.0}, 20),
    "a grid after class tokens": ({"kind": "local2d", "window": (2, 2)}, 18),
    "source dropout": ({"kind": "source_dropout"}, 20),
    "a draw for each head": ({"num_sources": 5, "share_heads": False}, 20),
    "a draw for each sample": ({"kind": "local1d", "window_size": 6, "share_batch": False}, 20),
    "a draw for each sample and head": (
        {"kind": "local2d", "window": (2, 3), "share_batch": False, "share_heads": False},
        17,
    ),
}


def inputs(tokens, batch=2, heads=2, groups=1, channels=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(batch, n, tokens, channels, dtype=dtype, generator=generator)
        for n in (heads * groups, heads, heads)
    )
    return [x.requires_grad_() for x in (q, k, v)]


def draw(fields, tokens, batch=2, heads=2, seed=3):
    torch.manual_seed(seed)
    chosen = SSAConfig(**fields)
    return draw_noise(chosen, batch, heads, tokens), chosen


def padding(tokens, batch=2):
    mask = torch.ones(batch, tokens, dtype=torch.long)
    mask[0, tokens // 2 :] = 0
    return mask


def bias(tokens):
    return torch.randn(2, 1, tokens, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


MASKS = {
    "no mask": lambda tokens: None,
    "padding": padding,
    "a mask of pairs": lambda tokens: bias(tokens) > 0.5,
    "a bias": bias,
    "a bias for each head": lambda tokens: torch.cat((bias(tokens), bias(tokens) * 2), 1),
}


def assert_equal_to_loop(tensors, noise, chosen, **options):
    o, _ = subsampled_attention(*tensors, noise, chosen, **options)
    expected = reference(*tensors, noise, chosen, **options)
    torch.testing.assert_close(o, expected, atol=1e-11, rtol=1e-11)
    weight = torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)
    ours = torch.autograd.grad((o * weight).sum(), tensors)
    theirs = torch.autograd.grad((expected * weight).sum(), tensors)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("name", CASES)
def test_fast_form_and_its_gradients_equal_the_loop(name, causal):
    fields, tokens = CASES[name]
    assert_equal_to_loop(inputs(tokens), *draw(fields, tokens), causal=causal)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "name", ["unbiased", "windows that read both neighbours", "a grid after class tokens", "a draw for each head"]
)
def test_masks_are_read_at_the_sources(name, mask):
    fields, tokens = CASES[name]
    assert_equal_to_loop(inputs(tokens), *draw(fields, tokens), causal=True, attention_mask=MASKS[mask](tokens))


@pytest.mark.parametrize("name", ["unbiased", "windows of a grid", "a draw for each head"])
def test_queries_may_share_heads_of_keys(name):
    fields, tokens = CASES[name]
    assert_equal_to_loop(inputs(tokens, groups=3), *draw(fields, tokens), causal=True)


@pytest.mark.parametrize("tokens", [1, 63, 64, 65])
@pytest.mark.parametrize("fields", [{}, {"kind": "local1d", "window_size": 16, "look_back": 1}])
def test_lengths_around_a_block_equal_the_loop(tokens, fields):
    assert_equal_to_loop(inputs(tokens, batch=1), *draw(fields, tokens), causal=True)


def test_a_thousand_tokens_equal_dense_attention_under_the_mask_of_the_draw():
    q, k, v = (x.detach() for x in inputs(1000, batch=1, dtype=torch.float32))
    noise, chosen = draw({"kind": "local1d", "window_size": 64, "look_back": 1}, 1000)
    o, sources = subsampled_attention(q, k, v, noise, chosen, causal=True)
    block = torch.arange(1000) // 64
    slot = sources.argsort()  # of each source
    behind = block[:, None] - block[slot]
    visible = (behind >= 0) & (behind <= 1) & (torch.arange(1000)[:, None] >= torch.arange(1000))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    torch.testing.assert_close(o, expected.masked_fill(~visible.any(1)[:, None], 0.0), atol=1e-5, rtol=1e-5)


def test_keeping_every_source_is_dense_attention():
    q, k, v = inputs(17)
    o, _ = subsampled_attention(q, k, v, None, SSAConfig(ratio=1), causal=True)
    torch.testing.assert_close(o, F.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_without_a_shuffle_windows_are_plain_ones():
    q, k, v = inputs(12)
    o, sources = subsampled_attention(q, k, v, None, SSAConfig(kind="local1d", window_size=4, sigma=0.0))
    plain = [F.scaled_dot_product_attention(*(x[:, :, i : i + 4] for x in (q, k, v))) for i in (0, 4, 8)]
    assert sources.tolist() == list(range(12))
    torch.testing.assert_close(o, torch.cat(plain, 2))


def test_targets_without_a_source_get_zeros_and_finite_gradients():
    tensors = inputs(8, dtype=torch.float32)
    noise = torch.arange(8.0, 0.0, -1.0)  # the last positions are drawn
    o, sources = subsampled_attention(*tensors, noise, SSAConfig(num_sources=2), causal=True)
    assert sources.tolist() == [7, 6]
    assert (o[:, :, :6] == 0).all() and (o[:, :, 6:] != 0).all()
    assert all(x.isfinite().all() for x in torch.autograd.grad(o.sum(), tensors))


@pytest.mark.parametrize(("ratio", "tokens", "count"), [(4, 24, 6), (4, 25, 7), (1, 9, 9), (100, 9, 1)])
def test_a_ratio_keeps_its_share_rounded_up(ratio, tokens, count):
    sources = choose_sources(torch.randn(tokens), SSAConfig(ratio=ratio), tokens)
    assert len(sources) == len(set(sources.tolist())) == count


def test_a_short_sequence_keeps_what_it_has():
    assert choose_sources(torch.randn(3), SSAConfig(num_sources=8), 3).sort().values.tolist() == [0, 1, 2]


def test_shuffled_sources_are_a_permutation_that_stays_near_home():
    chosen = SSAConfig(kind="local1d", window_size=16, sigma=4.0)
    sources = choose_sources(torch.randn(4000, generator=torch.Generator().manual_seed(0)), chosen, 4000)
    assert sources.sort().values.tolist() == list(range(4000))
    distance = (sources - torch.arange(4000)).float().std().item()
    assert 3.5 < distance < 4.5


def test_sigma_defaults_to_half_the_window():
    assert SSAConfig(kind="local1d", window_size=6).spread == 3.0
    assert SSAConfig(kind="local2d", window=(4, 6)).spread == 3.0


def test_source_dropout_masks_the_same_sources_for_all_queries_and_heads_of_a_sample():
    tensors = inputs(64, channels=8)
    noise, chosen = draw({"kind": "source_dropout"}, 64)
    o, kept = subsampled_attention(*tensors, noise, chosen)
    assert kept.shape == (2, 64) and not torch.equal(kept[0], kept[1])
    grad = torch.autograd.grad(o.sum(), tensors[2])[0]
    assert torch.equal((grad != 0).all((1, 3)), kept) and torch.equal((grad != 0).any(3).any(1), kept)


def test_draws_follow_the_global_generator():
    chosen = SSAConfig()
    torch.manual_seed(0)
    first, second = draw_noise(chosen, 1, 1, 9), draw_noise(chosen, 1, 1, 9)
    torch.manual_seed(0)
    assert torch.equal(draw_noise(chosen, 1, 1, 9), first) and not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["unbiased", "windows that read both neighbours", "source dropout"])
def test_half_precision_comes_back_as_given(name, dtype):
    fields, tokens = CASES[name]
    tensors = [x.detach() for x in inputs(tokens, dtype=torch.float32)]
    noise, chosen = draw(fields, tokens)
    o, _ = subsampled_attention(*(x.to(dtype) for x in tensors), noise, chosen, causal=True)
    assert o.dtype == dtype
    torch.testing.assert_close(o.float(), reference(*tensors, noise, chosen, causal=True), atol=0.05, rtol=0.05)


def test_large_scores_stay_finite():
    q, k, v = inputs(20, dtype=torch.float32)
    o, _ = subsampled_attention(q * 1e4, k * 1e4, v, None, SSAConfig(ratio=2), causal=True)
    assert o.isfinite().all()


@pytest.mark.parametrize("name", ["unbiased", "a grid after class tokens"])
def test_compiles_without_graph_breaks(name):
    fields, tokens = CASES[name]
    tensors = inputs(tokens, dtype=torch.float32)
    noise, chosen = draw(fields, tokens)
    torch._dynamo.reset()
    compiled = torch.compile(subsampled_attention, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(*tensors, noise, chosen, causal=True)[0], subsampled_attention(*tensors, noise, chosen, causal=True)[0]
    )


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    tokens=st.integers(1, 30),
    batch=st.integers(1, 2),
    groups=st.integers(1, 2),
    kind=st.sampled_from(["unbiased", "local1d", "local2d"]),
    window=st.integers(1, 7),
    look=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    sigma=st.sampled_from([None, 0.0, 30.0]),
    causal=st.booleans(),
    shared=st.booleans(),
)
def test_any_draw_equals_the_loop(tokens, batch, groups, kind, window, look, sigma, causal, shared):
    fields = {
        "kind": kind,
        "window_size": window,
        "window": (window, max(1, window - 1)),
        "look_back": look[0],
        "look_ahead": look[1],
        "sigma": sigma,
        "share_heads": shared,
    }
    noise, chosen = draw(fields, tokens, batch)
    assert_equal_to_loop(inputs(tokens, batch, groups=groups), noise, chosen, causal=causal)


WRONG_SETTINGS = {
    "kind='local3d' is not one of": {"kind": "local3d"},
    "when='never' is not one of": {"when": "never"},
    "ratio=0.5": {"ratio": 0.5},
    "num_sources=0": {"num_sources": 0},
    "window_size=None": {"kind": "local1d"},
    "look_back=-1": {"look_back": -1},
    "window=None": {"kind": "local2d"},
    "grid=": {"kind": "local2d", "window": (2, 2), "grid": (3, 0)},
    "sigma=-1": {"sigma": -1.0},
    "source_dropout=1.0": {"source_dropout": 1.0},
}


@pytest.mark.parametrize("message", WRONG_SETTINGS)
def test_impossible_settings_are_refused_by_name(message):
    with pytest.raises(ValueError, match=message):
        SSAConfig(**WRONG_SETTINGS[message])


WRONG_CALLS = {
    "four dimensions": {"q": torch.zeros(2, 5, 4)},
    "one batch and length": {"k": torch.zeros(2, 2, 6, 4)},
    "heads as k and v or a multiple": {"q": torch.zeros(2, 3, 5, 4)},
    "attention_mask must be": {"attention_mask": torch.zeros(2, 6)},
    "noise for kind='unbiased' and 5 tokens": {"noise": torch.zeros(6)},
    "has 12 places": {"settings": SSAConfig(kind="local2d", window=(2, 2), grid=(3, 4))},
}


@pytest.mark.parametrize("message", WRONG_CALLS)
def test_calls_that_do_not_fit_are_refused(message):
    q, k, v = (torch.zeros(2, 2, 5, 4) for _ in range(3))
    with pytest.raises(ValueError, match=message):
        subsampled_attention(**{"q": q, "k": k, "v": v, **WRONG_CALLS[message]})
