"""GPHT: published sizes, causality, the hierarchy, rolling to any horizon, training on a mixture, fine-tuning, and refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForTimeSeriesPrediction

from hf_ext.convert import ConversionError, convert_checkpoint, get_converter
from hf_ext.data.time_series import ForecastWindows
from hf_ext.models.gpht import GPHTConfig, GPHTForPrediction, GPHTModel
from hf_ext.reproductions import MissingData, Run, experiments
from hf_ext.training.gpht import MixtureWindows, freeze_all_but_heads
from tests.goldens import FOLDER, read_case
from tests.tiny import TINY, series

quick = settings(max_examples=15, deadline=None, derandomize=True)


def build(model_class=GPHTForPrediction, **fields):
    torch.manual_seed(0)
    return model_class(GPHTConfig.from_dict({**TINY["gpht"]()[0].to_dict(), **fields})).eval()


@torch.no_grad()
def forecast(model, past_values, **inputs):
    return model(past_values=past_values, **inputs).prediction_outputs


def sizes(model):
    return (
        sum(p.numel() for p in model.parameters() if not trainable or p.requires_grad) for trainable in (False, True)
    )


# --- published sizes


@pytest.mark.parametrize(("preset", "count"), [("gpht-base", 37_977_280), ("gpht-small", 152_640)])
def test_parameter_counts(preset, count):
    with torch.device("meta"):
        total, _ = sizes(GPHTForPrediction(GPHTConfig.from_preset(preset)))
    assert total == count


def test_tuning_the_heads_trains_a_quarter_of_a_per_cent():
    with torch.device("meta"):
        total, trainable = sizes(freeze_all_but_heads(GPHTForPrediction(GPHTConfig.from_preset("gpht-base"))))
    assert trainable == 4 * 24_624
    assert round(100 * trainable / total, 2) == 0.26


# --- the hierarchy


def test_token_predictions_do_not_look_ahead():
    """Level and scale aside, which are those of the whole window: here both windows have the same."""
    model, past = build(GPHTModel), series(1, 24, 2)
    changed = past.clone()
    changed[:, 16:] = past[:, 16:].flip(1)
    same = torch.isclose(model(changed).token_predictions, model(past).token_predictions, atol=1e-5)
    assert same[:, :16].all()
    assert not same[:, 16:].any()


def test_forecast_of_a_variate_does_not_depend_on_the_others():
    model, past = build(), series(2, 24, 3)
    torch.testing.assert_close(forecast(model, past[..., 1:2]), forecast(model, past)[..., 1:2])


def test_a_stage_sees_what_the_stages_before_it_left():
    model, past = build(GPHTModel), series(2, 24, 1)
    first = build(GPHTModel, pooling_rates=[4])
    first.load_state_dict(model.state_dict(), strict=False)
    output = first(past)
    standardised = (past - output.loc) / output.scale
    predicted = (output.token_predictions - output.loc) / output.scale
    residual = standardised - torch.cat([torch.zeros(2, 8, 1), predicted[:, :-8]], dim=1)
    seen = []
    model.stages[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(past)
    torch.testing.assert_close(seen[0], residual[..., 0])


def test_without_subtraction_every_stage_sees_the_series():
    model, seen = build(GPHTModel, subtract_predictions=False), []
    for stage in model.stages:
        stage.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(series(2, 24, 1))
    assert torch.equal(seen[0], seen[1])


def test_predictions_of_the_stages_add():
    model, past = build(), series(1, 24, 2)
    with torch.no_grad():
        for stage in model.model.stages:
            stage.forecast_head.weight.zero_()
            stage.forecast_head.bias.fill_(0.25)
    output = model(past)
    torch.testing.assert_close(output.prediction_outputs, (2 * 0.25 * output.scale + output.loc).expand(1, 8, 2))


def test_states_of_every_stage_are_returned():
    output = build()(series(2, 24, 3))
    assert [tuple(states.shape) for states in output.stage_hidden_states] == [(2, 3, 3, 32)] * 2


def test_every_layer_of_every_stage_is_recorded():
    model = build()
    model.set_attn_implementation("eager")
    output = model(series(2, 24, 3), output_hidden_states=True, output_attentions=True)
    assert [tuple(states.shape) for states in output.hidden_states] == [(6, 3, 32)] * 5
    assert [tuple(weights.shape) for weights in output.attentions] == [(6, 4, 3, 3)] * 4
    assert not output.attentions[0].triu(1).any()


@quick
@given(level=st.floats(-100, 100), scale=st.floats(0.5, 50))
def test_forecast_follows_level_and_scale_of_the_window(level, scale):
    model, past = build(), series(2, 24, 3)
    expected = forecast(model, past) * scale + level
    torch.testing.assert_close(forecast(model, past * scale + level), expected, atol=2e-3 * scale, rtol=1e-3)


def test_half_precision_keeps_large_levels():
    past = series(1, 24, 3) + 1e6
    output = forecast(build().bfloat16(), past)
    assert output.dtype == torch.float32
    assert (output - 1e6).abs().max() < 10


# --- any horizon, any window


@pytest.mark.parametrize("horizon", [1, 8, 9, 20, 41])
def test_any_horizon_is_forecast(horizon):
    assert forecast(build(), series(2, 24, 3), prediction_length=horizon).shape == (2, horizon, 3)


def test_rolling_is_forecasting_from_ones_own_forecasts():
    model, past = build(), series(2, 24, 3)
    first = forecast(model, past)
    second = forecast(model, torch.cat([past[:, 8:], first], dim=1))
    torch.testing.assert_close(forecast(model, past, prediction_length=16), torch.cat([first, second], dim=1))


def test_longer_horizon_begins_with_the_shorter():
    model, past = build(), series(2, 24, 3)
    torch.testing.assert_close(
        forecast(model, past, prediction_length=30)[:, :11], forecast(model, past, prediction_length=11)
    )


def test_window_that_is_no_multiple_of_a_token_loses_its_oldest_steps():
    model, past = build(), series(2, 29, 3)
    output = model(past, prediction_length=20)
    assert torch.equal(output.prediction_outputs, forecast(model, past[:, 5:], prediction_length=20))
    assert output.token_predictions.shape == (2, 24, 3)


@quick
@given(
    batch=st.integers(1, 3),
    variates=st.integers(1, 4),
    tokens=st.integers(1, 5),
    excess=st.integers(0, 3),
    horizon=st.integers(1, 20),
    rates=st.lists(st.sampled_from([1, 2, 4, 6, 12]), min_size=1, max_size=3),
    heads=st.integers(1, 5),
    width=st.sampled_from([6, 16]),
    layers=st.integers(1, 2),
)
def test_any_sizes_forecast_finite_values(batch, variates, tokens, excess, horizon, rates, heads, width, layers):
    config = GPHTConfig(
        context_length=36, token_length=12, pooling_rates=rates, hidden_size=width, num_attention_heads=heads,
        intermediate_size=9, num_hidden_layers=layers,
    )  # fmt: skip
    past = series(batch, 12 * tokens + excess, variates)
    output = GPHTForPrediction(config).eval()(past, prediction_length=horizon)
    assert output.prediction_outputs.shape == (batch, horizon, variates)
    assert output.token_predictions.shape == (batch, 12 * tokens, variates)
    assert output.prediction_outputs.isfinite().all()


# --- missing values and the loss


def test_full_mask_changes_nothing():
    model, past = build(), series(2, 24, 3)
    masked = forecast(model, past, past_observed_mask=torch.ones_like(past), prediction_length=20)
    torch.testing.assert_close(masked, forecast(model, past, prediction_length=20))


@pytest.mark.parametrize("filler", [0.0, 1e9, float("nan")])
def test_what_stands_under_a_zero_does_not_matter(filler):
    model, past = build(), series(2, 24, 3)
    observed = torch.rand(2, 24, 3, generator=torch.Generator().manual_seed(1)) > 0.3
    expected = forecast(model, past, past_observed_mask=observed, prediction_length=20)
    filled = past.masked_fill(~observed, filler)
    assert torch.equal(forecast(model, filled, past_observed_mask=observed, prediction_length=20), expected)


def test_every_token_is_held_to_the_next_one():
    model, past, future = build(), series(2, 24, 3), series(2, 8, 3, seed=1)
    output = model(past, future_values=future)
    target = torch.cat([past[:, 8:], future], dim=1)
    torch.testing.assert_close(output.loss, (output.token_predictions - target).square().mean())


def test_future_beyond_a_token_does_not_change_the_loss():
    model, past, future = build(), series(2, 26, 3), series(2, 20, 3, seed=1)
    long = model(past, future_values=future, prediction_length=20).loss
    assert torch.equal(long, model(past, future_values=future[:, :8]).loss)


def test_missing_values_do_not_count_in_the_loss():
    model, past, future = build(), series(2, 24, 3), series(2, 8, 3, seed=1)
    past_seen, future_seen = torch.ones_like(past, dtype=torch.bool), torch.ones_like(future, dtype=torch.bool)
    past_seen[:, 10], future_seen[:, 3] = False, False
    output = model(
        past.masked_fill(~past_seen, float("nan")),
        past_seen,
        future.masked_fill(~future_seen, float("nan")),
        future_seen,
    )
    output.loss.backward()
    error = output.token_predictions - torch.cat([past[:, 8:], future], dim=1)
    counted = [t for t in range(24) if t not in (10 - 8, 16 + 3)]
    torch.testing.assert_close(output.loss, error[:, counted].square().mean())
    assert all(p.grad.isfinite().all() for p in model.parameters())


# --- training


def windows(rows, variates, missing=False):
    values = series(1, rows, variates)[0].numpy().copy()
    if missing:
        values[3] = float("nan")
    return ForecastWindows(values, 24, 8)


def test_mixture_holds_every_variate_of_every_window_once():
    parts = [windows(34, 3), windows(40, 1)]
    mixture = MixtureWindows(parts)
    assert len(mixture) == 3 * 3 + 9
    expected = [
        part[w]["past_values"][:, c] for part in parts for w in range(len(part)) for c in range(part.values.shape[1])
    ]
    assert all(torch.equal(mixture[i]["past_values"][:, 0], values) for i, values in enumerate(expected))
    with pytest.raises(IndexError):
        mixture[len(mixture)]


def test_mixture_with_missing_values_gives_masks_throughout():
    mixture = MixtureWindows([windows(34, 1), windows(34, 1, missing=True)])
    batch = torch.utils.data.default_collate([mixture[0], mixture[3]])
    assert batch["past_observed_mask"][0].all()
    assert not batch["past_observed_mask"][1].all()


def test_mixture_of_different_lengths_is_refused():
    with pytest.raises(ValueError, match=r"\(24, 8\), \(24, 9\)"):
        MixtureWindows([windows(40, 1), ForecastWindows(series(1, 40, 1)[0].numpy(), 24, 9)])


def test_mixture_trains_a_model_that_forecasts_all_of_it():
    model, mixture = build(dropout=0.0), MixtureWindows([windows(60, 3), windows(70, 1)])
    batch = torch.utils.data.default_collate([mixture[i] for i in range(0, len(mixture), 8)])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(model(**batch).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("model_class", [GPHTForPrediction, GPHTModel])
def test_only_the_heads_stay_trainable(model_class):
    model = freeze_all_but_heads(build(model_class))
    assert {name.split("stages.")[1] for name, p in model.named_parameters() if p.requires_grad} == {
        f"{stage}.forecast_head.{part}" for stage in range(2) for part in ("weight", "bias")
    }


def test_tuning_the_heads_leaves_the_rest_and_learns():
    model, batch = freeze_all_but_heads(build()), TINY["gpht"]()[1]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first = model(**batch).loss
    for _ in range(10):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
    assert loss < first
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "forecast_head" in name}


def test_peft_trains_the_heads_beside_lora():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        build(), LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["forecast_head"], r=2)
    )
    model(**TINY["gpht"]()[1]).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained
    assert all("lora_" in name or "forecast_head.modules_to_save" in name for name in trained)


def test_only_a_gpht_has_heads_to_tune():
    with pytest.raises(ValueError, match="Linear"):
        freeze_all_but_heads(torch.nn.Linear(2, 2))


# --- refusals


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"past_values": series(2, 7, 3)}, "token_length` = 8"),
        ({"past_values": series(2, 24, 3)[0]}, "past_values"),
        ({"past_values": series(2, 24, 0)}, "past_values"),
        ({"past_values": series(2, 24, 3), "past_observed_mask": torch.ones(2, 24, 1)}, "past_observed_mask"),
        ({"past_values": series(2, 24, 3), "future_values": series(2, 7, 3)}, "future_values"),
        ({"past_values": series(2, 24, 3), "future_values": series(2, 8, 1)}, "future_values"),
        ({"past_values": series(2, 24, 3), "prediction_length": 0}, "prediction_length"),
    ],
)
def test_wrong_inputs_are_refused_by_name(inputs, message):
    with pytest.raises(ValueError, match=message):
        build()(**inputs)


@pytest.mark.parametrize(
    "fields",
    [
        {"context_length": 0},
        {"context_length": 100},
        {"token_length": 0},
        {"pooling_rates": []},
        {"pooling_rates": [5]},
        {"pooling_rates": [0]},
        {"hidden_size": 33},
        {"num_attention_heads": 16, "hidden_size": 8},
        {"num_hidden_layers": 0},
        {"hidden_act": "sinus"},
        {"dropout": 1.0},
        {"layer_norm_eps": 0.0},
        {"channel_means": [0.0]},
        {"channel_means": [0.0], "channel_stds": [0.0]},
    ],
    ids=str,
)
def test_impossible_configurations_are_refused_by_name(fields):
    with pytest.raises(ValueError, match=next(reversed(fields))):
        GPHTConfig(**fields)


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="gpht-small"):
        GPHTConfig.from_preset("gpht-large")


def test_upstreams_names_of_sizes_work_too():
    config = GPHTConfig(d_model=64, ffn_dim=128, patch_length=24, pooling_rates=[2])
    assert (config.hidden_size, config.intermediate_size, config.prediction_length) == (64, 128, 24)


def test_auto_classes_build_from_a_configuration():
    config = TINY["gpht"]()[0]
    assert type(AutoModel.from_config(config)) is GPHTModel
    assert type(AutoModelForTimeSeriesPrediction.from_config(config)) is GPHTForPrediction


# --- the authors' checkpoints


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ({}, {"hidden_size": 512, "pooling_rates": [8, 4, 2, 1], "num_hidden_layers": 3, "dropout": 0.1}),
        ({"depth": 2}, {"pooling_rates": [8, 4]}),
        ({"activation": "silu"}, {"hidden_act": "gelu"}),
        ({"activation": "relu"}, {"hidden_act": "relu"}),
        ({"output_attention": True}, {"output_attentions": True, "_attn_implementation": "eager"}),
        ({"d_model": 16, "ar_pred_len": 720, "percent": 5}, {"hidden_size": 512}),
    ],
    ids=str,
)
def test_arguments_of_the_reference_are_understood(arguments, fields):
    config = get_converter("gpht").config(arguments)
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch_len": 16}, "GT_d_model"),
        ({"pred_len": 96}, "pred_len"),
        ({"depth": 5}, "depth"),
        ({"depth": 0}, "depth"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        get_converter("gpht").config(arguments)


def test_position_tables_of_a_checkpoint_are_left_out():
    case = read_case(FOLDER / "gpht" / "rollout")
    state = {**case["state_dict"], "encoders.0.patch_embedding.position_embedding.pe": torch.zeros(1, 5000, 96)}
    convert_checkpoint("gpht", state, case["arguments"])


def test_checkpoint_that_does_not_fit_lists_every_tensor():
    case = read_case(FOLDER / "gpht" / "rollout")
    state = case["state_dict"]
    state["stray"] = torch.zeros(1)
    del state["encoders.1.forecast_head.bias"]
    with pytest.raises(ConversionError, match=r"(?s)left over: stray.*missing: model\.stages\.1\.forecast_head\.bias"):
        convert_checkpoint("gpht", state, case["arguments"])


def test_missing_data_says_what_to_pass(tmp_path):
    run = Run("gpht", tmp_path, {"data": "nowhere.csv", "epochs": 1, "rate": 1e-4})
    with pytest.raises(MissingData, match="ETTh1"):
        experiments("gpht")["etth1"].run(run)


def test_a_folder_without_data_says_what_to_pass(tmp_path):
    with pytest.raises(MissingData, match="--folder"):
        experiments("gpht")["pretrain"].run(Run("gpht", tmp_path, {"folder": tmp_path, "horizon": 96}))


def test_pretraining_and_tuning_run_on_a_folder_of_files(tmp_path):
    for name, rows, columns in (("one", 1000, 1), ("two", 1000, 2)):
        values = torch.arange(rows)[:, None].div(torch.tensor([3.0, 7.0][:columns])).sin()
        lines = [",".join(["date", *"ab"[:columns]])]
        lines += [
            f"2020-01-01 {i // 3600:02}:{i // 60 % 60:02}:{i % 60:02}," + ",".join(map(str, row))
            for i, row in enumerate(values.tolist())
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    options = {"folder": tmp_path, "preset": "gpht-small", "horizon": 50, "batch": 64, "epochs": 1, "rate": 1e-3}
    rows = experiments("gpht")["pretrain"].run(Run("gpht", tmp_path / "run", options))
    assert [row.metric.split(", ")[1:] for row in rows] == [
        [name, "50 steps", what] for name in ("one", "two") for what in ("pre-trained", "heads tuned")
    ]
    assert all(row.ours < 1 for row in rows)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
