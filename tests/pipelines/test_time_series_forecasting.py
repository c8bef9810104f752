"""`pipeline("time-series-forecasting")`: what goes in, what comes out, and what is refused."""

from functools import wraps

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import (
    PatchTSMixerConfig,
    PatchTSMixerForPrediction,
    PatchTSTConfig,
    PatchTSTForPrediction,
    TimesFm2_5Config,
    TimesFm2_5ModelForPrediction,
    TimesFmConfig,
    TimesFmModelForPrediction,
    ViTConfig,
    ViTModel,
    pipeline,
)

from hf_ext.catalog import METHODS
from hf_ext.data.time_series import (
    CLIMATE_BORDERS,
    CLIMATE_SEASON,
    Standardization,
    calendar_features,
    climate,
    seasonal_naive,
)
from hf_ext.layers.graph import adjacency_from_distances
from hf_ext.models.itransformer import ITransformerConfig, ITransformerForPrediction, ITransformerModel
from hf_ext.models.sttn import STTNConfig, STTNForPrediction
from hf_ext.models.virtual_nodes import VirtualNodesConfig, VirtualNodeSTGCNForPrediction
from hf_ext.pipelines.time_series_forecasting import adjacency_plot

TASK = "time-series-forecasting"
SIZES = {"context_length": 24, "prediction_length": 6, "num_attention_heads": 2}


def forecaster(**fields):
    torch.manual_seed(0)
    model = ITransformerForPrediction(ITransformerConfig(**{**SIZES, "hidden_size": 16, **fields}))
    return pipeline(TASK, model=model.eval(), device="cpu")


def hourly(rows=30):
    values = np.random.default_rng(0).normal(size=(rows, 2)).cumsum(0) + [10, -5]
    return pd.DataFrame(
        values, index=pd.date_range("2024-02-28 20:00", periods=rows, freq="h", name="time"), columns=["a", "b"]
    )


@pytest.fixture
def seen(monkeypatch):
    """What the model was called with."""
    calls = []
    forward = ITransformerForPrediction.forward

    @wraps(forward)
    def spy(self, **inputs):
        calls.append(inputs)
        return forward(self, **inputs)

    monkeypatch.setattr(ITransformerForPrediction, "forward", spy)
    return calls


# --- in and out


@pytest.mark.parametrize(
    ("frequency", "next_stamp"),
    [
        ("h", "2020-01-02 06:00"),
        ("D", "2020-01-31"),
        ("MS", "2022-07-01"),
        ("W-SUN", "2020-08-02"),
        ("QE", "2027-09-30"),
    ],
)
def test_forecast_continues_the_stamps(frequency, next_stamp):
    frame = hourly().set_axis(pd.date_range("2020-01-01", periods=30, freq=frequency))
    forecast = forecaster()(frame)
    assert list(forecast.columns) == ["a", "b"]
    assert forecast.index[0] == pd.Timestamp(next_stamp)
    assert forecast.index.equals(pd.date_range(forecast.index[0], periods=6, freq=frequency))


def test_csv_dict_and_frame_agree(tmp_path):
    frame, pipe = hourly(), forecaster()
    frame.to_csv(tmp_path / "series.csv")
    columns = {"time": [str(stamp) for stamp in frame.index], **{name: frame[name].tolist() for name in frame}}
    expected = pipe(frame)
    pd.testing.assert_frame_equal(pipe(columns), expected, check_freq=False)
    pd.testing.assert_frame_equal(pipe(str(tmp_path / "series.csv")), expected, check_freq=False)


def test_array_in_array_out():
    frame, pipe = hourly(), forecaster()
    np.testing.assert_allclose(pipe(frame.to_numpy()), pipe(frame).to_numpy(), rtol=1e-6)


def test_flat_array_in_flat_array_out():
    assert forecaster()(hourly()["a"].to_numpy()).shape == (6,)


def test_numbered_rows_are_numbered_on():
    forecast = forecaster()({"year": range(1950, 1980), "a": np.arange(30.0)}, time_column="year")
    assert forecast.index.tolist() == [1980, 1981, 1982, 1983, 1984, 1985]


