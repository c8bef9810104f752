"""RMT: the sizes of table 1 of the paper, Manhattan self-attention against its definition, and how the cost of both its forms grows."""

from __future__ import annotations

from functools import partial
from time import perf_counter

import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_ext.models.rmt import RMTConfig, RMTForImageClassification
from hf_ext.models.rmt.modeling_rmt import RMTAttention, RMTDecomposedAttention, log_decays

from . import Experiment, Row, Run
from .counting import size_rows
from .fusing import fusion_rows, settle_statistics

PAPER = {"tiny": ("14 M", "2.5"), "small": ("27 M", "4.5"), "base": ("54 M", "9.7"), "large": ("95 M", "18.2")}
HEADS, HEAD_DIM = 4, 16


def measure(run: Run) -> list[Row]:
    torch.manual_seed(0)
    sizes = [
        row
        for name, (parameters, gmacs) in PAPER.items()
        for row in size_rows(f"RMT-{name[0].upper()}", partial(_build, name), 224, parameters, gmacs)
    ]
    return [
        *sizes,
        Row("whole attention: largest difference from a loop over pairs of positions, 8x6", _difference()),
        *_growth("whole", RMTAttention, "16 (N^2)"),
        *_growth("decomposed", RMTDecomposedAttention, "8 (N (H + W))"),
        *fusion_rows("RMT-T", settle_statistics(_build("tiny"), 96), 224),
    ]


def _build(name: str) -> RMTForImageClassification:
    model = RMTForImageClassification(RMTConfig.from_preset(f"rmt-{name}"))
    model.set_attn_implementation("eager")  # the counter sees its matrix products
    return model


def _attend(attention_class: type[RMTAttention], height: int, width: int) -> tuple[partial, tuple[torch.Tensor, ...]]:
    config = RMTConfig(hidden_sizes=[HEADS * HEAD_DIM] * 4, num_attention_heads=[HEADS] * 4)
    config._attn_implementation = "eager"
    inputs = tuple(torch.randn(1, height * width, HEADS, HEAD_DIM) for _ in range(3))
    biases = attention_class.make_biases(height, width, log_decays(HEADS, 2, 4, torch.device("cpu")))
    return partial(attention_class(config, 0).eval().attend, *inputs, (height, width), biases), inputs


@torch.no_grad()
def _difference() -> float:
    """Equation 3 with the decay inside the softmax, one pair of positions at a time, in float64."""
    height, width = 8, 6
    attend, inputs = _attend(RMTAttention, height, width)
    query, key, value = (x[0].double() for x in inputs)
    decays = log_decays(HEADS, 2, 4, torch.device("cpu")).double()
    places = [divmod(position, width) for position in range(height * width)]
    expected = torch.empty_like(value)
    for h in range(HEADS):
        for n, (y, x) in enumerate(places):
            logits = torch.stack(
                [
                    query[n, h] @ key[m, h] * HEAD_DIM**-0.5 + decays[h] * (abs(y - row) + abs(x - column))
                    for m, (row, column) in enumerate(places)
                ]
            )
            expected[n, h] = logits.softmax(0) @ value[:, h]
    return (attend()[0] - expected).abs().max().item()


@torch.no_grad()
def _growth(name: str, attention_class: type[RMTAttention], paper: str) -> list[Row]:
    """What doubling both edges of a map of 28x28 multiplies the cost by."""
    multiply_adds, seconds = [], []
    for edge in (28, 56):
        attend, _ = _attend(attention_class, edge, edge)
        with FlopCounterMode(display=False) as counter:
            attend()
        multiply_adds.append(counter.get_total_flops())
        seconds.append(min(_seconds(attend) for _ in range(7)))
    return [
        Row(f"{name} attention, multiply-adds at 56x56 over 28x28", multiply_adds[1] / multiply_adds[0], paper=paper),
        Row(f"{name} attention, time at 56x56 over 28x28", seconds[1] / seconds[0]),
        Row(f"{name} attention, milliseconds at 56x56, {HEADS} heads of {HEAD_DIM}", 1000 * seconds[1]),
    ]


def _seconds(function: partial) -> float:
    start = perf_counter()
    function()
    return perf_counter() - start


EXPERIMENTS = {
    "sizes": Experiment("Sizes, the definition of the attention, and the growth of its cost", measure, minutes=2)
}
