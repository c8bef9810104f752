"""STTN: published sizes, both forms, the graph as argument and as part of the model, converter, and refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForTimeSeriesPrediction

from hf_ext.convert import ConversionError, convert_checkpoint, get_converter
from hf_ext.models.sttn import STTNConfig, STTNForPrediction, STTNModel
from tests.goldens import FOLDER, read_case
from tests.passport import CHECKS, Subject
from tests.tiny import seeded, series

quick = settings(max_examples=10, deadline=None, derandomize=True)

RESIDUAL = {
    "num_nodes": 5,
    "context_length": 6,
    "prediction_length": 3,
    "blocks": [[16, 24], [16, 16]],
    "embedding_size": 8,
    "intermediate_size": 24,
    "head_size": 16,
    "dropout": 0.0,
    "head_dropout": 0.0,
}
GATED = {
    "form": "gated",
    "num_nodes": 5,
    "context_length": 6,
    "prediction_length": 4,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "dropout": 0.0,
}


def graph(nodes=5, seed=1):
    weights = torch.rand(nodes, nodes, generator=seeded(seed))
    return (weights + weights.T).fill_diagonal_(0)


def build(**fields):
    torch.manual_seed(0)
    return STTNForPrediction(STTNConfig(**fields)).eval()


@torch.no_grad()
def forecast(model, *args, **kwargs):
    return model(*args, **kwargs).prediction_outputs


def meta_count(config):
    with torch.device("meta"):
        return sum(p.numel() for p in STTNForPrediction(config).parameters())


# --- published sizes


@pytest.mark.parametrize(
    ("preset", "count"), [("pemsd7m-25", 201_514), ("pemsd7m-228", 473_940), ("pems-bay-325", 633_214)]
)
def test_published_parameter_counts(preset, count):
    assert meta_count(STTNConfig.from_preset(preset)) == count


def test_parameter_count_of_the_gated_form():
    assert meta_count(STTNConfig.from_preset("gated-metr-la", num_nodes=20)) == 379_789


@pytest.mark.parametrize("preset", [name for name in STTNConfig.PRESETS if name.startswith("gated")])
def test_the_gated_form_grows_with_its_tables_of_sensors(preset):
    config = STTNConfig.from_preset(preset)
    sensors, layers, width = config.num_nodes, config.num_hidden_layers, config.hidden_size
    grown = layers * (sensors**2 - 20**2 + width * (sensors - 20))
    assert meta_count(config) == 379_789 + grown


# --- the passport of the residual form (the tiny instance is of the gated one)


class WithGraph(Subject):
    """A model that stores its graph, so that nothing has to find its eigenvalues on the way."""

    def build(self, seed=0):
        model = super().build(seed)
        model.set_graph(graph())
        return model


@pytest.mark.parametrize(
    "check", [name for name in CHECKS if name not in ("distributed", "determinism", "config_round_trip")]
)
def test_the_residual_form_with_its_own_graph_passes_the_passport(check):
    inputs = {"past_values": series(2, 6, 5), "future_values": series(2, 3, 5, seed=2)}
    auto_classes = ("AutoModelForTimeSeriesPrediction",)
    CHECKS[check](WithGraph(STTNForPrediction, STTNConfig(**RESIDUAL), inputs, auto_classes))


# --- the graph


@pytest.mark.parametrize("fields", [RESIDUAL, GATED], ids=["residual", "gated"])
def test_a_stored_graph_is_saved_with_the_model_and_equals_the_argument(fields, tmp_path):
    model, past = build(**fields), series(2, 6, 5)
    expected = forecast(model, past, adjacency=graph())
    model.set_graph(graph())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForTimeSeriesPrediction.from_pretrained(tmp_path)
    assert torch.equal(loaded.model.graph.adjacency, graph())
    torch.testing.assert_close(forecast(loaded, past), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fields", [RESIDUAL, GATED], ids=["residual", "gated"])
def test_every_sample_may_have_its_own_graph(fields):
    model, past = build(**fields), series(2, 6, 5)
    graphs = torch.stack([graph(seed=1), graph(seed=2)])
    together = forecast(model, past, adjacency=graphs)
    apart = [forecast(model, past[i : i + 1], adjacency=graphs[i]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(forecast(model, past, adjacency=graphs[0]), together)


def test_gated_tables_of_sensors_start_as_the_graph():
    model = STTNForPrediction.from_graph(STTNConfig(**GATED), graph())
    assert torch.equal(model.model.layers[0].spatial.space_table, graph())
    assert model.config.stores_graph


def test_without_any_graph_the_model_says_what_to_do():
    with pytest.raises(ValueError, match="set_graph"):
        build(**RESIDUAL)(series(2, 6, 5))


@pytest.mark.parametrize(
    "bad", [torch.zeros(4, 4), torch.zeros(5, 5), -graph(), graph() * float("nan"), graph()[None], torch.zeros(5)]
)
def test_graphs_that_cannot_be_stored_are_refused(bad):
    with pytest.raises(ValueError, match="adjacency"):
        build(**RESIDUAL).set_graph(bad)


def test_gradients_reach_the_adjacency():
    weights = graph().requires_grad_()
    for fields in (RESIDUAL, GATED):
        build(**fields)(series(2, 6, 5), adjacency=weights).prediction_outputs.sum().backward()
        assert weights.grad.isfinite().all() and weights.grad.any()
        weights.grad = None


# --- forecasts


def test_the_forecast_is_fed_back():
    model, past = build(**RESIDUAL), series(2, 6, 5)
    first = forecast(model, past, graph(), prediction_length=1)
    moved = torch.cat([past[:, 1:], first], 1)
    both = torch.cat([first, forecast(model, moved, graph(), prediction_length=1)], 1)
    torch.testing.assert_close(forecast(model, past, graph(), prediction_length=2), both)


def test_a_horizon_beyond_the_context_is_reached_too():
    assert forecast(build(**RESIDUAL), series(2, 6, 5), graph(), prediction_length=20).shape == (2, 20, 5)


def test_the_horizon_follows_the_future_given():
    output = build(**RESIDUAL)(series(2, 6, 5), graph(), future_values=series(2, 1, 5, seed=3))
    assert output.prediction_outputs.shape == (2, 1, 5)
    torch.testing.assert_close(output.loss, (output.prediction_outputs - series(2, 1, 5, seed=3)).abs().mean())


def test_the_gated_form_gives_a_part_of_its_horizon():
    model, past = build(**GATED), series(2, 6, 5)
    part = forecast(model, past, graph(), prediction_length=2)
    torch.testing.assert_close(part, forecast(model, past, graph())[:, :2])


@pytest.mark.parametrize("fields", [RESIDUAL, GATED], ids=["residual", "gated"])
def test_a_last_axis_of_one_channel_changes_only_the_shape(fields):
    model, past = build(**fields), series(2, 6, 5)
    with_axis = forecast(model, past[..., None], graph())
    assert with_axis.shape[-1] == 1
    assert torch.equal(with_axis[..., 0], forecast(model, past, graph()))


def test_missing_values_are_the_mean():
    model, past = build(**RESIDUAL), series(2, 6, 5)
    observed = torch.ones_like(past, dtype=torch.bool)
    observed[:, 2, 3] = False
    expected = forecast(model, past * observed, graph())
    holes = past.masked_fill(~observed, float("nan"))
    assert torch.equal(forecast(model, holes, graph(), past_observed_mask=observed), expected)


def test_missing_future_values_do_not_count():
    model, future = build(**GATED), series(2, 4, 5, seed=3)
    observed = torch.ones_like(future, dtype=torch.bool)
    observed[:, 1] = False
    output = model(
        series(2, 6, 5),
        graph(),
        future_values=future.masked_fill(~observed, float("nan")),
        future_observed_mask=observed,
    )
    torch.testing.assert_close(output.loss, (output.prediction_outputs - future)[observed].abs().mean())


def test_attentions_are_between_sensors_then_over_time():
    model = build(**RESIDUAL)
    model.set_attn_implementation("eager")
    output = model(series(2, 6, 5), graph(), prediction_length=1, output_attentions=True)
    assert [tuple(a.shape) for a in output.attentions] == [(2, 6, 1, 5, 5), (2, 5, 1, 6, 6)] * 2
    torch.testing.assert_close(output.sensor_attention.sum(1), torch.ones(5))


@quick
@given(
    batch=st.integers(1, 2),
    sensors=st.integers(1, 6),
    steps=st.integers(1, 7),
    order=st.integers(1, 4),
    widths=st.lists(st.sampled_from([4, 12, 40]), min_size=2, max_size=4).filter(lambda w: len(w) % 2 == 0),
    skip=st.sampled_from(["wider", "different"]),
)
def test_any_sizes_of_the_residual_form_give_finite_forecasts(batch, sensors, steps, order, widths, skip):
    fields = {"num_nodes": sensors, "context_length": steps, "chebyshev_order": order, "skip_projection": skip}
    model = build(**{**RESIDUAL, **fields, "blocks": [widths[i : i + 2] for i in range(0, len(widths), 2)]})
    output = forecast(model, series(batch, steps, sensors), graph(sensors), prediction_length=2)
    assert output.shape == (batch, 2, sensors)
    assert output.isfinite().all()


@quick
@given(
    sensors=st.integers(1, 6),
    steps=st.integers(1, 7),
    horizon=st.integers(1, 9),
    heads=st.sampled_from([1, 2, 4]),
    channels=st.integers(1, 3),
    outputs=st.integers(1, 2),
)
def test_any_sizes_of_the_gated_form_give_finite_forecasts(sensors, steps, horizon, heads, channels, outputs):
    config = STTNConfig(
        form="gated", num_nodes=sensors, context_length=steps, prediction_length=horizon, num_attention_heads=heads,
        num_input_channels=channels, num_output_channels=outputs, hidden_size=8, num_hidden_layers=1,
    )  # fmt: skip
    past = torch.randn(2, steps, sensors, channels, generator=seeded())
    output = forecast(STTNForPrediction(config).eval(), past, graph(sensors))
    assert output.shape == (2, horizon, sensors, outputs)
    assert output.isfinite().all()


def test_parts_side_by_side_are_what_their_own_maps_add_up_to():
    model = STTNModel(STTNConfig(**{**RESIDUAL, "blocks": [[4, 4]]}))
    spatial = model.layers[0].spatial
    parts = (torch.randn(2, 6, 5, 8), torch.randn(5, 5), torch.randn(6, 1, 6))
    joined = torch.cat([part.expand(2, 6, 5, -1) for part in parts], -1)
    weight = torch.cat([linear.weight for linear in spatial.input_projection.parts], 1)
    torch.testing.assert_close(spatial.input_projection(parts), joined @ weight.T, atol=1e-5, rtol=1e-4)


# --- converter


def converted(name):
    case = read_case(FOLDER / "sttn" / name)
    return convert_checkpoint("sttn", case["state_dict"], case["arguments"]), case


def test_names_and_optimizer_slots_of_tensorflow_are_understood():
    case = read_case(FOLDER / "sttn" / "rollout")
    state = {f"{name}:0": tensor for name, tensor in case["state_dict"].items()}
    state |= {f"{name}/RMSProp_1": tensor for name, tensor in case["state_dict"].items()}
    with_slots = convert_checkpoint("sttn", state, case["arguments"])
    plain, _ = converted("rollout")
    assert all(torch.equal(a, b) for a, b in zip(with_slots.state_dict().values(), plain.state_dict().values()))


def test_without_arguments_the_names_tell_the_form():
    case = read_case(FOLDER / "sttn" / "base")
    assert convert_checkpoint("sttn", case["state_dict"], {}).config.num_nodes == 25


@pytest.mark.parametrize("mapped", [False, True])
def test_a_skip_path_that_gets_wider_is_mapped_if_the_checkpoint_has_a_map(mapped):
    case = read_case(FOLDER / "sttn" / "rollout")
    arguments = case["arguments"] | {"blocks": [[64, 24], [16, 16]]}
    model = STTNForPrediction(
        get_converter("sttn").config(arguments | {"skip_projection": "different" if mapped else "wider"})
    )
    assert hasattr(model.model.layers[0].spatial.skip, "parts") is mapped
    names = ["stn_block_0_spatial/ws_input"] if mapped else []
    completed = get_converter("sttn").complete(arguments, dict.fromkeys(names))
    assert completed["skip_projection"] == ("different" if mapped else "wider")


@pytest.mark.parametrize("arguments", [{"n_route": 5, "width": 3}, {"embed_dim": 8, "depth": 2}])
def test_unknown_arguments_are_named_with_the_known_ones(arguments):
    with pytest.raises(ValueError, match=r"no argument (width|depth); it has"):
        get_converter("sttn").config(arguments)


def test_a_missing_tensor_is_named():
    case = read_case(FOLDER / "sttn" / "gated")
    del case["state_dict"]["conv2.bias"]
    with pytest.raises(ConversionError, match=r"head\.time_projection\.bias"):
        convert_checkpoint("sttn", case["state_dict"], case["arguments"])


# --- refusals


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 5, 5), (2, 6, 5, 2), (6, 5), (2, 6, 5, 1, 1)])
def test_other_shapes_of_the_past_are_refused(shape):
    with pytest.raises(ValueError, match="past_values"):
        build(**RESIDUAL)(torch.zeros(shape), graph())


@pytest.mark.parametrize("bad", [torch.zeros(4, 4), torch.zeros(5, 4), torch.zeros(1, 2, 5, 5)])
def test_an_adjacency_of_another_size_is_refused(bad):
    with pytest.raises(ValueError, match="adjacency"):
        build(**RESIDUAL)(series(2, 6, 5), bad)


@pytest.mark.parametrize(("fields", "steps"), [(RESIDUAL, 0), (GATED, 0), (GATED, 5)])
def test_a_horizon_out_of_reach_is_refused(fields, steps):
    with pytest.raises(ValueError, match="prediction_length"):
        build(**fields)(series(2, 6, 5), graph(), prediction_length=steps)


@pytest.mark.parametrize("name", ["future_values", "future_observed_mask", "past_observed_mask"])
def test_tensors_that_do_not_fit_are_named(name):
    inputs = {"future_values": series(2, 4, 5)} | {name: torch.zeros(2, 4, 4)}
    with pytest.raises(ValueError, match=name):
        build(**GATED)(series(2, 6, 5), graph(), **inputs)


@pytest.mark.parametrize(
    "fields",
    [
        {"form": "pure"},
        {"num_nodes": 0},
        {"blocks": [[64]]},
        {"blocks": []},
        {"num_attention_heads": 3},
        {"num_input_channels": 2},
        {"dropout": 1.0},
        {"skip_projection": "never"},
        {"channel_means": [1.0]},
        {"num_nodes": 4, "channel_means": [1.0, 2.0], "channel_stds": [1.0, 1.0]},
        {"form": "gated", "steps_per_day": 3},
        {"form": "gated", "hidden_size": 10, "num_attention_heads": 4},
    ],
)
def test_impossible_configurations_are_refused(fields):
    field = next(name for name in reversed(fields) if name not in ("channel_stds",))
    with pytest.raises(ValueError, match=f"`{field}`"):
        STTNConfig(**fields)


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="pemsd7m-228"):
        STTNConfig.from_preset("metr-la")
