"""Informer: published sizes, seeds and draws, distilling and stacks, calendar, missing values, converter, and refusals."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTimeSeriesPrediction,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_ext.convert import ConversionError, convert_checkpoint, get_converter
from hf_ext.data.time_series import ForecastWindows, calendar_entries
from hf_ext.models.informer import InformerGenerativeConfig, InformerGenerativeForPrediction, InformerGenerativeModel
from hf_ext.models.informer.modeling_informer import InformerGenerativeDistilling
from hf_ext.reproductions import MissingData, Run, experiments
from tests.goldens import FOLDER, call_arguments, read_case, run_case
from tests.tiny import TINY, series

quick = settings(max_examples=15, deadline=None, derandomize=True)
SPARSE = {"context_length": 32, "label_length": 16, "prediction_length": 16, "sampling_factor": 1}


def tiny_config(**fields):
    return InformerGenerativeConfig.from_dict({**TINY["informer"]()[0].to_dict(), **fields})


def build(model_class=InformerGenerativeForPrediction, **fields):
    torch.manual_seed(0)
    return model_class(tiny_config(**fields)).eval()


def inputs(config, batch=2):
    features = config.num_time_features
    given = {"past_values": series(batch, config.context_length, config.num_input_channels)}
    if features:
        given["past_time_features"] = series(batch, config.context_length, features, seed=1) / 4
        given["future_time_features"] = series(batch, config.prediction_length, features, seed=2) / 4
    return given


@torch.no_grad()
def forecast(model, **changes):
    return model(**inputs(model.config) | changes).prediction_outputs


# --- published sizes


@pytest.mark.parametrize("preset", InformerGenerativeConfig.PRESETS)
def test_published_parameter_counts(preset):
    with torch.device("meta"):
        model = InformerGenerativeForPrediction(InformerGenerativeConfig.from_preset(preset))
    # one variate instead of seven: two value embeddings of 3 x 512 and an output of 513 less for each of six
    expected = 11_330_055 - (6 * (2 * 3 * 512 + 513) if "univariate" in preset else 0)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_presets_cover_the_authors_scripts():
    assert set(InformerGenerativeConfig.PRESETS) == {
        f"{data}-{horizon}" for data in ("etth1", "etth1-univariate") for horizon in (24, 48, 168, 336, 720)
    }


# --- sizes


@quick
@given(
    context=st.integers(4, 20),
    label=st.integers(0, 4),
    horizon=st.integers(1, 12),
    channels=st.integers(1, 4),
    features=st.integers(0, 3),
    heads=st.integers(1, 5),
    width=st.sampled_from([6, 10, 16]),
    depths=st.sampled_from([[1], [2], [3], [2, 1], [3, 2, 1]]),
    attention=st.sampled_from(["prob", "full"]),
    distil=st.booleans(),
)
def test_any_sizes_forecast_finite_values(
    context, label, horizon, channels, features, heads, width, depths, attention, distil
):
    config = InformerGenerativeConfig(
        context_length=context, label_length=label, prediction_length=horizon, num_input_channels=channels,
        num_time_features=features, num_attention_heads=heads, hidden_size=width, intermediate_size=9,
        encoder_depths=depths, attention_type=attention, sampling_factor=1, distil=distil,
    )  # fmt: skip
    model = InformerGenerativeForPrediction(config).eval()
    output = model(**inputs(config), output_hidden_states=True, output_attentions=True)
    assert output.prediction_outputs.shape == (2, horizon, channels)
    assert output.prediction_outputs.isfinite().all()
    lengths = [length for branch in config.layer_lengths() for length in branch]
    assert [h.shape[1] for h in output.encoder_hidden_states] == [context, *lengths]
    if attention == "prob":
        assert [a.shape[2:] for a in output.encoder_attentions] == [(length, length) for length in lengths]


def test_distilling_halves_the_length_rounding_up():
    config = InformerGenerativeConfig(context_length=97, encoder_depths=[4])
    assert config.layer_lengths() == [[97, 49, 25, 13]]
    assert InformerGenerativeDistilling(tiny_config())(torch.randn(2, 97, 32)).shape == (2, 49, 32)


def test_a_stack_reads_ever_shorter_ends_and_joins_its_outputs():
    config = InformerGenerativeConfig(context_length=96, encoder_depths=[3, 2, 1])
    assert config.layer_lengths() == [[96, 48, 24], [48, 24], [24]]
    model = build(context_length=96, label_length=4, encoder_depths=[3, 2, 1])
    output = model(**inputs(model.config))
    assert output.encoder_last_hidden_state.shape == (2, 72, 32)
    past = inputs(model.config)["past_values"].clone()
    past[:, 1:40] += 1  # only the first encoder reads these (the ends of the series are joined, so not the first step)
    changed = model(**inputs(model.config) | {"past_values": past}).encoder_last_hidden_state
    torch.testing.assert_close(changed[:, 24:], output.encoder_last_hidden_state[:, 24:])
    assert not torch.allclose(changed[:, :24], output.encoder_last_hidden_state[:, :24])


def test_gradient_of_a_batch_of_one_equals_its_share_in_a_batch_of_two():
    """BatchNorm's backward on CPU has been wrong for some layouts of a single sample."""
    torch.manual_seed(0)
    layer = InformerGenerativeDistilling(tiny_config()).double().train()
    tokens = torch.randn(1, 24, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x)[:, :3, :2], (tokens[:, :6].detach().requires_grad_(),))
    single = torch.autograd.grad(layer.float()(tokens.float()).square().sum(), tokens)[0]
    double = torch.autograd.grad(layer(torch.cat([tokens.float()] * 2)).square().sum(), tokens)[0]
    torch.testing.assert_close(double, 2 * single, atol=1e-4, rtol=1e-4)


