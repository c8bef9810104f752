"""Routed attention: the fast form against the loop over clusters, who is taken, and the centroids' update."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops.routed_attention import (
    cluster_members,
    kmeans_reference,
    kmeans_step,
    normalize,
    reference,
    routed_attention,
    similarity,
)
from hf_ext.ops.routed_attention.eager import attend, attend_at, attend_members_last
from hf_ext.ops.routed_attention.reference import choose

EXACT = {"atol": 1e-11, "rtol": 1e-11}


def inputs(tokens=20, clusters=3, batch=2, heads=2, channels=4, tables=True, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator)

    q, k, v = (draw(batch, heads, tokens, channels) for _ in range(3))
    q[:, :, tokens // 3] = q[:, :, tokens // 2]  # equal tokens are equally similar
    v[0, :, tokens // 4] = 0
    relative = {name: draw(11, channels).requires_grad_() for name in ("relative_keys", "relative_values") if tables}
    return (
        *(x.requires_grad_() for x in (normalize(q), normalize(k), v)),
        normalize(draw(heads, clusters, channels)),
        relative,
    )


def assert_equal_to_loop(q, k, v, means, relative, window, **options):
    o = routed_attention(q, k, v, means, window, **relative, **options)
    keys = q if k is None else k
    expected = reference(q, keys, v, similarity(q, means), similarity(keys, means), window, **relative, **options)
    torch.testing.assert_close(o, expected, **EXACT)
    tensors = [x for x in (q, k, v, *relative.values()) if x is not None]
    weight = torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), tensors) for x in (o, expected))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
@pytest.mark.parametrize("strided", [False, True], ids=["nearest", "strided"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "apart"])
def test_fast_form_and_its_gradients_equal_the_loop(shared, strided, causal):
    q, k, v, means, relative = inputs()
    assert_equal_to_loop(q, None if shared else k, v, means, relative, 6, strided=strided, causal=causal)


@pytest.mark.parametrize(("tokens", "window"), [(1, 1), (7, 7), (63, 16), (64, 64), (65, 30)])
def test_any_length_and_window_equal_the_loop(tokens, window):
    q, _, v, means, relative = inputs(tokens, 2, batch=1, heads=1)
    assert_equal_to_loop(q, None, v, means, relative, window)


def test_one_cluster_of_everything_is_causal_attention():
    q, _, v, means, _ = inputs(clusters=1, tables=False)
    with torch.no_grad():
        v[0, :, 5] = 1
    o = routed_attention(q, None, v, means, 20)
    expected = F.scaled_dot_product_attention(q, q, v, is_causal=True, scale=1.0)
    torch.testing.assert_close(o, expected / 1.01, **EXACT)


def test_with_shared_keys_who_is_taken_sees_nothing_later():
    """Freezing who is taken: values of later positions change nothing."""
    q, _, v, means, _ = inputs(tables=False)
    changed = v.detach().clone()
    changed[:, :, 12:] += 1
    before, after = (routed_attention(q, None, x, means, 6) for x in (v, changed))
    torch.testing.assert_close(before[:, :, :12], after[:, :, :12])
    assert not torch.equal(before[:, :, 12:], after[:, :, 12:])


def test_positions_of_zero_values_are_not_seen():
    q, _, v, means, _ = inputs(tables=False)
    other = q.detach().clone()
    with torch.no_grad():
        v[:, :, 5] = 0
        other[:, :, 5] *= 1.001  # taken by the same clusters
    before, after = (routed_attention(x, None, v, means, 6, causal=False) for x in (q, other))
    rest = torch.arange(20) != 5
    torch.testing.assert_close(before[:, :, rest], after[:, :, rest])


@pytest.mark.parametrize("strided", [False, True])
def test_of_equal_similarities_the_earlier_position_is_taken(strided):
    levels = torch.randint(0, 3, (2, 2, 30, 4), generator=torch.Generator().manual_seed(0)).double()
    members = cluster_members(levels, 7, strided)
    for b in range(2):
        for h in range(2):
            for c in range(4):
                assert members[b, h, c].tolist() == choose(levels[b, h, :, c], 7, strided)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("real", [12, 5])
def test_hidden_positions_at_the_end_are_taken_last(strided, real):
    similar = torch.randn(1, 2, 16, 3, generator=torch.Generator().manual_seed(0))
    hidden = torch.arange(16)[None] >= real
    members = cluster_members(similar, 6, strided, hidden)
    alone = cluster_members(similar[:, :, :real], min(6, real), strided)
    assert torch.equal(members[..., : alone.shape[-1]], alone)


@pytest.mark.parametrize("new", [1, 3, 20])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "apart"])
def test_the_last_queries_alone_equal_those_of_all(shared, new):
    q, k, v, means, relative = inputs()
    k = q if shared else k
    members = [cluster_members(similarity(x, means), 6) for x in (q, k)]
    whole = routed_attention(q, None if shared else k, v, means, 6, **relative)
    last = attend_members_last(q[:, :, -new:], k, v, *members, *relative.values())
    torch.testing.assert_close(last, whole[:, :, -new:], **EXACT)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 5), (4, 4), (3, 9)])
def test_skewed_distances_equal_gathered_ones(queries, keys):
    generator = torch.Generator().manual_seed(0)
    q, k, v, *tables = (
        torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in (queries, keys, keys, 7, 7)
    )
    hidden = torch.zeros(queries, keys, dtype=torch.bool)
    distance = torch.arange(keys) - torch.arange(keys - queries, keys)[:, None]
    torch.testing.assert_close(attend(q, k, v, hidden, *tables), attend_at(q, k, v, hidden, distance, *tables), **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_and_near(dtype):
    q, _, v, means, _ = inputs(dtype=torch.float32, tables=False)
    o = routed_attention(q.to(dtype), None, v.to(dtype), means, 20)
    assert o.dtype == dtype
    torch.testing.assert_close(o.float(), routed_attention(q, None, v, means, 20), atol=0.05, rtol=0.05)


def test_compiles_without_graph_breaks():
    q, _, v, means, relative = inputs(dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(routed_attention, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(q, None, v, means, 6, **relative), routed_attention(q, None, v, means, 6, **relative)
    )


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(
    tokens=st.integers(1, 20),
    share=st.floats(0.05, 1.0),
    clusters=st.integers(1, 4),
    channels=st.integers(1, 5),
    shared=st.booleans(),
    strided=st.booleans(),
    tables=st.booleans(),
)
def test_any_shape_equals_the_loop(tokens, share, clusters, channels, shared, strided, tables):
    q, k, v, means, relative = inputs(tokens, clusters, 1, channels=channels, tables=tables)
    window = max(1, int(share * tokens))
    assert_equal_to_loop(q, None if shared else k, v, means, relative, window, strided=strided)


def averages(clusters=4, heads=2, channels=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    means = normalize(torch.randn(heads, clusters, channels, dtype=torch.float64, generator=generator))
    return means, 3 * torch.rand(heads, clusters, dtype=torch.float64, generator=generator), means.clone()


@pytest.mark.parametrize("tokens", [8, 9])
def test_a_step_of_kmeans_equals_the_loop(tokens):
    items = normalize(torch.randn(3, 2, tokens, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    items[0, :, -2:] = 0
    ours = kmeans_step(items, *averages(), decay=0.9)
    for a, b in zip(ours, kmeans_reference(items, *averages(), decay=0.9)):
        torch.testing.assert_close(a, b, **EXACT)


def test_padding_moves_no_centroid():
    items = normalize(torch.randn(1, 1, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    padded = F.pad(items, (0, 0, 0, 4))
    means = averages(heads=1)
    for a, b in zip(kmeans_step(items, *means)[2:], kmeans_step(padded, *means)[2:]):
        torch.testing.assert_close(a, b, **EXACT)


def test_the_loss_moves_items_to_their_centroids_and_not_the_centroids():
    items = torch.randn(1, 2, 6, 5, dtype=torch.float64).requires_grad_()
    means, *rest = averages()
    step = kmeans_step(items, means.requires_grad_(), *rest, beta=1.0)
    (gradient,) = torch.autograd.grad(step.loss, items, retain_graph=True)
    assert step.loss > kmeans_step(items - gradient, means, *rest, beta=1.0).loss
    assert torch.autograd.grad(step.loss, means, allow_unused=True) == (None,)


def test_centroids_of_no_item_stay_finite():
    items = torch.ones(1, 1, 4, 5, dtype=torch.float64)
    means = torch.stack((torch.ones(5), -torch.ones(5))).double()[None]
    step = kmeans_step(items, means, torch.zeros(1, 2).double(), means.clone())
    assert all(x.isfinite().all() for x in step)


WRONG = {
    "batch, heads, tokens, channels": {"v": torch.zeros(2, 2, 19, 4)},
    "means": {"means": torch.zeros(2, 3, 5)},
    "window=21 must be between 1 and the number of tokens, 20": {"window": 21},
    "window=0": {"window": 0},
    "a relative table must be": {"relative_keys": torch.zeros(10, 4)},
}


@pytest.mark.parametrize("message", WRONG)
def test_calls_that_do_not_fit_are_refused(message):
    q, k, v, means, _ = inputs(dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        routed_attention(**{"q": q, "k": k, "v": v, "means": means, "window": 5, **WRONG[message]})
