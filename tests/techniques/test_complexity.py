"""Operations and memory by length, and the roofline of a model's operations."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from hf_ext.techniques.complexity import FAMILIES, Device, complexity_report, roofline
from hf_ext.techniques.measure import flops

CONFIG = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)


def test_full_attention_grows_with_the_square_and_linear_attention_does_not():
    report = complexity_report(CONFIG, lengths=(1000, 2000))
    growth = {name: values[2000][0] / values[1000][0] for name, values in report.items()}
    assert growth["full"] == 4 and growth["linear"] == 2
    assert growth["routing"] == pytest.approx(2**1.5)


@pytest.mark.parametrize("tokens", [16, 32])
def test_full_attention_counts_what_torch_counts(tokens):
    model = BertModel(CONFIG, add_pooling_layer=False).eval()
    projections = CONFIG.num_hidden_layers * 2 * tokens * (4 * 32 * 32 + 2 * 32 * 48)
    counted = flops(model, {"input_ids": torch.randint(1, 50, (1, tokens))})
    assert counted == projections + complexity_report(CONFIG, (tokens,))["full"][tokens][0]


def test_a_model_is_as_good_as_its_configuration():
    assert complexity_report(BertModel(CONFIG)) == complexity_report(CONFIG)
    assert set(complexity_report(CONFIG)) == set(FAMILIES)


@pytest.mark.parametrize("settings", [{"windows": 3}, {"window": 0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="window"):
        complexity_report(CONFIG, **settings)


def test_roofline_of_a_linear_layer():
    layer, x = nn.Linear(8, 16, bias=False), torch.randn(4, 8)
    product = max(roofline(layer, x, Device("d", flops=1.0, bytes_per_second=1e12)), key=lambda o: o.flops)
    assert (product.flops, product.bytes, product.bound) == (
        2 * 4 * 8 * 16,
        4 * (8 * 16 + 4 * 8 + 4 * 16),
        "arithmetic",
    )
    assert product.seconds == product.flops


def test_roofline_bounds_by_memory_where_arithmetic_is_cheap():
    operations = roofline(nn.Sequential(nn.Linear(8, 8), nn.GELU()), torch.randn(4, 8), Device("d", 1e15, 1.0))
    assert {operation.bound for operation in operations} == {"memory"}


def test_a_device_without_speed_is_refused():
    with pytest.raises(ValueError, match="more than 0"):
        roofline(nn.Linear(2, 2), torch.randn(1, 2), Device("d", 0, 1))
