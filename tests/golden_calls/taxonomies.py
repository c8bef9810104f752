"""How many leaves of a taxonomy the techniques cover."""

from __future__ import annotations

from typing import Any

import torch

from hf_ext.techniques import find


def covered(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    leaves = [f"{category}/{leaf}" for category, names in case["arguments"]["leaves"].items() for leaf in names]
    found = [leaf for leaf in leaves if find(survey=case["method"], leaf=leaf)]
    return {"num_leaves": torch.tensor(len(found))}
