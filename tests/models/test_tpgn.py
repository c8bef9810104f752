"""TPGN: published sizes, the PGN layer, both branches, variates apart from each other, missing values, converter, and refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForTimeSeriesPrediction

from hf_ext.convert import ConversionError, convert_checkpoint, get_converter
from hf_ext.models.tpgn import PGNLayer, TPGNConfig, TPGNForPrediction, TPGNModel
from hf_ext.ops.pgn import reference
from hf_ext.reproductions import MissingData, Run, experiments
from tests.goldens import FOLDER, read_case, run_case
from tests.tiny import TINY, series

quick = settings(max_examples=15, deadline=None, derandomize=True)


def build(model_class=TPGNForPrediction, **fields):
    torch.manual_seed(0)
    return model_class(TPGNConfig.from_dict({**TINY["tpgn"]()[0].to_dict(), **fields})).eval()


def window(batch=2, steps=12, variates=3, features=2):
    return {
        "past_values": series(batch, steps, variates),
        "past_time_features": series(batch, steps, features, seed=1) / 4,
    }


@torch.no_grad()
def forecast(model, inputs, **others):
    return model(**{**inputs, **others}).prediction_outputs


# --- published sizes


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("ecl-168", 22_151), ("ecl-336", 22_606), ("ecl-720", 23_646), ("ecl-1440", 25_596),
        ("traffic-168", 285_191), ("traffic-336", 286_990), ("traffic-720", 1_106_462), ("traffic-1440", 1_121_852),
        ("etth1-168", 431), ("etth1-336", 466), ("etth1-720", 546), ("etth1-1440", 3_372),
        ("etth2-168", 2_471), ("weather-168", 983),
    ],
)  # fmt: skip
def test_published_parameter_counts(preset, count):
    with torch.device("meta"):
        model = TPGNForPrediction(TPGNConfig.from_preset(preset))
    assert sum(p.numel() for p in model.parameters()) == count


def test_presets_cover_the_published_table():
    data = ("ecl", "traffic", "etth1", "etth2", "weather")
    assert set(TPGNConfig.PRESETS) == {f"{name}-{h}" for name in data for h in (168, 336, 720, 1440)}
    assert TPGNConfig.from_preset("etth1-168").scaling == "std"
    assert TPGNConfig.from_preset("etth2-168").scaling is None


@pytest.mark.parametrize("preset", TPGNConfig.PRESETS)
def test_every_preset_has_the_parameters_that_its_sizes_imply(preset):
    config = TPGNConfig.from_preset(preset)
    width, rows, inputs = config.hidden_size, config.num_rows, 1 + config.num_time_features
    long = width * ((rows - 1) * inputs + 1) + 2 * width * (inputs + width + 1) + width * (width * rows + 1)
    short = width * (inputs * config.period + 1) + width * (width * rows + 1)
    with torch.device("meta"):
        model = TPGNForPrediction(config)
    assert sum(p.numel() for p in model.parameters()) == long + short + config.num_future_rows * (2 * width + 1)


# --- the PGN layer


def test_layer_is_the_op_with_its_weights():
    layer, inputs = PGNLayer(3, 4, window=5, num_groups=2), torch.randn(2, 9, 2, 3)
    expected, _ = reference(
        inputs,
        layer.history.weight.view(2, 4, 5, 3),
        layer.history.bias.view(2, 4),
        layer.gate.weight.view(2, 8, 7),
        layer.gate.bias.view(2, 8),
    )
    torch.testing.assert_close(layer(inputs)[0], expected)


def test_layer_takes_sequences_as_an_rnn_does():
    layer, inputs = PGNLayer(3, 4, window=5), torch.randn(2, 9, 3)
    hidden, state = layer(inputs)
    assert (hidden.shape, state.shape) == ((2, 9, 4), (2, 5, 3))
    torch.testing.assert_close(hidden, layer(inputs.unsqueeze(2))[0].squeeze(2))


def test_layer_goes_on_from_its_state():
    layer, inputs = PGNLayer(3, 4, window=5), torch.randn(2, 9, 3)
    first, state = layer(inputs[:, :6])
    rest, _ = layer(inputs[:, 6:], state)
    torch.testing.assert_close(torch.cat([first, rest], 1), layer(inputs)[0])


@pytest.mark.parametrize("groups", [1, 3])
def test_a_hooked_layer_is_called_and_gives_the_same(groups):
    layer, inputs = PGNLayer(3, 4, window=5, num_groups=groups), torch.randn(2, 9, groups, 3)
    expected = layer(inputs)[0]
    calls = []
    layer.history.register_forward_hook(lambda *arguments: calls.append(1))
    torch.testing.assert_close(layer(inputs)[0], expected)
    assert calls


def test_last_step_depends_on_the_first_at_once():
    """One hop: the gradient of a late step reaches an early one through the history alone, whatever lies between."""
    layer, inputs = PGNLayer(1, 4, window=39), torch.randn(1, 40, 1, requires_grad=True)
    layer(inputs)[0][:, -1].sum().backward()
    assert (inputs.grad[0, :, 0] != 0).all()


@pytest.mark.parametrize("sizes", [(0, 4, 5, 1), (3, 0, 5, 1), (3, 4, 0, 1), (3, 4, 5, 0)])
def test_layer_refuses_sizes_below_one(sizes):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        PGNLayer(*sizes)


@pytest.mark.parametrize(
    ("inputs", "state", "message"),
    [
        (torch.ones(2, 9, 4), None, "input_size = 3"),
        (torch.ones(2, 9), None, "inputs"),
        (torch.ones(2, 0, 3), None, "inputs"),
        (torch.ones(2, 9, 3), torch.ones(2, 4, 3), "initial_state"),
    ],
)
def test_layer_refuses_other_shapes_by_name(inputs, state, message):
    with pytest.raises(ValueError, match=message):
        PGNLayer(3, 4, window=5)(inputs, state)


# --- the two branches


def test_variates_do_not_mix():
    model, inputs = build(), window()
    changed = inputs["past_values"].clone()
    changed[..., 0] = changed[..., 0].flip(1)
    before, after = forecast(model, inputs), forecast(model, inputs, past_values=changed)
    torch.testing.assert_close(after[..., 1:], before[..., 1:])
    assert not torch.allclose(after[..., 0], before[..., 0])


def test_each_variate_has_weights_of_its_own():
    inputs = window()
    same = inputs["past_values"][..., :1].expand(-1, -1, 3)
    outputs = forecast(build(), inputs, past_values=same)
    assert not torch.allclose(outputs[..., 0], outputs[..., 1])


def test_long_branch_keeps_columns_apart():
    model, inputs = build(TPGNModel, scaling=None), window()
    changed = inputs["past_values"].clone()
    changed[:, 1::4] += 1  # column 1 of the period of 4
    before, after = (
        model(**{**inputs, "past_values": x}).last_hidden_state[..., 5:] for x in (inputs["past_values"], changed)
    )
    assert torch.equal(before[:, [0, 2, 3]], after[:, [0, 2, 3]])
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_short_branch_is_the_same_for_every_column():
    states = build(TPGNModel)(**window()).last_hidden_state[..., :5]
    assert torch.equal(states, states[:, :1].expand_as(states))


def test_without_the_short_branch_its_weights_are_gone():
    model = build(use_short_branch=False)
    assert not [name for name, _ in model.named_parameters() if "short" in name]
    assert forecast(model, window()).shape == (2, 7, 3)


def test_horizon_is_cut_to_length():
    long = build(prediction_length=8)
    short = build(prediction_length=7)
    short.load_state_dict(long.state_dict())
    assert torch.equal(forecast(short, window()), forecast(long, window())[:, :7])


def test_calendar_features_matter():
    model, inputs = build(), window()
    other = inputs["past_time_features"].flip(1)
    assert not torch.allclose(forecast(model, inputs, past_time_features=other), forecast(model, inputs))


@quick
@given(level=st.floats(-100, 100), scale=st.floats(0.5, 50))
def test_forecast_follows_level_and_scale_of_the_window(level, scale):
    model, inputs = build(), window()
    moved = forecast(model, inputs, past_values=inputs["past_values"] * scale + level)
    torch.testing.assert_close(moved, forecast(model, inputs) * scale + level, atol=2e-3 * scale, rtol=1e-3)


@quick
@given(
    batch=st.integers(1, 3),
    variates=st.integers(1, 4),
    period=st.integers(1, 5),
    rows=st.integers(2, 4),
    horizon=st.integers(1, 12),
    features=st.integers(0, 3),
    width=st.integers(1, 6),
    scaling=st.sampled_from(["std", None]),
    short=st.booleans(),
)
def test_any_sizes_forecast_finite_values(batch, variates, period, rows, horizon, features, width, scaling, short):
    config = TPGNConfig(
        context_length=period * rows, prediction_length=horizon, period=period, num_input_channels=variates,
        num_time_features=features, hidden_size=width, scaling=scaling, use_short_branch=short,
    )  # fmt: skip
    inputs = window(batch, period * rows, variates, features)
    outputs = forecast(TPGNForPrediction(config).eval(), inputs)
    assert outputs.shape == (batch, horizon, variates)
    assert outputs.isfinite().all()


# --- missing values and the loss


@pytest.mark.parametrize("scaling", ["std", None])
def test_full_mask_changes_nothing(scaling):
    model, inputs = build(scaling=scaling), window()
    masked = forecast(model, inputs, past_observed_mask=torch.ones(2, 12, 3))
    torch.testing.assert_close(masked, forecast(model, inputs))


@pytest.mark.parametrize("scaling", ["std", None])
@pytest.mark.parametrize("filler", [0.0, 1e9, float("nan")])
def test_what_stands_under_a_zero_does_not_matter(filler, scaling):
    model, inputs = build(scaling=scaling), window()
    observed = torch.rand(2, 12, 3, generator=torch.Generator().manual_seed(1)) > 0.3
    expected = forecast(model, inputs, past_observed_mask=observed)
    filled = inputs["past_values"].masked_fill(~observed, filler)
    assert torch.equal(forecast(model, inputs, past_values=filled, past_observed_mask=observed), expected)


def test_missing_future_values_do_not_count():
    model, inputs, future = build(), window(), series(2, 7, 3, seed=2)
    observed = torch.ones_like(future, dtype=torch.bool)
    observed[:, 2] = False
    loss = model(
        **inputs, future_values=future.masked_fill(~observed, float("nan")), future_observed_mask=observed
    ).loss
    error = (forecast(model, inputs) - future)[:, [0, 1, 3, 4, 5, 6]]
    torch.testing.assert_close(loss, error.square().mean())


def test_gradient_descent_learns_a_period():
    steps = torch.arange(200.0)
    values = torch.stack([(steps * 2 * torch.pi / 4).sin(), (steps % 4) / 2, -(steps % 4)], -1)
    starts = range(0, 160, 3)
    past = torch.stack([values[s : s + 12] for s in starts])
    future = torch.stack([values[s + 12 : s + 19] for s in starts])
    model = build(num_time_features=0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        losses.append(model(past, future_values=future).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 10


# --- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"past_values": series(2, 11, 3)}, "context_length, num_input_channels"),
        ({"past_values": series(2, 12, 2)}, "num_input_channels"),
        ({"past_values": series(2, 12, 3)[0]}, "past_values"),
        ({"past_time_features": None}, "past_time_features"),
        ({"past_time_features": series(2, 12, 3)}, "past_time_features"),
        ({"past_observed_mask": torch.ones(2, 12)}, "past_observed_mask"),
        ({"future_values": series(2, 8, 3)}, "future_values"),
        ({"future_values": series(2, 7, 3), "future_observed_mask": torch.ones(2, 7)}, "future_observed_mask"),
    ],
)
def test_wrong_inputs_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        build()(**{**window(), **changes})


@pytest.mark.parametrize(
    "fields",
    [
        {"context_length": 24},
        {"context_length": 100},
        {"context_length": 0},
        {"period": 0},
        {"prediction_length": 0},
        {"num_input_channels": 0},
        {"num_time_features": -1},
        {"hidden_size": 0},
        {"scaling": "mean"},
        {"channel_means": [0.0]},
        {"channel_means": [0.0], "channel_stds": [0.0]},
    ],
    ids=str,
)
def test_impossible_configurations_are_refused_by_name(fields):
    with pytest.raises(ValueError, match=next(reversed(fields))):
        TPGNConfig(**fields)


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="etth1-168"):
        TPGNConfig.from_preset("etth1-96")


def test_auto_classes_build_from_a_configuration():
    config = TINY["tpgn"]()[0]
    assert type(AutoModel.from_config(config)) is TPGNModel
    assert type(AutoModelForTimeSeriesPrediction.from_config(config)) is TPGNForPrediction


# --- the authors' checkpoints


@pytest.mark.parametrize("frequency", ["t", "h", "d"])
def test_frequency_tells_the_calendar_features(frequency):
    assert get_converter("tpgn").config({"freq": frequency}).num_time_features == {"t": 5, "h": 4, "d": 3}[frequency]


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ({}, {"hidden_size": 32, "period": 24, "scaling": None, "use_short_branch": True}),
        ({"norm": 1, "c_out": 7}, {"scaling": "std", "num_input_channels": 1}),
        ({"need_short": 0}, {"use_short_branch": False}),
    ],
    ids=str,
)
def test_arguments_of_the_reference_are_understood(arguments, fields):
    config = get_converter("tpgn").config(arguments)
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(("arguments", "message"), [({"period": 24}, "TPGN_period"), ({"freq": "s"}, "t, h, d")])
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        get_converter("tpgn").config(arguments)


def test_called_layers_equal_the_reference_too():
    """With a hook on every Linear, as offloading puts there, nothing takes the batched product of weights."""
    case = read_case(FOLDER / "tpgn" / "multi")
    model = convert_checkpoint("tpgn", case["state_dict"], case["arguments"])
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda *arguments: None)
    outputs = forecast(model, case["inputs"])
    torch.testing.assert_close(outputs, run_case(case)["prediction_outputs"])


def test_checkpoint_that_does_not_fit_lists_every_tensor():
    case = read_case(FOLDER / "tpgn" / "base")
    state = case["state_dict"]
    state["stray"] = torch.zeros(1)
    del state["TPGN.fc.bias"]
    with pytest.raises(ConversionError, match=r"(?s)left over: stray.*missing: head\.bias"):
        convert_checkpoint("tpgn", state, case["arguments"])


def test_missing_data_says_what_to_pass(tmp_path):
    with pytest.raises(MissingData, match="ETTh1"):
        experiments("tpgn")["etth1"].run(Run("tpgn", tmp_path, {"data": "nowhere.csv", "horizon": 168, "epochs": 1}))
