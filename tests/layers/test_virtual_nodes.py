"""Virtual nodes beside a graph: what each mode links, and their use with any model that takes an adjacency."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.layers.graph import without_self_loops
from hf_ext.layers.virtual_nodes import ADJACENCY_MODES, VirtualNodeAdjacency
from hf_ext.models.sttn import STTNConfig, STTNForPrediction
from tests.tiny import seeded, series

quick = settings(max_examples=10, deadline=None, derandomize=True)


def graph(nodes=6):
    return without_self_loops(torch.rand(nodes, nodes, generator=seeded(1)))


def build(mode="semi", nodes=6, virtual=3, **fields):
    torch.manual_seed(0)
    return VirtualNodeAdjacency(nodes, virtual, embedding_dim=4, mode=mode, **fields)


def test_semi_keeps_the_given_links_and_learns_the_others():
    module = build()
    links = module(graph())
    assert torch.equal(links[:6, :6], graph())
    links.sum().backward()
    assert module.source_embedding.grad.any() and module.target_embedding.grad.any()


def test_thin_blocks_are_those_of_the_whole_product():
    module = build(threshold=0.0)
    source, target = module.source_embedding, module.target_embedding
    whole = (source @ target.T - target @ source.T).relu()
    links = module(graph())
    torch.testing.assert_close(links[:, 6:], whole[:, 6:])
    torch.testing.assert_close(links[6:], whole[6:])


@pytest.mark.parametrize("mode", ["semi", "adaptive"])
def test_learned_links_go_one_way_and_none_is_weaker_than_the_threshold(mode):
    links = build(mode, threshold=0.5)(graph())
    learned = links if mode == "adaptive" else links[6:, 6:]
    assert not ((learned > 0) & (learned.T > 0)).any()
    assert not learned.diagonal().any()
    assert learned[learned > 0].min() >= 0.5


def test_ones_is_one_node_linked_with_all():
    links = build("ones")(graph())
    assert links.shape == (7, 7)
    assert links[6].tolist() == links[:, 6].tolist() == [1] * 6 + [0]


def test_distance_adds_nothing_but_drops_links_to_oneself():
    with_loops = graph() + torch.eye(6)
    assert torch.equal(build("distance")(with_loops), graph())


@pytest.mark.parametrize("mode", ["semi", "ones", "distance"])
def test_a_batch_of_graphs_is_each_graph(mode):
    module, graphs = build(mode), torch.stack([graph(), graph().T])
    assert torch.equal(module(graphs), torch.stack([module(single) for single in graphs]))


def test_half_precision_has_the_same_links():
    module = build()
    links = module(graph()) > 0
    assert ((module.bfloat16()(graph()) > 0) == links).float().mean() > 0.95


@quick
@given(mode=st.sampled_from(ADJACENCY_MODES), nodes=st.integers(1, 6), virtual=st.integers(1, 4))
def test_padding_and_dropping_fit_the_adjacency(mode, nodes, virtual):
    module, values = build(mode, nodes, virtual), torch.randn(2, 3, nodes)
    padded = module.pad_nodes(values)
    assert padded.shape[2] == module.num_all_nodes == module(graph(nodes)).shape[0]
    assert not padded[:, :, nodes:].any()
    assert torch.equal(module.drop_nodes(padded), values)


@pytest.mark.parametrize("form", ["residual", "gated"])
def test_another_model_with_an_adjacency_trains_them(form):
    module = build(nodes=5, virtual=2)
    config = STTNConfig(
        form=form, num_nodes=module.num_all_nodes, context_length=6, prediction_length=2, hidden_size=8, num_hidden_layers=1,
        blocks=[[16, 16]], head_size=8, dropout=0.0,
    )  # fmt: skip
    model = STTNForPrediction(config).eval()
    output = model(module.pad_nodes(series(2, 6, 5)), adjacency=module(graph(5)))
    forecast = module.drop_nodes(output.prediction_outputs)
    assert forecast.shape == (2, 2, 5)
    forecast.square().mean().backward()
    assert module.source_embedding.grad.isfinite().all() and module.source_embedding.grad.any()


@pytest.mark.parametrize(
    ("fields", "name"), [({"mode": "none"}, "mode"), ({"virtual": 0}, "num_virtual_nodes"), ({"nodes": 0}, "num_nodes")]
)
def test_impossible_sizes_are_refused(fields, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        build(**fields)


@pytest.mark.parametrize("given_graph", [None, torch.zeros(5, 5), torch.zeros(6)])
def test_a_graph_that_is_missing_or_of_another_size_is_refused(given_graph):
    with pytest.raises(ValueError, match="`adjacency`"):
        build()(given_graph)
