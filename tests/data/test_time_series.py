"""Calendar features, borders, windows and readers of time series."""

import numpy as np
import pandas as pd
import pytest
import torch

from hf_ext.data import time_series as ts

MOMENT = pd.DatetimeIndex(["2018-12-31 23:59:59"])  # a Monday, last moment of day 365, in week 1 of 2019


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, []),
        (1, [0.5]),
        (2, [0.5, -0.5]),
        (3, [-0.5, 0.5, 364 / 365 - 0.5]),
        (4, [0.5, -0.5, 0.5, 364 / 365 - 0.5]),
        (5, [0.5, 0.5, -0.5, 0.5, 364 / 365 - 0.5]),
        (6, [0.5, 0.5, 0.5, -0.5, 0.5, 364 / 365 - 0.5]),
    ],
)
def test_calendar_features_are_in_the_references_order(number, expected):
    np.testing.assert_allclose(ts.calendar_features(MOMENT, number)[0], expected, atol=1e-6)


@pytest.mark.parametrize("number", ts.CALENDAR_SETS)
def test_calendar_features_stay_within_a_half(number):
    features = ts.calendar_features(pd.date_range("1999-12-25", periods=3000, freq="7h13s"), number)
    assert features.shape == (3000, number)
    assert features.dtype == np.float32
    assert (np.abs(features) <= 0.5).all()


@pytest.mark.parametrize(
    ("frequency", "number"),
    [("YE", 0), ("QS", 1), ("MS", 1), ("W-SAT", 2), ("D", 3), ("B", 3), ("6h", 4), ("15min", 5), ("s", 6)],
)
def test_frequency_gives_the_references_number_of_features(frequency, number):
    assert ts.num_calendar_features(frequency) == number


@pytest.mark.parametrize("frequency", ["fortnight", "ms"])
def test_frequency_without_features_is_refused(frequency):
    with pytest.raises(ValueError, match=f"{frequency}.*only for YE"):
        ts.num_calendar_features(frequency)


def test_calendar_features_of_numbered_rows_are_refused():
    with pytest.raises(ValueError, match="DatetimeIndex"):
        ts.calendar_features(pd.RangeIndex(3), 4)


def test_unknown_size_of_calendar_set_is_refused():
    with pytest.raises(ValueError, match="set of 7"):
        ts.calendar_features(MOMENT, 7)


# --- borders and windows


def test_etth_windows_are_as_many_as_in_the_papers():
    counts = [len(part) for part in ts.split_windows(np.zeros((17420, 7)), ts.ETT_HOURLY_BORDERS, 96, 96)]
    assert counts == [8449, 2785, 2785]


def test_first_targets_are_at_the_borders():
    values = np.arange(100.0)[:, None]
    parts = ts.split_windows(values, (60, 80, 100), 12, 4)
    assert [part[0]["future_values"][0].item() for part in parts] == [12, 60, 80]
    assert [part[len(part) - 1]["future_values"][-1].item() for part in parts] == [59, 79, 99]


def test_shares_are_those_of_the_reference():
    assert ts.share_borders(1001) == (700, 801, 1001)
    assert ts.share_borders(1000, train=0.6) == (600, 800, 1000)


@pytest.mark.parametrize(("train", "test"), [(0.9, 0.2), (0.0, 0.2), (0.7, 0.0)])
def test_impossible_shares_are_refused(train, test):
    with pytest.raises(ValueError, match="Shares"):
        ts.share_borders(100, train, test)


def test_windows_carry_calendar_features_of_their_context():
    features = np.arange(10.0)[:, None]
    window = ts.ForecastWindows(np.zeros((10, 2)), 4, 2, features)[3]
    assert window["past_time_features"][:, 0].tolist() == [3, 4, 5, 6]


def test_windows_mark_missing_values():
    values = np.zeros((10, 2))
    values[4, 1] = np.nan
    window = ts.ForecastWindows(values, 4, 3)[0]
    assert window["past_observed_mask"].all()
    assert window["future_observed_mask"].tolist() == [[True, False], [True, True], [True, True]]
    assert window["future_values"].isfinite().all()


def test_windows_of_a_complete_series_have_no_masks():
    assert set(ts.ForecastWindows(np.zeros((10, 2)), 4, 3)[0]) == {"past_values", "future_values"}


def test_windows_end_where_the_series_does():
    windows = ts.ForecastWindows(np.zeros((10, 2)), 4, 3)
    assert len(list(windows)) == len(windows) == 4


def test_too_short_a_series_is_refused():
    with pytest.raises(ValueError, match=r"6 rows .* 4 \+ 3"):
        ts.ForecastWindows(np.zeros((6, 2)), 4, 3)