def test_shorter_forecast_is_the_beginning_of_the_whole():
    pipe = forecaster()
    pd.testing.assert_frame_equal(pipe(hourly(), prediction_length=2), pipe(hourly())[:2])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_list_gives_the_forecasts_one_by_one(batch_size):
    frames, pipe = [hourly(30), hourly(31), hourly(32)], forecaster()
    forecasts = pipe(frames, batch_size=batch_size)
    assert len(forecasts) == 3
    for frame, forecast in zip(frames, forecasts):
        pd.testing.assert_frame_equal(forecast, pipe(frame), rtol=1e-5)


def test_only_the_last_context_is_read():
    pipe, frame = forecaster(channel_means=[0.0, 0.0], channel_stds=[1.0, 1.0]), hourly(60)
    pd.testing.assert_frame_equal(pipe(frame), pipe(frame[-24:]))


def test_saved_model_is_found_by_task(tmp_path):
    pipe = forecaster()
    pipe.save_pretrained(tmp_path)
    pd.testing.assert_frame_equal(pipeline(TASK, model=str(tmp_path), device="cpu")(hourly()), pipe(hourly()))


# --- what the model is told


def test_missing_values_are_told_and_do_not_matter(seen):
    frame = hourly()
    frame.iloc[-5, 0] = np.nan
    forecaster()(frame)
    mask = seen[0]["past_observed_mask"]
    assert (~mask).nonzero().tolist() == [[0, 19, 0]]
    assert seen[0]["past_values"].isfinite().all()


def test_left_out_steps_are_missing_values_where_the_frequency_is_given(seen):
    frame = hourly(32)
    forecast = forecaster()(frame.drop(frame.index[[20, 25]]), frequency="h")
    assert (~seen[0]["past_observed_mask"][0, :, 0]).sum() == 2
    assert forecast.index[0] == frame.index[-1] + pd.Timedelta(hours=1)


def test_calendar_features_are_made_where_the_model_knows_them(seen):
    frame = hourly()
    forecaster(num_time_features=4)(frame)
    expected = calendar_features(frame.index[-24:], 4)
    np.testing.assert_array_equal(seen[0]["past_time_features"][0], expected)


def test_stored_standardization_is_used(seen):
    frame = hourly()
    forecaster(channel_means=[10.0, -5.0], channel_stds=[2.0, 4.0])(frame)
    expected = (frame.to_numpy()[-24:] - [10, -5]) / [2, 4]
    np.testing.assert_allclose(seen[0]["past_values"][0], expected, rtol=1e-5)


def test_standardization_of_the_history_serves_where_none_fits(seen):
    frame = hourly()
    forecaster(channel_means=[0.0] * 3, channel_stds=[1.0] * 3)(frame)
    expected = Standardization.fit(frame.to_numpy()).apply(frame.to_numpy())[-24:]
    np.testing.assert_allclose(seen[0]["past_values"][0], expected, rtol=1e-5)


def test_units_do_not_matter():
    frame, pipe = hourly(), forecaster(scaling=None)
    np.testing.assert_allclose(pipe(frame * 1e-6), pipe(frame) * 1e-6, rtol=1e-4)


# --- upstream's models


def patchtst(**fields):
    torch.manual_seed(0)
    config = PatchTSTConfig(
        num_input_channels=2,
        patch_length=4,
        patch_stride=4,
        d_model=16,
        ffn_dim=16,
        num_hidden_layers=1,
        **SIZES,
        **fields,
    )
    return PatchTSTForPrediction(config)


@pytest.mark.parametrize("fields", [{}, {"loss": "nll", "num_parallel_samples": 5}], ids=["mse", "nll"])
def test_patchtst_forecasts(fields):
    forecast = pipeline(TASK, model=patchtst(**fields), device="cpu")(hourly())
    assert forecast.shape == (6, 2)
    assert np.isfinite(forecast.to_numpy()).all()


def patchtsmixer():
    torch.manual_seed(0)
    config = PatchTSMixerConfig(
        context_length=24,
        prediction_length=6,
        patch_length=4,
        patch_stride=4,
        num_input_channels=2,
        d_model=8,
        num_layers=1,
    )
    return PatchTSMixerForPrediction(config).eval()


def timesfm():
    torch.manual_seed(0)
    config = TimesFmConfig(
        context_length=32,
        horizon_length=6,
        patch_length=8,
        hidden_size=16,
        intermediate_size=16,
        head_dim=8,
        num_attention_heads=2,
        num_hidden_layers=1,
    )
    return TimesFmModelForPrediction(config).eval()


