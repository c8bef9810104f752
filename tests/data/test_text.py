"""Text that ships with the dependencies."""

import pytest
import torch

from hf_ext.data.text import source_windows


def test_windows_of_source_code_are_balanced_and_the_same_again():
    ids, classes = source_windows(["sklearn", "pandas"], 64, 20)
    assert ids.shape == (40, 64) and ids.min() >= 1 and ids.max() <= 256
    assert classes.bincount().tolist() == [20, 20]
    assert all(map(torch.equal, (ids, classes), source_windows(["sklearn", "pandas"], 64, 20)))


def test_held_out_windows_are_others():
    training, held_out = (source_windows(["sklearn"], 64, 50, held_out=held_out)[0] for held_out in (False, True))
    assert not {tuple(row) for row in training.tolist()} & {tuple(row) for row in held_out.tolist()}


def test_a_package_without_long_files_is_refused():
    with pytest.raises(ValueError, match="No Python file of 'sklearn' has"):
        source_windows(["sklearn"], 10**8, 1)
