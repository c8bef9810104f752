import pytest
import torch

from hf_ext.layers.restoration import PixelShuffleUpsampler, image_mean, reconstruction_loss


def test_only_rgb_has_a_mean():
    assert image_mean(3).flatten().tolist() == pytest.approx([0.4488, 0.4371, 0.4040])
    assert image_mean(1).tolist() == [[[0.0]]]


@pytest.mark.parametrize("upscale", [1, 2, 3, 4, 8])
def test_the_upsampler_enlarges_by_its_factor(upscale):
    with torch.device("meta"):
        assert PixelShuffleUpsampler(5, 3, upscale)(torch.empty(2, 5, 4, 6)).shape == (2, 3, 4 * upscale, 6 * upscale)


def test_the_loss_is_the_mean_absolute_error():
    assert reconstruction_loss(torch.zeros(2, 3), torch.tensor([[1.0, -2, 0], [0, 0, 3]])) == 1


def test_there_is_no_loss_without_labels():
    assert reconstruction_loss(torch.zeros(2, 3), None) is None


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\), not \(2, 1\)"):
        reconstruction_loss(torch.zeros(2, 3), torch.zeros(2, 1))
