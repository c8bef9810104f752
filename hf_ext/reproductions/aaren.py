"""Aaren: exactness, sizes, a stream of 10,000 steps beside a Transformer's, forecasts and classes beside a Transformer of the same size.

Series are sums of three sine waves of random phase and strength with noise; a forecast of the next 24 steps is held against the noiseless
future. Classes are the periods of single waves under noise of twice their strength.
"""

from __future__ import annotations

import math
import time

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_ext.files import replaced_files
from hf_ext.models.aaren import AarenConfig, AarenForPrediction, AarenForTimeSeriesClassification, AarenModel
from hf_ext.ops.prefix_scan_attention import prefix_softmax_attention, reference

from . import Experiment, Row, Run

CONTEXT, HORIZON = 96, 24
BATCH = 32
PERIODS = (8.0, 12.0, 24.0)
SIZES = {"num_input_channels": 1, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "dropout": 0.0}


def waves(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy histories (count, CONTEXT, 1) and noiseless futures (count, HORIZON, 1)."""
    generator = torch.Generator().manual_seed(seed)
    phase, strength = torch.rand(2, count, 1, len(PERIODS), generator=generator)
    angles = 2 * math.pi * (torch.arange(CONTEXT + HORIZON)[:, None] / torch.tensor(PERIODS) + phase)
    series = (angles.sin() * (0.5 + strength)).sum(-1, keepdim=True)
    noise = 0.2 * torch.randn(count, CONTEXT, 1, generator=generator)
    return series[:, :CONTEXT] + noise, series[:, CONTEXT:]


def hidden_waves(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Waves under noise (count, CONTEXT, 1) and which of `PERIODS` each has."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(PERIODS), (count,), generator=generator)
    angles = 2 * math.pi * torch.arange(CONTEXT) / torch.tensor(PERIODS)[labels, None]
    return (angles.sin() + 1.5 * torch.randn(count, CONTEXT, generator=generator)).unsqueeze(-1), labels


class Attending(nn.Module):
    """Causal self-attention with a query per token, in the place of an Aaren layer's attention."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention

    def forward(self, query, hidden_states, attention_mask=None, past_key_values=None) -> torch.Tensor:
        layers = (self.attention.q_proj, self.attention.k_proj, self.attention.v_proj)
        q, k, v = (
            layer(hidden_states).unflatten(-1, (-1, self.attention.head_dim)).transpose(1, 2) for layer in layers
        )
        o = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.attention.o_proj(o.transpose(1, 2).flatten(2))


def as_transformer(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with the tokens as queries: a causal Transformer, one unused vector per layer aside."""
    for layer in model.model.layers:
        layer.self_attn = Attending(layer.self_attn)
    return model


def learn(run: Run, name: str, model: PreTrainedModel, **columns: torch.Tensor) -> PreTrainedModel:
    from .training import TensorDataset, train

    steps = int(run.options["steps"])
    return train(
        Run(run.slug, run.folder / name, run.options),
        model,
        TensorDataset(**columns),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=float(run.options["learning_rate"]),
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        max_grad_norm=1.0,
    )


def forecaster(change=lambda model: model) -> AarenForPrediction:
    torch.manual_seed(0)
    return change(AarenForPrediction(AarenConfig(context_length=CONTEXT, prediction_length=HORIZON, **SIZES)))


@torch.no_grad()
def forecast_error(model: AarenForPrediction) -> float:
    past, future = waves(1024, seed=2)
    return (model(past).prediction_outputs - future).square().mean().item()


def learn_forecasts(run: Run, name: str, model: AarenForPrediction) -> AarenForPrediction:
    past, future = waves(BATCH * int(run.options["steps"]), seed=1)
    return learn(run, name, model, past_values=past, future_values=future)


def tasks(run: Run) -> list[Row]:
    """Forecasting and classification, Aaren beside a Transformer with the same layers, steps and data."""
    rows, steps = [], int(run.options["steps"])
    series, labels = hidden_waves(BATCH * steps, seed=1)
    test_series, test_labels = hidden_waves(1024, seed=2)
    for name, change in (("Aaren", lambda model: model), ("Transformer", as_transformer)):
        model = learn_forecasts(run, f"forecast-{name}", forecaster(change))
        variance = waves(1024, seed=2)[1].var().item()
        rows.append(
            Row(f"forecast of {HORIZON} steps, MSE, {name}", forecast_error(model), note=f"variance {variance:.3f}")
        )
    for name, change in (("Aaren", lambda model: model), ("Transformer", as_transformer)):
        torch.manual_seed(0)
        config = AarenConfig(context_length=CONTEXT, num_labels=len(PERIODS), **SIZES)
        model = change(AarenForTimeSeriesClassification(config))
        learn(run, f"classify-{name}", model, past_values=series, labels=labels)
        with torch.no_grad():
            right = (model(test_series).logits.argmax(-1) == test_labels).float().mean().item()
        rows.append(Row(f"period of a wave in noise, accuracy, {name}", right, note=f"{len(PERIODS)} classes"))
    return rows


def exactness(run: Run) -> list[Row]:
    """Largest error of the outputs in float32 against the loop in float64, by the spread of scores, over lengths."""
    rows = []
    for strength in (1, 30, 300):
        errors, spread = {}, 0.0
        for length in (1, 63, 64, 65, 1000):
            generator = torch.Generator().manual_seed(length)
            k, v = torch.randn(2, 2, length, 4, 32, generator=generator)
            q = torch.randn(4, 32, generator=generator) * strength
            expected, _ = reference(q.double(), k.double(), v.double())
            errors[length] = (prefix_softmax_attention(q, k, v)[0] - expected).abs().max().item()
            scores = torch.einsum("hd,bthd->bth", q, k) * 32**-0.5
            spread = max(spread, (scores.max() - scores.min()).item())
        note = f"scores spread over {spread:.0f}; " + ", ".join(f"{n}: {error:.1e}" for n, error in errors.items())
        rows.append(Row(f"largest error, query times {strength}", max(errors.values()), note=note))
    return rows


def sizes(run: Run) -> list[Row]:
    with torch.device("meta"):
        ours = AarenModel(AarenConfig.from_preset("aaren-block")).num_parameters()
        theirs = sum(p.numel() for p in nn.TransformerEncoderLayer(512, 8, 2048).parameters())
    return [
        Row("parameters, Aaren block", ours, "3,152,896"),
        Row("parameters, Transformer layer", theirs, "3,152,384"),
    ]


@torch.no_grad()
def stream(run: Run) -> list[Row]:
    """One token at a time up to position 10,000: milliseconds per step and numbers kept, early and late."""
    torch.manual_seed(0)
    model, cache, seconds, kept = AarenModel(AarenConfig(num_input_channels=1)).eval(), None, [], {}
    for position, token in enumerate(torch.randn(int(run.options["positions"]), 1, 1), 1):
        start = time.perf_counter()
        cache = model.update(token, cache).past_key_values
        seconds.append(time.perf_counter() - start)
        kept[position] = sum(layer.recurrent_states[0].numel() for layer in cache.layers)
    early, late = (torch.tensor(part).median().item() * 1e3 for part in (seconds[50:1050], seconds[-1000:]))
    elapsed = torch.tensor(seconds, dtype=torch.float64).cumsum(0)
    slope = math.log(elapsed[-1] / elapsed[len(elapsed) // 10]) / math.log(10)
    return [
        Row("milliseconds per step, positions 50 to 1,050", early, note="median"),
        Row(f"milliseconds per step, the last 1,000 of {len(seconds):,}", late, note="median"),
        Row("slope of cumulative time, log-log", slope, "1 (attention with a cache: 2)"),
        Row("numbers kept at the first step", kept[1], "d + 2 heads per layer"),
        Row("numbers kept at the last step", kept[len(seconds)], "d + 2 heads per layer"),
    ]


def demo(run: Run) -> list[Row]:
    """Trains the forecaster of the card and saves it there."""
    model = learn_forecasts(run, "forecast-Aaren", forecaster())
    with replaced_files(run.card) as folder:
        model.save_pretrained(folder)
    dataset = f"three noisy sine waves, {CONTEXT} -> {HORIZON} steps"
    return [Row("MSE", forecast_error(model), "", dataset, "mse", f"{model.num_parameters():,} parameters")]


OPTIONS = {"steps": (600, "optimizer steps of 32 series"), "learning_rate": (2e-3, "peak learning rate")}
EXPERIMENTS = {
    "tasks": Experiment("Forecasting and classification beside a Transformer of the same size", tasks, 3, OPTIONS),
    "stream": Experiment(
        "A stream up to position 10,000", stream, 0.3, {"positions": (10_000, "steps of the stream, 2,000 at least")}
    ),
    "exactness": Experiment("The op in float32 against the token loop in float64", exactness, 0.2),
    "sizes": Experiment("Parameters of a block", sizes, 0.1),
    "demo": Experiment("The small forecaster that the card ships", demo, 1, OPTIONS),
}
