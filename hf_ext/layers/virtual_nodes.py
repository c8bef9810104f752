"""Virtual nodes: a handful of nodes that are linked to every node of a graph, so that any two are at most two steps apart.

Paper: "Virtual Nodes Improve Long-term Traffic Prediction", arXiv:2501.10048. The authors published no code.
The module serves every model that takes an adjacency:

    graph = VirtualNodeAdjacency(num_nodes=25, num_virtual_nodes=4)
    model = STTNForPrediction(STTNConfig(num_nodes=graph.num_all_nodes, ...))
    output = model(past_values=graph.pad_nodes(past_values), adjacency=graph(adjacency))
    forecast = graph.drop_nodes(output.prediction_outputs)
"""

from __future__ import annotations

import torch
from torch import nn

from .graph import check_graph, without_self_loops

ADJACENCY_MODES = ("semi", "adaptive", "ones", "distance")


class VirtualNodeAdjacency(nn.Module):
    """Adjacency in, augmented adjacency out (section 4 of the paper, its equations for the semi-adaptive adjacency).

    - "semi": links between real nodes as given; those of the virtual nodes, with real ones and with each other, are learned.
    - "adaptive": all links are learned (the paper's control); the given ones are not used.
    - "ones": one virtual node with weight 1 to and from every real one.
    - "distance": the given links, no virtual node.

    Learned links are ReLU(E1 E2^T - E2 E1^T), so of a pair at most one direction survives; what is below `threshold` is no link.

    Args:
        num_nodes: real nodes.
        num_virtual_nodes: 1 or more; only "semi" and "adaptive" ask for it.
        embedding_dim: width of E1 and E2.
        threshold: the smallest learned weight that counts.
        mode: one of the four above.

    Raises:
        ValueError: an unknown mode, or sizes below one.
    """

    def __init__(
        self,
        num_nodes: int,
        num_virtual_nodes: int = 10,
        embedding_dim: int = 10,
        threshold: float = 0.1,
        mode: str = "semi",
    ):
        super().__init__()
        if mode not in ADJACENCY_MODES:
            raise ValueError(f"`mode` must be one of {', '.join(ADJACENCY_MODES)}, got {mode!r}")
        if min(num_nodes, num_virtual_nodes, embedding_dim) < 1:
            raise ValueError(
                "`num_nodes`, `num_virtual_nodes` and `embedding_dim` must be at least 1, "
                f"got {num_nodes}, {num_virtual_nodes} and {embedding_dim}"
            )
        self.mode, self.num_nodes, self.threshold = mode, num_nodes, threshold
        self.num_virtual_nodes = num_added_nodes(mode, num_virtual_nodes)
        if self.is_learned:
            self.source_embedding = nn.Parameter(torch.randn(self.num_all_nodes, embedding_dim))
            self.target_embedding = nn.Parameter(torch.randn(self.num_all_nodes, embedding_dim))

    @property
    def is_learned(self) -> bool:
        return self.mode in ("semi", "adaptive")

    @property
    def num_all_nodes(self) -> int:
        """Real and virtual nodes; the virtual ones come last."""
        return self.num_nodes + self.num_virtual_nodes

    def forward(self, adjacency: torch.Tensor | None = None) -> torch.Tensor:
        """(N, N) or (batch, N, N) weights, links of a node to itself left out -> the same with the virtual nodes, in float32 or more.

        "adaptive" needs no adjacency.

        Raises:
            ValueError: an adjacency of another size, or none where one is needed.
        """
        if self.mode == "adaptive":
            return self._links(slice(None), slice(None))
        if adjacency is None:
            raise ValueError(f"`adjacency` is needed in the mode {self.mode!r}")
        check_graph(adjacency, num_nodes=self.num_nodes)
        real = without_self_loops(adjacency if adjacency.dtype == torch.float64 else adjacency.float())
        if self.mode == "distance":
            return real
        outward, inward, between = (block.expand(*real.shape[:-2], -1, -1) for block in self._virtual_links(real))
        return torch.cat([torch.cat([real, outward], -1), torch.cat([inward, between], -1)], -2)

    def pad_nodes(self, values: torch.Tensor, dim: int = 2) -> torch.Tensor:
        """Zeros for the virtual nodes, behind the real ones along `dim`: (batch, time, N, ...) -> (batch, time, N + virtual, ...)."""
        shape = list(values.shape)
        shape[dim] = self.num_virtual_nodes
        return torch.cat([values, values.new_zeros(shape)], dim)

    def drop_nodes(self, values: torch.Tensor, dim: int = 2) -> torch.Tensor:
        """The real nodes only."""
        return values.narrow(dim, 0, self.num_nodes)

    def _virtual_links(self, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, virtual), (virtual, N) and (virtual, virtual): the only links that are learned, so nothing else is computed."""
        if self.mode == "ones":
            return real.new_ones(self.num_nodes, 1), real.new_ones(1, self.num_nodes), real.new_zeros(1, 1)
        reals, virtuals = slice(self.num_nodes), slice(self.num_nodes, None)
        blocks = ((reals, virtuals), (virtuals, reals), (virtuals, virtuals))
        return tuple(self._links(rows, columns).to(real.dtype) for rows, columns in blocks)

    def _links(self, rows: slice, columns: slice) -> torch.Tensor:
        # In float32, for the cut is hard; stacked, for products of small matrices depend on where in memory a loaded file put them.
        source, target = torch.stack((self.source_embedding, self.target_embedding)).float()
        links = (source[rows] @ target[columns].T - target[rows] @ source[columns].T).relu()
        return torch.where(links >= self.threshold, links, 0.0)


def num_added_nodes(mode: str, num_virtual_nodes: int) -> int:
    """How many nodes a mode adds."""
    return {"ones": 1, "distance": 0}.get(mode, num_virtual_nodes)
