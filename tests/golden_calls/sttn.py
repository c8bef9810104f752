"""Golden cases of `sttn` that are no single forward: the preparation of the graph."""

from __future__ import annotations

from typing import Any

from hf_ext.layers.graph import adjacency_from_distances, chebyshev_kernel, scaled_laplacian
from tests.goldens import call_arguments, run_model


def run(case: dict[str, Any]) -> Any:
    if case["state"]:
        return run_model(case)
    given = call_arguments(case)
    kernel = {name: case["arguments"][name] for name in ("sigma2", "epsilon") if name in case["arguments"]}
    adjacency = adjacency_from_distances(given["distances"], **kernel)
    laplacian = scaled_laplacian(adjacency)
    order = given.get("chebyshev_order", case["arguments"].get("ks"))
    return {
        "adjacency": adjacency,
        "scaled_laplacian": laplacian,
        "graph_kernel": chebyshev_kernel(laplacian, order),
    }
