"""The passport finds models that are broken in the ways it is there for."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from tests.passport import CHECKS, Subject


class PlainConfig(PreTrainedConfig):
    model_type = "passport_test"
    width: int = 8


class Plain(PreTrainedModel):
    """A sound model of two layers; the broken ones change one thing."""

    config_class = PlainConfig
    main_input_name = "pixel_values"
    _no_split_modules: list[str] = []

    def __init__(self, config: PlainConfig):
        super().__init__(config)
        self.first = nn.Linear(4, config.width)
        self.second = nn.Linear(config.width, 3)
        self.post_init()

    def forward(self, pixel_values, labels=None, **kwargs):
        logits = self.second(self.first(pixel_values).tanh())
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class IgnoresParameter(Plain):
    def __init__(self, config):
        super().__init__(config)
        self.unused = nn.Parameter(torch.zeros(2))


class MixesBatch(Plain):
    def forward(self, pixel_values, labels=None, **kwargs):
        return super().forward(pixel_values - pixel_values.mean(0), labels)


class DropsWeightOnSave(Plain):
    def save_pretrained(self, folder, **kwargs):
        state = {name: tensor for name, tensor in self.state_dict().items() if name != "second.bias"}
        super().save_pretrained(folder, state_dict=state, **kwargs)


class NotDeterministic(Plain):
    def forward(self, pixel_values, labels=None, **kwargs):
        return super().forward(pixel_values + 0.1 * torch.randn_like(pixel_values), labels)


class BreaksGraph(Plain):
    def forward(self, pixel_values, labels=None, **kwargs):
        if pixel_values.sum().item() > 1e9:
            pixel_values = pixel_values / 2
        return super().forward(pixel_values, labels)


class OverflowsInHalf(Plain):
    def forward(self, pixel_values, labels=None, **kwargs):
        return super().forward((pixel_values * 1e25 * 1e25) / 1e25 / 1e25, labels)


def subject(model_class):
    inputs = {
        "pixel_values": torch.randn(2, 4, generator=torch.Generator().manual_seed(0)),
        "labels": torch.tensor([0, 2]),
    }
    return Subject(model_class, PlainConfig(), inputs)


@pytest.mark.parametrize(
    ("model_class", "check"),
    [
        (IgnoresParameter, "gradients"),
        (MixesBatch, "batch_independence"),
        (DropsWeightOnSave, "save_and_load"),
        (NotDeterministic, "determinism"),
        (BreaksGraph, "compile"),
        (OverflowsInHalf, "bfloat16"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_broken_model_is_found(model_class, check):
    CHECKS[check](subject(Plain))
    with pytest.raises(Exception):  # noqa: B017 - which error it is belongs to the check
        CHECKS[check](subject(model_class))


@pytest.mark.parametrize("check", ["config_round_trip", "lora", "export", "onnx", "distributed"])
def test_sound_model_passes(check):
    CHECKS[check](subject(Plain))
