"""Loading the authors' networks."""

import sys

import pytest

from hf_ext.benchmarks.references import load_module


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "layers.py").write_text("WIDTH = 7\n")
    (tmp_path / "models" / "net.py").write_text(
        "from timm.models.layers import DropPath\nfrom other.registry import name\nfrom .layers import WIDTH\n"
    )
    return tmp_path


def test_a_module_finds_its_neighbours_and_the_stand_ins(checkout):
    module = load_module("someone/net", checkout, "models/net.py", {"other": {}, "other.registry": {"name": "x"}})
    assert (module.WIDTH, module.name) == (7, "x")
    assert module.DropPath(0.1).rate == 0.1


def test_stand_ins_are_gone_afterwards(checkout):
    before = set(sys.modules)
    load_module("someone/net", checkout, "models/net.py", {"other": {}, "other.registry": {"name": "x"}})
    left = {name for name in set(sys.modules) - before if not name.startswith("reference_")}
    assert not [name for name in left if name.split(".")[0] in ("timm", "other")]


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no checkout of someone/net: it has no net\.py"):
        load_module("someone/net", tmp_path, "net.py")
