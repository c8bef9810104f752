"""The routed feed-forward network: the grouped form against the masked dense one, and its limits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops.routed_ffn import Projection, reference, routed_ffn


def make(tokens=10, width=6, hidden=16, blocks=4, rank=3, gated=False, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, dtype=dtype, generator=generator).requires_grad_()

    def part(out, inner):
        lora = (draw(rank, inner), draw(out, rank)) if rank else (None, None)
        return Projection(draw(out, inner), draw(out), *lora)

    up, down = part(hidden, width), part(width, hidden)
    return draw(tokens, width), draw(tokens, blocks).sigmoid(), up, down, part(hidden, width) if gated else None


def both(parts, **options):
    options = {"activation": F.silu, "active_blocks": 2, "weighted": True} | options
    return routed_ffn(*parts, **options), reference(*parts, **options)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_reference(gated, rank, weighted):
    torch.testing.assert_close(*both(make(gated=gated, rank=rank), weighted=weighted))


@settings(max_examples=15, derandomize=True, deadline=None)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 4), st.data())
def test_equals_the_reference_over_sizes(tokens, blocks, size, data):
    active = data.draw(st.integers(1, blocks))
    torch.testing.assert_close(*both(make(tokens, hidden=blocks * size, blocks=blocks), active_blocks=active))


@pytest.mark.parametrize("gated", [False, True])
def test_gradients_equal_those_of_the_reference(gated):
    parts = make(gated=gated)
    leaves = [
        x for part in (parts[0], *parts[2:]) if part is not None for x in (part if part is not parts[0] else [part])
    ]
    ours, expected = (
        torch.autograd.grad(y.square().sum(), [*leaves, parts[1]], retain_graph=True) for y in both(parts)
    )
    torch.testing.assert_close(ours, expected)


def test_all_blocks_at_even_odds_are_the_dense_network():
    x, probabilities, up, down, _ = make()
    y = routed_ffn(x, torch.full_like(probabilities, 0.5), up, down, activation=F.relu, active_blocks=4)
    torch.testing.assert_close(y, down(F.relu(up(x))))


def test_leading_axes_are_kept():
    x, probabilities, *parts = make(tokens=12)
    options = {"activation": F.relu, "active_blocks": 1}
    y = routed_ffn(x.view(3, 4, -1), probabilities.view(3, 4, -1), *parts, **options)
    torch.testing.assert_close(y.flatten(0, 1), routed_ffn(x, probabilities, *parts, **options))


def test_a_block_nobody_chose_is_left_out():
    x, probabilities, *parts = make()
    probabilities = torch.zeros_like(probabilities).index_fill(1, torch.tensor([0, 1]), 0.9)
    torch.testing.assert_close(*both((x, probabilities, *parts)))


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({}, {"active_blocks": 5}, "active_blocks=5"),
        ({}, {"active_blocks": 0}, "active_blocks=0"),
        ({"hidden": 18}, {}, "multiple"),
    ],
)
def test_bad_sizes_are_named(fields, options, message):
    with pytest.raises(ValueError, match=message):
        routed_ffn(*make(**fields), **{"activation": F.relu, "active_blocks": 2} | options)


def test_probabilities_of_other_tokens_are_refused():
    x, probabilities, *parts = make()
    with pytest.raises(ValueError, match="probabilities"):
        routed_ffn(x, probabilities[1:], *parts, activation=F.relu, active_blocks=2)
