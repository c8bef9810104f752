"""How GPHT is trained (arXiv 2402.16516, section 4.4): on a mixture of data sets, then its heads alone on the one in question.

Both go with a plain `Trainer`: `MixtureWindows` is a data set of forward arguments, and `freeze_all_but_heads` changes what gets a
gradient. With PEFT, LoRA on the queries and values is the usual alternative: `LoraConfig(target_modules=["q_proj", "v_proj"])`, or
the heads with it: `modules_to_save=["forecast_head"]`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch.utils.data import Dataset

from hf_ext.data.time_series import ForecastWindows
from hf_ext.models.gpht import GPHTModel
from hf_ext.models.gpht.modeling_gpht import GPHTPreTrainedModel


class MixtureWindows(Dataset):
    """The windows of several data sets, a single variate each: every (data set, window, variate) is one item, so large sets dominate.

    Args:
        parts: windows of each data set, standardised as they are; any number of variates, the same lengths.

    Raises:
        ValueError: no part, or parts of different lengths.
    """

    def __init__(self, parts: Sequence[ForecastWindows]):
        lengths = sorted({(part.context_length, part.prediction_length) for part in parts})
        if len(lengths) != 1:
            raise ValueError(
                f"A mixture needs one or more sets of windows of the same context and prediction length, got {lengths}"
            )
        self.parts = list(parts)
        self.masked = any(part.observed is not None for part in parts)
        self.ends = list(accumulate(len(part) * part.values.shape[1] for part in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`past_values` (context_length, 1), `future_values` (prediction_length, 1); masks where any part has missing values."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self.ends, index)
        part = self.parts[number]
        offset = index - (self.ends[number - 1] if number else 0)
        window, channel = divmod(offset, part.values.shape[1])
        item = {
            name: tensor[:, channel : channel + 1] for name, tensor in part[window].items() if "features" not in name
        }
        if self.masked and part.observed is None:
            for when in ("past", "future"):
                item[f"{when}_observed_mask"] = torch.ones_like(item[f"{when}_values"], dtype=torch.bool)
        return item


def freeze_all_but_heads(model: GPHTPreTrainedModel) -> GPHTPreTrainedModel:
    """The authors' fine-tuning, in place: only `forecast_head` of every stage keeps a gradient, 0.26 per cent of "gpht-base".

    Raises:
        ValueError: not a GPHT.
    """
    base = model if isinstance(model, GPHTModel) else getattr(model, "model", None)
    if not isinstance(base, GPHTModel):
        raise ValueError(f"`freeze_all_but_heads` takes a GPHT model, got a {type(model).__name__}")
    base.requires_grad_(False)
    for stage in base.stages:
        stage.forecast_head.requires_grad_(True)
    return model