def test_checkpointing_updates_batchnorm_once():
    statistics = []
    for enabled in (False, True):
        model = build(dropout=0.0).train()
        if enabled:
            model.gradient_checkpointing_enable()
        torch.manual_seed(1)
        model(**inputs(model.config), future_values=series(2, 4, 3)).loss.backward()
        statistics.append(model.model.encoder.branches[0].distilling[0].norm.running_mean)
    torch.testing.assert_close(statistics[1], statistics[0])


def test_initialisation_is_the_references():
    model = build(hidden_size=512, num_attention_heads=8).model
    values = model.encoder.embeddings.value_embedding
    assert values.weight.std().item() == pytest.approx((2 / (3 * 3)) ** 0.5, rel=0.1)  # Kaiming, fan in
    assert values.bias.abs().max() <= (3 * 3) ** -0.5
    distilling = model.encoder.branches[0].distilling[0].conv
    assert distilling.weight.std().item() == pytest.approx((3 * 512) ** -0.5 / 3**0.5, rel=0.1)  # PyTorch's own


# --- draws


def test_forecasts_repeat_in_eval_mode():
    model = build(**SPARSE)
    assert torch.equal(forecast(model), forecast(model))


def test_the_default_draws_are_those_of_the_configured_seed():
    model = build(**SPARSE, sampling_seed=5)
    assert torch.equal(forecast(model), forecast(model, sampling_seed=5))
    assert not torch.allclose(forecast(model, sampling_seed=6), forecast(model))


@pytest.mark.parametrize("mode", ["training", "unseeded"])
def test_draws_are_fresh_in_training_mode_and_without_a_seed(mode):
    model = build(**SPARSE, dropout=0.0, sampling_seed=0 if mode == "training" else None)
    model.train(mode == "training")
    torch.manual_seed(0)
    first, second = forecast(model), forecast(model)
    assert not torch.allclose(first, second)
    torch.manual_seed(0)
    torch.testing.assert_close(forecast(model), first)


def test_the_global_seed_draws_what_the_same_sampling_seed_draws():
    """As in the reference, whose draws come from torch's global generator."""
    model = build(**SPARSE, sampling_seed=None)
    torch.manual_seed(7)
    assert torch.equal(forecast(model), forecast(model, sampling_seed=7))


def test_a_saved_model_draws_the_same(tmp_path):
    model = build(**SPARSE, sampling_seed=11)
    model.save_pretrained(tmp_path)
    assert torch.equal(forecast(AutoModelForTimeSeriesPrediction.from_pretrained(tmp_path).eval()), forecast(model))


def test_a_large_factor_makes_prob_equal_full():
    prob, full = build(**SPARSE | {"sampling_factor": 50}), build(**SPARSE, attention_type="full")
    full.load_state_dict(prob.state_dict())
    torch.testing.assert_close(forecast(prob), forecast(full), atol=1e-5, rtol=1e-4)


def test_full_attention_takes_upstreams_implementations():
    outputs = []
    for implementation in ("eager", "sdpa"):
        model = build(**SPARSE, attention_type="full")
        model.set_attn_implementation(implementation)
        outputs.append(forecast(model))
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)


def test_full_attention_ignores_seeds():
    model = build(**SPARSE, attention_type="full")
    assert torch.equal(forecast(model, sampling_seed=1), forecast(model, sampling_seed=2))


