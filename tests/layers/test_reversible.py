"""Reversible layers: the plain computation, its gradients, and less memory."""

import pytest
import torch
from torch import nn

from hf_ext.layers.reversible import ReversibleSequence, reversible


def branch(dropout=0.0, width=8):
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, width)
    )


def plain(x1, x2, blocks):
    for f, g in blocks:
        x1 = x1 + f(x2)
        x2 = x2 + g(x1)
    return x1, x2


def test_outputs_and_gradients_are_those_of_the_plain_computation():
    torch.manual_seed(0)
    blocks = [(branch().double(), branch().double()) for _ in range(3)]
    parameters = [p for block in blocks for b in block for p in b.parameters()]
    results = []
    for run in (plain, reversible):
        halves = [
            x.requires_grad_()
            for x in torch.randn(2, 4, 8, dtype=torch.double, generator=torch.Generator().manual_seed(1))
        ]
        outputs = run(*halves, blocks)
        loss = (outputs[0] * outputs[1].sin()).sum()
        results.append((*outputs, *torch.autograd.grad(loss, (*halves, *parameters))))
    for expected, found in zip(*results):
        torch.testing.assert_close(found, expected)


def test_dropout_falls_alike_when_a_branch_runs_again():
    torch.manual_seed(0)
    blocks = [(branch(0.5), branch(0.5)) for _ in range(2)]
    x = torch.randn(2, 4, 8)
    grads = []
    for run in (plain, reversible):
        torch.manual_seed(3)
        start = x.clone().requires_grad_()
        sum(y.sum() for y in run(start, start, blocks)).backward()
        grads.append(start.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


def test_named_parameters_get_gradients_too():
    weight = torch.randn(8, 8, requires_grad=True)
    y1, y2 = reversible(torch.randn(3, 8), torch.randn(3, 8), [(lambda x: x @ weight, torch.tanh)], [weight])
    (y1 + y2).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_stored_activations_do_not_grow_with_depth():
    def stored(depth):
        sizes = []
        stack = ReversibleSequence([(branch(), branch()) for _ in range(depth)])
        known = {p.data_ptr() for p in stack.parameters()}

        def pack(x):
            if x.data_ptr() not in known:
                sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            stack(torch.randn(4, 8))
        return sum(sizes)

    assert stored(12) == stored(2)


def test_halves_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        reversible(torch.randn(2, 8), torch.randn(3, 8), [])