def timesfm2_5():
    torch.manual_seed(0)
    config = TimesFm2_5Config(
        context_length=32,
        horizon_length=6,
        output_quantile_len=6,
        patch_length=8,
        hidden_size=16,
        intermediate_size=16,
        head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=1,
    )
    return TimesFm2_5ModelForPrediction(config).eval()


@pytest.mark.parametrize("make", [patchtst, patchtsmixer, timesfm, timesfm2_5])
def test_upstream_model_is_loaded_from_a_folder(make, tmp_path):
    make().save_pretrained(tmp_path)
    forecast = pipeline(TASK, model=str(tmp_path), device="cpu")(hourly())
    assert forecast.shape == (6, 2) and np.isfinite(forecast.to_numpy()).all()


@pytest.mark.parametrize("make", [patchtsmixer, timesfm])
def test_upstream_model_forecasts_in_batches(make):
    pipe = pipeline(TASK, model=make(), device="cpu")
    pd.testing.assert_frame_equal(pipe([hourly(32), hourly(32)], batch_size=2)[1], pipe(hourly(32)), rtol=1e-4)


def test_timesfm_forecasts_each_column_alone():
    pipe = pipeline(TASK, model=timesfm(), device="cpu")
    pd.testing.assert_frame_equal(pipe(hourly())[["a"]], pipe(hourly()[["a"]]), rtol=1e-4)


def test_model_without_a_mask_refuses_missing_values():
    frame = hourly()
    frame.iloc[-5, 0] = np.nan
    with pytest.raises(
        ValueError, match="1 of the last 60 values are missing, and TimesFmModelForPrediction has no way"
    ):
        pipeline(TASK, model=timesfm(), device="cpu")(frame)


# --- a stream


def in_units_of(pipe, values):
    known = Standardization.fit(values)
    pipe.model.config.channel_means, pipe.model.config.channel_stds = known.mean.tolist(), known.std.tolist()
    return pipe


@pytest.mark.parametrize(
    "make", [forecaster, lambda: pipeline(TASK, model=timesfm(), device="cpu")], ids=["ours", "timesfm"]
)
def test_updated_forecast_is_that_of_the_longer_series_in_the_units_of_the_first(make):
    pipe, again, frame = make(), make(), hourly(60)
    pipe(frame[:40])
    pipe.update(frame[40:41])
    updated = pipe.update(frame[41:])
    pd.testing.assert_frame_equal(updated, in_units_of(again, frame.to_numpy()[:40])(frame), rtol=1e-5)


def test_stream_keeps_no_more_than_the_context():
    pipe, frame = forecaster(), hourly(60)
    pipe(frame[:30])
    for row in range(30, 60):
        pipe.update(frame[row : row + 1])
    assert len(pipe.stream.frame) == 24


@pytest.mark.parametrize("columns", [["a", "b"], "a"])
def test_array_is_updated_by_an_array(columns):
    pipe, values = forecaster(), hourly(60)[columns].to_numpy()
    pipe(values[:40])
    pipe.update(values[40:50])
    forecast = pipe.update(values[50:], prediction_length=3)
    again = in_units_of(forecaster(), values[:40].reshape(40, -1))(values, prediction_length=3)
    assert forecast.shape == again.shape
    np.testing.assert_allclose(forecast, again, rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (hourly(31)[29:], "must come after 2024-03-01 01:00:00"),
        (hourly(31)[["a"]][30:], r"columns \['a', 'b'\], got \['a'\]"),
        (hourly(31).to_numpy()[30:], "form of the series before"),
        (hourly(33)[32:], "evenly spaced|not on a grid|missing"),
    ],
)  # fmt: skip
def test_rows_that_do_not_follow_are_refused(rows, message):
    pipe = pipeline(TASK, model=timesfm(), device="cpu")
    pipe(hourly(30))
    with pytest.raises(ValueError, match=message):
        pipe.update(rows)


@pytest.mark.parametrize("before", [lambda pipe: None, lambda pipe: pipe([hourly(), hourly()])], ids=["none", "list"])
def test_update_without_a_single_series_before_is_refused(before):
    pipe = forecaster()
    before(pipe)
    with pytest.raises(ValueError, match="call the pipeline with one series first"):
        pipe.update(hourly())


# --- a graph


def roads(sensors=3, rows=30):
    values = 50 + np.random.default_rng(0).normal(size=(rows, sensors)).cumsum(0)
    index = pd.date_range("2024-02-28 20:00", periods=rows, freq="5min", name="time")
    return pd.DataFrame(values, index=index, columns=["x", "y", "z"][:sensors])