# --- decoder


def test_mixing_heads_changes_the_forecast_and_not_the_weights():
    mixed, plain = build(), build(mix_heads=False)
    plain.load_state_dict(mixed.state_dict())
    assert not torch.allclose(forecast(mixed), forecast(plain))


def test_placeholders_of_the_horizon_can_be_ones():
    zeros, ones = build(), build(decoder_fill=1)
    ones.load_state_dict(zeros.state_dict())
    assert not torch.allclose(forecast(ones), forecast(zeros))


def test_fewer_outputs_are_the_last_channels():
    model = build(num_output_channels=1)
    future = series(2, 4, 3, seed=5)
    output = model(**inputs(model.config), future_values=future)
    assert output.prediction_outputs.shape == (2, 4, 1)
    torch.testing.assert_close(output.loss, (output.prediction_outputs - future[..., -1:]).square().mean())
    alone = model(**inputs(model.config), future_values=future[..., -1:])
    torch.testing.assert_close(alone.loss, output.loss)


def test_attention_maps_are_returned_for_every_layer():
    model = build(num_decoder_layers=2)
    model.set_attn_implementation("eager")
    output = model(**inputs(model.config), output_attentions=True)
    assert [a.shape for a in output.encoder_attentions] == [(2, 4, 24, 24), (2, 4, 12, 12), (2, 4, 12, 12)]
    assert [a.shape for a in output.decoder_attentions] == [(2, 4, 8, 8)] * 2
    assert [a.shape for a in output.cross_attentions] == [(2, 4, 8, 24)] * 2


# --- calendar and missing values


def calendar(batch, steps, columns=4):
    values = [
        1 + torch.arange(steps) % 12,
        1 + torch.arange(steps) % 31,
        torch.arange(steps) % 7,
        torch.arange(steps) % 24,
    ]
    return torch.stack([*values, torch.arange(steps) % 4][:columns], -1).expand(batch, -1, -1)


@pytest.mark.parametrize("kind", ["fixed", "learned"])
@pytest.mark.parametrize("features", [4, 5])
def test_calendar_tables_take_whole_numbers(kind, features):
    model = build(calendar_embedding=kind, num_time_features=features)
    past, future = calendar(2, 24, features), calendar(2, 4, features)
    output = forecast(model, past_time_features=past, future_time_features=future)
    torch.testing.assert_close(
        forecast(model, past_time_features=past.float(), future_time_features=future.float()), output
    )
    trainable = [name for name, _ in model.named_parameters() if "calendar" in name]
    assert len(trainable) == (2 * features if kind == "learned" else 0)


@pytest.mark.parametrize("change", [0.5, -8, 60])
def test_calendar_tables_refuse_what_is_no_entry(change):
    model = build(calendar_embedding="learned")
    with pytest.raises(ValueError, match="month below 13, day below 32"):
        forecast(model, past_time_features=calendar(2, 24) + change, future_time_features=calendar(2, 4))


def test_without_a_calendar_none_is_needed():
    model = build(num_time_features=0)
    assert forecast(model).shape == (2, 4, 3)


@pytest.mark.parametrize("filler", [0.0, 1e9, float("nan"), float("inf")])
def test_what_stands_under_a_zero_does_not_matter(filler):
    model = build()
    past = inputs(model.config)["past_values"]
    observed = torch.rand(2, 24, 3, generator=torch.Generator().manual_seed(1)) > 0.3
    expected = forecast(model, past_observed_mask=observed)
    filled = past.masked_fill(~observed, filler)
    assert torch.equal(forecast(model, past_values=filled, past_observed_mask=observed), expected)


def test_full_mask_changes_nothing():
    model = build()
    assert torch.equal(forecast(model, past_observed_mask=torch.ones(2, 24, 3)), forecast(model))


def test_missing_future_values_do_not_count():
    model, future = build(), series(2, 4, 3, seed=5)
    observed = torch.ones_like(future, dtype=torch.bool)
    observed[:, :2] = False
    output = model(
        **inputs(model.config), future_values=future.masked_fill(~observed, float("nan")), future_observed_mask=observed
    )
    torch.testing.assert_close(output.loss, (output.prediction_outputs - future)[:, 2:].square().mean())


def test_past_values_are_not_written_to():
    model = build()
    past = inputs(model.config)["past_values"]
    copy = past.clone()
    forecast(model, past_values=past, past_observed_mask=past > 0)
    assert torch.equal(past, copy)


