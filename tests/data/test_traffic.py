"""Traffic: windows that respect midnight, files, and roads whose far ends depend on each other."""

import numpy as np
import pytest
import torch

from hf_ext.data.traffic import (
    PEMSD7M_DAYS,
    STEPS_PER_DAY,
    TrafficWindows,
    pemsd7m,
    persistence,
    read_matrix,
    read_traffic,
    split_days,
    synthetic_roads,
)
from hf_ext.reproductions import MissingData
from hf_ext.reproductions.traffic import PEMSD7M, horizon_errors, read_pemsd7m


def test_windows_stay_inside_a_day():
    windows = TrafficWindows(np.arange(20.0)[:, None], 3, 2, steps_per_day=10)
    assert len(windows) == 12
    for window in windows:
        rows = torch.cat(list(window.values())).flatten()
        assert rows[0] // 10 == rows[-1] // 10
        assert rows.diff().tolist() == [1] * 4


def test_stride_leaves_windows_out():
    windows = TrafficWindows(np.arange(20.0)[:, None], 3, 2, steps_per_day=10, stride=4)
    assert [window["past_values"][0].item() for window in windows] == [0, 4, 10, 14]


def test_splits_follow_each_other():
    parts = split_days(np.arange(30.0)[:, None], 2, 1, (10, 8, 12))
    assert [part.values[0].item() for part in parts] == [0, 10, 18]
    assert [len(part.values) for part in parts] == [10, 8, 12]


@pytest.mark.parametrize(("rows", "day"), [(11, 10), (0, 10), (10, 4)])
def test_rows_that_make_no_window_are_refused(rows, day):
    with pytest.raises(ValueError, match="rows are"):
        TrafficWindows(np.zeros((rows, 2)), 3, 2, steps_per_day=day)


def test_same_seed_same_roads():
    first, again, other = (synthetic_roads(num_sensors=8, steps=50, num_gateways=2, seed=seed) for seed in (1, 1, 2))
    assert first.speeds.equals(again.speeds)
    assert not first.speeds.equals(other.speeds)


def test_only_neighbours_of_the_ring_are_linked():
    links = synthetic_roads(num_sensors=9, steps=50, num_gateways=3).adjacency > 0
    assert links.sum(1).tolist() == [2] * 9
    assert links.roll((1, 1), (0, 1)).equal(links)


def test_a_district_shows_now_what_entered_opposite_before():
    delay = 16
    speeds = synthetic_roads(noise=0.0, delay=delay).speeds.to_numpy()
    gateway, inside_opposite, inside_own = speeds[:, 0], speeds[:, 22], speeds[:, 2]

    def correlation(later):
        return np.corrcoef(gateway[: -delay - 3], later[delay + 3 :])[0, 1]

    assert correlation(inside_opposite) > 0.5
    assert abs(correlation(inside_own)) < 0.2


@pytest.mark.parametrize("fields", [{"num_sensors": 2}, {"num_gateways": 0}, {"num_gateways": 41}, {"delay": 5000}])
def test_roads_that_cannot_be_are_refused(fields):
    with pytest.raises(ValueError, match="synthetic_roads"):
        synthetic_roads(**fields)


def test_files_are_read_and_fit_each_other(tmp_path):
    np.savetxt(tmp_path / "v.csv", np.arange(6.0).reshape(3, 2), delimiter=",")
    np.savetxt(tmp_path / "w.csv", [[0, 1500], [1500, 0]], delimiter=",")
    traffic = read_traffic(tmp_path / "v.csv", tmp_path / "w.csv")
    assert traffic.speeds.shape == (3, 2)
    assert traffic.adjacency[0, 1] > 0.5
    np.savetxt(tmp_path / "w.csv", np.zeros((3, 3)), delimiter=",")
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        read_traffic(tmp_path / "v.csv", tmp_path / "w.csv")


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "1,nan\n", "1,2\n3\n"])
def test_files_of_other_things_are_refused(tmp_path, text):
    (tmp_path / "v.csv").write_text(text)
    with pytest.raises(ValueError, match=r"v\.csv"):
        read_matrix(tmp_path / "v.csv")


def test_missing_data_says_where_to_get_it():
    with pytest.raises(MissingData, match="wubin5/STTN"):
        read_pemsd7m("no/such/folder")


def test_last_value_has_the_errors_that_are_known_for_it():
    try:
        traffic = read_pemsd7m(PEMSD7M)
    except MissingData as missing:
        pytest.skip(str(missing))
    days = tuple(STEPS_PER_DAY * number for number in PEMSD7M_DAYS)
    values, _, std = traffic.standardized(days[0])
    test = split_days(values, 12, 9, days, steps_per_day=STEPS_PER_DAY)[-1]
    naive = persistence(test)
    errors = [round(horizon_errors(naive, test, steps - 1, std)[0], 2) for steps in (3, 6, 9)]
    assert errors == [3.24, 4.45, 5.33]


def test_another_file_in_place_of_pemsd7m_is_noticed(tmp_path):
    np.savetxt(tmp_path / "V_25.csv", np.zeros((5, 2)), delimiter=",")
    np.savetxt(tmp_path / "W_25.csv", np.zeros((2, 2)), delimiter=",")
    with pytest.raises(ValueError, match="another file"):
        pemsd7m(tmp_path)
