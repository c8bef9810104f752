"""Graphs as matrices: from road distances to what a network multiplies with.

Every function takes (..., N, N) of any floating-point type, so a batch may bring a graph per sample, and gradients pass through.
`adjacency[i, j]` is the weight of the link from i to j; 0 means that there is none.
"""

from __future__ import annotations

import torch
from torch import nn

from .linear import fast_linear
from .series import check_same_shape

GRAPH_OPERATORS = ("symmetric", "random_walk")
LARGE_GRAPH = 64  # nodes from which a product is faster as a linear layer on a CPU: twice as fast for 228 and 716


def adjacency_from_distances(
    distances: torch.Tensor, sigma2: float = 0.1, epsilon: float = 0.5, unit: float = 10_000.0
) -> torch.Tensor:
    """Gaussian weights exp(-(d / unit)^2 / sigma2), 0 below `epsilon` and on the diagonal (STGCN, eq. 10; STTN uses it too).

    A matrix that holds only 0 and 1 says already who is linked to whom, and comes back as it is.

    Args:
        distances: (..., N, N) along the road, in metres with the default `unit`.
        sigma2, epsilon: width of the kernel and the smallest weight that counts as a link.

    Raises:
        ValueError: no square matrix, or values that are negative or not finite.
    """
    check_graph(distances, "distances")
    if not (distances.isfinite().all() and (distances >= 0).all()):
        raise ValueError("`distances` must be finite and 0 or more")
    if ((distances == 0) | (distances == 1)).all():
        return distances
    weights = torch.exp(-((distances / unit) ** 2) / sigma2)
    return without_self_loops(torch.where(weights >= epsilon, weights, 0.0))


def scaled_laplacian(adjacency: torch.Tensor) -> torch.Tensor:
    """2 L / lambda_max - I with the normalised Laplacian L, its eigenvalues brought into [-1, 1] (STGCN, section 3.2).

    L is D - A, its entries divided by sqrt(d_i d_j) where both degrees (row sums) are above 0. lambda_max is the largest real part of
    an eigenvalue; a graph without links has L = 0 and gives -I.
    """
    degree = adjacency.sum(-1)
    laplacian = torch.diag_embed(degree) - without_self_loops(adjacency)
    product = degree[..., :, None] * degree[..., None, :]
    linked = (degree > 0)[..., :, None] & (degree > 0)[..., None, :]
    laplacian = torch.where(linked, laplacian / torch.where(linked, product, 1.0).sqrt(), laplacian)
    largest = torch.linalg.eigvals(laplacian).real.amax(-1)[..., None, None]
    identity = torch.eye(adjacency.shape[-1], dtype=adjacency.dtype, device=adjacency.device)
    return 2 * laplacian / torch.where(largest > 0, largest, 1.0) - identity


def graph_operator(adjacency: torch.Tensor, kind: str = "symmetric") -> torch.Tensor:
    """What a graph convolution multiplies with; the degree is the row sum, and rows of degree 0 give 0.

    - "symmetric": -D^-1/2 max(A, A^T) D^-1/2, which is the scaled Laplacian if lambda_max is taken as 2.
    - "random_walk": D^-1 A, which keeps directions: row i averages over what i points to.

    Raises:
        ValueError: an operator of another name.
    """
    if kind not in GRAPH_OPERATORS:
        raise ValueError(f"There is no graph operator {kind!r}; there are {', '.join(GRAPH_OPERATORS)}")
    if kind == "random_walk":
        return _power(adjacency.sum(-1), -1.0)[..., :, None] * adjacency
    adjacency = torch.maximum(adjacency, adjacency.mT)
    factor = _power(adjacency.sum(-1), -0.5)
    return -factor[..., :, None] * adjacency * factor[..., None, :]


def chebyshev_kernel(operator: torch.Tensor, order: int) -> torch.Tensor:
    """(..., N, N) -> (..., N, order * N): the polynomials T_0 = I, T_1 = operator, T_k = 2 operator T_k-1 - T_k-2, side by side."""
    identity = torch.eye(operator.shape[-1], dtype=operator.dtype, device=operator.device).expand_as(operator)
    return chebyshev_features(operator, identity, order)


def chebyshev_features(operator: torch.Tensor, signal: torch.Tensor, order: int) -> torch.Tensor:
    """(..., N, C) -> (..., N, order * C): T_0 x, T_1 x, ... side by side, without building the polynomials."""
    if order == 1:
        return signal
    if operator.ndim == 2 and operator.shape[0] >= LARGE_GRAPH:  # nodes last: a product is a linear layer over nodes
        signal = signal.mT
        terms = [signal, fast_linear(signal, operator)]
        for _ in range(2, order):
            terms.append(2 * fast_linear(terms[-1], operator) - terms[-2])
        return torch.cat(terms, dim=-2).mT
    first = operator @ signal
    terms = [signal.expand_as(first), first]
    for _ in range(2, order):
        terms.append(2 * (operator @ terms[-1]) - terms[-2])
    return torch.cat(terms, dim=-1)


