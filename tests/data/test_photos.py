"""Photographs and the pairs made from them."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ext.data.digits import handwritten_digits
from hf_ext.data.photos import NOT_TRAINED_ON, PHOTOGRAPHS, SuperResolutionCrops, degrade, luma, photograph, psnr_y


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_every_photograph_is_there_in_rgb(name):
    assert photograph(name).mode == "RGB"


def test_an_unknown_photograph_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'mona lisa'; there are: china"):
        photograph("mona lisa")


def test_what_is_measured_on_is_among_the_photographs():
    assert set(NOT_TRAINED_ON) < set(PHOTOGRAPHS)


def test_a_crop_and_its_label_show_the_same():
    item = SuperResolutionCrops([photograph("cat")], scale=2, size=24, length=8)[3]
    assert (item["pixel_values"].shape, item["labels"].shape) == ((3, 24, 24), (3, 48, 48))
    reduced = torch.nn.functional.avg_pool2d(item["labels"], 2)
    assert (reduced - item["pixel_values"]).abs().mean() < 0.02


def test_an_item_is_the_same_in_every_run():
    first, second = (SuperResolutionCrops([photograph("cat")], 2, 24, 8) for _ in range(2))
    assert torch.equal(first[5]["labels"], second[5]["labels"])
    assert not torch.equal(first[5]["labels"], first[6]["labels"])


def test_degraded_images_fit_together():
    low, high = degrade(photograph("cat").crop((0, 0, 101, 51)), 4)
    assert (low.size, high.size) == ((25, 12), (100, 48))


def test_luma_is_in_studio_range():
    assert luma(Image.new("RGB", (1, 1), "black"))[0, 0] == pytest.approx(16)
    assert luma(Image.new("RGB", (1, 1), "white"))[0, 0] == pytest.approx(235, abs=0.01)


def test_psnr_of_a_constant_difference():
    truth = Image.new("RGB", (9, 9), (100, 100, 100))
    shifted = Image.new("RGB", (9, 9), (110, 110, 110))
    step = 10 * (65.481 + 128.553 + 24.966) / 255
    assert psnr_y(shifted, truth, border=2) == pytest.approx(20 * np.log10(255 / step))


def test_psnr_refuses_images_of_different_sizes():
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(4, 4\)"):
        psnr_y(Image.new("RGB", (2, 2)), Image.new("RGB", (4, 4)))


def test_digits_held_out_are_not_trained_on():
    (train, _), (held_out, labels) = handwritten_digits()
    assert (len(train), len(held_out), len(labels)) == (1438, 359, 359)
    assert train[0].mode == "L"
    assert np.asarray(train[0]).max() > 200
