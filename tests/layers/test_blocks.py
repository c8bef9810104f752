"""The small shared blocks: stochastic depth, positions, presets, image processing."""

import numpy as np
import pytest
import torch

from hf_ext.layers.drop_path import DropPath, linear_rates
from hf_ext.layers.image_processing import PilImageProcessor
from hf_ext.layers.positions import interpolate_positions
from hf_ext.models.hat import HatConfig


def test_drop_path_keeps_the_mean():
    torch.manual_seed(0)
    assert DropPath(0.3).train()(torch.ones(20000, 1)).mean().item() == pytest.approx(1, abs=0.02)


def test_drop_path_drops_whole_samples():
    torch.manual_seed(0)
    output = DropPath(0.5).train()(torch.ones(64, 5))
    assert set(output.unique().tolist()) == {0.0, 2.0}
    assert (output == output[:, :1]).all()


def test_drop_path_does_nothing_in_eval_mode():
    x = torch.rand(4, 3)
    assert torch.equal(DropPath(0.5).eval()(x), x)


def test_rates_grow_evenly():
    assert linear_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])


def test_positions_stay_the_same_at_their_own_size():
    positions = torch.rand(1, 16, 3)
    assert interpolate_positions(positions, (4, 4)) is positions


def test_interpolated_positions_keep_rows_and_columns_apart():
    rows = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 4, 1).reshape(1, 16, 1)
    resized = interpolate_positions(rows, (8, 2)).view(8, 2)
    assert torch.equal(resized[:, 0], resized[:, 1])
    assert (resized[1:, 0] > resized[:-1, 0]).all()


def test_positions_are_interpolated_linearly_on_request():
    positions = torch.arange(4.0).view(1, 4, 1)  # a grid of 2x2: 0, 1 above 2, 3
    resized = interpolate_positions(positions, (2, 4), "bilinear").view(2, 4)
    torch.testing.assert_close(resized, torch.tensor([[0, 0.25, 0.75, 1], [2, 2.25, 2.75, 3]]))


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'hat-xl'; there are: hat-s-x2"):
        HatConfig.from_preset("hat-xl")


def test_overrides_win_over_the_preset():
    assert HatConfig.from_preset("hat-x2", window_size=8).window_size == 8


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.full((4, 6, 3), np.nan, np.float32), "NaN"),
        (np.full((4, 6, 3), np.inf, np.float32), "NaN"),
    ],
)
def test_an_image_that_cannot_be_right_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        PilImageProcessor(do_rescale=True)(image, return_tensors="pt", input_data_format="channels_last")
