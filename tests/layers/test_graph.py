"""Graphs as matrices: weights, Laplacians, polynomials, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.layers.graph import (
    adjacency_from_distances,
    chebyshev_features,
    chebyshev_kernel,
    graph_operator,
    scaled_laplacian,
    sensor_values,
    without_self_loops,
)

quick = settings(max_examples=15, deadline=None, derandomize=True)


def random_graph(nodes: int, seed: int = 0, symmetric: bool = True) -> torch.Tensor:
    weights = torch.rand(nodes, nodes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = without_self_loops(torch.where(weights > 0.4, weights, 0.0))
    return (weights + weights.T) / 2 if symmetric else weights


def test_weights_fall_with_the_distance_and_far_sensors_are_not_linked():
    weights = adjacency_from_distances(
        torch.tensor([[0.0, 1000.0, 9000.0], [1000.0, 0.0, 2000.0], [9000.0, 2000.0, 0.0]])
    )
    assert weights[0, 1].item() == pytest.approx(np.exp(-0.1), rel=1e-5)
    assert weights[0, 1] > weights[1, 2] > 0
    assert weights[0, 2] == 0
    assert not weights.diagonal().any()


def test_a_matrix_of_zeros_and_ones_is_taken_as_it_is():
    links = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert adjacency_from_distances(links) is links


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, 3), torch.tensor([[0.0, -5.0], [-5.0, 0.0]]), torch.full((2, 2), float("nan"))]
)
def test_distances_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="distances"):
        adjacency_from_distances(bad)


@quick
@given(nodes=st.integers(2, 12), seed=st.integers(0, 5))
def test_eigenvalues_of_the_scaled_laplacian_are_between_minus_one_and_one(nodes, seed):
    eigenvalues = torch.linalg.eigvalsh(scaled_laplacian(random_graph(nodes, seed)))
    assert eigenvalues.min() >= -1 - 1e-9
    assert eigenvalues.max() <= 1 + 1e-9


def test_a_graph_without_links_has_minus_the_identity():
    assert torch.equal(scaled_laplacian(torch.zeros(3, 3)), -torch.eye(3))


def test_a_batch_of_graphs_is_each_graph():
    graphs = torch.stack([random_graph(5, seed) for seed in range(3)])
    for function in (scaled_laplacian, graph_operator, lambda a: graph_operator(a, "random_walk")):
        torch.testing.assert_close(function(graphs), torch.stack([function(graph) for graph in graphs]))


def test_symmetric_operator_is_the_laplacian_with_two_as_its_largest_eigenvalue():
    graph = random_graph(6)
    degree = graph.sum(1).rsqrt()
    torch.testing.assert_close(graph_operator(graph), -degree[:, None] * graph * degree)


def test_random_walk_averages_what_a_node_points_to():
    operator = graph_operator(random_graph(6, symmetric=False), "random_walk")
    torch.testing.assert_close(operator.sum(1), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["symmetric", "random_walk"])
def test_a_node_without_links_is_a_row_of_zeros_with_a_finite_gradient(kind):
    graph = random_graph(4)
    graph[2] = graph[:, 2] = 0
    graph.requires_grad_()
    operator = graph_operator(graph, kind)
    assert not operator[2].any()
    operator.square().sum().backward()
    assert graph.grad.isfinite().all()


def test_unknown_operator_is_refused():
    with pytest.raises(ValueError, match="symmetric, random_walk"):
        graph_operator(random_graph(3), "mean")


@quick
@given(nodes=st.integers(1, 7), order=st.integers(1, 5), channels=st.integers(1, 3))
def test_features_are_the_kernel_times_the_signal(nodes, order, channels):
    operator = random_graph(nodes)
    signal = torch.randn(2, nodes, channels, dtype=torch.float64)
    kernel = chebyshev_kernel(operator, order).unflatten(-1, (order, nodes))
    expected = torch.einsum("mkn,bnc->bmkc", kernel, signal).flatten(-2)
    torch.testing.assert_close(chebyshev_features(operator, signal, order), expected)


def test_unobserved_values_become_zero_whatever_stands_there():
    values = torch.full((1, 2, 3), float("nan"))
    values[0, 0] = 1.0
    observed = ~values.isnan()
    assert sensor_values(values, observed, 2, 3, 1).flatten().tolist() == [1, 1, 1, 0, 0, 0]
