"""Every golden case in tests/goldens/ is reproduced by the port."""

import pytest

from tests.goldens import FOLDER, check_case, read_case

CASES = sorted(path.parent for path in FOLDER.glob("*/*/case.json"))


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_port_equals_reference(folder):
    check_case(read_case(folder))
