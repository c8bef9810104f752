"""Windows: what is cut is where it was, and comes back together."""

import pytest
import torch

from hf_ext.layers.window import (
    overlapping_windows,
    reflect_to_multiple,
    window_partition,
    window_reverse,
)


def feature_map(height, width, channels=3, batch=2):
    return torch.arange(batch * height * width * channels, dtype=torch.float32).view(batch, height, width, channels)


def test_reverse_undoes_partition():
    x = feature_map(8, 12)
    torch.testing.assert_close(window_reverse(window_partition(x, 4), 4), x, atol=0, rtol=0)


def test_a_window_is_that_part_of_the_map():
    x = feature_map(8, 12)
    assert torch.equal(window_partition(x, 4)[1, 1, 2].view(4, 4, 3), x[1, 4:8, 8:12])


def test_windows_may_be_longer_than_wide():
    x = feature_map(8, 12)
    windows = window_partition(x, (8, 3))
    assert torch.equal(windows[1, 0, 2].view(8, 3, 3), x[1, :, 6:9])
    assert torch.equal(window_reverse(windows, (8, 3)), x)


def test_overlapping_windows_are_unfolded_with_zeros_around():
    x = feature_map(8, 12)
    unfolded = torch.nn.functional.unfold(x.permute(0, 3, 1, 2), 6, stride=4, padding=1)  # (B, C * 36, windows)
    expected = unfolded.view(2, 3, 36, 2, 3).permute(0, 3, 4, 2, 1)
    assert torch.equal(overlapping_windows(x, 4, 6), expected)


def test_without_overlap_they_are_plain_windows():
    x = feature_map(8, 12)
    assert torch.equal(overlapping_windows(x, 4, 4), window_partition(x, 4))


@pytest.mark.parametrize("height,width", [(5, 7), (8, 8), (9, 16)])
def test_reflection_is_torchs(height, width):
    x = torch.rand(1, 2, height, width)
    expected = torch.nn.functional.pad(x, (0, -width % 8, 0, -height % 8), mode="reflect")
    assert torch.equal(reflect_to_multiple(x, 8), expected)


def test_reflection_goes_back_and_forth_where_the_image_is_shorter_than_the_padding():
    x = torch.tensor([[[[0.0, 1.0, 2.0]]]])
    assert reflect_to_multiple(x, 8)[0, 0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]


def test_one_pixel_is_repeated():
    assert torch.equal(reflect_to_multiple(torch.full((1, 3, 1, 1), 0.5), 4), torch.full((1, 3, 4, 4), 0.5))
