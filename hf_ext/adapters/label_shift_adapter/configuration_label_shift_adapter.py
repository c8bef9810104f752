"""Configuration of the label shift adapter, "Label Shift Adapter for Test-Time Adaptation under Covariate and Label Shifts"
(arXiv 2308.08810)."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


@strict
class LabelShiftAdapterConfig(PreTrainedConfig):
    r"""
    A classifier and the small network that fits its last layer to a distribution of labels. Classes are the classifier's.

    Args:
        base_config: the classifier that is adapted, any that `AutoModelForImageClassification`, `...ForSequenceClassification` or
            `...ForAudioClassification` knows and that ends in a linear layer; ResNet-50 when left out.
        hidden_size: width of the adapter.
        predict_weight: whether the adapter also predicts a difference for each weight of the last layer; None: only where these are
            65536 or fewer.
        tau: strength of the distributions in the training loss; at 1 the adapted classifier estimates the probabilities under the
            distribution that it is told.
        momentum: share of the newest batch in the running estimate of the label distribution, at test time.
        exponents: training draws distributions proportional to the source's to the power of one of these; None: any in [-1, 1].

    Raises:
        ValueError: a field out of its range, or a base that does not choose one of several classes; named with what is allowed.
    """

    model_type = "label_shift_adapter"
    sub_configs_defaults = {"base_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet")}

    base_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 100
    predict_weight: bool | None = None
    tau: float | int = 1.0
    momentum: float | int = 0.1
    exponents: list[float | int] | tuple[float | int, ...] | None = (1.0, 0.0, -1.0)

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        base = self.base_config
        if base.num_labels < 2 or base.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"`base_config` must be of a classifier that chooses one of two or more classes, not of one with `num_labels` = "
                f"{base.num_labels} and `problem_type` = {base.problem_type!r}"
            )
        self.id2label, self.label2id = base.id2label, base.label2id
        if self.exponents is not None:
            self.exponents = list(self.exponents)
        if self.hidden_size < 1:
            raise ValueError(f"`hidden_size` must be 1 or more, not {self.hidden_size}")
        if not self.tau >= 0:
            raise ValueError(f"`tau` must be 0 or more, not {self.tau}")
        if not 0 < self.momentum <= 1:
            raise ValueError(f"`momentum` must be above 0 and at most 1, not {self.momentum}")
        if self.exponents is not None and (not self.exponents or not all(abs(e) < 100 for e in self.exponents)):
            raise ValueError(
                f"`exponents` must be None or one or more numbers between -100 and 100, not {self.exponents}"
            )


__all__ = ["LabelShiftAdapterConfig"]