def without_self_loops(adjacency: torch.Tensor) -> torch.Tensor:
    """The same links, save those of a node to itself."""
    diagonal = torch.eye(adjacency.shape[-1], dtype=torch.bool, device=adjacency.device)
    return adjacency.masked_fill(diagonal, 0.0)


def check_graph(adjacency: torch.Tensor, name: str = "adjacency", num_nodes: int | None = None) -> None:
    """`ValueError` unless the matrix is (N, N) or (batch, N, N), with `num_nodes` nodes where that is given. Looks at no values."""
    square = adjacency.ndim in (2, 3) and adjacency.shape[-1] == adjacency.shape[-2] > 0
    if not square or num_nodes not in (None, adjacency.shape[-1]):
        size = "N" if num_nodes is None else str(num_nodes)
        raise ValueError(f"`{name}` must be ({size}, {size}) or (batch, {size}, {size}), got {tuple(adjacency.shape)}")


def check_weights(adjacency: torch.Tensor, name: str = "adjacency") -> None:
    """`ValueError` unless all weights are finite and 0 or more, and some are above 0. Reads values: not for a forward pass."""
    if not (adjacency.isfinite().all() and (adjacency >= 0).all()):
        raise ValueError(f"`{name}` must hold finite weights of 0 or more")
    if not (adjacency > 0).any():
        raise ValueError(f"`{name}` has no links: at least one weight must be above 0")


def _power(degree: torch.Tensor, exponent: float) -> torch.Tensor:
    """degree ** exponent, and 0 where the degree is 0 (with a gradient that is finite there)."""
    positive = degree > 0
    return torch.where(positive, torch.where(positive, degree, 1.0) ** exponent, 0.0)


class GraphBuffers(nn.Module):
    """Buffers (num_nodes, num_nodes), None as long as there is no graph; calling it gives the one that is wanted.

    A module of their own, called, because `device_map` and offloading know modules and calls.
    """

    def __init__(self, config, *names: str):
        super().__init__()
        for name in names:
            self.register_buffer(name, torch.zeros(config.num_nodes, config.num_nodes) if config.stores_graph else None)

    def forward(self, name: str) -> torch.Tensor | None:
        buffer = getattr(self, name)
        # A copy, for products of small matrices depend on where in memory a loaded file put them.
        return None if buffer is None else buffer.clone()


class StoredGraph:
    """For models with `config.num_nodes` and `config.stores_graph`: a graph that is kept, and saved, as a buffer.

    The base model has the buffers in `graph`, a `GraphBuffers`, and `keep_graph(adjacency)`, which fills them.
    """

    @classmethod
    def from_graph(cls, config, adjacency: torch.Tensor):
        """A new model that has its graph with it, as `set_graph` stores it."""
        model = cls(config)
        model.set_graph(adjacency)
        return model

    def set_graph(self, adjacency: torch.Tensor) -> None:
        """Stores a graph with the model: `forward` needs no `adjacency` then, and `save_pretrained` keeps it.

        Args:
            adjacency: (num_nodes, num_nodes) weights of 0 or more.

        Raises:
            ValueError: a matrix of another size, weights that are negative or not finite, or no link at all.
        """
        check_graph(adjacency, num_nodes=self.config.num_nodes)
        if adjacency.ndim != 2:
            raise ValueError(f"A model stores one graph: `adjacency` must have two axes, got {tuple(adjacency.shape)}")
        check_weights(adjacency)
        getattr(self, self.base_model_prefix, self).keep_graph(adjacency)
        self.config.stores_graph = True

    def resolve_graph(self, adjacency: torch.Tensor | None, stored: torch.Tensor | None) -> torch.Tensor:
        """`stored` where no adjacency is given, the adjacency where one is.

        Raises:
            ValueError: an adjacency of another number of nodes, or neither.
        """
        if adjacency is not None:
            check_graph(adjacency, num_nodes=self.config.num_nodes)
            return adjacency
        if stored is None:
            raise ValueError(
                "The model has no graph: pass `adjacency` (num_nodes, num_nodes), or store one with `model.set_graph(adjacency)`"
            )
        return stored


def sensor_values(
    past_values: torch.Tensor, observed: torch.Tensor | None, steps: int, sensors: int, channels: int
) -> torch.Tensor:
    """(batch, steps, sensors) or (batch, steps, sensors, channels) -> the latter, with 0 where nothing was observed.

    Raises:
        ValueError: another shape, or a mask of another shape than the values.
    """
    given = past_values.shape if past_values.ndim == 4 else (*past_values.shape, 1)
    if past_values.ndim not in (3, 4) or tuple(given[1:]) != (steps, sensors, channels):
        raise ValueError(
            f"`past_values` must be (batch, context_length, num_nodes, num_input_channels) = (batch, {steps}, {sensors}, {channels}), "
            f"without the last axis where that is 1, got {tuple(past_values.shape)}: the weights are tied to their sensors and steps"
        )
    check_same_shape("past_observed_mask", observed, past_values.shape, "of the shape of `past_values`")
    if observed is not None:
        past_values = torch.where(observed.bool(), past_values, 0.0)
    return past_values.reshape(given)