def test_trainer_learns_two_sines():
    time = torch.arange(200)[:, None] / torch.tensor([3.0, 5.0])
    windows = ForecastWindows(time.sin().numpy(), 24, 4)
    model = build(num_input_channels=2, num_output_channels=2, num_time_features=0, dropout=0.0)
    arguments = TrainingArguments(
        output_dir="unused", max_steps=60, learning_rate=5e-3, per_device_train_batch_size=16, report_to="none",
        save_strategy="no", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    sample = {name: tensor[None] for name, tensor in windows[0].items()}
    before = model(**sample).loss
    Trainer(model=model, args=arguments, train_dataset=windows).train()
    assert model.eval()(**sample).loss < before / 4


# --- the pipeline


def forecaster(folder, **fields):
    build(**fields).save_pretrained(folder)
    return pipeline("time-series-forecasting", model=str(folder))


def history(rows=40):
    stamps = pd.date_range("2024-02-28", periods=rows, freq="15min")
    return pd.DataFrame(series(1, rows, 3)[0].double().numpy(), index=stamps, columns=["a", "b", "c"])


@pytest.mark.parametrize(
    "fields", [{"num_time_features": 5}, {"num_time_features": 5, "calendar_embedding": "learned"}]
)
def test_pipeline_makes_the_calendar_of_past_and_future(tmp_path, fields):
    forecast = forecaster(tmp_path, **fields)(history())
    assert list(forecast.columns) == ["a", "b", "c"]
    assert forecast.index[0] == pd.Timestamp("2024-02-28 10:00")
    assert np.isfinite(forecast).all(axis=None)


def test_pipeline_forecasts_fewer_steps_as_the_beginning_of_all(tmp_path):
    pipe = forecaster(tmp_path)
    pd.testing.assert_frame_equal(pipe(history(), prediction_length=2), pipe(history()).iloc[:2], check_freq=False)


def test_pipeline_names_the_columns_that_are_forecast(tmp_path):
    frame = history()
    frame["c"] += 1000
    forecast = forecaster(tmp_path, num_output_channels=1)(frame)
    assert list(forecast.columns) == ["c"]
    assert forecast["c"].between(900, 1100).all()


def test_calendar_entries_are_whole_numbers_in_the_references_order():
    stamps = pd.DatetimeIndex(["2024-12-31 23:59"])
    assert calendar_entries(stamps, 5).tolist() == [[12, 31, 1, 23, 3]]
    with pytest.raises(ValueError, match="not 3"):
        calendar_entries(stamps, 3)


# --- refusals


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"past_values": series(2, 23, 3)}, "context_length"),
        ({"past_values": series(2, 24, 4)}, "num_input_channels"),
        ({"past_values": series(2, 24, 3)[0]}, "past_values"),
        ({"past_time_features": None}, "past_time_features.*missing"),
        ({"future_time_features": None}, "future_time_features.*missing"),
        ({"past_time_features": series(2, 24, 3)}, "past_time_features"),
        ({"future_time_features": series(2, 5, 4)}, "future_time_features"),
        ({"past_observed_mask": torch.ones(2, 24)}, "past_observed_mask"),
        ({"future_values": series(2, 5, 3)}, "future_values"),
        ({"future_values": series(2, 4, 3), "future_observed_mask": torch.ones(2, 4)}, "future_observed_mask"),
    ],
)
def test_wrong_shapes_are_refused_by_name(inputs, message):
    with pytest.raises(ValueError, match=message):
        forecast(build(), **inputs)


@pytest.mark.parametrize(
    "fields",
    [
        {"context_length": 0},
        {"prediction_length": -1},
        {"label_length": 97},
        {"label_length": -1},
        {"num_output_channels": 8},
        {"num_output_channels": 0},
        {"num_decoder_layers": 0},
        {"hidden_size": 31},
        {"hidden_size": 8, "num_attention_heads": 9},
        {"encoder_depths": []},
        {"encoder_depths": [2, 0]},
        {"context_length": 2, "label_length": 0, "encoder_depths": [1, 1, 1]},
        {"attention_type": "sparse"},
        {"sampling_factor": 0},
        {"calendar_embedding": "timeF"},
        {"calendar_embedding": "fixed", "num_time_features": 3},
        {"hidden_act": "sinus"},
        {"dropout": 1.0},
        {"layer_norm_eps": 0.0},
        {"channel_stds": [1.0]},
    ],
    ids=json.dumps,
)
def test_impossible_configurations_are_refused_by_name(fields):
    with pytest.raises(ValueError, match="`(" + "|".join(fields) + ")`"):
        InformerGenerativeConfig(**fields)


