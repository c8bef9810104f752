"""iTransformer: published sizes, what its structure promises, missing values, heads, converter, and refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForTimeSeriesPrediction, Trainer, TrainingArguments

from hf_ext.convert import ConversionError, convert_checkpoint, get_converter
from hf_ext.data.time_series import ForecastWindows
from hf_ext.models.itransformer import (
    ITransformerConfig,
    ITransformerForPrediction,
    ITransformerForReconstruction,
    ITransformerForTimeSeriesClassification,
    ITransformerModel,
)
from hf_ext.reproductions import MissingData, Run, experiments
from tests.goldens import FOLDER, read_case
from tests.tiny import TINY, series

quick = settings(max_examples=15, deadline=None, derandomize=True)


def tiny_config(**fields):
    return ITransformerConfig.from_dict({**TINY["itransformer"]()[0].to_dict(), **fields})


def build(model_class=ITransformerForPrediction, **fields):
    torch.manual_seed(0)
    return model_class(tiny_config(**fields)).eval()


@torch.no_grad()
def forecast(model, past_values, **inputs):
    return model(past_values=past_values, **inputs).prediction_outputs


def meta_count(config):
    with torch.device("meta"):
        return sum(p.numel() for p in ITransformerForPrediction(config).parameters())


# --- published sizes


@pytest.mark.parametrize(
    ("preset", "count"), [("etth1-96", 841_568), ("ecl-192", 4_883_136), ("traffic-720", 6_731_984)]
)
def test_published_parameter_counts(preset, count):
    assert meta_count(ITransformerConfig.from_preset(preset)) == count


@pytest.mark.parametrize("preset", ITransformerConfig.PRESETS)
def test_every_preset_has_the_parameters_that_its_sizes_imply(preset):
    config = ITransformerConfig.from_preset(preset)
    width, inner = config.hidden_size, config.intermediate_size
    layer = 4 * (width * width + width) + width * inner + inner + inner * width + width + 4 * width
    embedding, norm, head = (96 + 1) * width, 2 * width, (width + 1) * config.prediction_length
    assert meta_count(config) == embedding + config.num_hidden_layers * layer + norm + head


def test_presets_cover_the_published_table():
    names = ITransformerConfig.PRESETS
    long = [
        f"{data}-{h}"
        for data in ("etth1", "etth2", "ettm1", "ettm2", "exchange", "ecl", "traffic", "weather", "solar")
        for h in (96, 192, 336, 720)
    ]
    short = [f"pems0{number}-{h}" for number in (3, 4, 7, 8) for h in (12, 24, 48, 96)]
    assert set(names) == {*long, *short}
    assert {name for name, fields in names.items() if fields.get("scaling", "std") is None} == {
        *(f"pems04-{h}" for h in (12, 24, 48, 96)), *(f"pems07-{h}" for h in (12, 24, 48, 96)), "pems08-48", "pems08-96"
    }  # fmt: skip


# --- what the structure promises


def test_forecast_follows_a_permutation_of_the_variates():
    model, past, order = build(), series(2, 16, 5), [3, 0, 4, 2, 1]
    torch.testing.assert_close(forecast(model, past[..., order]), forecast(model, past)[..., order])


@pytest.mark.parametrize("variates", [1, 2, 33])
def test_number_of_variates_is_free(variates):
    assert forecast(build(), series(2, 16, variates)).shape == (2, 8, variates)


@quick
@given(
    batch=st.integers(1, 3),
    variates=st.integers(1, 6),
    time_features=st.integers(0, 3),
    context=st.integers(1, 20),
    horizon=st.integers(1, 20),
    heads=st.integers(1, 5),
    width=st.integers(5, 24),
    inner=st.sampled_from([None, 0, 7]),
    scaling=st.sampled_from(["std", None]),
)
def test_any_sizes_forecast_finite_values(
    batch, variates, time_features, context, horizon, heads, width, inner, scaling
):
    config = ITransformerConfig(
        context_length=context, prediction_length=horizon, num_attention_heads=heads, hidden_size=width,
        intermediate_size=inner, scaling=scaling,
    )  # fmt: skip
    calendar = series(batch, context, time_features, seed=1) if time_features else None
    output = ITransformerForPrediction(config).eval()(
        past_values=series(batch, context, variates), past_time_features=calendar, output_hidden_states=True
    )
    assert output.prediction_outputs.shape == (batch, horizon, variates)
    assert output.prediction_outputs.isfinite().all()
    assert [h.shape for h in output.hidden_states] == [(batch, variates + time_features, width)] * 3


@quick
@given(level=st.floats(-100, 100), scale=st.floats(0.5, 50))
def test_forecast_follows_level_and_scale_of_the_window(level, scale):
    model, past = build(), series(2, 16, 3)
    expected = forecast(model, past) * scale + level
    torch.testing.assert_close(forecast(model, past * scale + level), expected, atol=2e-3 * scale, rtol=1e-3)


def test_level_is_a_constant_to_the_gradient_and_scale_is_not():
    output = build(ITransformerModel)(past_values=series(2, 16, 3).requires_grad_())
    assert not output.loc.requires_grad
    assert output.scale.requires_grad


def test_constant_variate_keeps_its_level():
    past = series(1, 16, 3)
    past[..., 1] = 7.0
    assert (forecast(build(), past)[..., 1] - 7).abs().max() < 0.1


def test_calendar_features_change_the_forecast_and_are_not_forecast():
    model, past = build(), series(2, 16, 3)
    with_calendar = forecast(model, past, past_time_features=series(2, 16, 2, seed=1))
    assert with_calendar.shape == (2, 8, 3)
    assert not torch.allclose(with_calendar, forecast(model, past))


def test_heads_that_do_not_divide_the_width_narrow_the_attention():
    attention = build(hidden_size=30, num_attention_heads=4).model.layers[0].attention
    assert attention.q_proj.out_features == 28
    assert attention.o_proj.in_features == 28


def test_half_precision_keeps_large_levels():
    past = series(1, 16, 3) + 1e6
    output = forecast(build().bfloat16(), past)
    assert output.dtype == torch.float32
    assert (output - 1e6).abs().max() < 10


def test_past_values_are_not_written_to():
    past = series(2, 16, 3)
    copy = past.clone()
    forecast(build(), past, past_observed_mask=past > 0)
    assert torch.equal(past, copy)


def test_initialisation_is_pytorchs():
    weight = build(hidden_size=64, context_length=16).model.embeddings.value_embedding.weight
    assert weight.abs().max() <= 16**-0.5
    assert weight.std().item() == pytest.approx(16**-0.5 / 3**0.5, rel=0.1)


# --- missing values


def test_full_mask_changes_nothing():
    model, past = build(), series(2, 16, 3)
    full = torch.ones_like(past)
    torch.testing.assert_close(forecast(model, past, past_observed_mask=full), forecast(model, past))


@pytest.mark.parametrize("scaling", ["std", None])
@pytest.mark.parametrize("filler", [0.0, 1e9, float("nan"), float("inf")])
def test_what_stands_under_a_zero_does_not_matter(filler, scaling):
    model, past = build(scaling=scaling), series(2, 16, 3)
    observed = torch.rand(2, 16, 3, generator=torch.Generator().manual_seed(1)) > 0.3
    expected = forecast(model, past, past_observed_mask=observed)
    filled = past.masked_fill(~observed, filler)
    assert torch.equal(forecast(model, filled, past_observed_mask=observed), expected)


def test_level_and_scale_are_those_of_the_observed_entries():
    past = series(1, 16, 2)
    observed = torch.ones_like(past, dtype=torch.bool)
    observed[:, :10, 0] = False
    output = build(ITransformerModel)(past_values=past, past_observed_mask=observed)
    seen = past[0, 10:, 0]
    assert output.loc[0, 0, 0].item() == pytest.approx(seen.mean().item(), abs=1e-5)
    assert output.scale[0, 0, 0].item() == pytest.approx((seen.var(unbiased=False) + 1e-5).sqrt().item(), rel=1e-4)


def test_variate_without_any_observation_stays_finite():
    past = series(1, 16, 2)
    past[..., 0] = float("nan")
    assert forecast(build(), past, past_observed_mask=~past.isnan()).isfinite().all()


def test_missing_future_values_do_not_count():
    model, past, future = build(), series(2, 16, 3), series(2, 8, 3, seed=1)
    observed = torch.ones_like(future, dtype=torch.bool)
    observed[:, :3] = False
    loss = model(past, future_values=future.masked_fill(~observed, float("nan")), future_observed_mask=observed).loss
    loss.backward()
    expected = (forecast(model, past) - future)[:, 3:].square().mean()
    torch.testing.assert_close(loss, expected)
    assert all(p.grad.isfinite().all() for p in model.parameters())


# --- losses and heads


def test_loss_is_taken_on_the_chosen_channels():
    past, future = series(2, 16, 3), series(2, 8, 3, seed=1)
    model = build(loss_channels=[-1])
    expected = (forecast(model, past) - future)[..., -1].square().mean()
    torch.testing.assert_close(model(past, future_values=future).loss, expected)


def test_reconstruction_loss_is_over_hidden_entries_whose_value_is_known():
    model, past = build(ITransformerForReconstruction), series(2, 16, 3)
    observed = torch.ones_like(past, dtype=torch.bool)
    observed[:, 2:6] = False
    unknown = past.clone()
    unknown[:, 2] = float("nan")
    output = model(past_values=unknown, past_observed_mask=observed)
    torch.testing.assert_close(output.loss, (output.reconstruction - past)[:, 3:6].square().mean())


def test_reconstruction_loss_without_a_mask_is_over_everything():
    model, past = build(ITransformerForReconstruction), series(2, 16, 3)
    output = model(past_values=past)
    torch.testing.assert_close(output.loss, (output.reconstruction - past).square().mean())


def test_classification_does_not_use_calendar_features():
    model, past = build(ITransformerForTimeSeriesClassification), series(2, 16, 3)
    logits = model(past_values=past).logits
    assert torch.equal(model(past_values=past, past_time_features=series(2, 16, 2)).logits, logits)


def test_trainer_learns_two_sines():
    time = torch.arange(200)[:, None] / torch.tensor([3.0, 5.0])
    windows = ForecastWindows(time.sin().numpy(), 16, 8)
    model = build(num_input_channels=2, dropout=0.0)
    arguments = TrainingArguments(
        output_dir="unused", max_steps=100, learning_rate=5e-3, per_device_train_batch_size=16, report_to="none",
        save_strategy="no", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    before = model(**{name: tensor[None] for name, tensor in windows[0].items()}).loss
    Trainer(model=model, args=arguments, train_dataset=windows).train()
    after = model.eval()(**{name: tensor[None] for name, tensor in windows[0].items()}).loss
    assert after < before / 4


def test_gradient_accumulation_divides_the_loss():
    assert not build().accepts_loss_kwargs


# --- refusals


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"past_values": series(2, 15, 3)}, "context_length = 16"),
        ({"past_values": series(2, 16, 3)[0]}, "past_values"),
        ({"past_values": series(2, 16, 0)}, "past_values"),
        ({"past_values": series(2, 16, 3), "past_observed_mask": torch.ones(2, 16, 1)}, "past_observed_mask"),
        ({"past_values": series(2, 16, 3), "past_time_features": series(1, 16, 2)}, "past_time_features"),
        ({"past_values": series(2, 16, 3), "future_values": series(2, 7, 3)}, "future_values"),
        (
            {
                "past_values": series(2, 16, 3),
                "future_values": series(2, 8, 3),
                "future_observed_mask": torch.ones(2, 8),
            },
            "future_observed_mask",
        ),
    ],
)
def test_wrong_shapes_are_refused_by_name(inputs, message):
    with pytest.raises(ValueError, match=message):
        build()(**inputs)


def test_classification_refuses_another_number_of_variates():
    with pytest.raises(ValueError, match=r"num_input_channels.* = 3 .*got 4"):
        build(ITransformerForTimeSeriesClassification)(past_values=series(2, 16, 4))


@pytest.mark.parametrize(
    "fields",
    [
        {"context_length": 0},
        {"prediction_length": -1},
        {"num_hidden_layers": 0},
        {"num_time_features": -1},
        {"hidden_size": 8, "num_attention_heads": 9},
        {"hidden_act": "sinus"},
        {"scaling": "mean"},
        {"dropout": 1.0},
        {"layer_norm_eps": 0.0},
        {"loss_channels": []},
        {"channel_means": [0.0]},
        {"channel_means": [0.0], "channel_stds": [0.0]},
    ],
    ids=lambda fields: next(reversed(fields)),
)
def test_impossible_configurations_are_refused_by_name(fields):
    with pytest.raises(ValueError, match=next(reversed(fields))):
        ITransformerConfig(**fields)


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="etth1-96"):
        ITransformerConfig.from_preset("etth3-96")


def test_patchtst_names_of_sizes_work_too():
    config = ITransformerConfig(d_model=64, ffn_dim=128)
    assert (config.hidden_size, config.intermediate_size, config.d_model) == (64, 128, 64)


def test_auto_classes_build_from_a_configuration():
    config = tiny_config()
    assert type(AutoModel.from_config(config)) is ITransformerModel
    assert type(AutoModelForTimeSeriesPrediction.from_config(config)) is ITransformerForPrediction


# --- the authors' checkpoints


def golden():
    case = read_case(FOLDER / "itransformer" / "nomarks")
    return case["state_dict"], case["arguments"]


@pytest.mark.parametrize(
    ("task", "head"),
    [
        (None, ITransformerForPrediction),
        ("long_term_forecast", ITransformerForPrediction),
        ("short_term_forecast", ITransformerForPrediction),
        ("imputation", ITransformerForReconstruction),
        ("anomaly_detection", ITransformerForReconstruction),
        ("classification", ITransformerForTimeSeriesClassification),
    ],
)
def test_task_selects_the_head(task, head):
    assert get_converter("itransformer").model_class({"task_name": task}) == head.__name__


def test_time_series_library_scales_whatever_use_norm_says_except_in_classification():
    config = get_converter("itransformer").config
    tasks = ("long_term_forecast", "imputation", "anomaly_detection", "classification")
    assert [config({"task_name": task, "use_norm": 0}).scaling for task in tasks] == ["std", "std", "std", None]


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ({"d_ff": 0, "d_model": 64}, {"intermediate_size": 256}),
        ({"d_ff": None, "d_model": 64}, {"intermediate_size": 256}),
        ({"activation": "silu"}, {"hidden_act": "gelu"}),
        ({"activation": "relu"}, {"hidden_act": "relu"}),
        ({"use_norm": 1}, {"scaling": "std"}),
        ({"use_norm": 0}, {"scaling": None}),
        ({"features": "MS"}, {"loss_channels": [-1]}),
        ({"freq": "15min"}, {"num_time_features": 5}),
        ({"freq": "h", "data": "PEMS"}, {"num_time_features": 0}),
        ({"output_attention": True}, {"output_attentions": True, "_attn_implementation": "eager"}),
        ({}, {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 2, "dropout": 0.1}),
        ({"label_len": 48, "class_strategy": "cls_token", "factor": 3, "use_gpu": False}, {"context_length": 96}),
    ],
)
def test_arguments_of_the_reference_are_understood(arguments, fields):
    config = get_converter("itransformer").config(arguments)
    assert {name: getattr(config, name) for name in fields} == fields


def test_projection_of_time_series_library_is_the_same_head():
    state, arguments = golden()
    renamed = {name.replace("projector.", "projection."): tensor for name, tensor in state.items()}
    ours = convert_checkpoint("itransformer", renamed, {**arguments, "task_name": "long_term_forecast"})
    assert torch.equal(ours.head.weight, state["projector.weight"])


def test_checkpoint_saved_under_data_parallel_converts():
    state, arguments = golden()
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    ours, expected = (convert_checkpoint("itransformer", weights, arguments) for weights in (wrapped, state))
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())


@pytest.mark.parametrize("arguments", [{"sequence_length": 96}, {"task_name": "segmentation"}])
def test_unknown_arguments_are_refused_with_the_known_ones(arguments):
    with pytest.raises(ValueError, match=r"seq_len|imputation"):
        get_converter("itransformer").config(arguments)


def test_checkpoint_that_does_not_fit_lists_every_tensor():
    state, arguments = golden()
    state["stray"] = torch.zeros(1)
    del state["encoder.norm.bias"]
    with pytest.raises(ConversionError, match=r"(?s)left over: stray.*missing: model\.layernorm\.bias"):
        convert_checkpoint("itransformer", state, arguments)


# --- the experiments


def test_missing_data_says_what_to_pass(tmp_path):
    run = Run("itransformer", tmp_path, {"data": "nowhere.csv", "horizon": 96, "epochs": 1})
    with pytest.raises(MissingData, match="--data "):
        experiments("itransformer")["etth1"].run(run)


def test_unpublished_horizon_is_refused(tmp_path):
    with pytest.raises(ValueError, match="96, 192, 336, 720"):
        experiments("itransformer")["etth1"].run(
            Run("itransformer", tmp_path, {"data": "", "horizon": 97, "epochs": 1})
        )


def test_demo_experiment_runs_and_leaves_other_files_of_the_card(tmp_path, monkeypatch):
    card = tmp_path / "card"
    card.mkdir()
    (card / "README.md").write_text("the card")
    monkeypatch.setattr(Run, "card", card)
    rows = experiments("itransformer")["demo"].run(Run("itransformer", tmp_path / "run", {"epochs": 1}))
    assert [row.metric for row in rows] == ["MSE", "MAE"]
    assert {path.name for path in card.iterdir()} == {"README.md", "config.json", "model.safetensors"}
