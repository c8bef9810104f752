"""The STGCN with virtual nodes: published sizes, modes, graph as argument and as part of the model, converter, and refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForTimeSeriesPrediction

from hf_ext.convert import ConversionError, convert_checkpoint, get_converter
from hf_ext.models.virtual_nodes import VirtualNodesConfig, VirtualNodeSTGCNForPrediction
from tests.goldens import FOLDER, read_case
from tests.tiny import seeded, series

quick = settings(max_examples=10, deadline=None, derandomize=True)

SMALL = {
    "num_nodes": 6,
    "num_virtual_nodes": 3,
    "embedding_dim": 4,
    "num_input_channels": 1,
    "prediction_length": 5,
    "blocks": [[16, 8, 16], [16, 8, 24], [32, 24]],
    "dropout": 0.0,
}
# LargeST's 1x1 convolutions that are never used: those of the published widths where channels do not get fewer
UNUSED = (3 + 1) * 64 + 2 * (16 + 1) * 64 + (64 + 1) * 64 + (64 + 1) * 128


def graph(nodes=6):
    return torch.rand(nodes, nodes, generator=seeded(1)).fill_diagonal_(0)


def build(**fields):
    torch.manual_seed(0)
    return VirtualNodeSTGCNForPrediction(VirtualNodesConfig(**{**SMALL, **fields})).eval()


def meta_count(config):
    with torch.device("meta"):
        return sum(p.numel() for p in VirtualNodeSTGCNForPrediction(config).parameters())


# --- published sizes


@pytest.mark.parametrize(("sensors", "count"), [(40, 168_572), (716, 528_204)])
def test_published_parameter_counts_less_what_the_reference_never_uses(sensors, count):
    assert meta_count(VirtualNodesConfig(num_nodes=sensors)) == count - UNUSED


def test_the_paper_s_preset_is_the_default():
    assert VirtualNodesConfig.from_preset("largest-sd").to_dict() == VirtualNodesConfig().to_dict()


@pytest.mark.parametrize("preset", VirtualNodesConfig.PRESETS)
def test_sensors_cost_two_embeddings_and_the_rows_of_three_norms(preset):
    config = VirtualNodesConfig.from_preset(preset)
    more = VirtualNodesConfig.from_preset(preset, num_nodes=config.num_nodes + 1)
    embeddings = 0 if config.adjacency_mode == "distance" else 2 * config.embedding_dim
    assert meta_count(more) - meta_count(config) == embeddings + 2 * (64 + 64 + 128)


# --- modes and graphs


@pytest.mark.parametrize("mode", ["semi", "adaptive", "ones", "distance"])
@pytest.mark.parametrize("operator", ["symmetric", "random_walk"])
def test_every_mode_forecasts_and_shows_its_adjacency(mode, operator):
    model = build(adjacency_mode=mode, graph_operator=operator)
    output = model(series(2, 12, 6), graph())
    nodes = {"ones": 7, "distance": 6}.get(mode, 9)
    assert output.prediction_outputs.shape == (2, 5, 6)
    assert output.semi_adaptive_adjacency.shape == (nodes, nodes)
    assert output.prediction_outputs.isfinite().all()


def test_adaptive_needs_no_graph():
    model = build(adjacency_mode="adaptive")
    assert torch.equal(model(series(2, 12, 6)).prediction_outputs, model(series(2, 12, 6), graph()).prediction_outputs)


def test_a_far_sensor_is_heard_only_through_virtual_nodes():
    chain = torch.diag(torch.ones(19), 1) + torch.diag(torch.ones(19), -1)
    past = series(1, 12, 20).requires_grad_()

    def heard(mode):
        model = build(num_nodes=20, adjacency_mode=mode)
        for module in model.modules():  # the norms span all sensors, so they would tell of each
            if isinstance(module, torch.nn.LayerNorm):
                module.forward = lambda x: x
        (gradient,) = torch.autograd.grad(model(past, chain).prediction_outputs[..., 0].sum(), past)
        return bool(gradient[..., 19].any())

    assert not heard("distance")
    assert heard("ones")


def test_a_stored_graph_is_saved_with_the_model(tmp_path):
    model = VirtualNodeSTGCNForPrediction.from_graph(VirtualNodesConfig(**SMALL), graph()).eval()
    expected = model(series(2, 12, 6)).prediction_outputs
    torch.testing.assert_close(model(series(2, 12, 6), graph()).prediction_outputs, expected)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForTimeSeriesPrediction.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(series(2, 12, 6)).prediction_outputs, expected)


def test_missing_values_are_the_mean():
    model, past = build(), series(2, 12, 6)
    observed = torch.ones_like(past, dtype=torch.bool)
    observed[:, 3, 2] = False
    expected = model(past * observed, graph()).prediction_outputs
    holes = past.masked_fill(~observed, float("nan"))
    assert torch.equal(model(holes, graph(), past_observed_mask=observed).prediction_outputs, expected)


def test_the_loss_is_the_mean_absolute_error_over_what_was_observed():
    model, future = build(), series(2, 5, 6, seed=3)
    observed = future > -0.5
    output = model(series(2, 12, 6), graph(), future_values=future, future_observed_mask=observed)
    torch.testing.assert_close(output.loss, (output.prediction_outputs - future)[observed].abs().mean())


@quick
@given(
    sensors=st.integers(1, 6),
    kernel=st.integers(1, 4),
    order=st.integers(1, 4),
    widths=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    mode=st.sampled_from(["semi", "adaptive", "ones", "distance"]),
)
def test_any_sizes_give_finite_forecasts(sensors, kernel, order, widths, mode):
    model = build(
        num_nodes=sensors,
        temporal_kernel_size=kernel,
        chebyshev_order=order,
        blocks=[widths, [8, 4]],
        adjacency_mode=mode,
    )
    output = model(series(2, 12, sensors), graph(sensors))
    assert output.prediction_outputs.shape == (2, 5, sensors)
    assert output.prediction_outputs.isfinite().all()


# --- converter


def test_a_checkpoint_of_largest_loads_without_virtual_nodes():
    case = read_case(FOLDER / "virtual_nodes" / "directed")
    sensors = case["arguments"]["num_nodes"]
    state = {
        name: tensor[:sensors] if "_ln." in name else tensor
        for name, tensor in case["state_dict"].items()
        if name not in ("E1", "E2")
    }
    model = convert_checkpoint("virtual_nodes", state, case["arguments"] | {"adjacency_mode": "distance"})
    assert model.model.virtual_nodes.num_all_nodes == sensors


def test_unknown_arguments_are_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no argument width; it has num_nodes"):
        get_converter("virtual_nodes").config({"width": 3})


def test_a_missing_tensor_is_named():
    case = read_case(FOLDER / "virtual_nodes" / "directed")
    del case["state_dict"]["E2"]
    with pytest.raises(ConversionError, match="target_embedding"):
        convert_checkpoint("virtual_nodes", case["state_dict"], case["arguments"])


# --- refusals


@pytest.mark.parametrize("shape", [(2, 12, 5), (2, 11, 6), (2, 12, 6, 2), (12, 6)])
def test_other_shapes_of_the_past_are_refused(shape):
    with pytest.raises(ValueError, match="past_values"):
        build()(torch.zeros(shape), graph())


@pytest.mark.parametrize("bad", [None, torch.zeros(5, 5)])
def test_a_graph_that_is_missing_or_of_another_size_is_refused(bad):
    with pytest.raises(ValueError, match="adjacency"):
        build()(series(2, 12, 6), bad)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("adjacency_mode", "none"),
        ("graph_operator", "mean"),
        ("num_virtual_nodes", 0),
        ("threshold", -0.1),
        ("dropout", 1.0),
        ("context_length", 9),
        ("blocks", [[8, 8, 8]]),
        ("blocks", [[8, 8], [8, 8]]),
        ("channel_means", [0.0]),
    ],
)
def test_impossible_configurations_are_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        VirtualNodesConfig(**{**SMALL, field: value})