def test_upstreams_names_of_sizes_work_too():
    config = InformerGenerativeConfig(d_model=64, decoder_layers=2)
    assert (config.hidden_size, config.num_decoder_layers) == (64, 2)


def test_upstreams_informer_stays_what_it_is():
    assert type(AutoConfig.for_model("informer")).__module__.startswith("transformers.")


def test_auto_classes_build_from_a_configuration():
    assert type(AutoModel.from_config(tiny_config())) is InformerGenerativeModel
    assert type(AutoModelForTimeSeriesPrediction.from_config(tiny_config())) is InformerGenerativeForPrediction


# --- the authors' checkpoints


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ({}, {"encoder_depths": [3], "num_decoder_layers": 2, "intermediate_size": 512, "calendar_embedding": "fixed"}),
        ({"model": "InformerStack"}, {"encoder_depths": [3, 2, 1]}),
        ({"model": "informerstack", "e_layers": 2, "s_layers": "3,2"}, {"encoder_depths": [3, 2]}),
        ({"embed": "timeF", "freq": "15t"}, {"num_time_features": 5, "calendar_embedding": "linear"}),
        ({"embed": "timeF", "freq": "d"}, {"num_time_features": 3}),
        ({"embed": "learned", "freq": "t"}, {"num_time_features": 5}),
        ({"attn": "log"}, {"attention_type": "full"}),
        ({"activation": "silu"}, {"hidden_act": "gelu"}),
        ({"activation": "relu"}, {"hidden_act": "relu"}),
        ({"padding": 1}, {"decoder_fill": 1}),
        ({"mix": False, "distil": False}, {"mix_heads": False, "distil": False}),
        ({"d_ff": None, "d_model": 64}, {"intermediate_size": 256}),
        ({"out_len": 12}, {"prediction_length": 12}),
        ({"pred_len": 12, "use_gpu": True, "lradj": "type1"}, {"prediction_length": 12}),
        ({"output_attention": True}, {"output_attentions": True}),
    ],
)
def test_arguments_of_the_reference_are_understood(arguments, fields):
    config = get_converter("informer").config({"enc_in": 7, "dec_in": 7, "c_out": 7} | arguments)
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seq_length": 96}, "seq_length.*seq_len"),
        ({"enc_in": None}, "enc_in"),
        ({"dec_in": 5}, "dec_in"),
        ({"model": "informerlight"}, "informerstack"),
        ({"embed": "sum"}, "timeF"),
        ({"freq": "q"}, "freq"),
        ({"e_layers": [2]}, "e_layers"),
    ],
)
def test_arguments_without_a_meaning_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        get_converter("informer").config({"enc_in": 7, "dec_in": 7, "c_out": 7} | arguments)


def test_position_tables_of_a_real_checkpoint_are_dropped():
    case = read_case(FOLDER / "informer" / "full")
    state = case["state_dict"] | {
        f"{part}_embedding.position_embedding.pe": torch.zeros(1, 5000, 64) for part in ("enc", "dec")
    }
    assert convert_checkpoint("informer", state, case["arguments"]).config.context_length == 40


def test_checkpoint_that_does_not_fit_lists_every_tensor():
    case = read_case(FOLDER / "informer" / "full")
    state = case["state_dict"] | {"stray": torch.zeros(1)}
    del state["encoder.norm.bias"]
    with pytest.raises(ConversionError, match=r"(?s)left over: stray.*missing: model\.encoder\.branches\.0\.layernorm"):
        convert_checkpoint("informer", state, case["arguments"])


def test_mixing_decides_whether_the_authors_forecast_comes_out():
    case = read_case(FOLDER / "informer" / "base")
    case["arguments"]["mix"] = False
    assert (run_case(case)["prediction_outputs"] - case["outputs"]["prediction_outputs"]).abs().max() > 0.01


def test_another_seed_gives_another_forecast():
    case = read_case(FOLDER / "informer" / "base")
    model = convert_checkpoint("informer", case["state_dict"], case["arguments"])
    with torch.no_grad():
        other = model(**call_arguments(case) | {"sampling_seed": 8}).prediction_outputs
    assert (other - case["outputs"]["prediction_outputs"]).abs().max() > 1e-3


# --- the experiment


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data": "nowhere.csv", "horizon": 24}, MissingData, "ETTh1"),
        ({"data": "", "horizon": 25}, ValueError, "24, 48"),
    ],
)
def test_experiment_says_what_it_needs(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        experiments("informer")["etth1"].run(Run("informer", tmp_path, options | {"width": 128, "epochs": 1}))