def sttn(**fields):
    torch.manual_seed(0)
    return STTNForPrediction(STTNConfig(num_nodes=3, context_length=12, prediction_length=3, **fields)).eval()


def stgcn(**fields):
    torch.manual_seed(0)
    config = VirtualNodesConfig(
        num_nodes=3, num_virtual_nodes=2, prediction_length=4, blocks=[[8, 8, 8], [8, 8, 8], [8, 8]], **fields
    )
    return VirtualNodeSTGCNForPrediction(config).eval()


LINKS = np.array([[0, 1.0, 0.2], [1, 0, 0.5], [0.2, 0.5, 0]])


@pytest.mark.parametrize("make", [sttn, stgcn, lambda: stgcn(num_input_channels=1)], ids=["sttn", "largest", "values"])
def test_forecast_on_a_road_network_is_per_sensor(make):
    pipe, frame = pipeline(TASK, model=make(), device="cpu"), roads()
    forecast = pipe(frame, adjacency=LINKS)
    assert list(forecast.columns) == ["x", "y", "z"] and np.isfinite(forecast.to_numpy()).all()
    assert forecast.index[0] == frame.index[-1] + pd.Timedelta(minutes=5)
    assert not np.array_equal(forecast, pipe(frame, adjacency=np.zeros((3, 3))))


def test_graph_may_be_a_named_table_a_file_or_distances(tmp_path):
    pipe, frame = pipeline(TASK, model=sttn(), device="cpu"), roads()
    expected = pipe(frame, adjacency=LINKS)
    names = ["z", "x", "y"]
    table = pd.DataFrame(LINKS, index=frame.columns, columns=frame.columns).loc[names, names]
    pd.testing.assert_frame_equal(pipe(frame, adjacency=table), expected)
    np.savetxt(tmp_path / "links.csv", LINKS, delimiter=",")
    pd.testing.assert_frame_equal(pipe(frame, adjacency=str(tmp_path / "links.csv")), expected)
    metres = np.array([[0, 1000.0, 2500], [1000, 0, 1500], [2500, 1500, 0]])
    weights = adjacency_from_distances(torch.tensor(metres)).numpy()
    pd.testing.assert_frame_equal(pipe(frame, distances=metres), pipe(frame, adjacency=weights))


def test_model_that_rolls_forecasts_any_number_of_steps():
    pipe = pipeline(TASK, model=sttn(), device="cpu")
    assert pipe(roads(), adjacency=LINKS, prediction_length=20).shape == (20, 3)


def test_learned_adjacency_comes_with_the_names_of_the_sensors(tmp_path):
    pipe = pipeline(TASK, model=stgcn(), device="cpu")
    answer = pipe(roads(), adjacency=LINKS, return_adjacency=True)
    assert list(answer["adjacency"].columns) == ["x", "y", "z", "virtual 1", "virtual 2"]
    np.testing.assert_allclose(answer["adjacency"].to_numpy()[:3, :3], LINKS, rtol=1e-6)
    pd.testing.assert_frame_equal(answer["forecast"], pipe(roads(), adjacency=LINKS))
    adjacency_plot(answer["adjacency"]).savefig(tmp_path / "adjacency.png")
    assert (tmp_path / "adjacency.png").stat().st_size > 1000


def test_networks_are_forecast_in_batches_and_streamed():
    pipe, frame = pipeline(TASK, model=stgcn(), device="cpu"), roads(rows=40)
    forecasts = pipe([frame, frame[:30]], batch_size=2, adjacency=LINKS)
    alone = pipe(frame[:30], adjacency=LINKS)
    pd.testing.assert_frame_equal(forecasts[1], alone, rtol=1e-4)
    assert pipe.update(frame[30:]).index.equals(forecasts[0].index)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (sttn, {"adjacency": np.eye(2)}, r"between the 3 columns, got \(2, 2\)"),
        (sttn, {"adjacency": -LINKS}, "0 or above"),
        (sttn, {"distances": np.full((3, 3), np.nan)}, "`distances` must hold finite numbers"),
        (sttn, {"adjacency": LINKS, "return_adjacency": True}, "learns no adjacency"),
        (sttn, {}, "adjacency"),
        (lambda: stgcn(num_input_channels=2), {"adjacency": LINKS}, "reads 2 values per sensor"),
    ],
)  # fmt: skip
def test_graph_that_does_not_fit_is_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(TASK, model=make(), device="cpu")(roads(), **options)


