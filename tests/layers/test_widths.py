"""Widths are rounded as MobileNet does."""

import pytest

from hf_ext.layers.widths import make_divisible


@pytest.mark.parametrize(("width", "expected"), [(192, 192), (10, 32), (47, 64), (76.8, 96), (36, 64)])
def test_make_divisible_never_loses_a_tenth(width, expected):
    assert make_divisible(width, 32) == expected