def test_standardization_is_undone():
    values = np.random.default_rng(0).normal(5, 3, (50, 3))
    values[:, 1] = 2.0
    values[3, 0] = np.nan
    standardization = ts.Standardization.fit(values)
    scaled = standardization.apply(values)
    np.testing.assert_allclose(np.nanmean(scaled, axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.nanstd(scaled, axis=0), [1, 0, 1], atol=1e-12)
    np.testing.assert_allclose(standardization.undo(scaled), values)


# --- the climate series and its baseline


def test_climate_is_two_monthly_series_with_five_gaps():
    frame = ts.climate()
    assert frame.shape == (526, 2)
    assert frame.index.freqstr == "MS"
    assert frame.isna().sum().to_dict() == {"sst": 0, "co2": 5}
    assert frame["sst"].between(15, 32).all()
    assert frame["co2"].dropna().between(310, 375).all()


def test_climate_borders_are_seventy_ten_twenty():
    assert ts.share_borders(len(ts.climate())) == ts.CLIMATE_BORDERS


def test_seasonal_naive_repeats_the_last_season():
    history = np.arange(9.0)[:, None]
    assert ts.seasonal_naive(history, 7, season=3)[:, 0].tolist() == [6, 7, 8, 6, 7, 8, 6]


def test_mean_season_has_the_level_of_the_last_one():
    season = np.array([1.0, -1.0, 0.0])
    history = np.concatenate([season, 3 * season + 5])[:, None]
    np.testing.assert_allclose(ts.seasonal_naive(history, 3, season=3, seasons=2)[:, 0], 2 * season + 5)


@pytest.mark.parametrize("seasons", [0, 4])
def test_seasonal_naive_refuses_a_history_that_is_too_short(seasons):
    with pytest.raises(ValueError, match="9"):
        ts.seasonal_naive(np.arange(9.0)[:, None], 3, season=3, seasons=seasons)


# --- reading


def test_csv_with_dates_first_is_indexed_by_them(tmp_path):
    path = tmp_path / "series.csv"
    path.write_text("date,a,b\n2020-01-02,3,4\n2020-01-01,1,\n")
    frame = ts.read_time_series(path)
    assert frame.index.tolist() == [pd.Timestamp("2020-01-01"), pd.Timestamp("2020-01-02")]
    assert frame["a"].tolist() == [1, 3]
    assert np.isnan(frame["b"].iloc[0])


def test_numbered_rows_stay_numbered():
    frame = ts.read_time_series({"a": [1.0, 2.0]})
    assert frame.index.tolist() == [0, 1]


def test_numeric_time_column_stays_numeric():
    frame = ts.read_time_series({"year": [1950, 1951], "a": [1.0, 2.0]}, time_column="year")
    assert frame.index.tolist() == [1950, 1951]
    assert list(frame.columns) == ["a"]


def test_named_time_column_is_taken():
    frame = ts.read_time_series({"a": [1.0, 2.0], "when": ["2020-01-01", "2020-02-01"]}, time_column="when")
    assert isinstance(frame.index, pd.DatetimeIndex)


def test_periods_become_stamps():
    frame = pd.DataFrame({"a": [1.0, 2.0]}, index=pd.period_range("2020Q1", periods=2, freq="Q"))
    assert ts.read_time_series(frame).index.tolist() == [pd.Timestamp("2020-01-01"), pd.Timestamp("2020-04-01")]


def test_source_frame_is_left_alone():
    source = pd.DataFrame({"date": ["2020-01-02", "2020-01-01"], "a": [1, 2]})
    copy = source.copy()
    ts.read_time_series(source)
    pd.testing.assert_frame_equal(source, copy)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "at least one row"),
        ({"date": ["2020-01-01"]}, "at least one row"),
        ({"a": [1.0], "b": [1.0, 2.0]}, "do not make a table"),
        ({"date": ["2020-01-01", "soon"], "a": [1.0, 2.0]}, "'date' does not hold time stamps"),
        ({"date": ["2020-01-01", None], "a": [1.0, 2.0]}, "1 empty time stamps"),
        ({"date": ["2020-01-01"] * 2, "a": [1.0, 2.0]}, "occur once.*2020-01-01"),
        ({"date": ["2020-01-01"], "a": ["high"]}, "numeric.*: a"),
        ({"a": [1.0, float("inf")]}, "finite.*: a"),
        ([1.0, 2.0], "not a list"),
        (3, "not a int"),
        ("missing.csv", "no file"),
    ],
)
def test_what_is_no_series_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        ts.read_time_series(source)


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n\x00\xff\xfe", b"a,b\n1,2\n1,2,3,4\n"], ids=["empty", "binary", "ragged"]
)
def test_file_that_is_no_csv_is_refused(tmp_path, content):
    path = tmp_path / "series.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as CSV"):
        ts.read_time_series(path)


def test_missing_time_column_lists_the_columns():
    with pytest.raises(ValueError, match=r"'when'.*there are a, b"):
        ts.read_time_series({"a": [1.0], "b": [2.0]}, time_column="when")


def test_short_file_is_no_ett(tmp_path):
    path = tmp_path / "ETTh1.csv"
    pd.DataFrame({"date": pd.date_range("2016-07-01", periods=5, freq="h"), "OT": range(5)}).to_csv(path, index=False)
    with pytest.raises(ValueError, match="5 rows"):
        ts.read_ett(path)


def test_windows_feed_a_dataloader():
    loader = torch.utils.data.DataLoader(ts.ForecastWindows(np.zeros((30, 2)), 4, 3), batch_size=8)
    assert next(iter(loader))["past_values"].shape == (8, 4, 2)