def test_model_without_a_graph_refuses_one():
    with pytest.raises(ValueError, match="no model of a graph"):
        forecaster()(hourly(), adjacency=np.eye(2))


# --- refusals


def irregular():
    frame = hourly()
    return frame.drop(frame.index[10])


def empty_column():
    return hourly().assign(b=np.nan)


@pytest.mark.parametrize(
    ("series", "options", "message"),
    [
        (hourly(23), {}, "reads 24 steps, the series has only 23"),
        ({"time": ["2020-01-01", "2020-01-02"], "a": [1, 2]}, {}, "2 time stamps are too few"),
        (irregular(), {}, r"evenly spaced.*2024-02-29 05:00:00 is followed by 2024-02-29 07:00:00"),
        (pd.concat([hourly(), hourly()]), {}, "occur once"),
        (empty_column(), {}, "No value in the last 24 steps of b"),
        (hourly(), {"prediction_length": 7}, "between 1 and the model's 6, got 7"),
        (hourly(), {"prediction_length": 0}, "between 1 and the model's 6, got 0"),
        (hourly(), {"frequency": "D"}, "not on a grid of 'D'"),
        (hourly(), {"frequency": "often"}, "pandas'.*'often'"),
        (hourly().to_numpy(), {"frequency": "h"}, "needs time stamps"),
        (hourly(), {"horizon": 3}, "no argument horizon, only prediction_length"),
        (np.zeros((2, 30, 2)), {}, r"\(2, 30, 2\)"),
        (np.full((30, 2), np.inf), {}, "finite"),
        ("nowhere.csv", {}, "no file 'nowhere.csv'"),
        ({"year": [*range(29), 99], "a": range(30)}, {"time_column": "year"}, "evenly spaced.*28 is followed by 99"),
    ],
)  # fmt: skip
def test_what_cannot_be_forecast_is_refused(series, options, message):
    with pytest.raises(ValueError, match=message):
        forecaster()(series, **options)


def test_model_with_calendar_features_refuses_an_array():
    with pytest.raises(ValueError, match="need time stamps"):
        forecaster(num_time_features=4)(hourly().to_numpy())


def test_batch_of_unequal_widths_is_refused():
    with pytest.raises(ValueError, match=r"equally many columns, got \[1, 2\]"):
        forecaster()([hourly(), hourly()[["a"]]], batch_size=2)


def test_model_without_the_interface_is_refused():
    with pytest.raises(ValueError, match="past_values"):
        pipeline(TASK, model=ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=0, num_attention_heads=1)))


def test_model_without_a_forecast_is_refused():
    with pytest.raises(ValueError, match="future_values"):
        pipeline(TASK, model=ITransformerModel(ITransformerConfig(**SIZES, hidden_size=16)), device="cpu")


# --- the shipped checkpoint, and the picture


def test_shipped_checkpoint_beats_the_seasonal_naive_forecast_on_what_it_never_saw():
    frame = climate()
    pipe = pipeline(TASK, model=str(METHODS["itransformer"].card), device="cpu")
    std = np.array(pipe.model.config.channel_stds)
    ours, naive = [], []
    for now in range(CLIMATE_BORDERS[1], CLIMATE_BORDERS[2] - CLIMATE_SEASON + 1, 6):
        past, future = frame[:now], frame[now : now + CLIMATE_SEASON].to_numpy()
        ours.append((pipe(past).to_numpy() - future) / std)
        naive.append((seasonal_naive(past.to_numpy(), CLIMATE_SEASON, CLIMATE_SEASON) - future) / std)
    assert np.square(ours).mean() < 0.7 * np.square(naive).mean()


def test_plot_has_a_panel_for_each_column(tmp_path):
    from hf_ext.pipelines.time_series_forecasting import forecast_plot

    history, truth = hourly(36)[:30], hourly(36)[30:]
    figure = forecast_plot(history, {"ours": forecaster()(history), "last day": truth}, truth)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    assert [line.get_label() for line in figure.axes[0].lines] == ["history", "truth", "ours", "last day"]
    figure.savefig(tmp_path / "forecast.png")
    assert (tmp_path / "forecast.png").stat().st_size > 1000
